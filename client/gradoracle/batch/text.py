"""Texts of others, as files and terminals can have them."""

from __future__ import annotations

import re

# What a terminal would obey, and halves of surrogate pairs, which are no characters.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """The text without line breaks; U+FFFD stands for what is no character that can be seen."""
    return _UNSEEN.sub("\ufffd", " ".join(text.split()))


def whole(text: str) -> str:
    r"""The text with halves of surrogate pairs, which UTF-8 cannot say, spelled out: \ud800."""
    return text.encode(errors="backslashreplace").decode()

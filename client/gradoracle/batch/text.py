"""Texts of others, as files and terminals can have them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a terminal would obey, and halves of surrogate pairs, which are no characters.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """The text without line breaks; U+FFFD stands for what is no character that can be seen."""
    return _UNSEEN.sub("\ufffd", " ".join(text.split()))


def whole(text: str) -> str:
    r"""The text with halves of surrogate pairs, which UTF-8 cannot say, spelled out: \ud800."""
    return text.encode(errors="backslashreplace").decode()


def one_or_many(count: int, name: str) -> str:
    """A number of things: 1 case, 2 cases."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def sentences(parts: Iterable[str]) -> str:
    """Sentences as one, with semicolons between; where one of them has a full stop, it stands at the end."""
    found = [part.strip() for part in parts]
    stops = [part.endswith(".") and not part.endswith("..") for part in found]
    return "; ".join(part[:-1] if stop else part for part, stop in zip(found, stops, strict=True)) + "." * any(stops)

"""Lines of JSON, to and from bytes: with orjson, and with json where that is stricter than a line has to be."""

from __future__ import annotations

import json
from typing import Any

import orjson


def load(raw: bytes) -> Any:
    """What a line says. NaN and Infinity, which are no JSON, are read too. Raises ValueError or RecursionError."""
    try:
        return orjson.loads(raw)
    except ValueError:
        return json.loads(raw)  # which reads it, or tells better what is wrong


def dump(document: Any) -> bytes:
    """The line of a document, with its end.

    NaN and infinities are no JSON, and become null: who makes documents spells them otherwise before.
    """
    try:
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number of more than 64 bits, half a surrogate pair
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"

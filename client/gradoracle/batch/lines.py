"""Lines of JSON, to and from bytes: with orjson, and with json where that is stricter than a line has to be."""

from __future__ import annotations

import json
from typing import Any

import orjson

from gradoracle.batch.text import whole


def load(raw: bytes, *, strict: bool = False) -> Any:
    """What a line says. NaN and Infinity, which are no JSON, are read too.

    So are halves of surrogate pairs, which JSON can spell and UTF-8 cannot say, but not with `strict`. Raises
    ValueError or RecursionError.
    """
    try:
        return orjson.loads(raw)
    except ValueError:
        document = json.loads(raw)  # which reads it, or tells better what is wrong
    if strict:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"{whole(half)} is half a surrogate pair, and no character") from error
    return document


def dump(document: Any) -> bytes:
    """The line of a document, with its end.

    NaN and infinities are no JSON, and become null: who makes documents spells them otherwise before. Halves of
    surrogate pairs are spelled out, so that any reader takes the line.
    """
    try:
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number of more than 64 bits, half a surrogate pair
        return json.dumps(_whole(document), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _whole(nested: Any) -> Any:
    if isinstance(nested, str):
        return whole(nested)
    if isinstance(nested, dict):
        return {_whole(name): _whole(one) for name, one in nested.items()}
    return [_whole(one) for one in nested] if isinstance(nested, list | tuple) else nested

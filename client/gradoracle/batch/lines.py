"""Lines of JSON, to and from bytes: with orjson, and with json where that is stricter than a line has to be."""

from __future__ import annotations

import contextlib
import hashlib
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


_DIGITS = 16  # of a digest, in base 16


def digest(content: bytes) -> str:
    """A short name for what a case holds: another content has another one."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def canonical(document: Any) -> bytes:
    """A document as bytes, which are the same whatever the spaces and the order of keys in its line."""
    with contextlib.suppress(TypeError):  # a number of more than 64 bits
        found = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        if b"null" not in found:  # which may stand for NaN or an infinity
            return found
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _whole(nested: Any) -> Any:
    if isinstance(nested, str):
        return whole(nested)
    if isinstance(nested, dict):
        return {_whole(name): _whole(one) for name, one in nested.items()}
    return [_whole(one) for one in nested] if isinstance(nested, list | tuple) else nested

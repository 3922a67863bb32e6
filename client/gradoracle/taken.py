"""The data of large tensors taken out of an answer before protobuf reads it, which would copy them twice.

What is not as every library writes it is left to protobuf, as is what is small.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradoracle import wire
from gradoracle.tensors import ATTACHMENT, DATA, Bytes

LARGE = 64 * 1024
"""Bytes of a tensor's data from which on it is worth taking out."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class _OtherwiseError(Exception):
    """The message is not of the form that is known here."""


def taken(answer: bytes) -> tuple[bytes, list[Bytes]]:
    """An answer that is a list of tensors without the data of those that are large, and these, copied once; in the
    message their places are those of attachments. Nothing is taken out of what is not understood."""
    pieces: list[bytes] = []
    found: list[Bytes] = []
    done = 0
    try:
        for start, number, value, stop in _large(answer, 0, len(answer)):
            parts = _entry(answer, value, stop, len(found))
            if parts is not None:
                entry, (first, last) = parts
                pieces += [answer[done:start], wire.prefix(number, len(entry)), entry]
                found.append(np.frombuffer(answer, np.uint8, last - first, first).copy())
                done = stop
    except (_OtherwiseError, IndexError):
        return answer, []
    return (b"".join((*pieces, answer[done:])), found) if found else (answer, [])


def _entry(answer: bytes, start: int, end: int, attachment: int) -> tuple[bytes, tuple[int, int]] | None:
    """An element of a list between two places, names with a tensor, as it is without the data, and where they are."""
    for place, number, value, stop in _large(answer, start, end):
        for inner, field, first, last in _large(answer, value, stop):
            if field == DATA:
                tensor = answer[value:inner] + wire.number_field(ATTACHMENT, attachment) + answer[last:stop]
                entry = answer[start:place] + wire.prefix(number, len(tensor)) + tensor + answer[stop:end]
                return entry, (first, last)
    return None


def _large(message: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The large fields of bytes between two places: start, number, start of the contents, and their end."""
    while place < end:
        start = place
        tag, place = wire.varint_at(message, place)
        kind, value = tag & 7, place
        if kind == _VARINT:
            _, place = wire.varint_at(message, place)
        elif kind == _LENGTH:
            length, value = wire.varint_at(message, place)
            place = value + length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise _OtherwiseError
        if place > end:
            raise _OtherwiseError
        if kind == _LENGTH and place - value >= LARGE:
            yield start, tag >> 3, value, place

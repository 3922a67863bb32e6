"""Protobuf's wire format, as far as requests need it: a tensor's bytes join a message without being copied into one.

A message object copies what is put into it, and copies it again when it is serialized. Written by hand, a request is
one join of pieces, and a graph that is used again and again is serialized once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

Piece = bytes | memoryview
"""Bytes of a message under construction."""


def varint(value: int) -> bytes:
    """A whole number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_at(message: bytes, place: int) -> tuple[int, int]:
    """The whole number at a place, and where it ends. Of what is no message, anything."""
    value = 0
    for shift, byte in zip(range(0, 70, 7), message[place : place + 10], strict=False):
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, place


def number_field(number: int, value: int) -> bytes:
    """A field of a whole number that is not negative."""
    return varint(number << 3) + varint(value)


def double_field(number: int, value: float) -> bytes:
    """A field of a double."""
    return varint(number << 3 | 1) + struct.pack("<d", value)


def prefix(number: int, length: int) -> bytes:
    """What stands before the contents of a field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(length)


def bytes_field(number: int, contents: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return prefix(number, len(contents)) + contents


def size(pieces: Sequence[Piece]) -> int:
    """Bytes of the pieces together. A memoryview here is always of bytes, so that its length is its size."""
    return sum(map(len, pieces))

"""Protobuf's wire format: the fields of a message, found without parsing what is in them, and written without one.

Whatever protobuf's own parser accepts is read here as it reads it; what it refuses may be read as anything.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)

_GROUPS_DEEP = 100  # protobuf's own limit


class MalformedError(ValueError):
    """The bytes are no protobuf message."""


def fields(message: bytes | memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields between two places: number, wire type, value, end.

    The value of a VARINT is itself, of anything else the place where its contents start; they stop at the end.
    """
    while start < end:
        number, kind, value, start = field(message, start, end)
        yield number, kind, value, start


def field(message: bytes | memoryview, start: int, end: int) -> tuple[int, int, int, int]:
    """The field at a place before the end: number, wire type, value or place of the contents, end of the field."""
    tag = message[start]
    start += 1
    if tag > 0x7F:
        tag, start = read_varint(message, start - 1, end)
    number = tag >> 3
    if not 0 < number < 2**29:
        raise MalformedError(f"expected a field number from 1 to 536870911, got {number}")
    kind = tag & 7
    if kind == LENGTH:
        if start < end and (size := message[start]) <= 0x7F:
            start += 1
        else:
            size, start = read_varint(message, start, end)
        stop = start + size
        value = start
    elif kind == VARINT:
        value, stop = read_varint(message, start, end)
    elif kind in (FIXED64, FIXED32):
        value, stop = start, start + (8 if kind == FIXED64 else 4)
    elif kind == START_GROUP:
        value, stop = start, _group(message, number, start, end)
    else:
        raise MalformedError(f"expected a wire type that starts a field, got {kind}")
    if stop > end:
        raise MalformedError(f"expected field {number} to end by byte {end}, got {stop}")
    return number, kind, value, stop


def varints(message: bytes | memoryview, start: int, end: int) -> Iterator[int]:
    """The numbers of a packed field of them."""
    while start < end:
        value, start = read_varint(message, start, end)
        yield value


def varint(value: int) -> bytes:
    """A number from 0 to 2**64 - 1 as protobuf writes it."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def tagged(number: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(number << 3 | VARINT) + varint(value)


def headed(number: int, size: int) -> bytes:
    """What stands before the contents of a field of bytes or of a message."""
    return varint(number << 3 | LENGTH) + varint(size)


def _group(message: bytes | memoryview, number: int, start: int, end: int) -> int:
    """Where an (unknown) group ends whose first field is at `start`."""
    inside = [number]
    while inside:
        if len(inside) > _GROUPS_DEEP:
            raise MalformedError("groups nested too deep")
        tag, after = read_varint(message, start, end)
        if tag & 7 == START_GROUP:
            inside.append(tag >> 3)
            start = after
        elif tag & 7 == END_GROUP:
            if inside.pop() != tag >> 3:
                raise MalformedError(f"expected the end of another group than {tag >> 3}")
            start = after
        else:
            *_, start = field(message, start, end)
    return start


def read_varint(message: bytes | memoryview, start: int, end: int) -> tuple[int, int]:
    """The number at a place, and where it ends. Raises MalformedError where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise MalformedError("expected a number, got the end of the message")
        byte = message[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return value & 0xFFFF_FFFF_FFFF_FFFF, start
    raise MalformedError("expected a number of at most 10 bytes")

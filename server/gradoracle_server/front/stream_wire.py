"""The messages of Stream, read and written without parsing the requests and answers inside."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator, Sequence

from gradoracle_server import wire_format
from gradoracle_server.frames import METHODS, Attachments

DESCRIBE_SERVER = -1
"""Stands for the method that is not a worker's."""

STATUS_FIELD = 12  # of StreamAnswer

_IN_ORDER = (*METHODS[:-1], "DescribeServer", METHODS[-1])  # StreamCall's and StreamAnswer's fields from 3 on
_METHODS = {
    3 + place: METHODS.index(name) if name in METHODS else DESCRIBE_SERVER for place, name in enumerate(_IN_ORDER)
}
_FIELDS = {method: field for field, method in _METHODS.items()}
_TIMEOUT = 12  # StreamCall.timeout_seconds
_CALL_TAG, _ID_TAG, _TIMEOUT_TAG = 1 << 3 | wire_format.LENGTH, 1 << 3, _TIMEOUT << 3 | wire_format.FIXED64
_METHOD_TAGS = {number << 3 | wire_format.LENGTH: method for number, method in _METHODS.items()}
_CANCELLED_AT_MOST = 1024  # ids in one field: no more calls of a stream can be unanswered
_FIELDS_AT_MOST = 64  # of one call or chunk; protobuf lets fields come again and again, but nobody sends that many


@dataclasses.dataclass(slots=True)
class Call:
    """A StreamCall; `method` is None where it holds no request."""

    id: int
    attachments: int
    method: int | None
    request: bytes | memoryview
    timeout: float = 0.0  # seconds after its arrival; 0 for none


@dataclasses.dataclass(slots=True)
class Chunk:
    """A Chunk."""

    call_id: int
    attachment: int
    data: memoryview


@dataclasses.dataclass(slots=True)
class Cancelled:
    """Calls that nobody waits for any more."""

    ids: list[int]


@dataclasses.dataclass(slots=True)
class Answer:
    """A StreamAnswer to be. `parts` are its response's bytes, one after another."""

    id: int
    field: int
    parts: Sequence[bytes | memoryview]
    attachments: Attachments | None = None
    size: int = dataclasses.field(init=False)  # bytes of the parts

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.parts))

    @property
    def whole_size(self) -> int:
        """Bytes with the attachments."""
        return self.size + (0 if self.attachments is None else sum(length for _, length in self.attachments.spans))

    def close(self) -> None:
        """Gives the attachments back."""
        if self.attachments is not None:
            self.attachments.close()


def field_of(method: int) -> int:
    """The field of StreamAnswer that holds a method's response."""
    return _FIELDS[method]


def split(message: memoryview) -> Iterator[Call | Chunk | Cancelled]:
    """A StreamRequest's fields as they stand. Raises MalformedError."""
    for number, kind, start, end in wire_format.fields(message, 0, len(message)):
        if kind == wire_format.LENGTH and number == 1:
            yield _call(message, start, end)
        elif kind == wire_format.LENGTH and number == 2:
            yield _chunk(message, start, end)
        elif kind == wire_format.LENGTH and number == 3:
            yield Cancelled(_ids(message, start, end))
        elif kind == wire_format.VARINT and number == 3:
            yield Cancelled([start])


def lone_call(message: bytes) -> Call | None:
    """The call of a message that is nothing else, as clients write one that came with no chunks: its id, a timeout
    perhaps, and a request. None of any other, which is for `split` to read, as it reads these."""
    end = len(message)
    try:
        if message[0] != _CALL_TAG:
            return None
        length, place = wire_format.read_varint(message, 1, end)
        if place + length != end or message[place] != _ID_TAG:
            return None
        call_id, place = wire_format.read_varint(message, place + 1, end)
        timeout = 0.0
        if message[place] == _TIMEOUT_TAG:
            (timeout,) = struct.unpack_from("<d", message, place + 1)
            place += 9
        method = _METHOD_TAGS.get(message[place])
        length, place = wire_format.read_varint(message, place + 1, end)
    except (IndexError, struct.error, wire_format.MalformedError):
        return None
    return None if method is None or place + length != end else Call(call_id, 0, method, message[place:], timeout)


def _ids(message: memoryview, start: int, end: int) -> list[int]:
    found = list(itertools.islice(wire_format.varints(message, start, end), _CANCELLED_AT_MOST + 1))
    if len(found) > _CANCELLED_AT_MOST:
        raise wire_format.MalformedError(f"expected at most {_CANCELLED_AT_MOST} cancelled calls together, got more")
    return found


def _call(message: memoryview, start: int, end: int) -> Call:
    call = Call(0, 0, None, b"")
    pieces: list[memoryview] = []
    for number, kind, value, stop in _few(message, start, end):
        if kind == wire_format.VARINT and number == 1:
            call.id = value
        elif kind == wire_format.VARINT and number == 2:
            call.attachments = value & 0xFFFF_FFFF
        elif kind == wire_format.LENGTH and number in _METHODS:
            if call.method != _METHODS[number]:
                pieces.clear()
            call.method = _METHODS[number]
            pieces.append(message[value:stop])
        elif kind == wire_format.FIXED64 and number == _TIMEOUT:
            (call.timeout,) = struct.unpack_from("<d", message, value)
    if pieces:
        call.request = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return call


def _chunk(message: memoryview, start: int, end: int) -> Chunk:
    call_id = attachment = 0
    data = message[:0]
    for number, kind, value, stop in _few(message, start, end):
        if kind == wire_format.VARINT and number == 1:
            call_id = value
        elif kind == wire_format.VARINT and number == 2:
            attachment = value & 0xFFFF_FFFF
        elif kind == wire_format.LENGTH and number == 3:
            data = message[value:stop]
    return Chunk(call_id, attachment, data)


def _few(message: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    for count, field in enumerate(wire_format.fields(message, start, end)):
        if count == _FIELDS_AT_MOST:
            raise wire_format.MalformedError(f"expected at most {_FIELDS_AT_MOST} fields in a call or chunk, got more")
        yield field


def answer(made: Answer) -> list[bytes | memoryview]:
    """The field of StreamResponse that holds an answer, in parts."""
    head = wire_format.tagged(1, made.id)
    if made.attachments is not None:
        head += wire_format.tagged(2, len(made.attachments.spans))
    size = made.size
    head += wire_format.headed(made.field, size)
    return [wire_format.headed(1, len(head) + size) + head, *made.parts]


def chunk(call_id: int, attachment: int, data: bytes | memoryview, total: int) -> list[bytes | memoryview]:
    """The field of StreamResponse that holds a chunk, in parts. `total` is the length of its attachment."""
    head = (
        wire_format.tagged(1, call_id)
        + wire_format.tagged(2, attachment)
        + wire_format.tagged(4, total)
        + wire_format.headed(3, len(data))
    )
    return [wire_format.headed(2, len(head) + len(data)) + head, data]


def chunks(made: Answer, size: int) -> Iterator[list[bytes | memoryview]]:
    """An answer with its attachments in pieces of at most `size` bytes, each read when it is asked for."""
    assert made.attachments is not None  # noqa: S101 - who calls has looked
    for index, (start, length) in enumerate(made.attachments.spans):
        for offset in range(start, start + max(length, 1), size):
            data = made.attachments.read(offset, min(size, start + length - offset))
            yield chunk(made.id, index, data, length)
    yield answer(made)

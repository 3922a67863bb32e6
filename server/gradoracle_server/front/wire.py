"""Reading and writing protobuf's bytes without parsing messages.

The front needs one field of a request (the device) and the outline of a stream's messages. Both are found by walking
over top-level fields, which skips their contents: the cost does not grow with the tensors inside. Whatever protobuf's
own parser accepts is read here as it reads it; what it refuses may be read as anything, for the worker parses the whole
request and says what is wrong with it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gradoracle_server.wire_format import LENGTH, MalformedError, field, headed, tagged

DEVICE_FIELD = 3  # of every request
_DEVICE_TAG = DEVICE_FIELD << 3 | LENGTH
MEMORY_FIELD = 16  # of every request that has tensors
_SPANS_FIELD = 16  # of every response that has them
_DEVICE_TAG_BEGINS = (_DEVICE_TAG, _DEVICE_TAG | 0x80)  # the tag as one byte, or needlessly as several
_LOOKED_AT = 4096  # bytes; a look at each of more takes longer than a walk over the fields
_FIELDS_AT_ONCE = 4096  # about a millisecond

_TIMING_TAG = 15 << 3 | LENGTH
_TIMING = struct.Struct("<BB" + "Bd" * 7)
_TIMING_HEAD = (_TIMING_TAG, _TIMING.size - 2)


def names_no_device(message: bytes | memoryview) -> bool:
    """Whether it is plain at a glance that there is no device in a request: no byte in it could begin the field.

    Where this does not hold, `peek` tells.
    """
    short, long = _DEVICE_TAG_BEGINS
    return isinstance(message, bytes) and len(message) <= _LOOKED_AT and short not in message and long not in message


def peek(message: bytes | memoryview, start: int = 0, device: str = "") -> tuple[int, str]:
    """Looks for a request's device. Returns where it got to and the device so far.

    It is done when it got to the end of the message; it stops before that only in messages of thousands of fields, so
    that the caller can do something else before it goes on from there. What is malformed counts as done.
    """
    end = len(message)
    try:
        for _ in range(_FIELDS_AT_ONCE):
            if start >= end:
                break
            tag = message[start]
            if tag & 0x87 == LENGTH and tag > 7 and start + 1 < end and message[start + 1] < 0x80:
                # What most fields are, without a call: a short one, its number below 16.
                value = start + 2
                start = value + message[start + 1]
                if start > end:
                    raise MalformedError("expected a field to end within the message")
                if tag == _DEVICE_TAG:
                    device = str(message[value:start], "utf-8")
                continue
            number, kind, value, start = field(message, start, end)
            if kind == LENGTH and number == DEVICE_FIELD:
                device = str(message[value:start], "utf-8")
    except (MalformedError, UnicodeDecodeError):
        return end, ""
    return start, device


def memory(message: bytes | memoryview) -> tuple[int, int, int] | None:
    """Where a request's field `memory` is: its start, that of its contents, its end. None where it is not among the
    first fields, or the message is malformed before it."""
    start, end = 0, len(message)
    try:
        for _ in range(_FIELDS_AT_ONCE):
            if start >= end:
                break
            tag = message[start]
            if tag & 0x87 == LENGTH and tag > 7 and start + 1 < end and message[start + 1] < 0x80:
                start += 2 + message[start + 1]  # as in `peek`
                continue
            number, kind, value, stop = field(message, start, end)
            if number == MEMORY_FIELD and kind == LENGTH:
                return start, value, stop
            start = stop
    except MalformedError:
        pass
    return None


def spans(where: Sequence[tuple[int, int]]) -> bytes:
    """The fields `spans` of a response, to be put behind its other fields."""
    written = []
    for offset, length in where:
        one = tagged(1, offset) + tagged(2, length)
        written.append(headed(_SPANS_FIELD, len(one)) + one)
    return b"".join(written)


def timing(queue: float, phases: Sequence[float]) -> bytes:
    """The field `timing` of a response, to be put behind its other fields. `queue` stands for `phases[0]`."""
    _, decode, plan, forward, backward, check, encode = phases
    return _TIMING.pack(*_TIMING_HEAD, 9, queue, 17, decode, 25, plan, 33, forward, 41, backward, 49, check, 57, encode)

"""Answers of a stream, put together: large ones come in chunks, before or beside the answer that they belong to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradoracle import wire
from gradoracle.tensors import Bytes
from gradoracle.v1 import service_pb2

# Field numbers of StreamResponse and Chunk.
_CHUNKS = 2
_CALL_ID, _ATTACHMENT, _DATA, _TOTAL = 1, 2, 3, 4

_LARGE = 64 * 1024  # bytes of a message, below which protobuf is quick enough


class Incoming:
    """What has come of a stream's answers."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[_Attachment]] = {}  # by call

    def clear(self) -> None:
        """Forgets answers of which the end will not come."""
        self._chunks.clear()

    def take(self, data: bytes) -> Iterator[tuple[service_pb2.StreamAnswer, list[Bytes]]]:
        """The answers that a message completes, each with its attachments."""
        if (lone := _lone_chunk(data)) is not None:
            self._add(*lone)
            return
        message = service_pb2.StreamResponse.FromString(data)
        for chunk in message.chunks:
            self._add(chunk.call_id, chunk.attachment, chunk.total, chunk.data)
        for answer in message.answers:
            yield answer, [one.joined() for one in self._chunks.pop(answer.id, ())]

    def _add(self, call_id: int, attachment: int, total: int, data: wire.Piece) -> None:
        attachments = self._chunks.setdefault(call_id, [])
        while len(attachments) <= attachment:
            attachments.append(_Attachment(total))
        attachments[attachment].add(data)


class _Attachment:
    """Bytes of an answer while they arrive: where their number is known, each piece is put into its place at once.

    Pieces that are kept until the last has come are twice the memory, and fresh memory costs several times what a copy
    does. numpy's is of huge pages where it is large.
    """

    def __init__(self, total: int) -> None:
        try:
            self._room = np.empty(total, np.uint8)
        except (MemoryError, ValueError):  # more than it will ever become, one may hope
            self._room = np.empty(0, np.uint8)
        self._end = 0
        self._pieces: list[wire.Piece] = []  # what there was no room for

    def add(self, data: wire.Piece) -> None:
        end = self._end + len(data)
        if self._pieces or end > len(self._room):
            self._pieces.append(data)
            return
        self._room[self._end : end] = np.frombuffer(data, np.uint8)
        self._end = end

    def joined(self) -> Bytes:
        """All that has come."""
        if self._end == len(self._room) and not self._pieces:
            return self._room
        return bytearray().join((self._room[: self._end].data, *self._pieces))


def _lone_chunk(message: bytes) -> tuple[int, int, int, memoryview] | None:
    """Call, attachment, total and data of a StreamResponse that is one large chunk, as nearly all of the bytes come;
    None of any other, which is protobuf's to read. That would copy the data twice."""
    if len(message) < _LARGE or message[0] != _CHUNKS << 3 | 2:
        return None
    length, place = wire.varint_at(message, 1)
    if place + length != len(message):
        return None
    found = {_CALL_ID: 0, _ATTACHMENT: 0, _TOTAL: 0}
    while place + 12 < len(message) and (number := message[place] >> 3) in found and not message[place] & 7:
        found[number], place = wire.varint_at(message, place + 1)
    if message[place] != _DATA << 3 | 2:
        return None
    length, place = wire.varint_at(message, place + 1)
    if place + length != len(message):
        return None
    return found[_CALL_ID], found[_ATTACHMENT], found[_TOTAL], memoryview(message)[place:]

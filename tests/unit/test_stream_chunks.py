"""Chunks of a stream's answers as the client takes them in."""

from __future__ import annotations

import pytest

from gradoracle import answers, wire
from gradoracle.v1 import service_pb2


def chunked(*chunks: tuple[int, int, bytes, int]) -> bytes:
    """A StreamResponse of chunks: call, attachment, data, total."""
    message = service_pb2.StreamResponse()
    for call_id, attachment, data, total in chunks:
        message.chunks.add(call_id=call_id, attachment=attachment, data=data, total=total)
    return message.SerializeToString()


@pytest.mark.parametrize("total", [0, 300_000])
def test_a_lone_chunk_is_read_as_protobuf_reads_it(total: int) -> None:
    """A message of one large chunk is taken apart by hand, in either order of its fields; the same comes out."""
    data = bytes(range(250)) * 1200
    for call_id, attachment in ((0, 0), (3, 1), (2**40, 300)):
        message = chunked((call_id, attachment, data, total))
        inner = b"".join(
            wire.number_field(field, value) for field, value in ((4, total), (2, attachment), (1, call_id))
        )
        inner += wire.bytes_field(3, data)
        if total:  # protobuf writes it behind the data, which is protobuf's to read
            assert answers._lone_chunk(message) is None
        else:
            assert answers._lone_chunk(message) == (call_id, attachment, 0, data)
        assert answers._lone_chunk(wire.bytes_field(2, inner)) == (call_id, attachment, total, data)


def test_other_messages_are_protobufs() -> None:
    """Small chunks, several, an answer beside one, and what is cut off are not taken apart by hand."""
    data = bytes(100_000)
    one = chunked((1, 0, data, 0))
    answer = service_pb2.StreamResponse()
    answer.answers.add(id=1, status=data)
    for message in (chunked((1, 0, b"a", 0)), one + one, one + answer.SerializeToString(), answer.SerializeToString()):
        assert answers._lone_chunk(message) is None
    assert answers._lone_chunk(one[:-1]) is None
    for nonsense in (b"\xff" * 100_000, b"\x08\x01" * 50_000, b"\x1a" + b"\xff" * 99_999, bytes(100_000)):
        assert answers._lone_chunk(b"\x12" + nonsense) is None
        assert answers._lone_chunk(wire.bytes_field(2, nonsense)) is None


@pytest.mark.parametrize("told", [0, 99_999, 100_000, 2**63])
def test_attachments_whatever_total_they_are_told_to_have(told: int) -> None:
    """The bytes are those that came, also where the server told nothing, too little or too much."""
    attachment = answers._Attachment(told)
    data = bytes(range(200)) * 500
    for start in range(0, len(data), 33_333):
        attachment.add(data[start : start + 33_333])
    assert data == bytes(attachment.joined())

"""Large tensors' data beside protobuf: taken out of requests and answers, and put into answers, all to the byte."""

from __future__ import annotations

import os

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gradoracle import taken as client
from gradoracle.v1 import service_pb2, tensor_pb2
from gradoracle_server import wire_format
from gradoracle_server.worker import payload

VJP = payload.tensor_fields(service_pb2.ComputeVjpRequest)
LARGE = payload.LARGE
DATA = os.urandom(LARGE + 5)


def named(name: str, **contents) -> tensor_pb2.NamedTensor:
    return tensor_pb2.NamedTensor(name=name, tensor=tensor_pb2.Tensor(dtype=9, shape=[3, 4], **contents))


def request(*primals: tensor_pb2.NamedTensor, **others) -> service_pb2.ComputeVjpRequest:
    return service_pb2.ComputeVjpRequest(primals=primals, seed=7, wrt=["a"], **others)


sizes = st.lists(st.sampled_from([0, 8, LARGE - 1, LARGE, LARGE + 3]), max_size=4)


@settings(max_examples=60)
@given(sizes, sizes)
def test_what_is_taken_and_what_is_left_are_the_request(primals, cotangents):
    """Each large tensor's data are found under its field and place, and nothing else is changed."""
    whole = request(
        *(named(f"p{place}", data=os.urandom(size)) for place, size in enumerate(primals)),
        cotangents=[named(f"c{place}", data=os.urandom(size)) for place, size in enumerate(cotangents)],
    )
    left, found = payload.taken(whole.SerializeToString(), VJP)
    parsed = service_pb2.ComputeVjpRequest.FromString(bytes(left))
    for field, given_sizes in (("primals", primals), ("cotangents", cotangents)):
        assert {place for place, size in enumerate(given_sizes) if size >= LARGE} == set(found.get(field, {}))
        for place, data in found.get(field, {}).items():
            tensor = getattr(parsed, field)[place].tensor
            assert tensor.WhichOneof("contents") is None
            tensor.data = bytes(data)
    assert whole == parsed


@pytest.mark.parametrize(
    "spoiled",
    [
        named("a", data=DATA).SerializeToString() + named("a", data=DATA).SerializeToString(),  # two, to be merged
        b"\x12" + wire_format.varint(LARGE + 20) + tensor_pb2.Tensor(data=DATA).SerializeToString()[:-4],  # cut off
        tensor_pb2.NamedTensor(name="a").SerializeToString()
        + wire_format.headed(2, 2 * (LARGE + 9))
        + 2 * (wire_format.headed(3, LARGE + 5) + DATA),  # data twice
        tensor_pb2.NamedTensor(name="a").SerializeToString()
        + wire_format.headed(2, LARGE + 11)
        + wire_format.headed(3, LARGE + 5)
        + DATA
        + wire_format.tagged(6, 1),  # an attachment, too, which wins
    ],
)
def test_protobuf_decides_on_what_is_otherwise(spoiled):
    """Of a request that is not as libraries write it nothing is taken, so that it is read, or refused, as ever."""
    message = wire_format.headed(2, len(spoiled)) + spoiled
    assert (message, {}) == payload.taken(message, VJP)


def test_tags_and_lengths_may_be_written_in_more_bytes_than_they_need():
    """Some libraries leave room for a length and fill it in afterwards."""
    data = b"\x9a\x80\x00" + wire_format.varint(len(DATA)) + DATA  # the tag of field 3 in three bytes
    tensor = b"\x92\x00" + wire_format.varint(len(data) + 2) + b"\x08\x09" + data
    name = tensor_pb2.NamedTensor(name="x").SerializeToString()
    message = wire_format.headed(2, len(name + tensor)) + name + tensor
    left, found = payload.taken(message, VJP)
    assert DATA == bytes(found["primals"][0])
    (primal,) = service_pb2.ComputeVjpRequest.FromString(bytes(left)).primals
    assert ("x", 9, b"") == (primal.name, primal.tensor.dtype, primal.tensor.data)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_nonsense_is_left_alone(before, after):
    """Whatever protobuf refuses it still refuses, and what it reads it reads as before."""
    message = before + request(named("a", data=DATA)).SerializeToString() + after
    left, found = payload.taken(message, VJP)
    try:
        expected = service_pb2.ComputeVjpRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            service_pb2.ComputeVjpRequest.FromString(bytes(left))
        return
    parsed = service_pb2.ComputeVjpRequest.FromString(bytes(left))
    for field, places in found.items():
        for place, data in places.items():
            getattr(parsed, field)[place].tensor.data = bytes(data)
    assert expected == parsed


def answer_of(kind: str, blocks: list[int]) -> tuple[object, list[memoryview], object]:
    """A response with data of those sizes left out, these, and the response with them."""
    response, whole = (getattr(service_pb2, f"{kind}Response")() for _ in range(2))
    kept: list[memoryview] = []
    for place, size in enumerate(blocks):
        data = os.urandom(size)
        for message in (response, whole):
            entry = message.outputs if place % 2 or kind != "ComputeJacobian" else message.blocks
            names = {"output": f"o{place}", "input": "x"} if entry is getattr(message, "blocks", None) else {}
            made = entry.add(**(names or {"name": f"o{place}"}))
            made.tensor.dtype = 9
            made.tensor.shape.extend([size])
            if message is whole or size < LARGE:
                made.tensor.data = data
            else:
                made.tensor.attachment = len(kept)
        if size >= LARGE:
            kept.append(memoryview(data))
    return response, kept, whole


@settings(max_examples=40)
@given(st.sampled_from(["ComputeVjp", "Evaluate", "ComputeJacobian"]), sizes)
def test_an_answer_in_pieces_is_the_one_that_protobuf_writes(kind, blocks):
    """Byte for byte; and the client reads it as protobuf does."""
    response, kept, whole = answer_of(kind, blocks)
    written = b"".join(payload.written(response, kept))
    assert whole.SerializeToString() == written
    small, attached = client.taken(written)
    assert len(kept) == len(attached)
    parsed = type(whole).FromString(small)
    for one in (*parsed.outputs, *getattr(parsed, "blocks", ())):
        if one.tensor.HasField("attachment"):
            one.tensor.data = attached[one.tensor.attachment].tobytes()
    assert whole == parsed


def test_what_the_client_takes_is_its_own_and_writable():
    """Not a view of the answer's bytes."""
    message = service_pb2.EvaluateResponse(outputs=[named("y", data=DATA)]).SerializeToString()
    _, (data,) = client.taken(message)
    data[0] ^= 1
    assert isinstance(data, np.ndarray)
    assert service_pb2.EvaluateResponse.FromString(message).outputs[0].tensor.data == DATA


@given(st.binary(max_size=200).map(lambda tail: os.urandom(LARGE) + tail) | st.binary(max_size=50))
def test_the_client_leaves_nonsense_to_protobuf(message):
    """It raises nothing of its own."""
    small, attached = client.taken(message)
    assert attached or small == message

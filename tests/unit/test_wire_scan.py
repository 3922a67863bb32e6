"""The scan of protobuf's bytes agrees with protobuf's own parser."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

import gradoracle as go
from gradoracle import stream
from gradoracle.v1 import service_pb2
from gradoracle_server import wire_format
from gradoracle_server.front import stream_wire, wire


def overlong(value: int, length: int) -> bytes:
    """A number as protobuf may write it too: in more bytes than it needs."""
    short = wire_format.varint(value)
    if len(short) >= length:
        return short
    return short[:-1] + bytes([short[-1] | 0x80]) + b"\x80" * (length - len(short) - 1) + b"\0"


numbers = st.sampled_from([1, 2, 3, 3, 3, 4, 5, 15, 16, 2047, 2**29 - 1])
lengths = st.integers(1, 5)
texts = st.sampled_from([b"", b"cpu", b"cuda:0", "gerät".encode(), b"\xff", b"\xed\xa0\x80"]) | st.binary(max_size=6)


@st.composite
def one_field(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A field of any number and wire type."""
    number = draw(numbers)
    kind = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 5] if depth < 3 else [0, 1, 2, 5]))
    tag = overlong(number << 3 | kind, draw(lengths))
    if kind == 0:
        return tag + overlong(draw(st.integers(0, 2**64 - 1)), draw(st.integers(1, 10)))
    if kind == 1:
        return tag + struct.pack("<d", 1.5)
    if kind == 5:
        return tag + struct.pack("<f", 1.5)
    if kind == 2:
        text = draw(texts)
        return tag + overlong(len(text), draw(lengths)) + text
    inside = b"".join(draw(st.lists(one_field(depth + 1), max_size=3)))
    end = number if draw(st.integers(0, 9)) else number + 1
    return tag + inside + overlong(end << 3 | 4, draw(lengths))


messages = st.lists(one_field(), max_size=6).map(b"".join)


def agrees(message: bytes) -> bool:
    """Whether the scan finds what protobuf finds, for a message that protobuf accepts."""
    try:
        expected = service_pb2.EvaluateRequest.FromString(message).device
    except DecodeError:
        expected = None
    position, device = wire.peek(message)
    return position == len(message) and (expected is None or expected == device)


@settings(max_examples=1000, deadline=None)
@given(messages)
def test_device_is_protobufs(message: bytes) -> None:
    """For every message that protobuf accepts, the scan finds the same device; it never raises."""
    assert agrees(message)


@settings(max_examples=500, deadline=None)
@given(messages, st.data())
def test_broken_messages_do_no_harm(message: bytes, data: st.DataObject) -> None:
    """Nor does it for messages that are cut off or damaged anywhere."""
    cut = data.draw(st.integers(0, len(message)))
    damage = data.draw(st.binary(max_size=3))
    assert agrees(message[:cut] + damage + message[cut + data.draw(st.integers(0, 3)) :])


def test_a_wrong_scan_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is not blind: a scan that takes the first device, not the last, fails it."""
    message = b"\x1a\x03cpu\x1a\x06cuda:0"
    assert agrees(message)
    peek = wire.peek
    monkeypatch.setattr(wire, "peek", lambda message: (len(message), peek(message[:5])[1]))

    assert not agrees(message)


@settings(max_examples=1000, deadline=None)
@given(messages)
def test_a_glance_never_misses_a_device(message: bytes) -> None:
    """Where a look at the bytes says that there is no device, the scan finds none, however the tag is written."""
    assert not (wire.names_no_device(message) and wire.peek(message)[1])


def test_a_glance_tells_most_requests_without_a_device() -> None:
    """Of a small request that names none it says so; of one that does, or is large, or a view, it says nothing."""
    request = service_pb2.EvaluateRequest(seed=7, primals=[{"name": "x"}])
    assert wire.names_no_device(request.SerializeToString())
    assert not wire.names_no_device(memoryview(request.SerializeToString()))
    request.device = "cpu"
    assert not wire.names_no_device(request.SerializeToString())
    assert not wire.names_no_device(overlong(3 << 3 | 2, 2) + b"\x03cpu")
    assert not wire.names_no_device(service_pb2.EvaluateRequest(primals=[{"name": "x" * 5000}]).SerializeToString())


def test_memoryview_is_as_good_as_bytes() -> None:
    """A request inside a stream's message is looked at where it lies."""
    message = service_pb2.EvaluateRequest(device="cuda:3").SerializeToString()

    assert (len(message), "cuda:3") == wire.peek(memoryview(b"x" + message)[1:])


def test_scan_of_many_fields_pauses() -> None:
    """A message of very many fields is scanned in parts, so that it does not hold up the event loop."""
    message = b"\x12\x00" * 10_000 + b"\x1a\x03cpu" + b"\x12\x00" * 10_000
    position, device, parts = 0, "", 0
    while position < len(message):
        position, device = wire.peek(message, position, device)
        parts += 1

    assert ("cpu", 5) == (device, parts)


def test_timing_is_a_field_of_every_response() -> None:
    """The appended bytes are the response's timing, each phase in its place."""
    phases = (99.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    response = service_pb2.EvaluateResponse()
    response.outputs.add(name="y")

    merged = service_pb2.EvaluateResponse.FromString(response.SerializeToString() + wire.timing(1.0, phases))

    timing = merged.timing
    assert "y" == merged.outputs[0].name
    assert [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] == [
        timing.queue,
        timing.decode,
        timing.plan,
        timing.forward,
        timing.backward,
        timing.check,
        timing.encode,
    ]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_varint_is_protobufs(value: int) -> None:
    """Numbers are written as protobuf writes them."""
    expected = service_pb2.StreamCall(id=value).SerializeToString()

    assert expected == (wire_format.tagged(1, value) if value else b"")


METHODS = [
    ("evaluate", 0, service_pb2.EvaluateRequest(device="a")),
    ("compute_vjp", 1, service_pb2.ComputeVjpRequest(device="a")),
    ("compute_jvp", 2, service_pb2.ComputeJvpRequest(device="a")),
    ("compute_jacobian", 3, service_pb2.ComputeJacobianRequest(device="a")),
    ("compute_hessian", 4, service_pb2.ComputeHessianRequest(device="a")),
    ("check_gradients", 5, service_pb2.CheckGradientsRequest(device="a")),
    ("inspect_graph", 6, service_pb2.InspectGraphRequest(device="a")),
    ("describe_server", stream_wire.DESCRIBE_SERVER, service_pb2.DescribeServerRequest()),
    ("list_operators", 7, service_pb2.ListOperatorsRequest(name_contains="a")),
]


@pytest.mark.parametrize(("field", "method", "request_"), METHODS)
def test_stream_calls_are_split(field: str, method: int, request_: object) -> None:
    """Every kind of call comes out with its method, and its answer goes into the field of the same name."""
    message = service_pb2.StreamRequest()
    message.calls.add(id=2**63, attachments=3, **{field: request_})

    (call,) = stream_wire.split(memoryview(message.SerializeToString()))

    assert isinstance(call, stream_wire.Call)
    assert (2**63, 3, method) == (call.id, call.attachments, call.method)
    assert message.calls[0].__getattribute__(field).SerializeToString() == bytes(call.request)
    made = stream_wire.Answer(7, stream_wire.field_of(method), [b""])
    answer = service_pb2.StreamResponse.FromString(b"".join(stream_wire.answer(made))).answers[0]
    assert (7, field) == (answer.id, answer.WhichOneof("response"))


def test_request_in_pieces_is_merged() -> None:
    """A request that protobuf would merge from two pieces is merged; a second method replaces the first."""
    first = service_pb2.StreamCall(id=1, evaluate=service_pb2.EvaluateRequest(device="a", seed=5))
    second = service_pb2.StreamCall(evaluate=service_pb2.EvaluateRequest(device="b"))
    other = service_pb2.StreamCall(inspect_graph=service_pb2.InspectGraphRequest(device="c"))
    for pieces in ([first, second], [first, other], [other, first, second], [first, other, second]):
        whole = b"".join(piece.SerializeToString() for piece in pieces)
        expected = service_pb2.StreamCall.FromString(whole)
        message = wire_format.headed(1, len(whole)) + whole

        (call,) = stream_wire.split(memoryview(message))

        assert isinstance(call, stream_wire.Call)
        kind = expected.WhichOneof("request")
        assert {"evaluate": 0, "inspect_graph": 6}[kind] == call.method
        assert getattr(expected, kind) == type(getattr(expected, kind)).FromString(bytes(call.request))


def test_chunks_are_split() -> None:
    """Chunks come with call, attachment and data; what is unset is zero."""
    message = service_pb2.StreamRequest()
    message.chunks.add(call_id=9, attachment=2, data=b"abc")
    message.chunks.add()

    found = stream_wire.split(memoryview(message.SerializeToString()))
    assert [stream_wire.Chunk(9, 2, memoryview(b"abc")), stream_wire.Chunk(0, 0, memoryview(b""))] == list(found)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.floats(min_value=0))
def test_cancelled_calls_and_timeouts_are_split(ids: list[int], timeout: float) -> None:
    """Ids come as protobuf packs them, and one by one; a call's timeout is its seconds."""
    message = service_pb2.StreamRequest(cancelled=ids)
    message.calls.add(id=1, evaluate=service_pb2.EvaluateRequest(), timeout_seconds=timeout)
    call, *cancelled = stream_wire.split(memoryview(message.SerializeToString()))
    assert isinstance(call, stream_wire.Call)
    assert timeout == call.timeout
    assert [stream_wire.Cancelled(ids)] * bool(ids) == cancelled
    alone = b"".join(wire_format.tagged(3, one) for one in ids)
    assert [stream_wire.Cancelled([one]) for one in ids] == list(stream_wire.split(memoryview(alone)))


def test_too_many_cancelled_calls_are_refused() -> None:
    """A field of millions of ids would hold up everybody else; as many as may be unanswered are taken."""
    ids = list(range(1024))
    (found,) = stream_wire.split(memoryview(service_pb2.StreamRequest(cancelled=ids).SerializeToString()))
    assert stream_wire.Cancelled(ids) == found
    message = service_pb2.StreamRequest(cancelled=range(1025)).SerializeToString()
    with pytest.raises(wire_format.MalformedError, match="expected at most 1024 cancelled calls together, got more"):
        list(stream_wire.split(memoryview(message)))


def test_call_of_too_many_fields_is_refused() -> None:
    """A call that repeats its fields without end is no call."""
    inside = wire_format.tagged(1, 1) * 65

    with pytest.raises(wire_format.MalformedError, match="expected at most 64 fields in a call or chunk, got more"):
        list(stream_wire.split(memoryview(wire_format.headed(1, len(inside)) + inside)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_nonsense_in_a_stream_is_refused(message: bytes) -> None:
    """Bytes that are no message raise MalformedError and nothing else."""
    try:
        for _ in stream_wire.split(memoryview(message)):
            pass
    except wire_format.MalformedError:
        pass


@st.composite
def one_call(draw: st.DrawFn) -> bytes:
    """A StreamRequest of one call, as protobuf writes it."""
    made = service_pb2.StreamRequest()
    call = made.calls.add(id=draw(st.integers(0, 2**64 - 1)))
    if draw(st.booleans()):
        call.timeout_seconds = draw(st.sampled_from([0.5, 1e9, -1.0]))
    getattr(call, draw(st.sampled_from(["compute_vjp", "evaluate", "list_operators"]))).SetInParent()
    if draw(st.booleans()):
        call.compute_vjp.device = "d" * draw(st.integers(0, 300))
    if draw(st.integers(0, 3)) == 0:
        made.calls.add(id=2)
    if draw(st.integers(0, 3)) == 0:
        made.cancelled.append(3)
    return made.SerializeToString()


@settings(max_examples=1000, deadline=None)
@given(one_call() | messages, st.data())
def test_a_lone_call_is_what_the_whole_reading_finds(message: bytes, data: st.DataObject) -> None:
    """Whatever is read the short way is read the same the long way, of damaged messages, too."""
    cut = data.draw(st.integers(0, len(message)))
    damage = data.draw(st.binary(max_size=2))
    for one in (message, message[:cut], message[:cut] + damage + message[cut + data.draw(st.integers(0, 2)) :]):
        if (found := stream_wire.lone_call(one)) is not None:
            (expected,) = stream_wire.split(memoryview(one))
            assert isinstance(expected, stream_wire.Call)
            assert repr(found) == repr(dataclasses.replace(expected, request=bytes(expected.request)))  # NaN is NaN


@pytest.mark.parametrize("timeout", [None, 2.5])
def test_a_lone_call_is_read_the_short_way(timeout: float | None) -> None:
    """As the client writes it, with a timeout and without."""
    request = go.request("vjp", "sum(x)", {"x": [1.0, 2.0]})
    message = b"".join(stream.parts(7, request, timeout))
    assert stream_wire.Call(7, 0, 1, request.to_bytes(), timeout or 0.0) == stream_wire.lone_call(message)
    assert stream_wire.lone_call(message + message) is None
    assert stream_wire.lone_call(message[:-1]) is None
    assert stream_wire.lone_call(b"") is None

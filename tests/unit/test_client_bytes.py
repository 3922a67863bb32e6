"""How many bytes of tensors a stream holds: as many as a bound, or one call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

import gradoracle as go
from gradoracle import stream
from gradoracle.requests import Request
from gradoracle.v1 import service_pb2, tensor_pb2

SIZE = 800  # bytes of a request's tensor, and of its answer's


def ask(number: int, size: int = SIZE) -> Request[Any]:
    """A request whose tensor tells it apart."""
    return go.request("evaluate", "x + 1", {"x": np.full(size // 8, float(number))})


def answer(call: service_pb2.StreamCall) -> service_pb2.StreamAnswer:
    """x + 1."""
    x = np.frombuffer(call.evaluate.primals[0].tensor.data)
    found = service_pb2.StreamAnswer(id=call.id)
    dtype = tensor_pb2.DTYPE_FLOAT64
    found.evaluate.outputs.add(name="out", tensor=tensor_pb2.Tensor(dtype=dtype, shape=x.shape, data=(x + 1).tobytes()))
    return found


# ---- The bound itself


class Held:
    """A conversation with a server that answers when told."""

    def __init__(self, *, ordered: bool = False) -> None:
        self.conversation = stream.Conversation(window=1000, ordered=ordered, return_exceptions=False)
        self.calls: dict[int, service_pb2.StreamCall] = {}

    def send(self, size: int = SIZE) -> int:
        """Sends what there is room for. Gives how many calls there are."""
        while self.conversation.has_room:
            for part in self.conversation.add(ask(0, size)):
                self.calls |= {call.id: call for call in service_pb2.StreamRequest.FromString(part).calls}
        return len(self.calls)

    def answer(self, call_id: int, attached: int = 0) -> None:
        """Answers a call, with an attachment of so many bytes."""
        found = answer(self.calls.pop(call_id))
        message = service_pb2.StreamResponse(answers=[found])
        if attached:
            tensor = found.evaluate.outputs[0].tensor
            tensor.Clear()
            tensor.MergeFrom(tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[attached // 8], attachment=0))
            chunk = service_pb2.Chunk(call_id=call_id, attachment=0, data=bytes(attached))
            message = service_pb2.StreamResponse(chunks=[chunk], answers=[found])
        self.conversation.receive(message.SerializeToString())

    def take(self) -> int:
        """Takes the results whose turn it is. Gives how many."""
        return len(list(self.conversation.ready()))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that four requests and a bit reach."""
    monkeypatch.setattr(stream, "BYTES", 4 * SIZE + 1)


@pytest.mark.usefixtures("small")
def test_calls_that_are_not_answered_count() -> None:
    """The call that reaches the bound is the last; each answer makes room for another."""
    held = Held()
    assert 5 == held.send()
    held.answer(2)
    assert 5 == held.send()
    held.answer(0)
    held.answer(1)
    assert 5 == held.send()


@pytest.mark.usefixtures("small")
def test_a_call_beyond_the_bound_goes_by_itself() -> None:
    """It is sent, and nothing beside it until it is answered."""
    held = Held()
    assert 1 == held.send(100 * SIZE)
    held.answer(0)
    assert 1 == held.send(100 * SIZE)


@pytest.mark.usefixtures("small")
def test_large_results_count_until_they_are_taken() -> None:
    """Also those that wait for their turn; but one that is not answered makes room for itself."""
    held = Held(ordered=True)
    assert 5 == held.send()
    held.answer(1, attached=3 * SIZE)
    assert 4 == held.send()
    held.answer(0)
    assert (2, 5) == (held.take(), held.send())


def test_a_stream_that_breaks_forgets_nothing(small: None) -> None:
    """What is to be sent again counts once."""
    held = Held()
    assert 5 == held.send()
    held.conversation.broken(go.ServerUnavailableError("gone"))
    assert 5 == len(list(held.conversation.again()))
    assert 5 == held.send()
    for call_id in range(5):
        held.answer(call_id)
    assert (5, 5) == (held.take(), held.send())


def test_the_bound_is_what_the_documentation_says() -> None:
    """64 MiB, whatever the window."""
    held = Held()
    assert 7 == held.send(10 * 1024 * 1024)
    assert "64 MiB" in (go.Client.map.__doc__ or "")


# ---- With a server that holds answers


class Holding(grpc.GenericRpcHandler):
    """Answers a call only when it has so many of them, or all; counts the most that it ever had."""

    def __init__(self, places: int, total: int) -> None:
        self.places, self.left = places, total

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The stream's."""
        return grpc.stream_stream_rpc_method_handler(self._converse)

    def _converse(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        held: list[service_pb2.StreamCall] = []
        for message in messages:
            held += service_pb2.StreamRequest.FromString(message).calls
            while held and len(held) >= min(self.places, self.left):
                self.left -= 1
                yield service_pb2.StreamResponse(answers=[answer(held.pop(0))]).SerializeToString()


@pytest.fixture
def holding() -> Iterator[Callable[[int, int], str]]:
    """Starts a server that holds answers; gives its address."""
    servers = []

    def start(places: int, total: int) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((Holding(places, total),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


TOTAL, WINDOW = 40, 12
BOUNDS = [(4 * SIZE + 1, 5), (10**9, WINDOW), (1, 1)]
"""Bytes, and the calls that the server then gets at a time: of one that holds answers, no more and no fewer."""


@pytest.mark.parametrize(("bound", "places"), BOUNDS)
def test_a_server_that_holds_answers_gets_no_more_than_the_bound(
    holding: Callable[[int, int], str], monkeypatch: pytest.MonkeyPatch, bound: int, places: int
) -> None:
    """The source is read no further than the bound, the window or one call; every result comes, in order."""
    monkeypatch.setattr(stream, "BYTES", bound)
    found: list[float] = []
    ahead: list[int] = []

    def source() -> Iterator[Request[Any]]:
        for number in range(TOTAL):
            ahead.append(number + 1 - len(found))
            yield ask(number)

    with go.Client(holding(places, TOTAL)) as client:
        for result in client.map(source(), window=WINDOW):
            found.append(float(result.outputs["out"][-1]))
    assert [number + 1.0 for number in range(TOTAL)] == found
    assert places == max(ahead)


@pytest.mark.parametrize(("bound", "places"), BOUNDS)
async def test_the_same_awaited(
    holding: Callable[[int, int], str], monkeypatch: pytest.MonkeyPatch, bound: int, places: int
) -> None:
    """The asyncio client keeps the bound, too."""
    monkeypatch.setattr(stream, "BYTES", bound)
    found: list[float] = []
    ahead: list[int] = []

    async def source() -> AsyncIterator[Request[Any]]:
        for number in range(TOTAL):
            ahead.append(number + 1 - len(found))
            yield ask(number)

    async with go.AsyncClient(holding(places, TOTAL)) as client:
        async for result in client.map(source(), window=WINDOW):
            found.append(float(result.outputs["out"][-1]))
    assert [number + 1.0 for number in range(TOTAL)] == found
    assert places == max(ahead)

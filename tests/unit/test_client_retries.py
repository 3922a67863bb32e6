"""What the clients repeat, and what they do not: over calls by gRPC's own policy, over streams by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

import gradoracle as go
from gradoracle import channel, stream
from gradoracle.v1 import service_pb2
from gradoracle_server.rpc_status import make_status

Script = list[str]
CODES = {code.value[0]: code for code in grpc.StatusCode}


def status(reason: str, retry_after: float | None = None) -> status_pb2.Status:
    """A failure as the server makes it."""
    code = {"OVERLOADED": 8, "LIMIT_EXCEEDED": 8, "SHUTTING_DOWN": 14, "WORKER_CRASHED": 13}[reason]
    return make_status(code, reason, reason.lower(), {}, retry_after=retry_after)


class Scripted(grpc.GenericRpcHandler):
    """A server that fails as it is told, then answers.

    `calls` holds what the next unary calls fail with, `answers` what the next calls of streams do, and `streams` after
    how many answers the next streams break.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[status_pb2.Status, str | None]] = []
        self.answers: list[status_pb2.Status] = []
        self.streams: list[int] = []
        self.seen: list[str] = []
        self.asked: list[int] = []  # ids of calls of streams, as they came
        self.busy: set[int] = set()
        self.remaining: list[float | None] = []
        self.address = ""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a path."""
        if details.method == stream.PATH:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._unary)

    def _unary(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen.append("call")
        self.remaining.append(context.time_remaining())
        if self.calls:
            made, pushback = self.calls.pop(0)
            trailing: list[tuple[str, Any]] = [("grpc-status-details-bin", made.SerializeToString())]
            if pushback is not None:
                trailing.append(("grpc-retry-pushback-ms", pushback))
            context.set_trailing_metadata(trailing)
            context.abort(CODES[made.code], made.message)
        return service_pb2.DescribeServerResponse(version="1").SerializeToString()

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.seen.append("stream")
        left = self.streams.pop(0) if self.streams else math.inf
        for message in messages:
            for call in service_pb2.StreamRequest.FromString(message).calls:
                self.asked.append(call.id)
                if left <= 0:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                left -= 1
                answer = service_pb2.StreamAnswer(id=call.id)
                if self.answers:
                    answer.status = self.answers.pop(0).SerializeToString()
                else:
                    answer.describe_server.version = str(call.id)
                yield service_pb2.StreamResponse(answers=[answer]).SerializeToString()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Such a server."""
    handler = Scripted()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handler,))
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(None).wait()


@pytest.fixture
def client(scripted: Scripted) -> Iterator[go.Client]:
    """A client of it."""
    with go.Client(scripted.address) as client:
        yield client


def questions(count: int) -> list[Any]:
    """Requests for a stream."""
    return [go.request("server_info") for _ in range(count)]


# ---- Calls


@pytest.mark.parametrize(
    "failure", [status("OVERLOADED"), status("SHUTTING_DOWN"), status_pb2.Status(code=1, message="cut off")]
)
@pytest.mark.parametrize("pushback", [None, "1"])
def test_calls_are_repeated(
    scripted: Scripted, client: go.Client, failure: status_pb2.Status, pushback: str | None
) -> None:
    """A full queue and a server that goes away are no trouble of the caller, told when to come back or not."""
    scripted.calls = [(failure, pushback)] * (channel.ATTEMPTS - 1)

    assert "1" == client.server_info().version

    assert channel.ATTEMPTS == len(scripted.seen)


def test_calls_are_not_repeated_for_ever(scripted: Scripted, client: go.Client) -> None:
    """After so many attempts the last failure is raised."""
    scripted.calls = [(status("OVERLOADED", 0.25), "1")] * 20

    with pytest.raises(go.OverloadedError) as caught:
        client.server_info()

    assert (0.25, channel.ATTEMPTS) == (caught.value.retry_after, len(scripted.seen))


@pytest.mark.parametrize(
    ("failure", "pushback", "kind"),
    [
        (status("LIMIT_EXCEEDED"), "-1", go.ResourceLimitError),
        (status("WORKER_CRASHED"), None, go.WorkerCrashedError),
    ],
)
def test_what_would_fail_again_is_not_repeated(
    scripted: Scripted, client: go.Client, failure: status_pb2.Status, pushback: str | None, kind: type[Exception]
) -> None:
    """A request over a limit, or one that ends workers, is sent once."""
    scripted.calls = [(failure, pushback)]

    with pytest.raises(kind):
        client.server_info()

    assert 1 == len(scripted.seen)


async def test_async_calls_are_repeated(scripted: Scripted) -> None:
    """The asyncio client has the same policy."""
    scripted.calls = [(status("OVERLOADED"), "1"), (status("SHUTTING_DOWN"), None)]
    async with go.AsyncClient(scripted.address) as client:
        assert "1" == (await client.server_info()).version
    assert 3 == len(scripted.seen)


def test_deadlines_are_on_by_default(scripted: Scripted) -> None:
    """A call without a timeout has one of ten minutes; infinity is none."""
    with go.Client(scripted.address) as client, go.Client(scripted.address, timeout=math.inf) as patient:
        client.server_info()
        client.server_info(timeout=math.inf)
        patient.server_info()

    with_deadline, *without = scripted.remaining
    assert with_deadline is not None
    assert channel.TIMEOUT / 2 < with_deadline < channel.TIMEOUT + 2  # on the wire deadlines are rounded up
    # A server is told of no deadline as of one in the far future.
    assert all(one is None or one > 1e6 for one in without)


# ---- Streams


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("reason", ["OVERLOADED", "SHUTTING_DOWN"])
def test_refused_calls_of_a_stream_are_sent_again(
    scripted: Scripted, client: go.Client, ordered: bool, reason: str
) -> None:
    """A refusal is no result: the call goes again, over the same stream, and every result is its request's."""
    scripted.answers = [status(reason, 0.01)] * 30

    found = list(client.map(questions(20), window=8, ordered=ordered))

    numbers = [int(one.version) for one in found]
    assert list(range(20)) == (numbers if ordered else sorted(numbers))
    assert (["stream"], 50) == (scripted.seen, len(scripted.asked))


def test_patience_ends(scripted: Scripted, client: go.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but refusals comes for too long, they are what the calls failed with."""
    monkeypatch.setattr(stream, "PATIENCE", 0.0)
    scripted.answers = [status("OVERLOADED", 0.5)]

    found = list(client.map(questions(2), return_exceptions=True))

    assert [go.OverloadedError, go.ServerInfo] == [type(one) for one in found]
    assert 0.5 == found[0].retry_after


def test_other_failures_of_a_stream_are_results(scripted: Scripted, client: go.Client) -> None:
    """What is no refusal is not sent again."""
    scripted.answers = [status("LIMIT_EXCEEDED"), status("WORKER_CRASHED")]

    found = list(client.map(questions(3), return_exceptions=True))

    assert [go.ResourceLimitError, go.WorkerCrashedError, go.ServerInfo] == [type(one) for one in found]
    assert [0, 1, 2] == scripted.asked


def test_streams_that_break_go_on(scripted: Scripted, client: go.Client) -> None:
    """When a stream breaks, what is not answered goes over the next one, what is answered does not."""
    scripted.streams = [5, 0, 7]

    found = list(client.map(questions(20), window=6))

    assert [str(number) for number in range(20)] == [one.version for one in found]
    assert ["stream"] * 4 == scripted.seen
    answered_once = scripted.asked[:5] + scripted.asked[6:7]
    assert [*range(5), 5] == answered_once
    assert 20 + 3 == len(scripted.asked)  # each broken stream left one call that it had seen unanswered


def test_streams_that_only_break_are_given_up(scripted: Scripted, client: go.Client) -> None:
    """A server that never answers is given up after as many attempts as a call's."""
    scripted.streams = [0] * 100

    with pytest.raises(go.ServerUnavailableError, match="cut"):
        list(client.map(questions(3)))

    assert channel.ATTEMPTS == len(scripted.seen)


async def test_async_streams_repeat(scripted: Scripted) -> None:
    """The asyncio client sends again and goes on as the other does."""
    scripted.streams = [3, 0]
    scripted.answers = [status("OVERLOADED", 0.01), status("SHUTTING_DOWN")]
    async with go.AsyncClient(scripted.address) as client:
        found = [one.version async for one in client.map(questions(20), window=4)]

    assert [str(number) for number in range(20)] == found
    assert ["stream"] * 3 == scripted.seen


# ---- How much a server takes, found out by what it refuses


class Full:
    """A conversation with a server that takes `places` calls at a time and answers them when told."""

    def __init__(self, places: int, window: int) -> None:
        self.conversation = stream.Conversation(window=window, ordered=False, return_exceptions=False)
        self.places = places
        self.with_server: list[int] = []
        self.refused = 0
        self.most = 0

    def _come(self, parts: Iterator[bytes]) -> None:
        for part in parts:
            for call in service_pb2.StreamRequest.FromString(part).calls:
                self.with_server.append(call.id)

    def send(self, more: Callable[[], Any]) -> None:
        """Sends what there is room for."""
        for parts, _ in list(self.conversation.again()):
            self._come(parts)
        while self.conversation.has_room:
            self._come(self.conversation.add(more()))
        self.most = max(self.most, len(self.with_server))

    def answer(self) -> None:
        """Refuses those that are too many, then answers the first."""
        over, self.with_server = self.with_server[self.places :], self.with_server[: self.places]
        self.refused += len(over)
        for call_id in over:
            self._hear(service_pb2.StreamAnswer(id=call_id, status=status("OVERLOADED", 0.01).SerializeToString()))
        first = self.with_server.pop(0)
        self._hear(service_pb2.StreamAnswer(id=first, describe_server=service_pb2.DescribeServerResponse()))

    def _hear(self, answer: service_pb2.StreamAnswer) -> None:
        self.conversation.receive(service_pb2.StreamResponse(answers=[answer]).SerializeToString())


def test_a_window_larger_than_the_queue_settles() -> None:
    """After the first refusals no more is sent than the server takes, but for one call now and then."""
    full = Full(places=4, window=1000)
    answered = 0
    for _ in range(500):
        full.send(lambda: go.request("server_info"))
        full.answer()
        answered += len(list(full.conversation.ready()))

    assert 500 == answered
    assert 1000 == full.most
    assert full.refused < 996 + 500 / 2


def test_a_server_that_takes_more_gets_more() -> None:
    """When there is room again, what is sent grows to the window again."""
    full = Full(places=2, window=16)
    for _ in range(10):
        full.send(lambda: go.request("server_info"))
        full.answer()
        list(full.conversation.ready())
    assert len(full.with_server) < 8
    full.places = 1000
    for _ in range(300):
        full.send(lambda: go.request("server_info"))
        full.answer()
        list(full.conversation.ready())
    full.send(lambda: go.request("server_info"))

    assert 16 == len(full.with_server)

"""A lone call over a connection that allows it goes, and its answer does, without a turn of the event loop for each
task in between; anything else takes the usual way."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gradoracle.v1 import service_pb2
from gradoracle_server.frames import Attachments, Job, Reply
from gradoracle_server.front import statuses
from gradoracle_server.front.admission import Outcome, Ticket
from gradoracle_server.front.stream import Stream
from gradoracle_server.front.streams import Streams
from gradoracle_server.front.unread import Unread
from gradoracle_server.front.uploads import Budget


class Connection:
    """Takes messages as a direct connection does."""

    on_message: Callable[[bytes], bool] | None = None

    def __init__(self) -> None:
        self.has_room = True
        self.at_once: list[service_pb2.StreamResponse] = []
        self.in_turn: list[service_pb2.StreamResponse] = []
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, message: bytes) -> None:
        self.at_once.append(service_pb2.StreamResponse.FromString(message))

    async def write(self, message: bytes) -> None:
        self.in_turn.append(service_pb2.StreamResponse.FromString(message))

    async def read(self) -> Any:
        return await self.waiting.get()

    def peer(self) -> str:
        return "peer"

    def time_remaining(self) -> float | None:
        return None


class Service:
    """Lets every call in, and answers none by itself."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.events: list[str] = []
        self.calls: dict[str, Any] = defaultdict(lambda: SimpleNamespace(started=0, finished=self._finished))
        self.metrics = SimpleNamespace(calls=self.calls)

    def _finished(self, code: grpc.StatusCode, _: float) -> None:
        self.events.append(code.name)

    async def device(self, _: object) -> str:
        return "cpu"

    def admit(self, method: int, request: bytes, *given: Any, **_: Any) -> tuple[Any, Ticket]:
        outcome: Outcome = given[3]
        self.tickets.append(Ticket(Job(method, request), lambda: "peer", outcome, 0.0))
        return SimpleNamespace(abandon=lambda ticket, _: ticket.future.cancel()), self.tickets[-1]

    def note(self, *_: object) -> None:
        self.events.append("noted")

    def response(self, _: Ticket, reply: Reply) -> tuple[bytes | memoryview, bytes]:
        self.events.append("answered")
        return reply.payload, b""


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Stream, Connection, Service, asyncio.Task[None]]]:
    """A stream whose reader waits for a message and whose writer rests."""
    service, connection = Service(), Connection()
    given: Any = service
    stream = Stream(given, Budget(0, 0), Unread(0, 1), connection, None, immediate=connection)
    task = asyncio.create_task(stream.run())
    await settled()
    yield stream, connection, service, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def message(*ids: int, device: str = "", size: int = 0, chunk: bool = False) -> bytes:
    """Calls, the first of which names a device, has a request of so many bytes, or a chunk before it."""
    made = service_pb2.StreamRequest()
    for number in ids:
        made.calls.add(id=number).compute_vjp.SetInParent()
    if device:
        made.calls[0].compute_vjp.device = device
    if size:
        made.calls[0].compute_vjp.wrt.append("w" * size)
    if chunk:
        made.chunks.add(call_id=ids[0], data=b"x")
    return made.SerializeToString()


def ids(messages: list[service_pb2.StreamResponse]) -> list[list[int]]:
    return [[answer.id for answer in one.answers] for one in messages]


async def test_a_lone_call_is_begun_with_and_answered_at_once() -> None:
    """Within the calls that bring it and its reply; it is noted once its answer has gone."""
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        assert connection.on_message(message(7))
        assert 1 == len(service.tickets)
        sent = connection.send
        connection.send = lambda one: (service.events.append("sent"), sent(one))[1]  # type: ignore[method-assign]
        service.tickets[0].settle(Reply(0, b""))
        assert [[7]] == ids(connection.at_once)
        assert ["answered", "sent", "noted", "OK"] == service.events
        await settled()
        assert [] == connection.in_turn


@pytest.mark.parametrize(
    "said",
    [
        message(1, 2),
        message(1, device="cpu"),
        message(1, size=5000),
        message(1, chunk=True),
        b"",
        b"\xff\xff",
        message(1)[:-1],
    ],
)
async def test_the_reader_takes_what_is_no_lone_call(said: bytes) -> None:
    """Two calls, a device, much, a chunk, nothing, and what is no message."""
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        assert not connection.on_message(said)
        assert [] == service.tickets
        assert {} == service.calls


async def test_the_reader_takes_a_call_beside_another() -> None:
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        assert connection.on_message(message(1))
        assert not connection.on_message(message(2))
        await connection.waiting.put(message(2))
        await settled()
        assert 2 == len(service.tickets)


async def test_an_answer_waits_for_room() -> None:
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        connection.on_message(message(1))
        connection.has_room = False
        service.tickets[0].settle(Reply(0, b""))
        assert [] == connection.at_once
        await settled()
        assert [[1]] == ids(connection.in_turn)


async def test_what_has_gone_counts_no_more() -> None:
    """Neither against the stream, nor against all."""
    async with running() as (stream, connection, service, _):
        assert connection.on_message is not None
        connection.on_message(message(1))
        assert not stream.is_idle
        service.tickets[0].settle(Reply(0, bytes(1000)))
        assert stream.is_idle


async def test_answers_wait_for_those_before_them() -> None:
    """The writer sends them in their order."""
    async with running() as (_, connection, service, _):
        await connection.waiting.put(message(1, 2))
        await settled()
        for ticket in service.tickets:
            ticket.settle(Reply(0, b""))
        assert [] == connection.at_once
        await settled()
        assert [[1, 2]] == ids(connection.in_turn)


async def test_an_answer_with_attachments_goes_in_chunks() -> None:
    room = memoryview(b"0123")
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        connection.on_message(message(1))
        service.tickets[0].settle(Reply(0, b"", Attachments(-1, [(0, 4)], room=room)))
        assert [] == connection.at_once
        await settled()
        assert b"0123" == b"".join(chunk.data for one in connection.in_turn for chunk in one.chunks)


async def test_a_failure_is_told_at_once() -> None:
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        connection.on_message(message(1))
        service.tickets[0].fail(statuses.shutting_down())
        (answer,) = connection.at_once[0].answers
        assert b"SHUTTING_DOWN" in answer.status
        assert ["UNAVAILABLE"] == service.events


@pytest.mark.parametrize("answered", [True, False])
async def test_a_drained_stream_ends_with_its_last_answer(answered: bool) -> None:
    """Whether it comes after the drain, or before."""
    async with running() as (stream, connection, service, task):
        assert connection.on_message is not None
        connection.on_message(message(1))
        if answered:
            service.tickets[0].settle(Reply(0, b""))
        stream.drain()
        await settled()
        if not answered:
            service.tickets[0].settle(Reply(0, b""))
        with pytest.raises(statuses.Failure):
            await asyncio.wait_for(task, 30)
        assert [[1]] == ids(connection.at_once + connection.in_turn)


async def test_a_call_that_is_given_up_is_answered_nothing() -> None:
    async with running() as (_, connection, service, _):
        assert connection.on_message is not None
        connection.on_message(message(1))
        await connection.waiting.put(service_pb2.StreamRequest(cancelled=[1]).SerializeToString())
        await settled()
        assert service.tickets[0].future.cancelled()
        assert ["CANCELLED"] == service.events
        assert [] == connection.at_once + connection.in_turn


async def test_a_connection_that_has_ended_keeps_no_stream() -> None:
    """In a ring, both would live until the next collection."""
    service: Any = SimpleNamespace(draining=False, budget=Budget(0, 0), unread=Unread(0, 1))
    connection: Any = Connection()
    await connection.waiting.put(grpc.aio.EOF)
    await asyncio.wait_for(Streams(service).serve(connection), 30)
    assert connection.on_message is None


async def test_an_outcome_is_told_once_in_the_order_of_asking(caplog: pytest.LogCaptureFixture) -> None:
    """An error of one who is told is the loop's to report, and keeps nobody else from being told."""
    outcome, told = Outcome(), []

    def raises(_: Outcome) -> None:
        raise LookupError("of mine")

    outcome.add_done_callback(lambda one: told.append((1, one.result().payload)))
    outcome.add_done_callback(raises)
    outcome.add_done_callback(lambda one: told.append((2, one.result().payload)))
    with caplog.at_level(logging.ERROR, "asyncio"):
        outcome.set_result(Reply(0, b"x"))
    outcome.add_done_callback(lambda one: told.append((3, one.result().payload)))
    assert [(1, b"x"), (2, b"x"), (3, b"x")] == told
    assert "telling what became of a request failed" in caplog.text
    assert not outcome.cancel()
    assert (True, False, None) == (outcome.done(), outcome.cancelled(), outcome.exception())


async def test_an_outcome_of_a_failure_raises_it() -> None:
    outcome = Outcome()
    failure = statuses.shutting_down()
    outcome.set_exception(failure)
    assert failure is outcome.exception()
    with pytest.raises(statuses.Failure) as caught:
        outcome.result()
    assert failure is caught.value


async def test_a_cancelled_outcome() -> None:
    outcome, told = Outcome(), []
    outcome.add_done_callback(lambda one: told.append(one.cancelled()))
    assert outcome.cancel()
    assert not outcome.cancel()
    assert [True] == told

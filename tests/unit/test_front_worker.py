"""A worker that nobody waits for any more: it gets a moment to finish, and is ended after that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gradoracle_server import envelope, frames, lanes
from gradoracle_server.front import wire, worker
from gradoracle_server.front.admission import Ticket
from gradoracle_server.launch import WorkerOptions


class Process:
    """Stands for a worker's process."""

    pid = os.getpid()
    killed = False

    def kill(self) -> None:
        """Notes that it was ended."""
        self.killed = True


class Processes:
    """Starts one, whose end of the socket the test holds."""

    def __init__(self) -> None:
        self.process = Process()
        self.ours, self.theirs = socket.socketpair()

    async def start(self, *_: object) -> Any:
        """The process, and the front's end."""
        return self.process, self.ours


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    """With one process that has greeted."""
    made = Processes()
    frames.send(made.theirs, frames.Reply(0, b'{"pid": 1}'))
    yield made
    made.theirs.close()
    made.ours.close()


async def busy(processes: Any) -> tuple[worker.Worker, Ticket]:
    """A worker that has a request."""
    made = worker.Worker(lambda: None, WorkerOptions("cpu", 1, 0, 0, 0), processes, *[lambda each: None] * 3)
    await made.start()
    future: asyncio.Future[frames.Reply] = asyncio.get_running_loop().create_future()
    ticket = Ticket(frames.Job(0, b"x"), lambda: "peer", future, time.perf_counter())
    made.state = "idle"
    made.run(ticket)
    return made, ticket


async def until(condition: Any) -> None:
    """Lets the event loop run until something is so."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_that_finishes_in_time_lives(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply within the grace spares the process, though nobody waits for it."""
    monkeypatch.setattr(worker, "GRACE", 3600.0)
    made, ticket = await busy(processes)
    ticket.future.cancel()
    made.stop("cancelled")

    frames.send(processes.theirs, frames.Reply(0, b"answer"))

    await until(lambda: made.state == "idle")
    assert (False, "") == (processes.process.killed, made.stopped_for)
    made.close()


async def test_one_that_does_not_is_ended(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the grace the process is killed, and it is known for what."""
    monkeypatch.setattr(worker, "GRACE", 0.0)
    made, ticket = await busy(processes)
    ticket.future.cancel()

    made.stop("deadline")

    await until(lambda: processes.process.killed)
    assert "deadline" == made.stopped_for
    made.close()


async def test_a_large_answer_outlives_the_next_one(processes: Processes) -> None:
    """The worker writes the next one into the same memory, and the front may not have looked at the first by then."""
    made, ticket = await busy(processes)
    outlet, tickets = lanes.Outlet(), [ticket]
    for byte in (b"a", b"b", b"c"):
        reply = frames.Reply(0, byte * envelope.SHARED_FROM, phases=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
        outlet.free()
        frames.send(processes.theirs, reply, outlet)
        await until(tickets[-1].future.done)
        future: asyncio.Future[frames.Reply] = asyncio.get_running_loop().create_future()
        tickets.append(Ticket(frames.Job(0, b"x"), lambda: "peer", future, time.perf_counter()))
        made.run(tickets[-1])
    for byte, each in zip((b"a", b"b", b"c"), tickets, strict=False):
        answer = each.future.result()
        assert answer.is_timed
        timing = wire.timing(each.queue_seconds, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
        assert byte * envelope.SHARED_FROM + timing == answer.payload
    outlet.close()
    made.close()


async def test_an_error_has_no_timing(processes: Processes) -> None:
    """However large it is: what comes is a Status."""
    made, ticket = await busy(processes)
    with contextlib.closing(lanes.Outlet()) as outlet:
        frames.send(processes.theirs, frames.Reply(3, b"e" * envelope.SHARED_FROM), outlet)
        answer = await ticket.future
    assert (b"e" * envelope.SHARED_FROM, False) == (answer.payload, answer.is_timed)
    made.close()


async def test_an_idle_one_is_not_stopped(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has answered already has nothing that could be stopped."""
    monkeypatch.setattr(worker, "GRACE", 0.0)
    made, ticket = await busy(processes)
    frames.send(processes.theirs, frames.Reply(0, b"answer"))
    assert b"answer" == (await ticket.future).payload

    made.stop("cancelled")
    await asyncio.sleep(0.01)

    assert (False, "", "idle") == (processes.process.killed, made.stopped_for, made.state)
    made.close()

"""A lane whose worker processes are the test's own ends of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from gradoracle_server import frames, inbox
from gradoracle_server.front import pool
from gradoracle_server.front.admission import Queue, Ticket
from gradoracle_server.launch import WorkerOptions


class Process:
    """Of a worker whose other end the test holds."""

    pid = 1

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.inbox = inbox.Inbox(frames.Job)
        self.withdrawn: list[int] = []  # the numbers of jobs that were taken back
        self.exit_code: int | None = 0

    def kill(self) -> None:
        self.exit_code = -signal.SIGKILL
        self.theirs.close()

    async def job(self) -> bytes:
        """The payload of the next job, once it is there."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(BlockingIOError):
                    found = self._next()
                    if found is not None:
                        return found
                await asyncio.sleep(0.001)

    async def has(self) -> list[bytes]:
        """All that it was given so far, the oldest first; the front is let to do what it will."""
        await asyncio.sleep(0.02)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                job = self._next()
                if job is not None:
                    found.append(job)
        return found

    def _next(self) -> bytes | None:
        job = self.inbox.next() or self.inbox.read(self.theirs)
        if job is not None and (numbers := frames.withdrawn_jobs(job)) is not None:
            self.withdrawn += numbers
            return None
        return None if job is None else bytes(job.payload)

    def answer(self, payload: bytes) -> None:
        frames.send(self.theirs, frames.Reply(0, payload))


class Processes:
    """Starts processes that greet at once."""

    def __init__(self) -> None:
        self.made: list[Process] = []

    async def start(self, *_: object) -> Any:
        process = Process()
        process.answer(b'{"pid": 1}')
        self.made.append(process)
        return process, process.ours

    async def ended(self, process: Process) -> int | None:
        process.theirs.close()
        return process.exit_code


class Bench:
    """A lane whose workers are the test."""

    def __init__(self, workers: int) -> None:
        self.processes = Processes()
        processes: Any = self.processes
        self.lane = pool.Lane(
            WorkerOptions("cpu", 1, 0, 0, 0), Queue(0, 0), processes, lambda: None, workers, on_change=lambda: None
        )
        self.lane._seconds = 0.0001  # it has seen quick ones

    def submit(self, *payloads: bytes, peer: str = "peer", seconds: float | None = None) -> list[Ticket]:
        """Requests of one connection."""
        loop = asyncio.get_running_loop()
        made = [
            Ticket(frames.Job(0, payload), lambda: peer, loop.create_future(), time.perf_counter())
            for payload in payloads
        ]
        for ticket in made:
            # Read here whatever it is: a failure that no test awaits is reported when the future is collected, which
            # may be in the middle of another test, that looks for errors in the log.
            ticket.future.add_done_callback(lambda future: future.cancelled() or future.exception())
            self.lane.submit(ticket, seconds)
        return made


@contextlib.asynccontextmanager
async def bench(workers: int) -> AsyncIterator[Bench]:
    """Its workers have come up."""
    made = Bench(workers)
    made.lane.start()
    async with asyncio.timeout(60):
        while made.lane.alive < workers:
            await asyncio.sleep(0.001)
    try:
        yield made
    finally:
        await made.lane.close()
        for process in made.processes.made:
            process.ours.close()
            process.theirs.close()


def letters(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


async def busy_with_b(made: Bench) -> Process:
    """The only worker of a lane that was given "abcd": it has answered "a", runs "b" and has the rest ahead of time."""
    process = made.processes.made[0]
    await process.has()
    process.answer(b"A")
    assert await process.has() == letters("bcd")
    return process


async def replies(tickets: list[Ticket]) -> list[bytes]:
    async with asyncio.timeout(60):
        return [bytes((await ticket.future).payload) for ticket in tickets]

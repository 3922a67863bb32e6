"""What a worker has answered, or was never to run, when the front ends it: nobody else is the worse for it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest
from lane_bench import Bench, bench, busy_with_b, letters, replies

from gradoracle_server import envelope, frames
from gradoracle_server.front import statuses, worker
from gradoracle_server.front.admission import Ticket


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say when a grace is over."""
    monkeypatch.setattr(worker, "GRACE", 3600.0)


async def answered_by_the_next(made: Bench, tickets: list[Ticket], payloads: list[bytes]) -> None:
    """These, and no others, are given to the worker that comes after the first one, and answered."""
    async with asyncio.timeout(60):
        while len(made.processes.made) < 2:
            await asyncio.sleep(0.001)
    process = made.processes.made[1]
    for payload in payloads:
        assert payload == await process.job()
        process.answer(payload.upper())
    assert [payload.upper() for payload in payloads] == await replies(tickets)
    assert [] == await process.has()


async def test_an_answer_on_its_way_when_the_grace_ends() -> None:
    """It is nobody's, and what waited is not given to the worker that is already killed, but to the next one."""
    async with bench(1) as made:
        made.lane._seconds = 0.01  # so that nothing is handed over ahead of time
        tickets = made.submit(*letters("ab"))
        process, [first] = made.processes.made[0], made.lane.workers
        assert [b"a"] == await process.has()
        made.lane.abandon(tickets[0])

        process.answer(b"A")  # which the front has not read when it kills
        first._end()

        await answered_by_the_next(made, tickets[1:], letters("b"))
        assert {"cancelled": 1} == dict(made.lane.restarts)
        assert 1 == tickets[1].attempts


async def test_what_the_killed_one_had_ahead_of_time(caplog: pytest.LogCaptureFixture) -> None:
    """It is run by another, even where the killed one had come to it; that it did is no fault."""
    async with bench(1) as made:
        tickets = made.submit(*letters("abcd"))
        process = await busy_with_b(made)
        made.lane.abandon(tickets[1])

        process.answer(b"B")
        process.answer(b"too late")
        made.lane.workers[0]._end()

        await answered_by_the_next(made, tickets[2:], letters("cd"))
        assert {"cancelled": 1} == dict(made.lane.restarts)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_death_of_a_stopped_worker_is_not_the_fault_of_who_waits() -> None:
    """It was stopped for another request: this one had no try, and has one elsewhere."""
    async with bench(1) as made:
        [ticket] = made.submit(b"a")
        process, [first] = made.processes.made[0], made.lane.workers
        assert [b"a"] == await process.has()
        first.stopped_for = "cancelled"

        first.kill()

        await answered_by_the_next(made, [ticket], letters("a"))
        assert {"cancelled": 1} == dict(made.lane.restarts)
        assert not made.lane.quarantine


async def test_a_worker_that_has_lost_count(caplog: pytest.LogCaptureFixture) -> None:
    """It says that it did not run what somebody waits for: it is replaced, and that is run by another, as is what it
    had ahead of time, whatever it says of it."""
    async with bench(1) as made:
        tickets = made.submit(*letters("abcd"))
        process = await busy_with_b(made)

        frames.send(process.theirs, frames.NOT_RUN)
        process.answer(b"not b's")

        await answered_by_the_next(made, tickets[1:], letters("bcd"))
        assert "worker 1 of cpu did not run what was not taken back" in caplog.text
        assert [1, 1, 1] == [ticket.attempts for ticket in tickets[1:]]


async def test_an_answer_for_which_the_front_has_no_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is the server's fault, and not that of the request, which has ended no worker. The next one is served."""

    def mapped(descriptor: int, *_: object) -> memoryview:
        os.close(descriptor)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("gradoracle_server.inbox.mapped", mapped)
    async with bench(1) as made:
        tickets = made.submit(*letters("ab"))
        assert [b"a"] == await made.processes.made[0].has()

        made.processes.made[0].answer(bytes(envelope.SHARED_FROM))

        with pytest.raises(statuses.Failure, match="internal error, incident"):
            await tickets[0].future
        await answered_by_the_next(made, tickets[1:], letters("b"))
        assert "Cannot allocate memory" in caplog.text
        assert {"exit": 1} == dict(made.lane.restarts)
        assert not made.lane.quarantine


async def test_the_lane_closes_while_a_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead one had is answered, too."""
    ending = asyncio.Event()

    async def ended(_: worker.Worker) -> int | None:
        ending.set()
        return await asyncio.get_running_loop().create_future()

    async with bench(1) as made:
        [ticket] = made.submit(b"a")
        process, [first] = made.processes.made[0], made.lane.workers
        assert [b"a"] == await process.has()
        with monkeypatch.context() as patched:
            patched.setattr(worker.Worker, "ended", ended)
            first.kill()
            async with asyncio.timeout(60):
                await ending.wait()
            patched.undo()
            await made.lane.close()
        assert ticket.future.done()
        with pytest.raises(statuses.Failure, match="the server is shutting down"):
            ticket.future.result()

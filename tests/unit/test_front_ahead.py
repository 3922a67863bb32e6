"""Small requests are handed to busy workers ahead of time, and that costs nobody anything."""

from __future__ import annotations

import asyncio
import signal

import pytest
from lane_bench import Bench, Process, bench, busy_with_b, letters, replies

from gradoracle_server import frames
from gradoracle_server.front import pool, statuses, worker


async def test_a_busy_worker_has_the_next_few_and_answers_in_turn() -> None:
    """It gets up to four beside the one that it runs, and more when half of them are done."""
    async with bench(1) as made:
        tickets = made.submit(*letters("abcdefgh"))
        process = made.processes.made[0]
        assert await process.has() == [b"a"]  # it was idle, and nothing waited

        process.answer(b"A")
        assert await process.has() == letters("bcdef")
        assert made.lane.in_flight == 7
        process.answer(b"B")
        assert await process.has() == []
        process.answer(b"C")
        assert await process.has() == letters("gh")

        for letter in letters("DEFGH"):
            process.answer(letter)
        assert await replies(tickets) == letters("ABCDEFGH")
        assert made.lane.states()["idle"] == 1
        waited = [ticket.queue_seconds for ticket in tickets]
        assert waited == sorted(waited), "each waits until the one before it has been answered"


async def test_several_answers_that_arrive_together() -> None:
    """One read brings them all, and each goes to its own request."""
    async with bench(1) as made:
        tickets = made.submit(*letters("abcd"))
        process = await busy_with_b(made)
        data = [frames.whole(frames.Reply(0, letter)) for letter in letters("BCD")]

        process.theirs.sendall(b"".join(one for one in data if one))

        assert await replies(tickets) == letters("ABCD")


async def test_who_takes_long_gets_one_at_a_time() -> None:
    """Where requests are slow there is nothing to gain, and much to wait for."""
    async with bench(1) as made:
        made.lane._seconds = 0.01
        made.submit(*letters("abcdef"))
        process = made.processes.made[0]
        await process.has()

        process.answer(b"A")

        assert await process.has() == [b"b"]


async def test_large_requests_wait_their_turn() -> None:
    """And so do those behind them, whose turn would come later."""
    async with bench(1) as made:
        large = bytes(5000)
        made.submit(b"a", b"b", large, b"c")
        process = made.processes.made[0]
        await process.has()

        process.answer(b"A")
        assert await process.has() == [b"b"]
        process.answer(b"B")
        assert await process.has() == [large]


async def test_connections_take_turns_ahead_of_time_too() -> None:
    """A batch job's thousands do not fill what stands behind a request."""
    async with bench(1) as made:
        made.submit(*letters("abcdef"), peer="batch")
        made.submit(*letters("xy"), peer="other")
        process = made.processes.made[0]
        await process.has()

        process.answer(b"A")

        assert await process.has() == letters("bxcyd")


async def test_one_that_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken back, and its worker goes on with what it runs; if that was too late, it has the usual grace."""
    monkeypatch.setattr(worker, "GRACE", 3600.0)
    async with bench(1) as made:
        tickets = made.submit(*letters("abcd"))
        process = await busy_with_b(made)

        made.lane.abandon(tickets[2])
        assert await process.has() == []
        assert process.withdrawn == [3]
        assert made.lane.workers[0].stopped_for == ""
        process.answer(b"B")
        assert await replies([tickets[1]]) == [b"B"]
        assert made.lane.workers[0].stopped_for == "cancelled"
        process.answer(b"C")
        process.answer(b"D")

        assert await replies([tickets[3]]) == [b"D"]
        assert made.lane.workers[0].stopped_for == ""
        assert tickets[2].future.cancelled()


async def test_a_deadline_that_passes_before_its_turn() -> None:
    """It has waited in the queue, as far as its caller is concerned."""
    async with bench(1) as made:
        [first, *_] = made.submit(*letters("ab"))
        [late] = made.submit(b"c", seconds=0.2)
        made.submit(b"d")
        process = await busy_with_b(made)
        assert await replies([first]) == [b"A"]

        with pytest.raises(statuses.Failure, match="waiting for a worker"):
            async with asyncio.timeout(60):
                await late.future
        await process.has()
        assert process.withdrawn == [3]


async def two_busy(made: Bench) -> tuple[Process, Process]:
    """The one that runs "c" and has two more ahead of time, and the other, which runs "b"."""
    has = {(await process.has())[0]: process for process in made.processes.made}
    first, second = has[b"a"], has[b"b"]
    first.answer(b"A")
    assert await first.has() == letters("cde")
    return first, second


async def test_the_death_of_a_worker_is_the_fault_of_what_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood behind that runs on another one, as if it had never been away."""
    monkeypatch.setattr(pool, "_LONG", 3600.0)
    async with bench(2) as made:
        tickets = made.submit(*letters("abcdefgh"))
        first, second = await two_busy(made)
        first.exit_code = -signal.SIGSEGV
        first.theirs.close()

        with pytest.raises(statuses.Failure, match="SIGSEGV"):
            async with asyncio.timeout(60):
                await tickets[2].future
        second.answer(b"B")
        for letter in letters("de"):  # before those whose turn had not come
            assert await second.job() == letter
            second.answer(letter.upper())
        assert await replies([tickets[1], *tickets[3:5]]) == letters("BDE")
        assert [ticket.attempts for ticket in tickets[3:5]] == [1, 1]


async def test_what_stands_behind_a_long_request_is_given_to_others() -> None:
    """They need not wait for it to end, and it does not run them."""
    async with bench(2) as made:
        tickets = made.submit(*letters("abcdefgh"))
        first, second = await two_busy(made)

        second.answer(b"B")
        for _ in range(5):
            second.answer((await second.job()).upper())
        assert await replies([*tickets[:2], *tickets[3:]]) == letters("ABDEFGH")
        assert not tickets[2].future.done()
        assert await first.has() == []
        assert first.withdrawn == [3, 4]

        first.answer(b"C")
        for _ in range(2):
            frames.send(first.theirs, frames.NOT_RUN)
        assert await replies([tickets[2]]) == [b"C"]
        assert await replies(tickets[3:5]) == letters("DE")
        async with asyncio.timeout(60):
            while made.lane.states()["idle"] < 2:
                await asyncio.sleep(0.001)
        assert dict(made.lane.restarts) == {}


async def test_the_end_of_the_server_is_told_to_them_too() -> None:
    """Nobody is left without an answer."""
    async with bench(1) as made:
        tickets = made.submit(*letters("abcd"))
        await busy_with_b(made)

    for ticket in tickets[1:]:
        with pytest.raises(statuses.Failure, match="shutting down"):
            await ticket.future

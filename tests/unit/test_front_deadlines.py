"""Deadlines: one timer finds out who is late."""

from __future__ import annotations

import asyncio

from gradoracle_server.frames import Job, Reply
from gradoracle_server.front.admission import Ticket
from gradoracle_server.front.deadlines import Deadlines


def ticket() -> Ticket:
    """A request."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    return Ticket(Job(0, b""), lambda: "peer", future, 0.0)


class Watch:
    """Deadlines whose expired requests are kept, and pending no longer."""

    def __init__(self) -> None:
        self.pending: list[Ticket] = []
        self.late: list[Ticket] = []
        self.deadlines = Deadlines(lambda: list(self.pending), self._expire)

    def _expire(self, late: Ticket) -> None:
        self.pending.remove(late)
        self.late.append(late)

    def add(self, seconds: float) -> Ticket:
        """A request that is pending from now on."""
        made = ticket()
        self.deadlines.watch(made, seconds)
        self.pending.append(made)
        return made

    async def until_late(self, count: int) -> list[Ticket]:
        """Waits for so many to be late."""
        async with asyncio.timeout(10):
            while len(self.late) < count:
                await asyncio.sleep(0.001)
        return self.late


async def test_each_at_its_own_time() -> None:
    """Requests expire in the order of their deadlines, whatever the order in which they came."""
    watch = Watch()
    last, first, middle = watch.add(0.15), watch.add(0.02), watch.add(0.08)

    assert [first, middle, last] == await watch.until_late(3)


async def test_not_before_its_time() -> None:
    """A request that has time left is not touched when others expire."""
    watch = Watch()
    patient = watch.add(60.0)
    hasty = watch.add(0.01)

    assert [hasty] == await watch.until_late(1)
    assert [patient] == watch.pending


async def test_answered_requests_are_forgotten() -> None:
    """A request that is not pending any more does not expire, and those behind it still do."""
    watch = Watch()
    watch.pending.remove(watch.add(0.01))
    late = watch.add(0.05)

    assert [late] == await watch.until_late(1)


async def test_request_that_was_away_keeps_its_deadline() -> None:
    """A request that was in nobody's hands when the timer went off expires all the same once it is pending again."""
    watch = Watch()
    away = watch.add(0.01)
    watch.pending.remove(away)
    await asyncio.sleep(0.05)
    watch.pending.append(away)
    watch.deadlines.watch_again(away)

    assert [away] == await watch.until_late(1)


async def test_closed_expires_nobody() -> None:
    """After `close` no timer goes off."""
    watch = Watch()
    watch.add(0.01)
    watch.deadlines.close()
    await asyncio.sleep(0.05)

    assert [] == watch.late

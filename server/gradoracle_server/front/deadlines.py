"""One timer for the deadlines of many requests.

Nearly every request is answered long before its deadline, so setting and cancelling a timer for each would be work for
nothing. There is one timer, set for the earliest deadline seen; when it goes off, it looks who is late and is set anew.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable

from gradoracle_server.front.admission import Ticket

_PAUSE = 0.01  # seconds between two looks at least


class Deadlines:
    """Calls `expire` with each of the `pending` requests whose deadline has passed."""

    def __init__(self, pending: Callable[[], Iterable[Ticket]], expire: Callable[[Ticket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending = pending
        self._expire = expire
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, ticket: Ticket, seconds: float) -> None:
        """Gives a request that becomes pending now so many seconds."""
        ticket.deadline = self._loop.time() + seconds
        self.watch_again(ticket)

    def watch_again(self, ticket: Ticket) -> None:
        """Keeps the deadline of a request that was not pending for a while."""
        if ticket.deadline < self._due:
            self._set(ticket.deadline)

    def close(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, due: float) -> None:
        self.close()
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._due, self._timer = math.inf, None
        late, earliest = [], math.inf
        for ticket in self._pending():
            if ticket.deadline <= now:
                late.append(ticket)
            elif ticket.deadline < earliest:
                earliest = ticket.deadline
        for ticket in sorted(late, key=lambda ticket: ticket.deadline):
            self._expire(ticket)
        if earliest < self._due:
            self._set(max(earliest, now + _PAUSE))

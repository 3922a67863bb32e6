"""Requests that wait for a worker: bounded by count and bytes, and served in turn by connection.

The queue of a device takes one request from each connection in turn, so that a batch job of thousands of requests
delays another connection's request by one of its own, not by all of them. For the same reason the last places are kept
for connections that have nothing waiting: an eighth of the limit on top of it, which a batch job cannot fill.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gradoracle_server.frames import Job, Reply

if TYPE_CHECKING:
    from gradoracle_server.front.worker import Worker

_SMALL = 4096  # bytes
_RESERVE = 8  # one place in so many on top of the limits is kept for connections that have nothing waiting


class Outcome:
    """What becomes of a request, as an asyncio.Future, but who has asked is told at once, not in the event loop's next
    turn, and nothing can await it."""

    __slots__ = ("_asked", "_error", "_reply", "_state")

    def __init__(self) -> None:
        self._state = "pending"
        self._reply: Reply | None = None
        self._error: Exception | None = None
        self._asked: list[Callable[[Outcome], object]] = []

    def done(self) -> bool:
        """Whether it is known, or nobody waits for it any more."""
        return self._state != "pending"

    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._state == "cancelled"

    def result(self) -> Reply:
        """The reply. Raises the failure where there is one."""
        if self._error is not None:
            raise self._error
        assert self._reply is not None  # noqa: S101 - who calls knows that it is done, and not cancelled
        return self._reply

    def exception(self) -> Exception | None:
        """The failure, if it is one."""
        return self._error

    def set_result(self, reply: Reply) -> None:
        """It is a reply."""
        self._reply = reply
        self._settle("done")

    def set_exception(self, failure: Exception) -> None:
        """It is a failure."""
        self._error = failure
        self._settle("done")

    def cancel(self) -> bool:
        """Nobody waits for it any more. Whether anybody did."""
        if self.done():
            return False
        self._settle("cancelled")
        return True

    def add_done_callback(self, tell: Callable[[Outcome], object]) -> None:
        """Has a function called when it is done, in the order of asking; at once where it is. Its errors are the event
        loop's to report."""
        if self.done():
            self._tell(tell)
        else:
            self._asked.append(tell)

    def _settle(self, state: str) -> None:
        self._state = state
        asked, self._asked = self._asked, []
        for tell in asked:
            self._tell(tell)

    def _tell(self, tell: Callable[[Outcome], object]) -> None:
        try:
            tell(self)
        except Exception as error:
            context = {"message": "telling what became of a request failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class Ticket:
    """A request on its way through the front."""

    __slots__ = ("_peer", "arrived", "attempts", "deadline", "future", "job", "queue_seconds", "size", "worker")

    def __init__(
        self, job: Job, peer: Callable[[], str], future: asyncio.Future[Reply] | Outcome, arrived: float
    ) -> None:
        """`arrived` is a time.perf_counter()."""
        self.job = job
        self._peer: str | Callable[[], str] = peer  # asked only of those that have to wait
        self.future = future  # what the caller waits for; cancelled when nobody does any more
        self.arrived = arrived
        self.queue_seconds = 0.0
        self.attempts = 0  # how many workers got it
        self.worker: Worker | None = None  # who has it
        self.deadline = math.inf  # by the event loop's clock
        self.size = len(job.payload)
        if job.attachments is not None:
            self.size += sum(length for _, length in job.attachments.spans)

    @property
    def peer(self) -> str:
        """The connection that it came over."""
        if not isinstance(self._peer, str):
            self._peer = self._peer()
        return self._peer

    @property
    def begun(self) -> float:
        """When a worker began with it; a time.perf_counter()."""
        return self.arrived + self.queue_seconds

    @property
    def is_small(self) -> bool:
        """Whether it may be handed to a worker that is busy: no bytes but a few, and no other worker has had it."""
        return self.size <= _SMALL and self.job.attachments is None and not self.attempts

    def for_nobody(self) -> Ticket:
        """The same request where nobody waits for the reply."""
        nobody = Outcome()
        nobody.cancel()
        return Ticket(self.job, lambda: self.peer, nobody, self.arrived)

    def settle(self, reply: Reply) -> None:
        """Hands the reply to who waits for it; where nobody does, nothing of it is kept."""
        if not self.future.done():
            self.future.set_result(reply)
        elif reply.attachments is not None:
            reply.attachments.close()

    def fail(self, failure: Exception) -> None:
        """Hands a failure to who waits for the reply."""
        if not self.future.done():
            self.future.set_exception(failure)


class Full(Exception):  # noqa: N818 - an everyday answer, no error
    """No room in the queue; `limit` is the flag that bounds it, `allowed` its value."""

    def __init__(self, limit: str, allowed: int) -> None:
        super().__init__(limit, allowed)
        self.limit = limit
        self.allowed = allowed


class Queue:
    """The requests that wait for one device. Limits of 0 are none."""

    def __init__(self, limit: int, byte_limit: int) -> None:
        self.limit = limit
        self.byte_limit = byte_limit
        self.depth = 0
        self.bytes = 0
        self._waiting: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()  # by connection; who is next, first

    def __iter__(self) -> Iterator[Ticket]:
        """All that wait, in no order."""
        return (ticket for tickets in self._waiting.values() for ticket in tickets)

    def put(self, ticket: Ticket) -> None:
        """Makes a request wait, or raises Full."""
        reserve = 0 if ticket.peer in self._waiting else 1
        if self.limit and self.depth >= self.limit + reserve * (self.limit // _RESERVE):
            raise Full("--max-queue", self.limit)
        allowed = self.byte_limit + reserve * (self.byte_limit // _RESERVE)
        # A request that is larger than the limit alone may still wait when nothing else does.
        if self.byte_limit and self.depth and self.bytes + ticket.size > allowed:
            raise Full("--max-queue-bytes", self.byte_limit)
        self._add(ticket)

    def put_first(self, ticket: Ticket) -> None:
        """Makes a request wait that had its turn already and lost it through no fault of its own."""
        self._add(ticket)
        self._waiting[ticket.peer].move_to_end(ticket, last=False)
        self._waiting.move_to_end(ticket.peer, last=False)

    def take(self) -> Ticket | None:
        """Whose turn it is, or None when nobody waits."""
        if not self._waiting:
            return None
        peer, tickets = next(iter(self._waiting.items()))
        ticket, _ = tickets.popitem(last=False)
        if tickets:
            self._waiting.move_to_end(peer)
        else:
            del self._waiting[peer]
        self._count(ticket, -1)
        return ticket

    def next(self) -> Ticket | None:
        """Whose turn it will be."""
        return next(iter(next(iter(self._waiting.values())))) if self._waiting else None

    def discard(self, ticket: Ticket) -> bool:
        """Lets a request wait no longer. Returns whether it did."""
        tickets = self._waiting.get(ticket.peer) if self.depth else None
        if tickets is None or ticket not in tickets:
            return False
        del tickets[ticket]
        if not tickets:
            del self._waiting[ticket.peer]
        self._count(ticket, -1)
        return True

    def clear(self) -> list[Ticket]:
        """Lets nobody wait; returns who did."""
        waiting = list(self)
        for ticket in waiting:
            self.discard(ticket)
        return waiting

    def _add(self, ticket: Ticket) -> None:
        self._waiting.setdefault(ticket.peer, OrderedDict())[ticket] = None
        self._count(ticket, 1)

    def _count(self, ticket: Ticket, change: int) -> None:
        self.depth += change
        self.bytes += change * ticket.size

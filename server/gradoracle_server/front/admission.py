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


class Ticket:
    """A request on its way through the front."""

    __slots__ = ("_peer", "arrived", "attempts", "deadline", "future", "job", "queue_seconds", "size", "worker")

    def __init__(self, job: Job, peer: Callable[[], str], future: asyncio.Future[Reply], arrived: float) -> None:
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
        future: asyncio.Future[Reply] = self.future.get_loop().create_future()
        future.cancel()
        return Ticket(self.job, lambda: self.peer, future, self.arrived)

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

"""One place for a worker process, and the process that fills it at the moment."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gradoracle_server.frames import Reply, is_not_run, withdrawal
from gradoracle_server.front import statuses, wire
from gradoracle_server.front.admission import Ticket
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.transport import Connection
from gradoracle_server.launch import WorkerOptions

STATES = ("starting", "idle", "busy", "spare", "dead")
"""A spare one has come up and waits for another to die, whose place it takes at once."""

GRACE = 0.1
"""Seconds that a worker has to finish a request that nobody waits for any more, before it is killed.

Most requests are shorter, and ending a worker costs a new process and its cached plans: a client that only hangs up
early must not be able to cause that with every call."""

START_TIMEOUT = 120.0
"""Seconds from the start of a worker to its greeting; making a CUDA context can take many."""

_log = logging.getLogger(__name__)


class Worker:
    """Runs one request at a time, and may have others ahead of time, which it runs in turn.

    `on_free` is called with it when it can take the next one, `on_next` when it has begun with one that it had, and
    `on_gone` when it cannot take any more, because its process has closed its socket.
    """

    def __init__(
        self,
        target: Callable[..., None],
        options: WorkerOptions,
        processes: Processes,
        on_free: Callable[[Worker], None],
        on_next: Callable[[Worker], None],
        on_gone: Callable[[Worker], None],
    ) -> None:
        self.state = "dead"
        self.greeting: dict[str, Any] = {}  # of the present process
        self.ticket: Ticket | None = None  # what it runs, or ran when it died
        self.ahead: deque[Ticket] = deque()  # what it runs after that
        self.stopped_for = ""  # why the front ends, or ended, the process: "deadline", "cancelled", or not at all
        self.garbled = False  # whether the present process sent what it should not; it is killed for it then
        self.killed = False  # whether the front has ended the present process, which may have answered before that
        self.jobs = 0  # answered by the present process
        self.memory_allocated = 0  # bytes, as reported with the last answer
        self.memory_reserved = 0
        self._target = target
        self._options = options
        self._processes = processes
        self._on_free = on_free
        self._on_next = on_next
        self._on_gone = on_gone
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._greeted: asyncio.Future[Reply] | None = None
        self._lost: asyncio.Future[None] | None = None
        self._doom: asyncio.TimerHandle | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        return self.state in ("idle", "busy")

    def is_stopped(self) -> bool:
        """Whether its process is held by a signal, and does nothing until another one."""
        if self._process is None or self.state in ("starting", "dead"):
            return False
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_bytes()
        except OSError:  # it has just ended
            return False
        return stat.rpartition(b") ")[2][:1] == b"T"

    async def start(self) -> None:
        """Starts a process and waits for its greeting. Raises OSError, EOFError, TimeoutError or ValueError."""
        loop = asyncio.get_running_loop()
        self.state = "starting"
        self.stopped_for = ""
        self.garbled = self.killed = False
        self.jobs = 0
        self._greeted, self._lost = loop.create_future(), loop.create_future()
        self._process, sock = await self._processes.start(self._target, self._options)
        self._connection = Connection(sock, self._on_reply, self._on_lost)
        async with asyncio.timeout(START_TIMEOUT):
            either: set[asyncio.Future[Any]] = {self._greeted, self._lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._greeted.done():
            raise EOFError("the process ended before it greeted")
        self.greeting = json.loads(bytes(self._greeted.result().payload))
        _log.debug("worker %s of %s is ready", self.greeting.get("pid"), self._options.device)

    async def lost(self) -> None:
        """Waits until the process has closed its socket."""
        assert self._lost is not None  # noqa: S101 - it has been started
        await self._lost

    async def ended(self) -> int | None:
        """How the process ended. Ends it if it has not."""
        self.state = "dead"
        self.ahead.clear()
        self.memory_allocated = self.memory_reserved = 0
        self._spare()
        if self._connection is not None:
            self._connection.close()
        if self._process is None:
            return None
        process, self._process = self._process, None
        return await self._processes.ended(process)

    def run(self, ticket: Ticket) -> None:
        """Gives it a request. The reply goes to the ticket."""
        assert self._connection is not None  # noqa: S101 - it has greeted
        self.state = "busy"
        ticket.worker = self
        self._begin(ticket)
        try:
            if (attachments := ticket.job.attachments) is not None and attachments.on_give is not None:
                attachments.on_give(attachments, self._connection)
            # One that has just died is noticed later; the request did not reach it then, and may try another one.
            ticket.attempts += self._connection.send(ticket.job)
        except OSError as error:
            self.ticket = ticket.worker = None
            ticket.fail(statuses.internal(error, "sending a request to a worker"))
            asyncio.get_running_loop().call_soon(self._free)

    def run_later(self, tickets: Sequence[Ticket]) -> None:
        """Gives it small requests while it has one. What it has not come to when it ends is in `ahead`."""
        assert self._connection is not None  # noqa: S101 - it has greeted
        for ticket in tickets:
            ticket.worker = self
        self.ahead += tickets
        self._connection.send_ahead([ticket.job for ticket in tickets])

    def take_ahead(self) -> list[Ticket]:
        """What it has not begun with, and somebody waits for, which others are to run."""
        tickets = [ticket for ticket in self.ahead if not ticket.future.done()]
        self.withdraw(tickets)
        self.ahead = deque(ticket if ticket.future.done() else ticket.for_nobody() for ticket in self.ahead)
        for ticket in tickets:
            ticket.worker = None
        return tickets

    def withdraw(self, tickets: Sequence[Ticket]) -> None:
        """Lets it not run what it has ahead of time. It answers that in its turn, for nobody, and so it does what it
        has begun with meanwhile."""
        first = self.jobs + 2  # after what it has answered, and the one that it runs
        numbers = [number for number, ticket in enumerate(self.ahead, first) if ticket in tickets]
        if numbers and self._connection is not None:
            self._connection.send_ahead([withdrawal(numbers)])

    def _begin(self, ticket: Ticket) -> None:
        self.ticket = ticket
        ticket.queue_seconds = time.perf_counter() - ticket.arrived

    def stop(self, reason: str) -> None:
        """Ends the process unless it finishes within the grace: nobody waits for what it does."""
        if self.state == "busy" and not self.stopped_for:
            self.stopped_for = reason
            self._doom = asyncio.get_running_loop().call_later(GRACE, self._end)

    def kill(self) -> None:
        """Ends the process at once. It is given nothing more."""
        self.killed = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Closes the socket; an idle process ends then by itself."""
        if self._connection is not None:
            self._connection.close()
        self._on_lost(False)

    def _on_reply(self, reply: Reply) -> None:
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(reply)
            return
        ticket = self.ticket
        if self.garbled or ticket is None or (is_not_run(reply) and not ticket.future.done()):
            self._astray(reply)
            return
        self.ticket = None
        if self._doom is not None:
            self._spare()
        self.jobs += 1
        self.memory_allocated, self.memory_reserved = reply.memory_allocated, reply.memory_reserved
        ticket.worker = None
        if isinstance(reply.payload, memoryview):  # the worker may write over it: one copy, which is as it is sent
            timing = b"" if reply.code else wire.timing(ticket.queue_seconds, reply.phases)
            reply.payload, reply.is_timed = b"".join((reply.payload, timing)), bool(timing)
        try:  # the next one first: the worker waits for it
            if self.killed:
                pass  # what it still has runs elsewhere, once it is gone
            elif self.ahead:
                self._go_on()
            else:
                self._free()
        finally:
            ticket.settle(reply)

    def _astray(self, reply: Reply) -> None:
        """A reply is nobody's. Who sends such a one cannot be trusted with the next request."""
        if reply.attachments is not None:
            reply.attachments.close()
        if self.killed:  # it may have come to what it had ahead of time, which others are to run
            return
        how = "answered unasked"
        if self.ticket is not None:
            how = "did not run what was not taken back"
            self.ticket.attempts = 0  # it is to be run again
        _log.error("worker %s of %s %s", self.greeting.get("pid"), self._options.device, how)
        self.garbled = True
        self.kill()

    def _on_lost(self, garbled: bool) -> None:
        if garbled:
            self.garbled = True
            self.kill()
        if self._connection is not None and (failure := self._connection.failure) is not None:
            self.kill()
            if self.ticket is not None:  # which has not ended the process
                self.ticket.attempts = 0
                self.ticket.fail(failure)
        if self.state != "starting":
            self.state = "dead"
            self._on_gone(self)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _go_on(self) -> None:
        """It has begun with the first of what it had ahead of time."""
        ticket = self.ahead.popleft()
        self._begin(ticket)
        ticket.attempts += 1
        if ticket.future.done():  # since, nobody waits for it any more
            self.stop("cancelled" if ticket.future.cancelled() else "deadline")
        self._on_next(self)

    def _free(self) -> None:
        if self.state == "busy" and not self.killed:
            self.state = "idle"
            self._on_free(self)

    def _end(self) -> None:
        self._doom = None
        self.kill()

    def _spare(self) -> None:
        """Takes back a `stop` that has not ended it."""
        if self._doom is not None:
            self._doom.cancel()
            self._doom = None
            self.stopped_for = ""

"""The workers of every device: who runs which request, and what happens when one dies.

A worker that dies is replaced at once by a spare one that stands by, and the request that it ran is answered
WORKER_CRASHED. Where the death may come from outside (a kill, the kernel out of memory) the request is first tried once
more on another worker.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from gradoracle_server import launch
from gradoracle_server.frames import Job
from gradoracle_server.front import statuses
from gradoracle_server.front.admission import Full, Queue, Ticket
from gradoracle_server.front.deadlines import Deadlines
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.quarantine import Quarantine
from gradoracle_server.front.worker import STATES, Worker

RESTART_REASONS = ("crash", "killed", "deadline", "cancelled", "start", "exit")
"""Why a worker was replaced: it died of its request; it was ended from outside; the front ended it because the deadline
of its request passed, or its caller went away; it never greeted; it ended while it had nothing to do."""

_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, None}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a worker that did not come up is started again
_LIVED = 1.0  # seconds after which the end of an idle worker is no reason to pause
_STARTS_AT_FIRST = 3  # failures in a row after which the server gives up coming up
_CLOSING = 5.0  # seconds for workers to end that were told to; the kernel ends them with their fork server otherwise
_AHEAD = 4  # requests that a worker may have beside the one that it runs
_QUICK = 0.002  # seconds that requests take at most, as a rule, where workers have some ahead of time
_LONG = 0.005  # seconds after which a worker has none any more behind a request that takes longer than most
_LOOK = 1.0  # seconds between two looks for workers that somebody has stopped

_log = logging.getLogger(__name__)


class StartError(Exception):
    """No worker of the default device comes up."""


class Lane:
    """The workers of one device, and the requests that wait for them."""

    def __init__(
        self,
        options: launch.WorkerOptions,
        queue: Queue,
        processes: Processes,
        target: Callable[..., None],
        workers: int,
        on_change: Callable[[], None],
        spares: int = 0,
    ) -> None:
        self.device = options.device
        self.queue = queue
        self.size = workers  # how many serve at once; which of `self.workers` those are changes as they die
        self.workers = [
            Worker(target, options, processes, self._free, self._send_ahead, self._gone)
            for _ in range(workers + spares)
        ]
        self.restarts: Counter[str] = Counter()
        self.quarantine = Quarantine()
        self.description = ""
        self.memory_bytes = 0
        self.torch_version = ""
        self.came_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_change = on_change
        self._idle: list[Worker] = []  # the last one that was busy is used first: its caches are warm
        self._seconds = 0.01  # how long requests run, a moving average
        self._failures = 0  # starts in a row that failed
        self._tasks: list[asyncio.Task[None]] = []
        self._deadlines = Deadlines(self._pending, self._expire)
        self._next_look: asyncio.TimerHandle | None = None
        self._next_relief: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> int:
        return sum(worker.is_alive for worker in self.workers)

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.queue.depth + sum((worker.state == "busy") + len(worker.ahead) for worker in self.workers)

    def states(self) -> dict[str, int]:
        """How many workers are in each state."""
        found = Counter(worker.state for worker in self.workers)
        return {state: found[state] for state in STATES}

    def start(self) -> None:
        """Starts every worker and keeps them alive from now on."""
        self._tasks = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        self._look()

    async def close(self) -> None:
        """Ends every worker. What still waits or runs is answered SHUTTING_DOWN."""
        self._deadlines.close()
        for timer in (self._next_look, self._next_relief):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ticket in self.queue.clear():
            ticket.fail(statuses.shutting_down())
        for worker in self.workers:
            for ticket in worker.take_ahead():
                ticket.fail(statuses.shutting_down())
            if worker.ticket is not None:
                worker.ticket.fail(statuses.shutting_down())
                worker.kill()
            worker.close()
        endings = [asyncio.ensure_future(worker.ended()) for worker in self.workers]
        _, running = await asyncio.wait(endings, timeout=_CLOSING)
        if running:
            _log.warning("%d workers of %s have not ended within %g s", len(running), self.device, _CLOSING)

    def submit(self, ticket: Ticket, seconds: float | None) -> None:
        """Gives a request to a worker, or makes it wait; `seconds` are left to its deadline. Raises Failure."""
        if self.quarantine and (refused := self.quarantine.refused(ticket.job)):
            raise statuses.worker_crashed(*refused)
        if seconds is not None:
            if seconds <= 0:
                raise statuses.deadline_exceeded("queue")
            self._deadlines.watch(ticket, seconds)
        if self._idle:
            self._idle.pop().run(ticket)
            return
        try:
            self.queue.put(ticket)
        except Full as full:
            raise statuses.overloaded(self.device, full.limit, full.allowed, self._retry_after()) from None

    def abandon(self, ticket: Ticket, reason: str = "cancelled") -> None:
        """Nobody waits for a request any more: it leaves the queue, or its worker is stopped."""
        ticket.future.cancel()
        worker = ticket.worker
        if self.queue.discard(ticket) or worker is None:
            return
        if worker.ticket is ticket:
            worker.stop(reason)
        else:
            worker.withdraw([ticket])

    def _pending(self) -> Iterator[Ticket]:
        yield from self.queue
        for worker in self.workers:
            if worker.ticket is not None and not worker.ticket.future.done():
                yield worker.ticket
            yield from (ticket for ticket in worker.ahead if not ticket.future.done())

    def _expire(self, ticket: Ticket) -> None:
        runs = ticket.worker is not None and ticket.worker.ticket is ticket
        ticket.fail(statuses.deadline_exceeded("run" if runs else "queue"))
        self.abandon(ticket, "deadline")

    def _free(self, worker: Worker) -> None:
        ticket = self.queue.take()
        if ticket is None:
            self._idle.append(worker)
        else:
            worker.run(ticket)
            self._send_ahead(worker)

    def _send_ahead(self, worker: Worker) -> None:
        """Gives a busy worker its share of the small requests that wait, so that it need not wait itself for each."""
        room = min(_AHEAD - len(worker.ahead), self.queue.depth // self.size)
        if room < _AHEAD / 2 or self._seconds > _QUICK or worker.ticket is None or worker.stopped_for:
            return
        tickets: list[Ticket] = []
        while len(tickets) < room and (ticket := self.queue.next()) is not None and ticket.is_small:
            self.queue.take()
            tickets.append(ticket)
        if tickets:
            worker.run_later(tickets)
            if self._next_relief is None and self.size > 1:
                self._next_relief = asyncio.get_running_loop().call_later(_LONG, self._relieve)

    def _relieve(self) -> None:
        """Makes what stands behind a request that takes long wait for any worker again."""
        self._next_relief = None
        now = time.perf_counter()
        for worker in self.workers:
            if worker.ahead and worker.ticket is not None and now - worker.ticket.begun > _LONG and self.alive > 1:
                for ticket in reversed(worker.take_ahead()):
                    self._again(ticket)
        if any(worker.ahead for worker in self.workers):
            self._next_relief = asyncio.get_running_loop().call_later(_LONG, self._relieve)

    def _gone(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        spare = next((each for each in self.workers if each.state == "spare"), None)
        if spare is not None and self.alive < self.size:
            self._serve(spare)
        self._on_change()

    def _serve(self, worker: Worker) -> None:
        """A worker that has come up serves from now on."""
        worker.state = "idle"
        self._free(worker)

    def withstood(self, job: Job, seconds: float) -> None:
        """Notes that a worker answered a request, and how long it took."""
        self._seconds += 0.05 * (seconds - self._seconds)
        self.forgive(job)

    def forgive(self, job: Job) -> None:
        """Notes that a worker answered a request, while its attachments can be read; it may be told twice."""
        if self.quarantine:
            self.quarantine.forgive(job)

    def _retry_after(self) -> float:
        """When there is probably room again: about the time in which half of the queue is served.

        Drawn anew for each, so that those who are refused together do not come back together.
        """
        now = time.perf_counter()
        tickets = [worker.ticket for worker in self.workers if worker.ticket is not None]
        running = [now - one.begun for one in tickets]
        typical = max(self._seconds, *running, 0.0)  # what runs long now has not been counted yet
        half = min(10.0, max(0.05, self.queue.depth / 2 * typical / max(1, self.alive)))
        return half * random.uniform(0.75, 1.25)  # noqa: S311 - no secret

    def _look(self) -> None:
        """Ends workers that somebody has stopped (SIGSTOP), now and later: what they have is as lost as if killed."""
        for worker in self.workers:
            if worker.is_stopped():
                _log.warning("worker %s of %s is stopped; it is replaced", worker.greeting.get("pid"), self.device)
                if worker.ticket is not None:
                    worker.ticket.attempts = 0  # no request stops its worker: this one had no try
                worker.kill()
        self._next_look = asyncio.get_running_loop().call_later(_LOOK, self._look)

    async def _keep(self, worker: Worker) -> None:
        """Starts a worker's process again and again, whenever it ends."""
        while True:
            try:
                pause = await self._live(worker)
            except Exception:
                _log.exception("keeping a worker of %s alive went wrong", self.device)
                pause = _LONGEST_PAUSE
            if pause:
                await asyncio.sleep(pause)

    async def _live(self, worker: Worker) -> float:
        """One life of a worker's process. Returns the seconds to pause before the next."""
        started, born = False, time.perf_counter()
        try:
            await worker.start()
            started = True
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            _log.error("a worker of %s did not come up: %s", self.device, str(error) or type(error).__name__)
        if started:
            self._introduce(worker)
            await worker.lost()
        else:
            worker.kill()
        ticket, worker.ticket = worker.ticket, None
        for waiting in reversed(worker.take_ahead()):
            self._again(waiting)
        try:
            exit_code = await worker.ended()
        except asyncio.CancelledError:  # the lane closes, and finds this request nowhere else
            if ticket is not None:
                ticket.fail(statuses.shutting_down())
            raise
        reason = self._bury(worker, ticket, exit_code, started)
        if self._failures:
            return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        storm = reason == "exit" and not worker.jobs and time.perf_counter() - born < _LIVED
        return _FIRST_PAUSE if storm else 0.0

    def _introduce(self, worker: Worker) -> None:
        """A worker has come up."""
        self._failures = 0
        self.description = str(worker.greeting.get("description", ""))
        self.memory_bytes = int(worker.greeting.get("memory_bytes", 0))
        self.torch_version = str(worker.greeting.get("torch", ""))
        if self.alive < self.size:
            self._serve(worker)
        else:
            worker.state = "spare"
        if not self.came_up.done():
            self.came_up.set_result(None)
            held = ", ".join(worker.greeting.get("confined_by", ())) or "nothing"
            _log.info("workers of %s are confined by: %s", self.device, held)
            if missing := ", ".join(worker.greeting.get("not_by", ())):
                _log.warning("workers of %s could not be confined by: %s", self.device, missing)
        self._on_change()

    def _bury(self, worker: Worker, ticket: Ticket | None, exit_code: int | None, started: bool) -> str:
        """A worker has ended: counts why, and answers its request, or lets it try again. Returns why."""
        if not started:
            reason = "start"
            self._failed_to_start(exit_code)
        elif worker.stopped_for:
            reason = worker.stopped_for
        elif ticket is None or not ticket.attempts:
            reason = "exit"
        else:
            reason = "killed" if exit_code in _FROM_OUTSIDE and not worker.garbled else "crash"
        self.restarts[reason] += 1
        pid = worker.greeting.get("pid", "?")
        _log.warning("worker %s of %s ended %s (%s)", pid, self.device, _how_it_ended(exit_code), reason)
        if ticket is None:
            return reason
        ticket.worker = None
        if worker.stopped_for:  # for one whose caller is gone; if somebody waits for this one, it was another
            ticket.attempts = 0
        first = ticket.attempts == 1 and not self.quarantine.suspects(ticket.job)
        innocent = reason == "exit" or bool(worker.stopped_for) or (reason == "killed" and first)
        if innocent and not ticket.future.done():
            self._again(ticket)
        elif not innocent:
            self.quarantine.record(ticket.job, exit_code)
            ticket.fail(statuses.worker_crashed(exit_code))
        return reason

    def _failed_to_start(self, exit_code: int | None) -> None:
        self._failures += 1
        if self._failures >= _STARTS_AT_FIRST and not self.came_up.done():
            how = _how_it_ended(exit_code)
            text = f"no worker of {self.device} comes up: {self._failures} ended {how} before they were ready"
            self.came_up.set_exception(StartError(text))

    def _again(self, ticket: Ticket) -> None:
        self._deadlines.watch_again(ticket)
        if self._idle:
            self._idle.pop().run(ticket)
        else:
            self.queue.put_first(ticket)


class Pool:
    """The lanes of all devices that are served."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = {lane.device: lane for lane in lanes}
        self.default = lanes[0]

    async def start(self) -> None:
        """Starts all workers; returns when the default device has one. Raises StartError when none comes up."""
        for lane in self.lanes.values():
            lane.start()
            lane.came_up.add_done_callback(_log_start_error)
        await self.default.came_up

    async def close(self) -> None:
        """Ends all workers."""
        await asyncio.gather(*(lane.close() for lane in self.lanes.values()))

    def lane(self, device: str) -> Lane:
        """The lane of the device that a request names: its name, "cuda" for any, or "" for the default."""
        if not device:
            return self.default
        found = self.lanes.get(device)
        if found is None and device == "cuda":
            found = min(
                (lane for name, lane in self.lanes.items() if name.startswith("cuda:")),
                key=lambda lane: lane.in_flight,
                default=None,
            )
        if found is None:
            raise statuses.device_unavailable(device, self.lanes)
        return found


def _log_start_error(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()):
        _log.error("%s", error)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "for an unknown reason"
    return f"by {statuses.signal_name(-exit_code)}" if exit_code < 0 else f"with exit code {exit_code}"

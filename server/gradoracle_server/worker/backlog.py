"""The jobs that a worker has been given, and has not begun with: those that the front takes back are not run."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable

from gradoracle_server.frames import Job, PayloadError, withdrawn_jobs
from gradoracle_server.inbox import Inbox

_AT_ONCE = int(socket.MSG_DONTWAIT)  # a plain number: to combine Python's flags takes longer than the system call


class Backlog:
    """Jobs in the order in which they came, which is that of their numbers: 1 is the first of this process."""

    def __init__(self) -> None:
        self._inbox: Inbox[Job] = Inbox(Job)
        self._jobs: deque[Job | PayloadError] = deque()  # one that cannot be read has its number, and its reply, too
        self._begun = 0  # the number of the job that was handed out last
        self._withdrawn: set[int] = set()

    def __len__(self) -> int:
        """The jobs that have come and were not handed out."""
        return len(self._jobs)

    def wait(self, sock: socket.socket) -> Job | None:
        """The next job, from a blocking socket; None where the front has taken it back. Raises as `Inbox.wait` does."""
        if self._jobs:  # they came behind another, and since, word may have come that they are not wanted any more
            self._look(sock)
        while not self._jobs:
            self._file(lambda: self._inbox.wait(sock))
            self._file_the_rest()
        self._begun += 1
        job = self._jobs.popleft()
        if self._begun in self._withdrawn:
            self._withdrawn.discard(self._begun)
            return None
        if isinstance(job, PayloadError):
            raise job
        return job

    def _look(self, sock: socket.socket) -> None:
        """Reads what has come, and waits for nothing."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._file(lambda: self._inbox.read(sock, _AT_ONCE))
                self._file_the_rest()

    def _file_the_rest(self) -> None:
        while self._file(self._inbox.next):
            pass

    def _file(self, look: Callable[[], Job | None]) -> bool:
        """Puts what there is where it belongs. Whether there was anything."""
        try:
            job = look()
        except PayloadError as error:
            self._jobs.append(error)
            return True
        numbers = None if job is None else withdrawn_jobs(job)
        if numbers is not None:
            self._withdrawn.update(number for number in numbers if number > self._begun)
        elif job is not None:
            self._jobs.append(job)
        return job is not None

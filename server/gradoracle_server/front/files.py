"""Memory files for what arrives, whose pages are made ready, kept and given back beside the event loop.

To fetch the pages of a file takes longer than to copy into them, and to give them back half as long: for 16 MiB 3.5 and
2.2 ms of 40. Where one worker runs all requests, a file is used again for the next upload, once that worker has
answered the last one: what is left in it of earlier ones, the worker was sent. Where there are several, nobody who had
a file may see the next request, which may be for another worker; so a new one is made ready for the next upload, by
another thread and while a worker has the last.

A file that is ready is mapped, too, and written through the mapping, which takes less than system calls do. Workers
cannot cut what the front has mapped: all are sealed against shrinking.
"""

from __future__ import annotations

import asyncio
import dataclasses
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from gradoracle_server import lanes

R = TypeVar("R")

LARGE = 1024 * 1024
"""Bytes of a file from which on another thread is worth its while."""

_LARGEST = 64 * 1024 * 1024  # bytes that are made ready, or kept, at most
_FIRST = 256 * 1024  # bytes of an upload's first piece from which on it may be a large one
_READY_AT_MOST = 2  # files: one arrives while a worker has the other
_IDLE = 1.0  # seconds in which a file that is ready may be wanted


class Holder(Protocol):
    """A worker's process."""

    @property
    def is_closed(self) -> bool:
        """Whether it has gone."""


@dataclasses.dataclass(slots=True, eq=False)
class File:
    """A memory file that is being written."""

    descriptor: int
    size: int = 0
    """The bytes that it has already."""
    room: mmap.mmap | None = None
    """Those, mapped."""
    holder: Holder | None = None
    """Who has been given it."""
    is_used: bool = False
    """Whether there may be bytes of earlier uploads in it, which nobody but the holder may see."""

    def write(self, data: memoryview, offset: int) -> None:
        """Puts a piece in its place. Raises OSError without memory for it."""
        if self.room is not None and offset + len(data) <= self.size:
            self.room[offset : offset + len(data)] = data
            return
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def copied(self, end: int) -> int:
        """Another file with the same bytes up to there, by its descriptor. Raises OSError without memory for it."""
        return lanes.memory_file(os.pread(self.descriptor, min(LARGE, end - at), at) for at in range(0, end, LARGE))

    def map(self) -> None:
        """All of it. Raises OSError where that cannot be."""
        size = os.fstat(self.descriptor).st_size
        room = mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        if self.room is not None:
            self.room.close()
        self.size, self.room = size, room

    def close(self) -> None:
        """Gives back the mapping, and the pages, if nobody else has the file."""
        if self.room is not None:
            self.room.close()
        os.close(self.descriptor)


class Files:
    """Of one event loop, on which all is called."""

    def __init__(self, *, again: bool = False) -> None:
        """`again`: one worker runs all requests."""
        self._again = again
        self._threads: ThreadPoolExecutor | None = None
        self._ready: list[File] = []
        self._making = 0  # files that are being made or mapped
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> int:
        """The bytes of files that wait for uploads."""
        return sum(one.size for one in self._ready)

    def take(self, first: int) -> File:
        """A file for an upload of which so many bytes have come."""
        while self._ready and first >= _FIRST:
            file = self._ready.pop()
            if not self._ready:
                self._stop_timer()
            if file.holder is None or not file.holder.is_closed:
                return file
            self._work(file.close)
        return File(lanes.memory_file(()))

    def make_ready(self, size: int) -> None:
        """Makes one of so many bytes ready, if none is and they are many but not too many."""
        if not self._again and not self._ready and not self._making and LARGE <= size <= _LARGEST:
            self._making += 1
            self._work(lambda: _made(size)).add_done_callback(self._have_made)

    def discard(self, file: File, size: int, *, again: bool = False) -> None:
        """Closes a file that takes so many bytes, or keeps it; `again`: its holder is done with it."""
        if size < LARGE:
            file.close()
        elif not again or not self._again or size > _LARGEST or len(self._ready) + self._making >= _READY_AT_MOST:
            self._work(file.close)
        else:
            file.is_used = True
            if file.room is not None and file.size >= size:
                self._keep(file)
            else:
                self._making += 1
                self._work(lambda: _mapped(file)).add_done_callback(self._have_made)

    def _work(self, function: Callable[[], R]) -> asyncio.Future[R]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "memory-files")
        return asyncio.get_running_loop().run_in_executor(self._threads, function)

    def close(self) -> None:
        """Gives back what is ready. May be called again."""
        self._stop_timer()
        while self._ready:
            self._ready.pop().close()

    def _have_made(self, work: asyncio.Future[File]) -> None:
        self._making -= 1
        if not work.cancelled() and work.exception() is None:  # else no memory for it, and so for the next upload's
            self._keep(work.result())

    def _keep(self, file: File) -> None:
        self._ready.append(file)
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(_IDLE, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _made(size: int) -> File:
    """A new file of so many bytes, whose pages are there. Raises OSError without memory for it."""
    made = File(lanes.memory_file(()))
    try:
        os.posix_fallocate(made.descriptor, 0, size)
        made.map()
    except OSError:
        made.close()
        raise
    return made


def _mapped(file: File) -> File:
    """The same file. Raises OSError, and closes it, where it cannot be mapped."""
    try:
        file.map()
    except OSError:
        file.close()
        raise
    return file

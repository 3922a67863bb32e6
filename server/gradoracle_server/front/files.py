"""Memory files for what arrives, whose pages are made ready and given back beside the event loop.

To fetch the pages of a file takes longer than to copy into them, and to give them back half as long: for 16 MiB 3.5 and
2.2 ms of 40. While a worker has a large upload, another thread makes a file of that size ready for the next one, a new
one: nobody who had the last one can see into it. It is mapped, too, and written through the mapping, which takes less
than system calls do. That is for as long as no worker has the file, which might cut it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gradoracle_server import lanes

R = TypeVar("R")

LARGE = 1024 * 1024
"""Bytes of a file from which on another thread is worth its while."""

_LARGEST = 64 * 1024 * 1024  # bytes that are made ready at most
_FIRST = 256 * 1024  # bytes of an upload's first piece from which on it may be a large one
_IDLE = 1.0  # seconds in which a file that is ready may be wanted


@dataclasses.dataclass(slots=True)
class File:
    """A memory file that is being written."""

    descriptor: int
    size: int = 0
    """The bytes that it has already, which are zeros."""
    room: mmap.mmap | None = None
    """Those, mapped."""

    def write(self, data: memoryview, offset: int) -> None:
        """Puts a piece in its place. Raises OSError without memory for it."""
        if self.room is not None and offset + len(data) <= self.size:
            self.room[offset : offset + len(data)] = data
            return
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def close(self) -> None:
        """Gives back the mapping, and the pages, if nobody else has the file."""
        if self.room is not None:
            self.room.close()
        os.close(self.descriptor)


class Files:
    """Of one event loop, on which all is called."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._ready: File | None = None
        self._is_making = False
        self._timer: asyncio.TimerHandle | None = None

    def take(self, first: int) -> File:
        """A file for an upload of which so many bytes have come."""
        if self._ready is None or first < _FIRST:
            return File(lanes.empty_file())
        taken, self._ready = self._ready, None
        self._stop_timer()
        return taken

    def make_ready(self, size: int) -> None:
        """Makes one of so many bytes ready, if none is and they are many but not too many."""
        if self._ready is None and not self._is_making and LARGE <= size <= _LARGEST:
            self._is_making = True
            self._work(lambda: _made(size)).add_done_callback(self._have_made)

    def discard(self, file: File, size: int) -> None:
        """Closes a file that takes so many bytes."""
        if size < LARGE:
            file.close()
        else:
            self._work(file.close)

    def _work(self, function: Callable[[], R]) -> asyncio.Future[R]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "memory-files")
        return asyncio.get_running_loop().run_in_executor(self._threads, function)

    def close(self) -> None:
        """Gives back what is ready. May be called again."""
        self._stop_timer()
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def _have_made(self, work: asyncio.Future[File]) -> None:
        self._is_making = False
        if work.cancelled() or work.exception() is not None:  # no memory for it, and so for the next upload's
            return
        self._ready = work.result()
        self._timer = asyncio.get_running_loop().call_later(_IDLE, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _made(size: int) -> File:
    """A new file of so many bytes, whose pages are there. Raises OSError without memory for it."""
    made = File(lanes.empty_file(), size)
    try:
        os.posix_fallocate(made.descriptor, 0, size)
        made.room = mmap.mmap(made.descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError:
        made.close()
        raise
    return made

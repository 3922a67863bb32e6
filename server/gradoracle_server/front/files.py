"""Memory files for what arrives, whose pages are made ready and given back beside the event loop.

To fetch the pages of a file takes longer than to copy into them, and to give them back half as long: for 16 MiB 3.5 and
2.2 ms of 40. While a worker has a large upload, another thread makes a file of that size ready for the next one, a new
one: nobody who had the last one can see into it.
"""

from __future__ import annotations

import asyncio
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


class Files:
    """Of one event loop, on which all is called."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._ready = -1
        self._size = 0  # of what is ready, or being made
        self._is_making = False
        self._timer: asyncio.TimerHandle | None = None

    def take(self, first: int) -> tuple[int, int]:
        """The descriptor of a memory file for an upload, of which so many bytes have come, and its size: 0, or that of
        one that is ready, which holds zeros."""
        if self._ready < 0 or first < _FIRST:
            return lanes.empty_file(), 0
        descriptor, self._ready = self._ready, -1
        self._stop_timer()
        return descriptor, self._size

    def make_ready(self, size: int) -> None:
        """Makes one of so many bytes ready, if none is and they are many but not too many."""
        if self._ready < 0 and not self._is_making and LARGE <= size <= _LARGEST:
            self._is_making, self._size = True, size
            self._work(_made, size).add_done_callback(self._have_made)

    def discard(self, descriptor: int, size: int) -> None:
        """Closes a file that takes so many bytes."""
        if size < LARGE:
            os.close(descriptor)
        else:
            self._work(os.close, descriptor)

    def _work(self, function: Callable[[int], R], argument: int) -> asyncio.Future[R]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "memory-files")
        return asyncio.get_running_loop().run_in_executor(self._threads, function, argument)

    def close(self) -> None:
        """Gives back what is ready. May be called again."""
        self._stop_timer()
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def _have_made(self, work: asyncio.Future[int]) -> None:
        self._is_making = False
        if work.cancelled() or work.exception() is not None:  # no memory for it, and so for the next upload's
            return
        self._ready = work.result()
        self._timer = asyncio.get_running_loop().call_later(_IDLE, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _made(size: int) -> int:
    """A new file of so many bytes, whose pages are there. Raises OSError without memory for it."""
    made = lanes.empty_file()
    try:
        os.posix_fallocate(made, 0, size)
    except OSError:
        os.close(made)
        raise
    return made

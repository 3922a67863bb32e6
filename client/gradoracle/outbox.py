"""What waits to be sent over a stream: messages that are ready together go together, and calls may go later."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias

MESSAGE = 1024 * 1024
"""Bytes up to which messages are joined."""

_Call: TypeAlias = tuple[float, int, Iterator[bytes]]  # when, by time.monotonic(); which came first; its messages


class Waiting(Iterator[bytes]):
    """Messages of which some may be long in coming: to be taken in a thread, where others must not wait."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    def __next__(self) -> bytes:
        return next(self._parts)


class Bundle:
    """Puts messages that are ready together into one, up to a size."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> bool:
        """Adds a message. Gives whether there is room for another."""
        self._parts.append(part)
        self._size += len(part)
        return self._size < MESSAGE

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._parts

    def take(self) -> bytes:
        """The messages as one."""
        taken = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        return taken


class _Later:
    """Calls whose time has not come."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def put(self, call: _Call) -> None:
        heapq.heappush(self._calls, call)

    @property
    def seconds(self) -> float | None:
        """Until the next one's time; None where there is none."""
        return max(0.0, self._calls[0][0] - time.monotonic()) if self._calls else None

    def take(self) -> Iterator[bytes] | None:
        """The messages of a call whose time has come."""
        return heapq.heappop(self._calls)[2] if self.seconds == 0 else None


class Outbox:
    """Filled by one thread; another one, gRPC's, sends what `messages` gives."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._count = itertools.count()

    def put(self, parts: Iterator[bytes], pause: float = 0.0) -> None:
        """Sends a call's messages, not before so many seconds have passed."""
        self._queue.put((time.monotonic() + pause if pause else 0.0, next(self._count), parts))

    def close(self) -> None:
        """Ends the sending."""
        self._queue.put(None)

    def messages(self) -> Iterator[bytes]:
        """What is to be sent, in order, until `close`."""
        bundle, later = Bundle(), _Later()
        while True:
            parts = later.take()
            if parts is None:
                try:
                    call = self._queue.get(block=bundle.is_empty, timeout=later.seconds)
                except queue.Empty:
                    if not bundle.is_empty:
                        yield bundle.take()
                    continue
                if call is None:
                    break
                later.put(call)
                continue
            for part in parts:
                if not bundle.add(part):
                    yield bundle.take()
        if not bundle.is_empty:
            yield bundle.take()


class AsyncOutbox:
    """The same for asyncio."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[_Call | None] = asyncio.Queue()
        self._count = itertools.count()

    def put(self, parts: Iterator[bytes], pause: float = 0.0) -> None:
        """As `Outbox.put`."""
        self._queue.put_nowait((time.monotonic() + pause if pause else 0.0, next(self._count), parts))

    def close(self) -> None:
        """Ends the sending."""
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[bytes]:
        """As `Outbox.messages`."""
        bundle, later = Bundle(), _Later()
        while True:
            parts = later.take()
            if parts is None:
                try:
                    call = await self._get(later.seconds) if bundle.is_empty else self._queue.get_nowait()
                except (asyncio.QueueEmpty, TimeoutError):
                    if not bundle.is_empty:
                        yield bundle.take()
                    continue
                if call is None:
                    break
                later.put(call)
                continue
            waiting = isinstance(parts, Waiting)
            if waiting and not bundle.is_empty:
                yield bundle.take()
            while (part := await asyncio.to_thread(next, parts, None) if waiting else next(parts, None)) is not None:
                if not bundle.add(part):
                    yield bundle.take()
        if not bundle.is_empty:
            yield bundle.take()

    async def _get(self, seconds: float | None) -> _Call | None:
        if seconds is None:
            return await self._queue.get()
        async with asyncio.timeout(seconds):
            return await self._queue.get()

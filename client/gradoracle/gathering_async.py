"""The same for asyncio: what tasks ask while a message is sent goes into the next one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gradoracle import stream
from gradoracle.answers import Incoming
from gradoracle.channel import Target
from gradoracle.errors import GradOracleError
from gradoracle.gathering import BUSY, IDLE, Answer, is_small, may_gather, result_of
from gradoracle.outbox import Bundle
from gradoracle.requests import Request

R = TypeVar("R")


class AsyncGathering:
    """The calls of an asynchronous client that go together. Belongs to the event loop in which it is first used."""

    def __init__(
        self, target: Target, next_stream: Callable[[], grpc.aio.StreamStreamMultiCallable[bytes, bytes]]
    ) -> None:
        """As `Gathering`."""
        self._target, self._next_stream = target, next_stream
        self._ids = itertools.count(1)
        self._under_way = 0
        self._may = may_gather(target)
        self._shared: _Shared | None = None

    async def answer(
        self,
        request: Request[R],
        timeout: float | None,
        left: float | None,
        alone: Callable[[Request[R], float | None, float | None], Awaitable[R]],
    ) -> R:
        """As `Gathering.answer`."""
        self._under_way += 1
        try:
            if self._may and self._under_way > BUSY and is_small(request):
                end = None if left is None else time.monotonic() + left
                found: R | GradOracleError | None = result_of(await self._together(request, timeout, left), request)
                if isinstance(found, GradOracleError):
                    raise found
                if found is not None:
                    return found
                left = None if end is None else max(0.0, end - time.monotonic())
            return await alone(request, timeout, left)
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Ends the stream."""
        if self._shared is not None:
            await self._shared.close()

    async def _together(self, request: Request[Any], timeout: float | None, left: float | None) -> Answer | None:
        if self._shared is None or not self._shared.open:
            self._shared = _Shared(self._next_stream()(metadata=self._target.metadata))
        shared, call_id = self._shared, next(self._ids)
        future = shared.ask(call_id, b"".join(stream.parts(call_id, request, left)))
        try:
            async with asyncio.timeout(left):
                return await future
        except TimeoutError:
            raise self._target.late(timeout) from None
        finally:
            shared.forget(call_id)


class _Shared:
    """A stream that tasks share."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self.open = True
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Answer | None]] = {}
        self._parts: list[bytes] = []
        self._writer: asyncio.Task[None] | None = None
        self._used = self._loop.time()
        self._idle = self._loop.call_later(IDLE, self._look)
        self._reader = asyncio.create_task(self._hear())

    def ask(self, call_id: int, message: bytes) -> asyncio.Future[Answer | None]:
        """Sends a call. Gives what will be its answer."""
        future = self._waiting[call_id] = self._loop.create_future()
        self._send(message)
        return future

    def forget(self, call_id: int) -> None:
        """Nobody waits for a call any more, if it was not answered already."""
        if self._waiting.pop(call_id, None) is not None and self.open:
            self._send(stream.cancelled(call_id))

    async def close(self) -> None:
        """Ends the stream, whoever waits for it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _send(self, message: bytes) -> None:
        self._parts.append(message)
        self._used = self._loop.time()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._parts:
                bundle, count = Bundle(), 0
                for part in self._parts:
                    count += 1
                    if not bundle.add(part):
                        break
                del self._parts[:count]
                await self._call.write(bundle.take())
        except (grpc.RpcError, asyncio.InvalidStateError):
            self._call.cancel()  # the reader sees that too
        finally:
            self._writer = None

    def _look(self) -> None:
        """Ends the stream that nobody uses."""
        if self._waiting or self._parts or self._writer is not None or self._loop.time() - self._used < IDLE:
            self._idle = self._loop.call_later(IDLE, self._look)
        else:
            self.open = False
            self._writer = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def _hear(self) -> None:
        incoming = Incoming()
        try:
            while isinstance(data := await self._call.read(), bytes):  # else grpc.aio.EOF
                for answer, attached in incoming.take(data):
                    future = self._waiting.pop(answer.id, None)
                    if future is not None and not future.done():
                        future.set_result((answer, attached))
        except (grpc.RpcError, DecodeError):
            pass  # who waits asks by himself, and learns what is the matter
        finally:
            self.open = False
            self._idle.cancel()
            self._call.cancel()
            while self._waiting:
                future = self._waiting.popitem()[1]
                if not future.done():
                    future.set_result(None)

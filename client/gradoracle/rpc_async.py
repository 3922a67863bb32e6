"""The same for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from gradoracle import channel, requests, spans, stream
from gradoracle.errors import DeadlineExceededError, GradOracleError
from gradoracle.outbox import AsyncOutbox
from gradoracle.requests import Method, Request

R = TypeVar("R")

Ask: TypeAlias = Callable[..., Awaitable[object]]
"""Asks the server something small, within a `timeout`. Raises where the connection or the credentials are no good."""

_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says where it could not write because the server had ended the stream; why it had is forgotten then."""


class AsyncChannels:
    """The channels of an asynchronous client. They belong to the event loop in which they are first used."""

    def __init__(self, target: channel.Target) -> None:
        self.closed = False
        self._target = target
        # Made by the first call: channels take the event loop that runs when they are made.
        self._channels: list[grpc.aio.Channel] = []
        self._calls: dict[str, Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]] = {}
        self._streams: Iterator[grpc.aio.StreamStreamMultiCallable[bytes, bytes]] = iter(())
        self._process = os.getpid()

    def check_open(self) -> None:
        """As `Channels.check_open`; to come before anything is asked, because it makes the channels."""
        if self.closed:
            raise RuntimeError("this client is closed; make a new one")
        if not self._channels:
            self._make()
        elif self._process != os.getpid():  # it would wait for ever for threads that are not here
            raise RuntimeError(
                "this client was used in the process that forked this one, in which gRPC for asyncio does not work; "
                "use Client here, or start processes with multiprocessing's spawn or forkserver"
            )

    def _make(self) -> None:
        target, self._process = self._target, os.getpid()
        for _ in range(target.channels):
            if target.credentials is None:
                one = grpc.aio.insecure_channel(target.address, options=target.options)
            else:
                one = grpc.aio.secure_channel(target.address, target.credentials, options=target.options)
            self._channels.append(one)
        # By path: the call over each channel, in turn. Without serializers, since requests and answers are bytes.
        self._calls = {
            method.path: itertools.cycle([one.unary_unary(method.path) for one in self._channels])
            for method in requests.METHODS
        }
        self._streams = itertools.cycle([one.stream_stream(stream.PATH) for one in self._channels])

    def refuse(self) -> None:
        """As `Channels.refuse`."""
        self.closed = True

    async def close(self) -> None:
        """As `Channels.close`."""
        if self._process == os.getpid():
            for one in self._channels:
                await one.close()

    def next_stream(self) -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
        """As `Channels.next_stream`."""
        if self.closed:
            raise self._target.closed()
        return next(self._streams)

    async def unary(self, method: Method[Any], data: bytes, timeout: float | None, left: float | None) -> bytes:
        """As `Channels.unary`."""
        if self.closed:  # meanwhile
            raise self._target.closed()
        if left is not None and left <= 0:
            raise self._target.late(timeout)
        call = spans.traced_async(self._answered(next(self._calls[method.path])), method.path, self._target)
        try:
            answer: bytes = await call(data, timeout=timeout if left is None else left, metadata=self._target.metadata)
            return answer
        except grpc.RpcError as error:
            raise self._target.failure(error, timeout) from error

    def _answered(self, begin: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> Callable[..., Awaitable[bytes]]:
        """A call whose CancelledError is its own task's. grpc.aio raises it as well where the channel was closed."""

        async def run(data: bytes, *, timeout: float | None, metadata: channel.Metadata) -> bytes:
            call = begin(data, timeout=timeout, metadata=metadata)
            done = asyncio.Event()
            call.add_done_callback(lambda _: done.set())
            try:
                await done.wait()  # which nobody cancels but who cancels the task
            except BaseException:
                call.cancel()
                raise
            if self.closed and call.cancelled():
                raise self._target.closed()
            return await call

        return run

    async def converse(
        self,
        waiting: AsyncIterator[Request[R]],
        conversation: stream.Conversation,
        timeout: float | None,
        left: float | None,
        ask: Ask,
    ) -> AsyncIterator[R]:
        """As `Channels.converse`. `ask` tells why a stream broke where grpc.aio does not."""
        self.check_open()
        conversation.begin(left)
        while True:
            try:
                with spans.of_stream(stream.PATH, self._target) as metadata:
                    results = self._over_stream(waiting, conversation, timeout, metadata, ask)
                    async with contextlib.aclosing(results) as found:
                        async for result in found:
                            yield result
                return
            except stream.Broken as broken:
                pause = conversation.pause_before_another(broken, closed=self.closed)
            await asyncio.sleep(pause)

    async def _over_stream(
        self,
        waiting: AsyncIterator[Request[R]],
        conversation: stream.Conversation,
        timeout: float | None,
        metadata: channel.Metadata,
        ask: Ask,
    ) -> AsyncGenerator[R, None]:
        """Drives a stream: sends what there is room for, hands on what comes. Raises Broken when it breaks."""
        outbox = AsyncOutbox()
        left = conversation.left
        if left is not None and left <= 0:
            raise self._target.late(timeout)
        call = self.next_stream()(outbox.messages(), timeout=left, metadata=metadata)
        try:
            while True:
                for result in conversation.ready():
                    yield result
                for parts, pause in conversation.again():
                    outbox.put(parts, pause)
                while conversation.has_room and (request := await anext(waiting, stream.NO_MORE)) is not stream.NO_MORE:
                    if conversation.shares(request):
                        await asyncio.to_thread(conversation.connect, request)
                    outbox.put(conversation.add(request))
                if not conversation.is_waiting:
                    break
                conversation.receive(await self._read(call, conversation, timeout, ask))
            outbox.close()
            # To the end of the stream, so that the server sees a regular one.
            with contextlib.suppress(grpc.RpcError, stream.Broken):
                await self._message(call)
        finally:
            outbox.close()
            call.cancel()

    async def _read(
        self,
        call: grpc.aio.StreamStreamCall[bytes, bytes],
        conversation: stream.Conversation,
        timeout: float | None,
        ask: Ask,
    ) -> bytes:
        """The next message of a stream. Raises Broken where none comes any more."""
        try:
            data = await self._message(call)
        except grpc.RpcError as error:
            if self.closed:
                raise stream.Broken(self._target.closed()) from error
            if error.details() != _WRITE_FAILED:
                raise stream.Broken(self._target.failure(error, timeout)) from error
            try:
                await ask(timeout=conversation.left)
            except DeadlineExceededError:
                raise stream.Broken(self._target.late(timeout)) from error
            except GradOracleError as failure:
                raise stream.Broken(failure) from error
            raise stream.ended_early() from error
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise stream.ended_early()
        return data

    async def _message(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> object:
        """What `call` reads next. A CancelledError is the task's own, as in `_answered`: read in a task of its own, the
        other one is a result. Raises Broken for that, and RpcError."""
        reading = asyncio.ensure_future(call.read())
        try:
            await asyncio.wait((reading,))
        except BaseException:
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # nobody will ask for it any more
            raise
        if reading.cancelled():
            raise stream.Broken(self._target.closed())
        return reading.result()

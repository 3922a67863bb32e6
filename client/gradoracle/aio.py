"""The asyncio client: `Client`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import grpc
import grpc.aio

from gradoracle import channel, checks, requests, results, spans, status, stream
from gradoracle.direct_async import AsyncDirect
from gradoracle.errors import GradOracleError, ServerUnavailableError
from gradoracle.gathering_async import AsyncGathering
from gradoracle.graph import Graph
from gradoracle.outbox import AsyncOutbox
from gradoracle.requests import Method, Names, Request, Tensors
from gradoracle.shared_memory import Memory, Use

R = TypeVar("R")

_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says where it could not write because the server had ended the stream; why it had is forgotten then."""


class AsyncClient:
    """A client of one server, for asyncio; everything is as in `Client`, and awaited.

        async with AsyncClient("localhost:50051") as client:
            (await client.vjp("x**2", {"x": 3.0})).gradients["x"]  # 6.0

    It belongs to the event loop in which it is first used.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: bool | str | Path | channel.TLS | None = None,
        token: str | None = None,
        timeout: float | None = None,
        channels: int = 1,
        shared_memory: bool | None = None,
    ) -> None:
        self._target = channel.target(
            address, tls=tls, token=token, timeout=timeout, channels=channels, shared_memory=shared_memory
        )
        self._owned = contextlib.ExitStack()  # a server of its own, memory
        self._memory = Memory.at(self._target)
        self._direct = AsyncDirect(self._target)
        if self._memory is not None:
            self._owned.callback(self._memory.close)
        self._closed = False
        # Made by the first call: channels take the event loop that runs when they are made.
        self._channels: list[grpc.aio.Channel] = []
        self._calls: dict[str, Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]] = {}
        self._streams: Iterator[grpc.aio.StreamStreamMultiCallable[bytes, bytes]] = iter(())

    @classmethod
    def local(
        cls, workers: int = 1, *, timeout: float | None = None, channels: int = 1, **settings: Any
    ) -> AsyncClient:
        """A client of a private server, which is started now and stopped when the client is closed.

        As `Client.local`. It blocks while the server starts, some seconds; `await asyncio.to_thread(AsyncClient.local)`
        does not.
        """
        from gradoracle.local import local_server

        with contextlib.ExitStack() as starting:
            address = starting.enter_context(local_server(workers, **settings))
            client = cls(address, timeout=timeout, channels=channels)
            client._owned.push(starting.pop_all())
        return client

    def _connect(self) -> None:
        target = self._target
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
        self._gathering = AsyncGathering(target, self._streams)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._target.address

    async def close(self) -> None:
        """Closes the connections. Calls that are still running fail."""
        self._closed = True
        self._direct.close()
        if self._channels:
            await self._gathering.close()
        for one in self._channels:
            await one.close()
        await asyncio.to_thread(self._owned.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}{', closed' if self._closed else ''}>"

    # ---- Methods, one an RPC

    async def evaluate(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.EvaluateResult:
        """As `Client.evaluate`."""
        return await self._call(requests.evaluate(graph, primals, device=device, seed=seed), timeout)

    async def vjp(
        self,
        graph: Graph | str,
        primals: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        retain: Names = (),
        batched: Names = (),
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.VjpResult:
        """As `Client.vjp`."""
        request = requests.vjp(
            graph, primals, cotangents, wrt=wrt, retain=retain, batched=batched, device=device, seed=seed
        )
        return await self._call(request, timeout)

    async def jvp(
        self,
        graph: Graph | str,
        primals: Tensors,
        tangents: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.JvpResult:
        """As `Client.jvp`."""
        return await self._call(requests.jvp(graph, primals, tangents, device=device, seed=seed), timeout)

    async def jacobian(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        of: Names | None = None,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.JacobianResult:
        """As `Client.jacobian`."""
        return await self._call(requests.jacobian(graph, primals, of=of, wrt=wrt, device=device, seed=seed), timeout)

    async def hessian(
        self,
        graph: Graph | str,
        primals: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.HessianResult:
        """As `Client.hessian`."""
        return await self._call(
            requests.hessian(graph, primals, cotangents, wrt=wrt, device=device, seed=seed), timeout
        )

    async def hvp(
        self,
        graph: Graph | str,
        primals: Tensors,
        vectors: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.HvpResult:
        """As `Client.hvp`."""
        request = requests.hvp(graph, primals, vectors, cotangents, wrt=wrt, device=device, seed=seed)
        return await self._call(request, timeout)

    async def check(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        claimed: Tensors | None = None,
        cotangents: Tensors | None = None,
        wrt: Names | None = None,
        order: int = 1,
        mode: str = "probe",
        forward_mode: bool = False,
        batched_gradients: bool = False,
        device: str | None = None,
        seed: int | None = 0,
        timeout: float | None = None,
    ) -> checks.CheckReport:
        """As `Client.check`."""
        request = requests.check(
            graph,
            primals,
            claimed=claimed,
            cotangents=cotangents,
            wrt=wrt,
            order=order,
            mode=mode,
            forward_mode=forward_mode,
            batched_gradients=batched_gradients,
            device=device,
            seed=seed,
        )
        return await self._call(request, timeout)

    async def inspect(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.Inspection:
        """As `Client.inspect`."""
        return await self._call(requests.inspect(graph, primals, device=device, seed=seed), timeout)

    async def server_info(self, *, timeout: float | None = None) -> results.ServerInfo:
        """As `Client.server_info`."""
        return await self._call(requests.server_info(), timeout)

    async def operators(
        self, name_contains: str = "", *, include_refused: bool = False, timeout: float | None = None
    ) -> list[results.OperatorInfo]:
        """As `Client.operators`."""
        return await self._call(requests.operators(name_contains, include_refused=include_refused), timeout)

    # ---- Many at a time

    @overload
    def map(
        self,
        requests: Iterable[Request[R]] | AsyncIterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        timeout: float | None = None,
    ) -> AsyncIterator[R]: ...
    @overload
    def map(
        self,
        requests: Iterable[Request[R]] | AsyncIterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: bool,
        timeout: float | None = None,
    ) -> AsyncIterator[R | GradOracleError]: ...
    def map(
        self,
        requests: Iterable[Request[R]] | AsyncIterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[R | GradOracleError]:
        """As `Client.map`; `async for` gives the results. The requests may come from an asynchronous iterable too."""
        conversation = stream.Conversation(window, ordered, return_exceptions, self._memory)
        return self._converse(_asynchronous(requests), conversation, timeout)

    # ---- Calls

    async def _call(self, request: Request[R], timeout: float | None) -> R:
        timeout = self._target.seconds(timeout)
        self._check_open()
        if self._memory is not None and self._memory.suits(request):
            attempts = self._memory.attempts(request)
            # In a thread, because it copies.
            while (use := await asyncio.to_thread(next, attempts, None)) is not None:
                with use:
                    return await self._in_memory(request, use, timeout)
        if request.tensor_bytes > stream.UNARY_AT_MOST:
            conversation = stream.Conversation(window=1)
            (result,) = [one async for one in self._converse(_asynchronous((request,)), conversation, timeout)]
            return result
        began = time.monotonic()
        if (found := await self._direct.result(request, timeout)) is not None:
            return found
        return await self._gathering.answer(request, timeout, channel.left(timeout, began), self._alone)

    async def _in_memory(self, request: Request[R], use: Use, timeout: float | None) -> R:
        began = time.monotonic()
        if (found := await self._direct.result(request, timeout, use)) is not None:
            return found
        data = await self._unary(request.method, b"".join(use.pieces), timeout, channel.left(timeout, began))
        response = request.method.response(data)
        return request.method.read(response, use.answered(response))

    async def _alone(self, request: Request[R], timeout: float | None, left: float | None) -> R:
        return request.method.answer(await self._unary(request.method, request.to_bytes(), timeout, left))

    async def _unary(self, method: Method[R], data: bytes, timeout: float | None, left: float | None = None) -> bytes:
        """`left` is what is left of the timeout, where some of it is over."""
        if self._closed:  # meanwhile
            raise ServerUnavailableError(status.cut_off(self.address, "the client was closed"))
        call = spans.traced_async(next(self._calls[method.path]), method.path, self._target)
        try:
            answer: bytes = await call(data, timeout=timeout if left is None else left, metadata=self._target.metadata)
            return answer
        except grpc.RpcError as error:
            raise status.from_call(error, self.address, timeout) from error

    async def _converse(
        self, waiting: AsyncIterator[Request[R]], conversation: stream.Conversation, timeout: float | None
    ) -> AsyncIterator[R]:
        """The results of calls over a stream, and over another where it breaks."""
        self._check_open()
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                with spans.of_stream(stream.PATH, self._target) as metadata:
                    async with contextlib.aclosing(self._over_stream(waiting, conversation, end, metadata)) as found:
                        async for result in found:
                            yield result
                return
            except stream.Broken as broken:
                if self._closed:
                    raise broken.failure from broken.__cause__
                pause = conversation.broken(broken.failure)
            await asyncio.sleep(min(pause, max(0.0, end - time.monotonic())))

    async def _over_stream(
        self,
        waiting: AsyncIterator[Request[R]],
        conversation: stream.Conversation,
        end: float,
        metadata: channel.Metadata,
    ) -> AsyncGenerator[R, None]:
        """Drives a stream: sends what there is room for, hands on what comes. Raises Broken when it breaks."""
        outbox = AsyncOutbox()
        left = None if end == math.inf else max(0.0, end - time.monotonic())
        call = next(self._streams)(outbox.messages(), timeout=left, metadata=metadata)
        try:
            while True:
                for result in conversation.ready():
                    yield result
                for parts, pause in conversation.again():
                    outbox.put(parts, pause)
                while conversation.has_room and (request := await anext(waiting, None)) is not None:
                    outbox.put(conversation.add(request))
                if not conversation.is_waiting:
                    break
                conversation.receive(await self._read(call, left))
            outbox.close()
            # To the end of the stream, so that the server sees a regular one.
            with contextlib.suppress(grpc.RpcError):
                await call.read()
        finally:
            outbox.close()
            call.cancel()

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes], timeout: float | None) -> bytes:
        """The next message of a stream. Raises Broken where none comes any more."""
        try:
            data = await call.read()
        except grpc.RpcError as error:
            if error.details() == _WRITE_FAILED:
                try:
                    await self.server_info(timeout=timeout)  # raises, if it is the connection or the credentials
                except GradOracleError as failure:
                    raise stream.Broken(failure) from error
                raise stream.ended_early() from error
            raise stream.Broken(status.from_call(error, self.address, timeout)) from error
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise stream.ended_early()
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client is closed; make a new one")
        if not self._channels:
            self._connect()


async def _asynchronous(requests: Iterable[Request[R]] | AsyncIterable[Request[R]]) -> AsyncIterator[Request[R]]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request

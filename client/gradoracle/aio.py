"""The asyncio client: `Client`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from gradoracle import channel, checks, requests, results, stream
from gradoracle.direct_async import AsyncDirect
from gradoracle.errors import GradOracleError, ResourceLimitError
from gradoracle.gathering_async import AsyncGathering
from gradoracle.graph import Graph
from gradoracle.requests import Request, Tensors
from gradoracle.rpc_async import AsyncChannels
from gradoracle.selections import Names
from gradoracle.shared_memory import Memory, Use
from gradoracle.tls import TLS

R = TypeVar("R")


class AsyncClient:
    """A client of one server, for asyncio; everything is as in `Client`, and awaited.

        async with AsyncClient("localhost:50051") as client:
            (await client.vjp("x**2", {"x": 3.0})).gradients["x"]  # 6.0

    It belongs to the event loop, and the process, in which it is first used.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: bool | str | Path | TLS | None = None,
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
        self._channels = AsyncChannels(self._target)
        self._gathering = AsyncGathering(self._target, self._channels.next_stream)
        self._process = os.getpid()

    @classmethod
    def local(
        cls, workers: int | None = 1, *, timeout: float | None = None, channels: int = 1, **settings: Any
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

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._target.address

    async def close(self) -> None:
        """Closes the connections. Calls that are still running fail."""
        self._channels.refuse()
        self._direct.close()
        await self._gathering.close()
        await self._channels.close()
        if os.getpid() == self._process:
            await asyncio.to_thread(self._owned.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}{', closed' if self._channels.closed else ''}>"

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
        return self._converse(_asynchronous(requests), conversation, channel.seconds(timeout))

    # ---- Calls

    async def _call(self, request: Request[R], timeout: float | None) -> R:
        self._channels.check_open()
        timeout = self._target.seconds(timeout)
        began, left = time.monotonic(), timeout
        if self._memory is not None and self._memory.suits(request):
            attempts = self._memory.attempts(request, math.inf if timeout is None else began + timeout)
            while (use := await self._next(attempts, timeout, began)) is not None:
                with use:
                    return await self._in_memory(request, use, timeout, began)
            left = channel.left(timeout, began)
        if request.tensor_bytes > stream.UNARY_AT_MOST:
            return await self._by_itself(request, timeout, left)
        if (found := await self._direct.result(request, timeout, left)) is not None:
            return found
        return await self._gathering.answer(request, timeout, channel.left(timeout, began), self._alone)

    async def _next(self, attempts: Iterator[Use], timeout: float | None, began: float) -> Use | None:
        """In a thread, because it copies, and waits for the server."""
        try:
            async with asyncio.timeout(channel.left(timeout, began)):  # threads may be few
                return await asyncio.to_thread(next, attempts, None)
        except TimeoutError:
            raise self._target.late(timeout) from None

    async def _in_memory(self, request: Request[R], use: Use, timeout: float | None, began: float) -> R:
        if (found := await self._direct.result(request, timeout, channel.left(timeout, began), use)) is not None:
            return found
        data = await self._channels.unary(request.method, b"".join(use.pieces), timeout, channel.left(timeout, began))
        response = request.method.response(data)
        return request.method.read(response, use.answered(response))

    async def _alone(self, request: Request[R], timeout: float | None, left: float | None) -> R:
        began = time.monotonic()
        try:
            data = await self._channels.unary(request.method, request.to_bytes(), timeout, left)
        except ResourceLimitError as error:
            if not stream.bears(error):
                raise
        else:
            return request.method.answer(data)
        return await self._by_itself(request, timeout, channel.left(left, began))

    async def _by_itself(self, request: Request[R], timeout: float | None, left: float | None) -> R:
        """As `Client._by_itself`."""
        results = self._channels.converse(
            _asynchronous((request,)), stream.Conversation(window=1), timeout, left, self.server_info
        )
        (result,) = [one async for one in results]
        return result

    def _converse(
        self, waiting: AsyncIterator[Request[R]], conversation: stream.Conversation, timeout: float | None
    ) -> AsyncIterator[R]:
        # It has a method of the client's, and so keeps the client, and a private server, while results are taken.
        return self._channels.converse(waiting, conversation, timeout, timeout, self.server_info)


async def _asynchronous(requests: Iterable[Request[R]] | AsyncIterable[Request[R]]) -> AsyncIterator[Request[R]]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request

"""Timeouts mean the same whichever way a call goes, and hold from the first moment of a call on."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import real_server
from front_server import Server

import gradoracle as go
from gradoracle import shared_memory, stream

SMALL = {"x": 3.0}
SHARED = {"x": np.ones(shared_memory.FROM // 8)}
LARGE = {"x": np.ones(stream.UNARY_AT_MOST // 8 + 1)}
WAYS = [(False, SMALL), (False, LARGE), (True, SMALL), (True, SHARED)]
"""Alone through gRPC, over a stream, without gRPC, and with memory: whether it is shared, and what is sent."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One with shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--listen", f"unix:{folder}/g.sock", "--workers", "1", "--shared-memory")
        with real_server.start(*flags) as server:
            yield server


@pytest.fixture
def stopped(server: Server) -> Iterator[Callable[[], None]]:
    """The server does nothing until the test says so, or ends."""
    server.process.send_signal(signal.SIGSTOP)
    yield lambda: server.process.send_signal(signal.SIGCONT)
    server.process.send_signal(signal.SIGCONT)


def late(server: Server, timeout: float) -> str:
    """The message of a call that was late."""
    asked = re.escape(f"{timeout:g}")
    return f"^the timeout of {asked} s passed before {server.address} answered; the work is stopped$"


# ---- Which there are


@pytest.mark.parametrize(("shared", "primals"), WAYS)
def test_timeouts_are_the_same_on_all_ways(server: Server, shared: bool, primals: dict[str, Any]) -> None:
    """Very long ones are none, those that are over have passed, what is no number cannot be meant."""

    def call(timeout: float) -> float:
        return float(client.evaluate("x.sum()", primals, timeout=timeout).outputs["out"])

    def mapped(timeout: float) -> list[Any]:
        return list(client.map([go.request("evaluate", "x.sum()", primals)], timeout=timeout))

    with go.Client(server.address, shared_memory=shared) as client:
        for timeout in (4e9, 9e9, 1e10, 1e300, math.inf):
            assert np.sum(primals["x"]) == call(timeout)
        assert 1 == len(mapped(1e300))
        client._channels.next_stream = client._direct.take = lambda: pytest.fail("it was sent")  # type: ignore[method-assign]
        client._channels._own = lambda: pytest.fail("it was sent")  # type: ignore[method-assign]
        for ask in (call, mapped):
            for timeout in (0, 0.0, -1, -math.inf):
                with pytest.raises(go.DeadlineExceededError, match=late(server, timeout)) as raised:
                    ask(timeout)
                assert "DEADLINE_EXCEEDED" == raised.value.reason
            with pytest.raises(ValueError, match=r"^timeout: expected seconds, more than 0, or None, got nan$"):
                ask(math.nan)
    with go.Client(server.address, shared_memory=shared, timeout=1e10) as patient:
        assert np.sum(primals["x"]) == patient.evaluate("x.sum()", primals).outputs["out"]


@pytest.mark.parametrize(("shared", "primals"), WAYS)
async def test_timeouts_are_the_same_on_all_ways_awaited(server: Server, shared: bool, primals: dict[str, Any]) -> None:
    """The same for asyncio."""

    async def call(timeout: float) -> float:
        return float((await client.evaluate("x.sum()", primals, timeout=timeout)).outputs["out"])

    async def mapped(timeout: float) -> list[Any]:
        return [one async for one in client.map([go.request("evaluate", "x.sum()", primals)], timeout=timeout)]

    async with go.AsyncClient(server.address, shared_memory=shared) as client:
        for timeout in (9e9, 1e300, math.inf):
            assert np.sum(primals["x"]) == await call(timeout)
        assert 1 == len(await mapped(1e300))
        client._channels.next_stream = client._direct.take = lambda: pytest.fail("it was sent")  # type: ignore[method-assign]
        for ask in (call, mapped):
            for timeout in (0, -1.0):
                with pytest.raises(go.DeadlineExceededError, match=late(server, timeout)):
                    await ask(timeout)
            with pytest.raises(ValueError, match=r"^timeout: expected seconds, more than 0, or None, got nan$"):
                await ask(math.nan)


# ---- That they hold


@pytest.mark.parametrize(("shared", "primals"), WAYS)
def test_a_server_that_does_not_answer(
    server: Server, stopped: Callable[[], None], shared: bool, primals: dict[str, Any]
) -> None:
    """Not even whether it takes the call's memory: the timeout passes, and it is the one that was asked for."""
    with go.Client(server.address, shared_memory=shared) as client:
        began = time.monotonic()
        with pytest.raises(go.DeadlineExceededError, match=late(server, 0.5)):
            client.evaluate("x.sum()", primals, timeout=0.5)
        with pytest.raises(go.DeadlineExceededError, match=late(server, 0.25)):
            list(client.map([go.request("evaluate", "x.sum()", primals)], timeout=0.25))
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(("shared", "primals"), WAYS)
async def test_a_server_that_does_not_answer_awaited(
    server: Server, stopped: Callable[[], None], shared: bool, primals: dict[str, Any]
) -> None:
    """The same for asyncio, whose other tasks go on meanwhile."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    async with go.AsyncClient(server.address, shared_memory=shared) as client:
        began = time.monotonic()
        with pytest.raises(go.DeadlineExceededError, match=late(server, 4)):
            [one async for one in client.map([go.request("evaluate", "x.sum()", primals)], timeout=4)]
        several = [client.evaluate("x.sum()", primals, timeout=0.5) for _ in range(40)]  # more than there are threads
        found = await asyncio.gather(*several, return_exceptions=True)
        assert [go.DeadlineExceededError] * 40 == [type(one) for one in found]
        assert time.monotonic() - began < 30
        stopped()
    ticking.cancel()
    assert longest < 3


def test_who_waits_for_memory_keeps_nobody_else_waiting(server: Server, stopped: Callable[[], None]) -> None:
    """Each has its own timeout; what one has not waited for serves another, and nothing is lost."""
    with go.Client(server.address, shared_memory=True) as client:
        found: list[float] = []
        patient = threading.Thread(
            target=lambda: found.append(float(client.evaluate("x.sum()", SHARED, timeout=100).outputs["out"]))
        )
        with pytest.raises(go.DeadlineExceededError):
            client.evaluate("x.sum()", SHARED, timeout=0.2)
        patient.start()
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(go.DeadlineExceededError):
                client.evaluate("x.sum()", SHARED, timeout=0.2)
        assert time.monotonic() - began < 20
        assert [] == found
        stopped()
        patient.join(60)
        assert [SHARED["x"].size] == found
        assert client._memory is not None
        connection = client._memory.connect()
        assert connection is not None
        assert 1 == len(connection.files)  # the one file that was offered to a server that did not answer
        assert connection._offered is None


def test_closing_does_not_wait_for_memory(server: Server, stopped: Callable[[], None]) -> None:
    """Who waits for the server to take it learns that the client was closed."""
    client = go.Client(server.address, shared_memory=True)
    found: list[Exception] = []

    def call() -> None:
        try:
            client.evaluate("x.sum()", SHARED, timeout=100)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while client._memory is None or client._memory._connection is None or client._memory._connection._offered is None:
        time.sleep(0.01)
    client.close()
    thread.join(20)
    assert [go.ServerUnavailableError] == [type(one) for one in found]
    assert "the client was closed" in str(found[0])

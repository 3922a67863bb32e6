"""The clients where a real server refuses for a while, or the way to it is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from tcp_proxy import proxy

import gradoracle as go
from gradoracle import stream


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    """The address of a server with one worker, for which two requests may wait."""
    with go.local_server(workers=1, device="cpu", max_queue=2) as address:
        yield address


def requests(count: int) -> list[go.Request[Any]]:
    """Requests whose answers tell them apart."""
    return [go.request("vjp", "x**2", {"x": float(number)}) for number in range(count)]


def test_a_window_larger_than_the_queue(narrow: str) -> None:
    """The stream waits for room: every request gets its result, in order, none OVERLOADED."""
    with go.Client(narrow) as client:
        found = [float(one.gradients["x"]) for one in client.map(requests(300), window=64)]

    assert [2.0 * number for number in range(300)] == found


async def test_a_window_larger_than_the_queue_awaited(narrow: str) -> None:
    """The asyncio client waits too."""

    async def source() -> AsyncIterator[go.Request[Any]]:
        for one in requests(200):
            yield one

    async with go.AsyncClient(narrow) as client:
        found = [float(one.gradients["x"]) async for one in client.map(source(), window=64)]

    assert [2.0 * number for number in range(200)] == found


def test_more_callers_than_places(narrow: str) -> None:
    """Two streams that want more than there is room for both get all of theirs."""
    with go.Client(narrow) as one, go.Client(narrow) as other:
        both = zip(one.map(requests(150), window=32), other.map(requests(150), window=32), strict=True)

        assert all(a.gradients["x"] == b.gradients["x"] == 2.0 * n for n, (a, b) in enumerate(both))


def test_cut_in_the_middle(server: str) -> None:
    """When connections are cut in the middle of a stream every request has its own result all the same, once."""
    large = np.arange(stream.CHUNK // 8 + 1, dtype=np.float64)
    asked = [go.request("evaluate", "x + y", {"x": large, "y": float(number)}) for number in range(30)]
    found = []
    with proxy(server) as way, go.Client(way.address) as client:
        for number, result in enumerate(client.map(asked, window=8)):
            found.append(bool(np.array_equal(result.outputs["out"], large + number)))
            if number in (3, 11, 12, 25):
                way.cut()
        connections = way.connections

    assert [True] * 30 == found
    assert connections > 1


def test_cut_in_the_middle_of_a_large_call(server: str) -> None:
    """A call that is too large for one message goes over a stream, and that one is resumed too."""
    large = np.arange(4_000_000, dtype=np.float64)
    with proxy(server) as way, go.Client(way.address) as client:
        client.server_info()
        way.cut()

        assert np.array_equal(client.evaluate("x * 2", {"x": large}).outputs["out"], large * 2)

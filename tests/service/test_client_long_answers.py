"""No message limit bounds a tensor: what is too long for one message goes over a stream, however it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import front_server
import numpy as np
import pytest
import real_server
from callers import by_tasks, by_threads

import gradoracle as go

X = np.arange(800.0)  # its Jacobian has 5 MB
WANTED = np.diag(2 * X)


@pytest.fixture(scope="module")
def narrow() -> Iterator[front_server.Server]:
    """A server that takes and sends 4 MiB in a message."""
    with real_server.start("--workers", "1", "--max-message-bytes", "4MiB") as server:
        yield server


def is_whole(result: Any) -> bool:
    """Whether it is what was asked for."""
    return isinstance(result, go.JacobianResult) and bool(np.array_equal(result.jacobian["out", "x"], WANTED))


def test_an_answer_longer_than_a_message(narrow: front_server.Server) -> None:
    """Of a call by itself, and of several at the same time."""
    with go.Client(narrow.address) as client:
        assert is_whole(client.jacobian("x**2", {"x": X}))
        assert all(map(is_whole, by_threads(6, lambda _: client.jacobian("x**2", {"x": X}))))


async def test_an_answer_longer_than_a_message_awaited(narrow: front_server.Server) -> None:
    """The same for asyncio."""
    async with go.AsyncClient(narrow.address) as client:
        assert is_whole(await client.jacobian("x**2", {"x": X}))
        assert all(map(is_whole, await by_tasks(6, lambda _: client.jacobian("x**2", {"x": X}))))


def test_a_request_longer_than_a_message() -> None:
    """That of a server that takes shorter ones than the client sends."""
    x = np.arange(400_000.0)  # 3 MB
    with real_server.start("--workers", "1", "--max-message-bytes", "2MiB") as server, go.Client(server.address) as one:
        assert np.array_equal(2 * x, one.evaluate("2 * x", {"x": x}).outputs["out"])


def test_other_limits_are_final(narrow: front_server.Server) -> None:
    """They would refuse a stream's call, too."""
    counted = 'grpc_server_started_total{grpc_method="Stream",grpc_service="gradoracle.v1.GradientService",'
    counted += 'grpc_type="bidi_stream"}'
    with go.Client(narrow.address) as client:
        before = narrow.metric(counted)
        with pytest.raises(go.ResourceLimitError, match="max-memory-bytes"):
            client.evaluate("zeros([1000000000000])", {})
        assert before == narrow.metric(counted)


def test_the_second_time_has_what_is_left_of_the_timeout(narrow: front_server.Server) -> None:
    """The whole call has one timeout, which is the one that its error names."""
    with go.Client(narrow.address) as client:
        whole, asked = client._by_itself, []

        def by_itself(request: Any, timeout: float | None, left: float | None) -> Any:
            asked.append((timeout, left))
            return whole(request, timeout, left)

        client._by_itself = by_itself  # type: ignore[method-assign]
        client.jacobian("x**2", {"x": X}, timeout=50)
    ((timeout, left),) = asked
    assert 50 == timeout
    assert left is not None
    assert left < 50

"""What becomes of an asynchronous client's calls that run when it is closed, and when their tasks are cancelled."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import front_server
import numpy as np
import pytest
from callers import told
from front_server import eventually

import gradoracle as go
from gradoracle import gathering, stream
from gradoracle.requests import Request

BUSY = 'gradoracle_workers{device="cpu",state="busy"}'
CLOSED = "was cut off before it was answered: the client was closed$"
LARGE = go.request("evaluate", "x", {"x": np.zeros(stream.UNARY_AT_MOST // 8 + 1)}).tensors


def large(text: str) -> Request[Any]:
    """A request for a fake worker that goes over a stream of its own."""
    return dataclasses.replace(told(text), tensors=LARGE)


async def by_itself(client: go.AsyncClient) -> None:
    """One message."""
    await client._call(told("sleep 60"), 50)


async def in_chunks(client: go.AsyncClient) -> None:
    """One call over a stream."""
    await client._call(large("sleep 60"), 50)


async def mapped(client: go.AsyncClient) -> None:
    """Several over one."""
    assert [] == [one async for one in client.map([told("sleep 60")] * 3, timeout=50)]


async def in_company(client: go.AsyncClient) -> None:
    """One of many tasks, over the stream that they share."""
    client._gathering._under_way += gathering.BUSY
    await client._call(told("sleep 60"), 50)


WAYS: list[Callable[[go.AsyncClient], Awaitable[None]]] = [by_itself, in_chunks, mapped, in_company]


@pytest.fixture(scope="module")
def fake() -> Iterator[front_server.Server]:
    """A server whose two workers do what they are told."""
    with front_server.start("--workers", "2") as server:
        yield server


async def running(client: go.AsyncClient, fake: front_server.Server, way: Any) -> asyncio.Task[None]:
    """A call that a worker is busy with."""
    await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 0)
    task = asyncio.create_task(way(client))
    await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) > 0)
    return task


@pytest.mark.parametrize("way", WAYS)
async def test_closing_is_an_error_of_ours(fake: front_server.Server, way: Any) -> None:
    """Not CancelledError, which a TaskGroup would take for a task that was to end."""
    client = go.AsyncClient(fake.address)
    task = await running(client, fake, way)
    await client.close()
    with pytest.raises(go.ServerUnavailableError, match=CLOSED):
        await asyncio.wait_for(asyncio.gather(task), 20)  # wait_for alone would hide a task that was cancelled


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_task_is_cancelled(fake: front_server.Server, way: Any) -> None:
    """Its owner's wish is what it ends by, whether the client is closed before, meanwhile or not at all."""
    for turns in (None, 0, 1, 2, 3, 5, 8):
        client = go.AsyncClient(fake.address)
        task = await running(client, fake, way)
        closing = asyncio.create_task(client.close() if turns is not None else asyncio.sleep(0))
        for _ in range(turns or 0):
            await asyncio.sleep(0)
        expected = asyncio.CancelledError if task.cancel() else go.ServerUnavailableError
        with pytest.raises(expected):
            await task
        await closing
        await client.close()


async def test_a_deadline_of_the_owners_is_not_taken_for_closing(fake: front_server.Server) -> None:
    """asyncio.timeout cancels, too, and takes that back."""
    async with go.AsyncClient(fake.address) as client:
        for way in WAYS:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await way(client)


async def test_a_task_group_hears_of_it(fake: front_server.Server) -> None:
    """It fails as with any other error."""
    client = go.AsyncClient(fake.address)

    async def several() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(by_itself(client))
            await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) > 0)
            await client.close()

    with pytest.raises(ExceptionGroup) as raised:
        await several()
    assert [go.ServerUnavailableError] == [type(one) for one in raised.value.exceptions]


def test_a_blocking_call_is_told_the_same(fake: front_server.Server) -> None:
    """By itself and over a stream."""
    for request in (told("sleep 60"), large("sleep 60")):
        eventually(lambda: fake.metric(BUSY) == 0)
        client, found = go.Client(fake.address), []

        def call(client: go.Client = client, request: Any = request, found: list[Any] = found) -> None:
            with pytest.raises(go.ServerUnavailableError, match=CLOSED) as raised:
                client._call(request, 50)
            found.append(raised)

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: fake.metric(BUSY) > 0)
        client.close()
        thread.join(20)
        assert 1 == len(found)


async def test_what_goes_on_after_its_client_was_closed(fake: front_server.Server) -> None:
    """A stream whose results are taken later says so, blocking or not."""
    client, other = go.Client(fake.address), go.AsyncClient(fake.address)
    results, awaited = client.map([told("echo")] * 200, window=2), other.map([told("echo")] * 200, window=2)
    await asyncio.to_thread(next, results)
    await anext(awaited)
    client.close()
    await other.close()
    with pytest.raises(go.ServerUnavailableError, match=CLOSED):
        await asyncio.to_thread(list, results)
    with pytest.raises(go.ServerUnavailableError, match=CLOSED):
        [one async for one in awaited]

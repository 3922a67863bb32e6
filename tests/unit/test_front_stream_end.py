"""A stream that ends while a call of it is being taken up: the call ends with it, and gives back what came of it."""

from __future__ import annotations

import asyncio
import collections
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gradoracle.v1 import service_pb2
from gradoracle_server.front import statuses
from gradoracle_server.front.stream import Stream
from gradoracle_server.front.unread import Unread
from gradoracle_server.front.uploads import Budget

Code = grpc.StatusCode


class Connection:
    """Brings one message, and then no more."""

    def __init__(self, message: bytes) -> None:
        self._messages = [message]

    async def read(self) -> bytes:
        if not self._messages:
            await asyncio.sleep(3600)
        return self._messages.pop()

    async def write(self, _: bytes) -> None:
        raise AssertionError("there is nothing to say")

    def time_remaining(self) -> float | None:
        return None


class Service:
    """Never finds the device of a request."""

    def __init__(self) -> None:
        self.looking = asyncio.Event()
        self.ended: list[Code] = []
        calls = SimpleNamespace(started=0, finished=lambda code, _: self.ended.append(code))
        self.metrics = SimpleNamespace(calls=collections.defaultdict(lambda: calls))

    async def device(self, _: object) -> str:
        self.looking.set()
        await asyncio.sleep(3600)
        return "cpu"

    @property
    def started(self) -> int:
        return int(self.metrics.calls["ComputeVjp"].started)


def message() -> bytes:
    """A call with an attachment, and one more behind it."""
    made = service_pb2.StreamRequest()
    made.chunks.add(call_id=1, attachment=0, data=bytes(1000))
    for number, attachments in ((1, 1), (2, 0)):
        made.calls.add(id=number, attachments=attachments).compute_vjp.device = "cpu"
    return made.SerializeToString()


@pytest.mark.parametrize("how", ["cancelled", "drained"])
async def test_a_call_whose_device_is_looked_for(how: str) -> None:
    """It ends as CANCELLED before the stream has ended; the call behind it has not begun."""
    service: Any = Service()
    budget = Budget(10_000, 0)
    connection: Any = Connection(message())
    stream = Stream(service, budget, Unread(0, 1), connection, None)
    task = asyncio.create_task(stream.run())
    await asyncio.wait_for(service.looking.wait(), 30)
    assert (1, 1000) == (service.started, budget.held)
    if how == "drained":
        stream.drain()
    else:
        task.cancel()
    with pytest.raises(statuses.Failure if how == "drained" else asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert (1, [Code.CANCELLED], 0) == (service.started, service.ended, budget.held)

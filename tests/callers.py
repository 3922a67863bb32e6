"""Requests that tell fake workers what to do, and many who ask at the same time."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from front_server import command

import gradoracle as go
from gradoracle.requests import EVALUATE, Request


def told(text: str) -> Request[Any]:
    """A request that tells a fake worker what to do."""
    method = dataclasses.replace(EVALUATE, read=lambda message, attached: message)
    return Request(method, b"", command(text).SerializeToString())


def by_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What so many threads get, all of which begin at the same time; exceptions too."""
    together = threading.Barrier(count)

    def one(number: int) -> Any:
        together.wait(10)
        try:
            return call(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


async def by_tasks(count: int, call: Callable[[int], Any]) -> list[Any]:
    """The same of tasks."""
    return await asyncio.gather(*(call(number) for number in range(count)), return_exceptions=True)


def no_grpc(client: go.Client | go.AsyncClient) -> None:
    """Lets the client fail where it asks through gRPC."""

    def refuse(*_: Any, **__: Any) -> bytes:
        raise AssertionError("asked through gRPC")

    client._channels.unary = refuse  # type: ignore[method-assign]
    client._channels.converse = refuse  # type: ignore[method-assign, assignment]

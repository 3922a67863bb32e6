"""Connections are cut, and a server restarted, in the middle of streams: every request has its one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tcp_proxy import Proxy, proxy

import gradoracle as go
from faults.outcome import Outcome
from faults.servers import free_port, serving

SHORT = {"count": 300, "every": 40, "restarts": 1}
LONG = {"count": 10_000, "every": 250, "restarts": 3}

_LARGE = np.arange(200_000, dtype=np.float64)  # 1.6 MB, which travels in chunks


def run(count: int, every: int, restarts: int) -> Outcome:
    """Maps over requests, some of them large, while the way to the server is cut again and again; then restarts it."""
    outcome = Outcome(
        "streams cut",
        f"{count} requests over connections cut every {every} answers; {restarts} restarts of the server, by kill -9",
        "every request has its own answer, once",
    )
    with serving("--workers", "2") as server, proxy(server.address) as way, go.Client(way.address) as client:
        wrong, answered = _check(client, count, way, every)
        outcome.figures = {"answered": answered, "wrong": wrong, "connections": way.connections}
        outcome.require(way.connections > count // every // 2, f"{way.connections} connections: nothing was cut")
        outcome.require((wrong, answered) == (0, count), f"{wrong} wrong, {count - answered} lost")
    _restart(outcome, restarts)
    return outcome


def _restart(outcome: Outcome, restarts: int) -> None:
    """Kills the server in the middle of a stream, and starts another in its place."""
    address = f"127.0.0.1:{free_port()}"
    answered = 0
    with go.Client(address) as client:
        results = iter(())  # type: Iterator[Any]
        for number in range(restarts + 1):
            with serving("--workers", "2", address=address) as server:
                if not number:
                    results = client.map(_requests(100 * (restarts + 1)), window=8)
                for _ in range(100 if number < restarts else 10**6):
                    result = next(results, None)
                    if result is None:
                        break
                    outcome.require(_is_right(answered, result), f"request {answered} has another's answer")
                    answered += 1
                server.process.kill()
    outcome.figures["answered over restarts"] = answered
    outcome.require(answered == 100 * (restarts + 1), f"{answered} answered over restarts")


def _requests(count: int) -> Iterator[go.Request[Any]]:
    for number in range(count):
        if number % 50 == 7:
            yield go.request("evaluate", "x + y", {"x": _LARGE, "y": float(number)})
        else:
            yield go.request("vjp", "x**2", {"x": float(number)})


def _is_right(number: int, result: Any) -> bool:
    if number % 50 == 7:
        return bool(np.array_equal(result.outputs["out"], _LARGE + number))
    return bool(result.gradients["x"] == 2.0 * number)


def _check(client: go.Client, count: int, way: Proxy, every: int) -> tuple[int, int]:
    """How many answers were wrong, and how many there were; after so many of them the way is cut."""
    right = []
    for number, result in enumerate(client.map(_requests(count), window=16)):
        right.append(_is_right(number, result))
        if number % every == every - 1:
            way.cut()
    return right.count(False), len(right)

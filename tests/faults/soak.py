"""Many requests: the memory of every process stays as it is after the first of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import gradoracle as go
from faults.outcome import Outcome
from faults.servers import Served, descendants, memory, serving

SHORT = {"count": 1_000, "warm_up": 1_200, "allowed": 0.5}
LONG = {"count": 100_000, "warm_up": 80_000, "allowed": 0.02}

_GRAPHS = [go.Graph.parse(f"(x * {number} + y).sin().sum()") for number in range(800)]  # more than a worker keeps


def run(count: int, warm_up: int, allowed: float) -> Outcome:
    """Sends requests of many graphs and sizes, and reads the memory that is each process's own as they go."""
    outcome = Outcome(
        "many requests",
        f"{count} requests after {warm_up} to warm up, of {len(_GRAPHS)} graphs",
        f"every process's memory within {allowed:.0%}",
    )
    with serving("--workers", "2") as server, go.Client(server.address) as client:
        _send(client, warm_up)
        processes = {"front": server.pid, **_started(server)}
        before = {name: memory(pid) for name, pid in processes.items()}
        started = time.monotonic()
        _send(client, count)
        seconds = time.monotonic() - started
        after = {name: memory(pid) for name, pid in processes.items()}
        outcome.figures = {"requests": count, "a second": count / seconds}
        for name, was in before.items():
            change = after[name] / was - 1
            outcome.figures[f"{name} MB"] = f"{was / 1e6:.1f} to {after[name] / 1e6:.1f} ({change:+.1%})"
            outcome.require(abs(change) <= allowed, f"{name}: from {was / 1e6:.1f} to {after[name] / 1e6:.1f} MB")
        outcome.require(not server.restarts(), "workers were lost")
    return outcome


def _started(server: Served) -> dict[str, int]:
    """What the front started: workers by number, and the rest."""
    workers = server.workers()
    others = [pid for pid in descendants(server.pid) if pid not in workers]
    return {
        **{f"worker {place}": pid for place, pid in enumerate(workers)},
        **{f"helper {place}": pid for place, pid in enumerate(others)},
    }


def _send(client: go.Client, count: int) -> None:
    def source() -> Iterator[go.Request[Any]]:
        for number in range(count):
            x = np.full(1 + number % 1000, 0.5)
            yield go.request("vjp", _GRAPHS[number % len(_GRAPHS)], {"x": x, "y": float(number)})

    for result in client.map(source(), window=32):
        assert result.gradients["x"] is not None

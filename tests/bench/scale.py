"""What more workers bring, and where the front would be the limit.

Requests that compute for some milliseconds show what workers add: their rate with so many, over that many times the
rate of one. Requests that compute next to nothing show what the front itself takes for one, by its own processor time;
its one thread would be busy at one over that. The machine's cores also run the callers, which is part of what is seen.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import numpy as np
import torch
from bench import callers, servers, small_vjp, turns
from bench.table import Row, at_least

import gradoracle as go

SIZE, PRODUCTS = 128, 96
"""Of the matrix, and how often it is multiplied: some 20 ms of work for 130 kB each way. With less, what is seen is
that the callers and the front take a part of the cores that the workers want."""


def rows(quick: bool) -> Iterator[Row]:
    """Workers from one to the cores, and the front's own cost."""
    torch.set_num_threads(1)
    window, repeats = (0.5, 2) if quick else (2.0, 5)
    yield from by_workers(window, repeats)
    yield from of_the_front(window)


def products() -> go.Graph:
    """A graph that computes much for what it is sent."""
    graph = go.Graph()
    x = value = graph.input("x")
    for _ in range(PRODUCTS):
        value = (value @ x).tanh()
    graph.output("y", value.sum())
    return graph


def by_workers(window: float, repeats: int) -> Iterator[Row]:
    """Servers with one worker, two, … up to the cores, asked in turn."""
    cores = os.cpu_count() or 1
    counts = [one for one in (1, 2, 4, 8, 16, 32, 64) if one < cores] + [cores]
    graph, primals = products(), {"x": np.linspace(-0.1, 0.1, SIZE * SIZE).reshape(SIZE, SIZE)}
    with contextlib.ExitStack() as stack:
        work = {}
        for count in counts:
            client = stack.enter_context(go.Client.local(count, threads=1))
            work[str(count)] = callers.threads(functools.partial(client.vjp, graph, primals), 2 * count)
        found = turns.rates(work, window, repeats)
    one = found["1"]
    for count in counts[1:]:
        beside = f"{count} x the rate of one, {one:,.1f}/s; ours {found[str(count)]:,.1f}/s"
        yield Row(f"{count} workers", found[str(count)] / (count * one), "x", at_least(0.85), None, beside)


def of_the_front(window: float) -> Iterator[Row]:
    """Its processor time for a small request, and the rate at which one core would be full of them."""
    graph, x = go.Graph.parse(small_vjp.POLYNOMIAL), np.array(2.0)
    with go.local_server(None, shared_memory=False) as address, go.Client(address) as client:
        pid = servers.front_pid()
        together = callers.threads(lambda: client.vjp(graph, {"x": x}), 8)
        for name, rate in (("unary", together), ("8 callers together", together), ("map", callers.mapped(client))):
            client._gathering._may = name != "unary"
            rate(window / 2)
            before = servers.cpu_seconds(pid)
            spent = max(3.0, window)
            requests = rate(spent) * spent
            each = (servers.cpu_seconds(pid) - before) / requests
            beside = f"{requests:,.0f} requests"
            yield Row(f"front's CPU a small request, {name}", each * 1e6, "us", None, None, beside)
            yield Row(
                f"front would saturate, {name}", 1 / each, "/s", None, None, "one core of its own", "1 / CPU a request"
            )

"""How many small gradients a second many callers get, beside a bare gRPC echo at the same concurrency.

The echo is driven by the same kind of client: threads over one channel for the client, tasks over one grpc.aio channel
for the asynchronous one. Callers and servers share the machine's cores, as in a container. The figures that count are
those of threads, which is what most callers are; asyncio's stand beside them and are judged alike. Clients ask a server
of their user on their machine without gRPC (`gradoracle/neighbours.py`). Through gRPC alone, small calls that are under
way at the same time go over a stream together (`gradoracle/gathering.py`); what each by itself gets, as a client in
another language would, stands beside them.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import grpc
import numpy as np
import torch
from bench import servers, small_vjp, turns
from bench.table import Bound, Row, at_least

import gradoracle as go

WANTED, GOAL = at_least(0.5), at_least(0.65)


def threads(call: Callable[[], object], callers: int) -> Callable[[float], float]:
    """Calls a second of so many threads, in a window of so many seconds."""

    def measure(window: float) -> float:
        end = time.perf_counter() + window
        done = [0] * callers

        def work(place: int) -> None:
            while time.perf_counter() < end:
                call()
                done[place] += 1

        start = time.perf_counter()
        running = [threading.Thread(target=work, args=(place,)) for place in range(callers)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        return sum(done) / (time.perf_counter() - start)

    return measure


def tasks(call: Callable[[], Awaitable[object]], callers: int, run: Callable[..., float]) -> Callable[[float], float]:
    """The same for so many tasks of the loop that `run` runs them in."""

    async def measure(window: float) -> float:
        end = time.perf_counter() + window

        async def work() -> int:
            done = 0
            while time.perf_counter() < end:
                await call()
                done += 1
            return done

        start = time.perf_counter()
        return sum(await asyncio.gather(*(work() for _ in range(callers)))) / (time.perf_counter() - start)

    return lambda window: run(measure(window))


def mapped(client: go.Client) -> Callable[[float], float]:
    """Results a second of one stream."""
    request = go.request("vjp", small_vjp.POLYNOMIAL, {"x": np.array(2.0)})

    def measure(window: float) -> float:
        start = time.perf_counter()
        waiting = itertools.takewhile(lambda _: time.perf_counter() < start + window, itertools.repeat(request))
        done = sum(1 for _ in client.map(waiting, window=256))
        return done / (time.perf_counter() - start)

    return measure


def rows(quick: bool) -> Iterator[Row]:
    """Unary calls by threads and by tasks, and `map`."""
    torch.set_num_threads(1)
    window, repeats = (0.4, 2) if quick else (1.0, 5)
    graph, x = go.Graph.parse(small_vjp.POLYNOMIAL), np.array(2.0)
    payload = small_vjp.request_bytes(graph, x)
    with go.local_server(None) as address, servers.echo_server() as other:
        for alone in (False, True):
            shared_memory = False if alone else None
            kind = ", gRPC alone" if alone else ""
            with go.Client(address, shared_memory=shared_memory) as client, grpc.insecure_channel(other) as channel:
                echo: servers.Echo = channel.unary_unary(servers.ECHO)
                sides = {"vjp": lambda: client.vjp(graph, {"x": x}), "echo": lambda: echo(payload)}  # noqa: B023
                best = 0.0
                for callers in (8, 64):
                    work = {side: threads(call, callers) for side, call in sides.items()}
                    found = turns.rates(work, window, repeats)
                    best = max(best, found["echo"])
                    yield _row(f"{callers} callers{kind} (threads)", found, "vjp", WANTED, GOAL)
                if alone:
                    client._gathering._may = False
                    found = turns.rates({side: threads(call, 8) for side, call in sides.items()}, window, repeats)
                    yield _row("8 callers, gRPC alone, each call by itself (threads)", found, "vjp", None, None)
                    # The echo at 8 threads is what `map` stands beside.
                    found = turns.rates({"map": mapped(client), "echo": threads(sides["echo"], 8)}, window, repeats)
                    note = f"8 threads of unary echoes; best {best:,.0f}/s"
                    yield _row("client.map", found, "map", at_least(1), at_least(2), note)
            with asyncio.Runner() as runner:
                asynchronous = runner.run(_opened(address, shared_memory))
                yield from _tasks(runner.run, asynchronous, other, kind, payload, window, repeats)


async def _opened(address: str, shared_memory: bool | None) -> go.AsyncClient:
    return go.AsyncClient(address, shared_memory=shared_memory)


def _tasks(
    run: Callable[[Coroutine[Any, Any, Any]], Any],
    client: go.AsyncClient,
    other: str,
    kind: str,
    payload: bytes,
    window: float,
    repeats: int,
) -> Iterator[Row]:
    async def opened() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(other)

    channel = run(opened())
    echo = channel.unary_unary(servers.ECHO)
    graph, primals = go.Graph.parse(small_vjp.POLYNOMIAL), {"x": np.array(2.0)}

    async def echoed() -> bytes:
        answer: bytes = await echo(payload)
        return answer

    for callers in (8, 64):
        work = {
            "vjp": tasks(lambda: client.vjp(graph, primals), callers, run),
            "echo": tasks(echoed, callers, run),
        }
        yield _row(f"{callers} callers{kind} (asyncio)", turns.rates(work, window, repeats), "vjp", WANTED, GOAL)

    async def closed() -> None:
        await client.close()
        await channel.close()

    run(closed())


def _row(
    name: str, found: dict[str, float], ours: str, wanted: Bound | None, goal: Bound | None, note: str = ""
) -> Row:
    beside = f"raw echo, {found['echo']:,.0f}/s; ours {found[ours]:,.0f}/s"
    return Row(name, found[ours] / found["echo"], "x", wanted, goal, beside, note)

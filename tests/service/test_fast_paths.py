"""Every way to speed has the bits of the slow one: unary and streamed, alone and in company, first and repeated, inline
and in chunks and in shared memory, with and without what the front takes on top of gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_server import start, workers

import gradoracle as go

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]
SMALL = 8  # requests of each kind that are under way at once


@dataclasses.dataclass(frozen=True)
class Work:
    """A gradient, and the same with torch."""

    expression: str
    eager: Callable[[torch.Tensor], torch.Tensor]
    x: np.ndarray[Any, Any]
    large: bool = False

    @property
    def primals(self) -> dict[str, Any]:
        return {"x": self.x}

    @property
    def request(self) -> go.Request[go.VjpResult]:
        return go.request("vjp", self.expression, self.primals)


def _drawn(*shape: int, dtype: str = "float64") -> np.ndarray[Any, Any]:
    numbers = np.random.default_rng(7)
    if dtype.startswith("complex"):
        return (numbers.normal(size=shape) + 1j * numbers.normal(size=shape)).astype(dtype)
    return numbers.normal(size=shape).astype(dtype)


WORK = {
    "a number": Work("9*x**4 + 2*x**3 + 1", lambda x: 9 * x**4 + 2 * x**3 + 1, np.array(2.0)),
    "sums whose order shows": Work(
        "sum(tanh(x @ x) * x)", lambda x: (torch.tanh(x @ x) * x).sum(), _drawn(65, 65, dtype="float32")
    ),
    "a softmax": Work(
        "sum(log_softmax(x, 1) * x)", lambda x: (torch.log_softmax(x, 1) * x).sum(), _drawn(33, 17, dtype="float32")
    ),
    "complex numbers": Work(
        "sum(abs(exp(x)))", lambda x: torch.exp(x).abs().sum(), _drawn(40, dtype="complex128")
    ),
    "more than a socket takes": Work(
        "sum(sin(x) * x)", lambda x: (torch.sin(x) * x).sum(), _drawn(300_000, dtype="float32"), large=True
    ),
    "more than a message of the client's": Work(
        "mean(sin(x) * x)", lambda x: (torch.sin(x) * x).mean(), _drawn(3, 700_001, dtype="float32"), large=True
    ),
}  # fmt: skip


def bits(result: go.VjpResult) -> Bits:
    """All that came back, by name."""
    found = {**{f"output {k}": v for k, v in result.outputs.items()}, **result.gradients}
    return {name: (str(one.dtype), one.shape, one.tobytes()) for name, one in found.items() if one is not None}


@pytest.fixture(scope="module")
def eager() -> dict[str, Bits]:
    """torch's own, with as many threads as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name, work in WORK.items():
        leaf = torch.from_numpy(work.x.copy()).requires_grad_()
        value = work.eager(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        pairs = {"output out": value.detach().numpy(), "x": gradient.numpy()}
        found[name] = {key: (str(one.dtype), one.shape, one.tobytes()) for key, one in pairs.items()}
    torch.set_num_threads(before)
    return found


@contextlib.contextmanager
def served(*flags: str, uvloop: bool = True, **environment: str) -> Iterator[str]:
    """The socket of a server with one worker, so that requests stand behind each other."""
    with tempfile.TemporaryDirectory() as folder:
        listen = f"unix:{Path(folder) / 'g.sock'}"
        if not uvloop:
            (Path(folder) / "uvloop.py").write_text("raise ImportError('left out')\n")
            environment["PYTHONPATH"] = folder
        command = ("--listen", listen, "--workers", "1", "--threads", "1", *flags)
        with start(*command, environment=environment) as server:
            yield server.address


@pytest.fixture(scope="module")
def fast() -> Iterator[str]:
    with served("--shared-memory") as address:
        yield address


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """Without uvloop and shared memory, and with gRPC's own choice of polling."""
    with served(uvloop=False, GRPC_EXPERIMENTS="event_engine_listener") as address:
        yield address


def first_and_again(client: go.Client) -> dict[str, list[go.VjpResult]]:
    """A graph that the worker has not seen, and one that it has."""
    return {name: [client.vjp(work.expression, work.primals) for _ in range(2)] for name, work in WORK.items()}


def one_after_another(client: go.Client) -> dict[str, list[go.VjpResult]]:
    """A stream that never has two under way."""
    return {name: list(client.map([work.request] * 2, window=1)) for name, work in WORK.items()}


def in_company(client: go.Client) -> dict[str, list[go.VjpResult]]:
    """A stream that has many: they share messages, and the worker has the next ones ahead of time."""
    names = [name for name, work in WORK.items() for _ in range(2 if work.large else SMALL)] * 2
    found: dict[str, list[go.VjpResult]] = {name: [] for name in WORK}
    for name, result in zip(names, client.map([WORK[name].request for name in names], window=64), strict=True):
        found[name].append(result)
    return found


def by_many_threads(client: go.Client) -> dict[str, list[go.VjpResult]]:
    """Unary calls that wait for one another."""
    names = [name for name, work in WORK.items() for _ in range(2 if work.large else SMALL)]
    found: dict[str, list[go.VjpResult]] = {name: [] for name in WORK}
    with ThreadPoolExecutor(16) as pool:
        calls = [(name, pool.submit(client.vjp, WORK[name].expression, WORK[name].primals)) for name in names]
        for name, call in calls:
            found[name].append(call.result())
    return found


def awaited(client: go.Client) -> dict[str, list[go.VjpResult]]:
    """The asynchronous client's."""

    async def run() -> dict[str, list[go.VjpResult]]:
        async with go.AsyncClient(client.address) as other:
            found = await asyncio.gather(*(other.vjp(work.expression, work.primals) for work in WORK.values()))
        return {name: [one] for name, one in zip(WORK, found, strict=True)}

    return asyncio.run(run())


WAYS = [first_and_again, one_after_another, in_company, by_many_threads, awaited]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("server", ["fast", "slow", "shared memory"])
def test_every_way_has_torchs_bits(
    server: str, way: Callable[[go.Client], Any], eager: dict[str, Bits], request: pytest.FixtureRequest
) -> None:
    """Whatever a request's way through client, front and worker is, what comes back is what torch computes."""
    address = request.getfixturevalue("slow" if server == "slow" else "fast")
    with go.Client(address, shared_memory=server == "shared memory") as client:
        found = way(client)
    assert {name: len(results) > 0 for name, results in found.items()} == dict.fromkeys(WORK, True)
    for name, results in found.items():
        for result in results:
            assert bits(result) == eager[name], name


def test_a_wrong_bit_would_be_seen(fast: str, eager: dict[str, Bits]) -> None:
    """The last place of one number, and the sign of a zero."""
    with go.Client(fast) as client:
        result = client.vjp(WORK["a softmax"].expression, WORK["a softmax"].primals)
    assert bits(result) == eager["a softmax"]
    gradient = result.gradients["x"]
    assert gradient is not None
    gradient[3, 4] = np.nextafter(gradient[3, 4], np.float32(9))
    assert bits(result) != eager["a softmax"]
    assert bits(dataclasses.replace(result, gradients={"x": np.array(-0.0)}))["x"] != bits(
        dataclasses.replace(result, gradients={"x": np.array(0.0)})
    )["x"]  # fmt: skip


def test_large_answers_of_small_requests_are_their_own(fast: str) -> None:
    """A worker that has small requests ahead of time answers the next one before the front has read the last answer:
    that one must not be written over."""
    size = 90_000
    with go.Client(fast) as client:
        asked = [go.request("evaluate", "x + k", {"x": go.fill([size], 0.0), "k": float(k)}) for k in range(600)]
        found = [one.outputs["out"] for one in client.map(asked, window=64)]
        with ThreadPoolExecutor(24) as pool:
            found += pool.map(lambda one: client._call(one, None).outputs["out"], asked)
    wrong = [(k, one[0], one[-1]) for k, one in enumerate(found) if not np.all(one == k % len(asked))]
    assert [] == wrong


def test_large_answers_of_large_requests_are_their_own(fast: str) -> None:
    """A worker writes them into one file, again and again, but not while the front still reads the one before: with
    many at once, that is not at all."""
    x = np.arange(300_000, dtype=np.float64)
    with go.Client(fast) as client:
        asked = [go.request("evaluate", "x + k", {"x": x, "k": float(k)}) for k in range(40)]

        def ask(_: int) -> list[int]:
            found = client.map(asked, window=40)
            return [k for k, one in enumerate(found) if not np.array_equal(one.outputs["out"], x + k)]

        assert ask(0) == []
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == [[]] * 4


def test_large_uploads_are_their_own_while_workers_die() -> None:
    """The file of an upload is used again for the worker's next one, and other workers take its place meanwhile."""
    with start("--workers", "1", "--threads", "1") as server, go.Client(server.address, timeout=60) as client:

        def one(seed: int) -> bool:
            """Whether a gradient is right; a request whose worker was killed twice is asked again."""
            drawn = np.random.default_rng(seed)
            x = drawn.integers(-1000, 1000, int(drawn.integers(300_000, 1_500_000))).astype(np.float64)
            for _ in range(5):
                with contextlib.suppress(go.WorkerCrashedError):
                    return np.array_equal(client.vjp("sum(x * x)", {"x": x}).gradients["x"], 2 * x)
            return False

        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(one, seed) for seed in range(45)]
            killed = 0
            while not all(call.done() for call in calls):
                for pid in workers(server)[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                wait(calls, 0.25)
        assert [True] * 45 == [call.result() for call in calls]
        assert killed > 2

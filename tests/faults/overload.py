"""Ten times as many calls as the workers can answer: they go on answering, and the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import grpc
from front_server import command

from faults.outcome import Outcome, percentile
from faults.servers import FAKE, serving
from gradoracle.v1 import service_pb2_grpc

SHORT = {"seconds": 2.0, "work": 0.05, "goodput": 0.5, "refusal": 10.0}
LONG = {"seconds": 20.0, "work": 0.05, "goodput": 0.9, "refusal": 0.05}

_WORKERS, _QUEUE = 2, 16


class _Tally:
    """What came of calls."""

    def __init__(self) -> None:
        self.answered: list[float] = []  # seconds
        self.refused: list[float] = []
        self.others: list[str] = []

    async def call(self, stub: service_pb2_grpc.GradientServiceStub, work: float) -> None:
        """Makes a call and notes what came of it."""
        before = time.perf_counter()
        try:
            made: Awaitable[object] = stub.Evaluate(command(f"sleep {work}"))
            await made
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refused.append(time.perf_counter() - before)
            else:
                self.others.append(f"{error.code().name}: {error.details()}")
        else:
            self.answered.append(time.perf_counter() - before)


def run(seconds: float, work: float, goodput: float, refusal: float) -> Outcome:
    """Finds out the best that workers do, which work by sleeping and so leave the cores to the front and the callers;
    then calls ten times as often from one connection, with now and then a call from another."""
    outcome = Outcome(
        "ten times the capacity",
        f"{_WORKERS} workers, {work * 1000:g} ms a call, --max-queue {_QUEUE}; open loop for {seconds:g} s",
        f"goodput over {goodput:.0%} of the best, p99 of refusals below {refusal * 1000:g} ms; others served",
    )
    with serving("--workers", str(_WORKERS), "--max-queue", str(_QUEUE), program=FAKE) as server:
        best, flooded, user, elapsed = asyncio.run(_measure(server.address, seconds, work))
        served = len(flooded.answered) + len(user.answered)
        outcome.figures = {
            "best a second": best,
            "offered a second": (served + len(flooded.refused)) / elapsed,
            "goodput a second": served / elapsed,
            "of the best": f"{served / elapsed / best:.1%}",
            "refused": len(flooded.refused),
            "refusal p50 ms": percentile(flooded.refused, 0.5) * 1000,
            "refusal p99 ms": percentile(flooded.refused, 0.99) * 1000,
            "other connection's calls": len(user.answered) + len(user.refused),
            "of those refused": len(user.refused),
            "its p99 ms": percentile(user.answered, 0.99) * 1000,
        }
        outcome.require(served / elapsed > goodput * best, "the goodput is too low")
        outcome.require(percentile(flooded.refused, 0.99) < refusal, "refusals take too long")
        outcome.require(not user.refused, "the other connection was refused")
        outcome.require(not flooded.others and not user.others, str((flooded.others + user.others)[:3]))
        outcome.require(len(flooded.refused) > served, "it was not overloaded: nothing was tried")
    return outcome


async def _measure(address: str, seconds: float, work: float) -> tuple[float, _Tally, _Tally, float]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with (
        grpc.aio.insecure_channel(address, options) as one,
        grpc.aio.insecure_channel(address, options) as other,
    ):
        stub, user_stub = service_pb2_grpc.GradientServiceStub(one), service_pb2_grpc.GradientServiceStub(other)
        best = await _best(stub, seconds / 2, work)
        flooded, user = _Tally(), _Tally()
        started = time.perf_counter()
        await asyncio.gather(
            _at_rate(flooded, stub, 10 * _WORKERS / work, seconds, work),
            _at_rate(user, user_stub, 0.1 / work, seconds, work),
        )
        return best, flooded, user, time.perf_counter() - started


async def _best(stub: service_pb2_grpc.GradientServiceStub, seconds: float, work: float) -> float:
    """Answers a second where every worker always has the next call waiting."""
    tally = _Tally()
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            await tally.call(stub, work)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(2 * _WORKERS)))
    return len(tally.answered) / (time.perf_counter() - started)


async def _at_rate(
    tally: _Tally, stub: service_pb2_grpc.GradientServiceStub, rate: float, seconds: float, work: float
) -> None:
    """Makes calls at a rate, whether they are answered or not."""
    calls = set()
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        wait = started + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 20 == 0:
            await asyncio.sleep(0)
        calls.add(asyncio.create_task(tally.call(stub, work)))
    await asyncio.gather(*calls)

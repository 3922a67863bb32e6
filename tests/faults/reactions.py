"""How soon a worker is replaced that dies, and how soon work stops that nobody waits for."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import grpc

import gradoracle as go
from faults.operator_calls import Call
from faults.outcome import Outcome, percentile
from faults.servers import Served, is_running, serving, until
from gradoracle.v1 import service_pb2

SHORT = {"times": 2, "takeover": 30.0, "stop": 30.0}
LONG = {"times": 30, "takeover": 0.1, "stop": 0.25}

_BUSY = 'gradoracle_workers{device="cpu",state="busy"}'
_SPARE = 'gradoracle_workers{device="cpu",state="spare"}'


def run(times: int, takeover: float, stop: float) -> Outcome:
    """Kills the only worker and times the next answer; lets an operator run that never returns, and times its end."""
    outcome = Outcome(
        "reaction times",
        f"{times} times each: the only worker killed; a deadline of 50 ms; a call cancelled",
        f"the next answer within {takeover:g} s; the work stopped within {stop:g} s",
    )
    with serving("--workers", "1", "--spare-workers", "1") as server, go.Client(server.address) as client:
        found = {
            "takeover by a spare": _takeover(server, client, times, 1),
            "stop after a deadline": _stop(server, client, times, cancel=False),
            "stop after a cancellation": _stop(server, client, times, cancel=True),
        }
    with serving("--workers", "1", "--spare-workers", "0") as server, go.Client(server.address) as client:
        found["replacement without a spare"] = _takeover(server, client, times, 0)
    for name, seconds in found.items():
        outcome.figures[f"{name} p50 ms"] = percentile(seconds, 0.5) * 1000
        outcome.figures[f"{name} longest ms"] = max(seconds, default=float("nan")) * 1000
        outcome.require(2 * len(seconds) > times, f"{name}: only {len(seconds)} of {times} ran")
        limit = stop if name.startswith("stop") else takeover
        if name != "replacement without a spare":
            outcome.require(max(seconds, default=0.0) < limit, f"{name} took {max(seconds, default=0.0):.3f} s")
    return outcome


def _takeover(server: Served, client: go.Client, times: int, spares: int) -> list[float]:
    """Seconds from the death of the only worker to the next answer."""
    found = []
    for _ in range(times):
        until(lambda: server.metrics()[_SPARE] == spares)
        worker = _serving_worker(server, client)
        before = time.perf_counter()
        os.kill(worker, signal.SIGKILL)
        client.evaluate("x + 1", {"x": 1.0})
        found.append(time.perf_counter() - before)
    return found


def _serving_worker(server: Served, client: go.Client) -> int:
    """The worker that takes calls: the one whose processor time grows with them."""
    workers = server.workers()
    before = {pid: _ticks(pid) for pid in workers}
    for _ in range(100):
        for _ in range(20):
            client.evaluate("x + 1", {"x": 1.0})
        busiest = max(workers, key=lambda pid: _ticks(pid) - before[pid])
        if _ticks(busiest) > before[busiest]:
            return busiest
    raise TimeoutError("no worker took the calls")


def _ticks(pid: int) -> float:
    """Nanoseconds that a process has run for; 0 where it has gone."""
    try:
        return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _never_ran(server: Served, call: grpc.Future) -> bool:
    """Whether a call ended before a worker had it, as some do on a busy machine: the work itself ends never."""
    return call.done() and server.metrics()[_BUSY] == 0


def _stop(server: Served, client: go.Client, times: int, *, cancel: bool) -> list[float]:
    """Seconds from the moment at which nobody waits any more to the end of the process."""
    made = Call()
    made.output(made.node("aten.special_laguerre_polynomial_l.n_scalar", [{"float64": [0.5]}, 1e15], {}))
    request = service_pb2.EvaluateRequest(graph=made.graph, primals=made.primals)
    found = []
    with server.stub() as stub:
        for _ in range(times):
            until(lambda: server.metrics()[_SPARE] == 1)
            worker = _serving_worker(server, client)
            call = stub.Evaluate.future(request, timeout=None if cancel else 0.05)  # type: ignore[attr-defined]
            due = time.perf_counter() + 0.05
            if cancel:
                until(lambda: server.metrics()[_BUSY] == 1)
                due = time.perf_counter()
                call.cancel()
            until(lambda worker=worker, call=call: not is_running(worker) or _never_ran(server, call))  # type: ignore[misc]
            if not is_running(worker):
                found.append(time.perf_counter() - due)
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                call.result()
    return found

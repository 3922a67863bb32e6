"""Calls that end, or never leave, the process that runs them: each is answered, and nobody else notices."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2

from faults.answers import is_contained, told
from faults.callers import calling
from faults.operator_calls import Call
from faults.outcome import Outcome
from faults.servers import serving
from gradoracle.v1 import service_pb2, service_pb2_grpc

SHORT = {"repeats": 1, "timeout": 1.0}
LONG = {"repeats": 3, "timeout": 3.0}

_CASES = Path(__file__).with_name("crashers.jsonl")


def run(repeats: int, timeout: float) -> Outcome:
    """Makes every call so often, beside callers whose answers are known; the third time some are in quarantine."""
    outcome = Outcome(
        "calls that crash",
        f"each of {len(_CASES.read_text().splitlines())} calls {repeats} times, two callers beside them",
        "each answered; the callers' answers right, none lost",
    )
    counts: Counter[str] = Counter()
    with serving("--workers", "2", "--max-memory-bytes", "2GiB") as server:
        with calling(server.address, 2) as others, server.stub() as stub:
            for line in _CASES.read_text().splitlines():
                for _ in range(repeats):
                    what, text = _make(stub, json.loads(line), timeout)
                    counts[what] += 1
                    outcome.require(is_contained(what), f"{line[:100]} was answered {what}: {text}")
        outcome.figures = {
            **dict(counts.most_common()),
            "workers lost": server.restarts("crash", "deadline"),
            "others answered": others.answered,
            "others wrong": len(others.wrong),
            "others lost": others.lost,
        }
        outcome.require(server.process.poll() is None, "the front has ended")
        outcome.require(not others.wrong and not others.lost, f"{others.wrong[:3]} {others.failed}")
        outcome.require(others.answered > 0, "the callers beside were not served")
        outcome.require(counts["WORKER_CRASHED SIGSEGV"] > 0, "no call ended its worker: nothing was tried")
    return outcome


def _make(stub: service_pb2_grpc.GradientServiceStub, case: dict[str, Any], timeout: float) -> tuple[str, str]:
    """Makes a call: what came of it, and the message."""
    made = Call()
    last = made.node(case["target"], case["args"], case.get("kwargs", {}))
    for target in case.get("then", ()):
        last = made.node(target, [{"value": last}], {})
    made.output(last)
    before = time.monotonic()
    try:
        request = service_pb2.EvaluateRequest(graph=made.graph, primals=made.primals)
        stub.Evaluate(request, timeout=timeout)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - before >= timeout * 0.9:
            return "DEADLINE_EXCEEDED", ""  # gRPC's own, when it is quicker than the server's answer
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        return told(status_pb2.Status.FromString(details)), error.details() or ""
    return "OK", ""

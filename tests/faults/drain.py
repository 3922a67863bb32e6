"""SIGTERM under load: what is in flight is finished, what comes later is told to go elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
from front_server import command

from faults.outcome import Outcome
from faults.servers import FAKE, Served, serving, until
from gradoracle.v1 import service_pb2_grpc

SHORT = {"times": 1, "clients": 8}
LONG = {"times": 5, "clients": 16}

_IN_FLIGHT = 'gradoracle_requests_in_flight{device="cpu"}'


class _Caller(threading.Thread):
    """Calls again and again, and notes which of its calls had begun when."""

    def __init__(self, stub: service_pb2_grpc.GradientServiceStub) -> None:
        super().__init__()
        self.outcomes: list[tuple[float, str]] = []  # when it began, by time.monotonic(), and the status
        self._stub = stub

    def run(self) -> None:
        while not self.outcomes or self.outcomes[-1][1] == "OK":
            began = time.monotonic()
            try:
                self._stub.Evaluate(command("sleep 0.05"), timeout=60)
            except grpc.RpcError as error:
                self.outcomes.append((began, error.code().name))
            else:
                self.outcomes.append((began, "OK"))


def run(times: int, clients: int) -> Outcome:
    """Starts a server and ends it in the middle of calls that take 50 ms."""
    outcome = Outcome(
        "SIGTERM under load",
        f"{times} servers of 2 workers stopped under {clients} clients without retries",
        "those in flight answered, later ones UNAVAILABLE or (in the last moment) CANCELLED, exit code 0",
    )
    counts: Counter[str] = Counter()
    seconds = []
    for _ in range(times):
        with serving("--workers", "2", program=FAKE) as server, server.stub() as stub:
            seconds.append(_stop(server, [_Caller(stub) for _ in range(clients)], counts, outcome))
    outcome.figures = {
        "in flight": counts["in flight"],
        "of those answered": counts["in flight OK"],
        "later ones UNAVAILABLE": counts["later UNAVAILABLE"],
        "later ones CANCELLED": counts["later CANCELLED"],
        "others": sum(counts[key] for key in counts if key not in _GOOD),
        "longest s to the end": max(seconds),
    }
    return outcome


_GOOD = ("in flight", "in flight OK", "later OK", "later UNAVAILABLE", "later CANCELLED", "earlier OK")
"""gRPC cuts off what it has taken but not handed on when a server stops listening; clients repeat that too."""


def _stop(server: Served, callers: list[_Caller], counts: Counter[str], outcome: Outcome) -> float:
    """One server's end. Gives the seconds that it took."""
    for each in callers:
        each.start()
    until(lambda: server.metrics()[_IN_FLIGHT] >= len(callers) - 1)
    time.sleep(0.2)
    told = time.monotonic()
    code = server.stop()
    took = time.monotonic() - told
    for each in callers:
        each.join()
    outcome.require(code == 0, f"exit code {code}")
    for each in callers:
        for place, (began, status) in enumerate(each.outcomes):
            ended = each.outcomes[place + 1][0] if place + 1 < len(each.outcomes) else float("inf")
            # What was sent in the last moment before the signal may have come after it.
            when = "earlier" if ended < told else "in flight" if began < told - 0.1 else "later"
            counts[f"{when} {status}"] += 1
            counts["in flight"] += when == "in flight"
            outcome.require(f"{when} {status}" in _GOOD, f"a call that was {when} ended with {status}")
    outcome.require(counts["in flight OK"] > 0, "no call was in flight: nothing was tried")
    return took

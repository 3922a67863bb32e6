"""Somebody kills a worker again and again while clients call: nothing is wrong, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from faults.callers import calling
from faults.outcome import Outcome, percentile
from faults.servers import serving

SHORT = {"seconds": 2.0, "every": 0.5, "clients": 4}
LONG = {"seconds": 60.0, "every": 1.0, "clients": 8}


def run(seconds: float, every: float, clients: int) -> Outcome:
    """Kills a worker, drawn anew each time, at regular times."""
    outcome = Outcome(
        "kill -9 of workers",
        f"a worker killed every {every:g} s for {seconds:g} s under {clients} clients",
        "none wrong, none lost",
    )
    chosen = random.Random(0)  # noqa: S311
    killed = 0
    with serving("--workers", "2") as server:
        with calling(server.address, clients) as callers:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(every)
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(chosen.choice(server.workers()), signal.SIGKILL)
                    killed += 1
        outcome.figures = {
            "killed": killed,
            "workers lost": server.restarts("killed", "exit", "start"),
            "answered": callers.answered,
            "wrong": len(callers.wrong),
            "lost": callers.lost,
            "p50 ms": percentile(callers.seconds, 0.5) * 1000,
            "p99 ms": percentile(callers.seconds, 0.99) * 1000,
            "longest ms": max(callers.seconds) * 1000,
        }
        outcome.require(not callers.wrong, f"wrong: {callers.wrong[:3]}")
        outcome.require(not callers.lost, f"lost: {dict(callers.failed)}")
        outcome.require(killed > 0 and callers.answered > 0, "nothing was tried")
    return outcome

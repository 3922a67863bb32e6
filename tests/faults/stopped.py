"""Somebody holds workers with SIGSTOP while clients call: what they had runs elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from faults.callers import calling
from faults.outcome import Outcome
from faults.servers import is_running, serving, until

SHORT = {"times": 1}
LONG = {"times": 10}


def run(times: int) -> Outcome:
    """Holds one worker after the other, each until the server has ended it."""
    outcome = Outcome(
        "SIGSTOP of workers", f"{times} workers held, one after the other, under 4 clients", "none wrong, none lost"
    )
    noticed = []
    with serving("--workers", "2") as server:
        with calling(server.address, 4) as callers:
            for number in range(times):
                workers = server.workers()
                held = workers[number % len(workers)]
                before = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(held, signal.SIGSTOP)
                    until(lambda held=held: not is_running(held))  # type: ignore[misc]
                    noticed.append(time.monotonic() - before)
        outcome.figures = {
            "held": len(noticed),
            "noticed after at most s": max(noticed),
            "answered": callers.answered,
            "wrong": len(callers.wrong),
            "lost": callers.lost,
            "longest ms": max(callers.seconds) * 1000,
        }
        outcome.require(not callers.wrong, f"wrong: {callers.wrong[:3]}")
        outcome.require(not callers.lost, f"lost: {dict(callers.failed)}")
        outcome.require(bool(noticed) and callers.answered > 0, "nothing was tried")
    return outcome

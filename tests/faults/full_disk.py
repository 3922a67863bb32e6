"""Nothing can be written where the log lines go."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from faults.callers import calling
from faults.outcome import Outcome
from faults.servers import serving, until

SHORT = {"kills": 5}  # more than there are spares
LONG = {"kills": 20}


def run(kills: int) -> Outcome:
    """Kills workers, each of which is worth a line, while stderr is a full disk."""
    outcome = Outcome(
        "disk full for logs",
        f"stderr is /dev/full, {kills} workers killed, two clients",
        "none wrong, none lost, exit code 0",
    )
    killed = 0
    with Path("/dev/full").open("wb") as full, serving("--workers", "2", stderr=full) as server:
        with calling(server.address, 2) as callers:
            for _ in range(kills):
                before = callers.answered
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(server.workers()[0], signal.SIGKILL)
                    killed += 1
                until(lambda before=before: callers.answered > before + 20)  # type: ignore[misc]
        code = server.stop()
        outcome.figures = {
            "killed": killed,
            "answered": callers.answered,
            "wrong": len(callers.wrong),
            "lost": callers.lost,
            "exit code": code,
        }
        outcome.require(not callers.wrong and not callers.lost, f"{callers.wrong[:3]} {callers.failed}")
        outcome.require(code == 0, f"exit code {code}")
        outcome.require(killed > 0, "nothing was tried")
    return outcome

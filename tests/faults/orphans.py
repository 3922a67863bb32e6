"""The front dies, in whatever way: nothing that it started is left."""

from __future__ import annotations

import signal
import time

from front_server import command

from faults.outcome import Outcome
from faults.servers import FAKE, descendants, is_running, serving, until

SHORT = {"times": 1}
LONG = {"times": 5}

_WAYS = {"SIGKILL": [signal.SIGKILL], "SIGSEGV": [signal.SIGSEGV], "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM]}
_BUSY = 'gradoracle_workers{device="cpu",state="busy"}'


def run(times: int) -> Outcome:
    """Ends the front while its workers are busy, and looks for the processes that it had started."""
    outcome = Outcome("orphans", f"fronts ended under load, {times} times in each of {len(_WAYS)} ways", "none is left")
    for way, numbers in _WAYS.items():
        longest = 0.0
        for _ in range(times):
            with serving("--workers", "2", program=FAKE) as server, server.stub() as stub:
                calls = [stub.Evaluate.future(command("sleep 600")) for _ in range(2)]  # type: ignore[attr-defined]
                until(lambda server=server: server.metrics()[_BUSY] == 2)  # type: ignore[misc]
                started = descendants(server.pid)
                for number in numbers:
                    server.process.send_signal(number)
                    time.sleep(0.1)
                before = time.monotonic()
                server.process.wait(60)
                until(lambda started=started: not any(is_running(pid) for pid in started))  # type: ignore[misc]
                longest = max(longest, time.monotonic() - before)
                outcome.require(len(started) >= 4, f"{len(started)} processes had been started: nothing was tried")
                for call in calls:
                    call.cancel()
        outcome.figures[f"{way}: gone within ms"] = longest * 1000
    return outcome

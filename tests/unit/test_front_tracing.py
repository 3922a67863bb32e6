"""The front's spans, made without a server: phases that cannot be, and faults of its own."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto", reason="gradoracle[otel] is not installed")

PHASES = {
    "as they are": ((0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 4.0), [("decode", 3, 4), ("plan", 4, 6), ("backward", 6, 9)]),
    "not a number": ((0.0, math.nan, 2.0, 0.0, 0.0, 0.0, 0.0), [("plan", 3, 5)]),
    "without end": ((0.0, math.inf, 2.0, 0.0, 0.0, 0.0, 0.0), [("decode", 3, 20), ("plan", 20, 20)]),
    "negative": ((0.0, -5.0, 2.0, 0.0, 0.0, 0.0, 0.0), [("plan", 3, 5)]),
}


def phases(seconds: tuple[float, ...], attempts: int = 1, failed: bool = False) -> list[tuple[str, float, float]]:
    """Those of a request that arrived at 1, waited for 2 seconds, and ended at 20."""
    from gradoracle_server.frames import Job, Reply
    from gradoracle_server.front.admission import Ticket
    from gradoracle_server.front.tracing import _phases

    async def made() -> list[tuple[str, float, float]]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        ticket = Ticket(Job(1, b""), lambda: "peer", future, 1.0)
        ticket.queue_seconds, ticket.attempts = 2.0, attempts
        if failed:
            ticket.future.cancel()
        else:
            ticket.settle(Reply(0, b"", phases=seconds))
        return _phases(ticket, 20.0)

    return asyncio.run(made())


def check_phases() -> None:
    """Run in a process of its own: this one does not load OpenTelemetry, for the other tests' sake."""
    for name, (seconds, expected) in PHASES.items():
        found = phases(seconds)
        assert [("queue", 1, 3), *expected] == found[: 1 + len(expected)], name
    assert [("queue", 1, 20)] == phases(PHASES["as they are"][0], attempts=0, failed=True)
    assert [("queue", 1, 3), ("run", 3, 20)] == phases(PHASES["as they are"][0], failed=True)


def check_faults() -> None:
    """A sampler that raises, as a plugin of the caller's may, costs the spans and not the call."""
    import grpc
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler

    from gradoracle_server.front.tracing import Tracing

    class Broken(Sampler):
        def should_sample(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no sample")

        def get_description(self) -> str:
            return "broken"

    class Call:
        def invocation_metadata(self) -> tuple[()]:
            return ()

    tracing = Tracing("http://127.0.0.1:9", "0")
    tracing._tracer = TracerProvider(sampler=Broken(), shutdown_on_exit=False).get_tracer("x")
    call: Any = Call()
    tracing.call("Evaluate", call, 0.0, grpc.StatusCode.OK)
    assert tracing.stream(call, 0.0) is None


def check_quiet() -> None:
    """Of a collector that is away the log tells once in a while, not with every batch."""
    import logging

    from gradoracle_server.front import tracing

    tracing._QUIET = math.inf
    tracing.Tracing("http://127.0.0.1:9", "0")
    for text in ("away", "still away"):
        logging.getLogger(tracing.OTLPSpanExporter.__module__).error(text)


def check_close() -> None:
    """Spans that cannot be sent are not waited for, however long sending would take, nor does the process."""
    import threading

    from gradoracle_server.front.tracing import Tracing

    tracing = Tracing("http://127.0.0.1:9", "0")
    provider: Any = tracing._provider
    provider.shutdown = threading.Event().wait
    tracing.close()


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (check_phases, r"\Z"),
        (check_faults, r"the spans of a call are lost\nTraceback"),
        (check_quiet, r"away\n\Z"),
        (check_close, r"\Z"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_in_a_process_of_its_own(check: Callable[[], None], said: str) -> None:
    """Phases lie inside their call whatever a worker says; a fault is logged, no more; and the end waits for none."""
    done = subprocess.run(
        [sys.executable, __file__, check.__name__],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parent,
    )
    assert 0 == done.returncode, done.stderr
    assert re.match(said, done.stderr), done.stderr


if __name__ == "__main__":
    {one.__name__: one for one in (check_phases, check_faults, check_quiet, check_close)}[sys.argv[1]]()

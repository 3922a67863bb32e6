"""How long one waits before anything is computed: for a server, for an import, for a command.

Every figure is of whole processes, started in turn with what they are held against.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import turns
from bench.table import Row, at_most

import gradoracle as go

SERVE = ("serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
GRADORACLE = str(Path(sys.executable).with_name("gradoracle"))
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("GRADORACLE_")}


def python(code: str) -> Callable[[], None]:
    """A process that runs a line of Python."""
    return command([sys.executable, "-c", code])


def command(line: Sequence[str]) -> Callable[[], None]:
    """A process that runs to its end."""

    def call() -> None:
        subprocess.run(line, check=True, capture_output=True, env=PLAIN)

    return call


class Serve:
    """Starts a server, waits until it says that it is ready, and stops it. Seconds, the stopping left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        line = [GRADORACLE, *SERVE, "--stop-on-stdin-eof"]
        with subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=PLAIN
        ) as server:
            assert server.stdout is not None
            ready = server.stdout.readline()
            self.seconds.append(time.perf_counter() - start)
            assert ready.startswith(b"gradoracle listening on "), ready


def rows(quick: bool) -> Iterator[Row]:
    """A server, imports, and a command that asks a running server."""
    repeats = 3 if quick else 9
    serve = Serve()
    found = turns.median({"torch": python("import torch"), "serve": serve}, repeats)
    ready = sorted(serve.seconds[1:])[repeats // 2]
    beside = f'python -c "import torch", {found["torch"]:.2f} s; ours {ready:.2f} s'
    yield Row("gradoracle serve, ready", ready / found["torch"], "x", at_most(1.3), None, beside)
    floor = python("import grpc, numpy")
    for code, wanted in (("import gradoracle", at_most(1.2)), ("from gradoracle import Client", None)):
        found = turns.median({"floor": floor, "ours": python(code)}, 3 * repeats)
        beside = f'python -c "import grpc, numpy", {found["floor"]:.3f} s'
        note = "" if wanted else "all that a client needs"
        yield Row(code, found["ours"] / found["floor"], "x", wanted, None, beside, note)
    with go.local_server() as address:
        ask = command([GRADORACLE, "grad", "x**2", "x=3", "--address", address])
        found = turns.median({"floor": floor, "ours": ask}, 2 * repeats)
        beside = f'python -c "import grpc, numpy", {found["floor"]:.3f} s'
        yield Row("CLI one-shot, running server", found["ours"], "s", at_most(0.5), None, beside)

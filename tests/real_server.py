"""A server with real workers in a process of its own, whose log and whose workers a test can look at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from front_server import QUICK, Server


@contextlib.contextmanager
def start(*flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and ends it afterwards if it still runs."""
    with tempfile.NamedTemporaryFile("w", prefix="gradoracle-test-") as log_file:
        command = [sys.executable, "-m", "gradoracle_server", "--device", "cpu", *QUICK, *flags]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log_file, text=True, env={**os.environ, **(environment or {})}
        )
        try:
            assert process.stdout is not None
            server = Server(process, process.stdout.readline(), log_file)
            assert server.ready.startswith("gradoracle listening on "), server.log
            yield server
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def workers(server: Server) -> list[int]:
    """The ids of its workers: the processes below it that have given up their privileges."""
    return [pid for pid in _below(server.process.pid) if "NoNewPrivs:\t1" in status(pid)]


def status(pid: int) -> str:
    """What the kernel tells of a process; nothing of one that has gone."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def replaced(server: Server) -> float:
    """How many workers it has had to replace."""
    page = server.get("/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in page if line.startswith("gradoracle_worker_restarts_total{"))


def _below(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            yield child
            yield from _below(child)

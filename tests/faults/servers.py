"""A server in a process of its own, and a look at it and at the processes that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import grpc

from gradoracle.v1 import service_pb2_grpc

TESTS = Path(__file__).resolve().parent.parent
REAL = ("-m", "gradoracle_server")
FAKE = (str(TESTS / "fake_server.py"),)
"""A server whose workers do what fake_worker.py says."""

_SAMPLE = re.compile(r"^(\S+?(?:\{.*\})?) (\S+)$", re.MULTILINE)


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, metrics_address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.metrics_address = metrics_address
        self._log = log

    @property
    def pid(self) -> int:
        """The front's process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text(errors="replace")

    def incident(self, message: str) -> str:
        """What the log says of the incident that a message names: the last line of its exception."""
        found = re.search(r"incident (\w+)", message)
        lines = self.log.partition(f"incident {found[1]}")[2].splitlines() if found else []
        raised = [line for line in lines[1:200] if re.match(r"\w[\w.]*(Error|Exception|Warning)?: ", line)]
        return f" ({raised[0]})" if raised else ""

    def metrics(self) -> dict[str, float]:
        """Every sample, as the exposition spells it."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=60) as response:
            return {name: float(value) for name, value in _SAMPLE.findall(response.read().decode())}

    def restarts(self, *reasons: str) -> int:
        """How many workers were replaced, for these reasons or for any."""
        found = self.metrics()
        name = "gradoracle_worker_restarts_total"
        return int(
            sum(
                value
                for sample, value in found.items()
                if sample.startswith(name) and (not reasons or any(f'reason="{one}"' in sample for one in reasons))
            )
        )

    def workers(self) -> list[int]:
        """The process ids of the workers: the children of the fork server."""
        return [pid for child in children(self.pid) for pid in children(child)]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def stub(self, **options: Any) -> contextlib.AbstractContextManager[service_pb2_grpc.GradientServiceStub]:
        """A connection of its own."""
        return connection(self.address, **options)


@contextlib.contextmanager
def connection(address: str, **options: Any) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    """A connection that is shared with nobody and repeats nothing."""
    fixed = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0, "grpc.max_receive_message_length": -1}
    with grpc.insecure_channel(address, [*fixed.items(), *options.items()]) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


@contextlib.contextmanager
def connection_to_stream(address: str) -> Iterator[Callable[[Iterator[bytes]], Iterator[bytes]]]:
    """A connection's Stream, from bytes to bytes."""
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.stream_stream("/gradoracle.v1.GradientService/Stream")


@contextlib.contextmanager
def serving(
    *flags: str,
    program: tuple[str, ...] = REAL,
    address: str = "127.0.0.1:0",
    stderr: IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Served]:
    """Starts a server, waits until it is ready, and ends it and all that it started."""
    command = [sys.executable, *program, "--listen", address, "--metrics-listen", "127.0.0.1:0", *flags]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRADORACLE_")}
    with tempfile.NamedTemporaryFile(prefix="gradoracle-faults-") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr or log,
            env={**inherited, "PYTHONUNBUFFERED": "", **(environment or {})},
        )
        descended: list[int] = []
        try:
            assert process.stdout is not None
            words = process.stdout.readline().decode().split()
            assert words[:2] == ["gradoracle", "listening"], Path(log.name).read_text()
            served = Served(process, words[3], words[5].rstrip(")"), Path(log.name))
            yield served
            descended = descendants(process.pid)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            until(lambda: not any(is_running(pid) for pid in descended), 60)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def memory(pid: int) -> int:
    """Bytes of memory that are a process's alone, or 0 where it has gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))


def open_files(pid: int) -> int:
    """How many file descriptors a process holds, but for its workers' lanes, which stay."""
    found = 0
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += not str(one.readlink()).startswith("/memfd:gradoracle-lane")
    return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to be")
        time.sleep(0.005)

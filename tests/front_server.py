"""A server with fake workers in a process of its own, and calls to it, for tests of the front."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from gradoracle.v1 import service_pb2, service_pb2_grpc

SCRIPT = Path(__file__).with_name("fake_server.py")
QUICK = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--shared-memory", "false")


@dataclasses.dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    ready: str  # its line on stdout
    log_file: IO[str]

    @property
    def address(self) -> str:
        return self.ready.split()[3]

    @property
    def metrics_address(self) -> str:
        return self.ready.split()[-1].rstrip(")")

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return Path(self.log_file.name).read_text()

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Status, body and content type of a page beside the metrics."""
        request = urllib.request.Request(f"http://{self.metrics_address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return response.status, response.read().decode(), response.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers["Content-Type"]

    def metric(self, sample: str) -> float:
        """The value of a sample, spelled as in the exposition."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(sample)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def start(
    *flags: str, fake: str = "", environment: dict[str, str] | None = None, stdin: int | None = None
) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and ends it afterwards if it still runs."""
    with tempfile.NamedTemporaryFile("w", prefix="gradoracle-test-") as log_file:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *(["--fake-workers", fake] if fake else []), *QUICK, *flags],
            stdout=subprocess.PIPE,
            stderr=log_file,
            stdin=stdin,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            assert process.stdout is not None
            server = Server(process, process.stdout.readline(), log_file)
            assert server.ready.startswith("gradoracle listening on "), server.log
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stdin):
                if stream is not None:
                    stream.close()


def refused(*flags: str, fake: str = "", environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and stderr of a server that does not come up."""
    arguments = [sys.executable, str(SCRIPT), *(["--fake-workers", fake] if fake else []), *QUICK, *flags]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, **(environment or {})}, timeout=60
    )
    assert "" == done.stdout
    return done.returncode, done.stderr


@contextlib.contextmanager
def connect(
    server: Server, credentials: grpc.ChannelCredentials | None = None, **options: Any
) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    """A connection of its own."""
    arguments = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *options.items()]
    if credentials is None:
        channel = grpc.insecure_channel(server.address, arguments)
    else:
        channel = grpc.secure_channel(server.address, credentials, arguments)
    with channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


def command(text: str = "echo", data: bytes = b"", device: str = "") -> service_pb2.EvaluateRequest:
    """A request that tells a fake worker what to do."""
    request = service_pb2.EvaluateRequest(device=device)
    request.graph.nodes.add(name=text)
    if data:
        request.primals.add(name="x").tensor.data = data
    return request


def pid_of(response: service_pb2.EvaluateResponse) -> int:
    """Which worker answered."""
    return int(response.outputs[0].name)


@dataclasses.dataclass
class Refusal:
    """What a call failed with."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    trailing: dict[str, Any]


def refusal_of(status: status_pb2.Status, code: grpc.StatusCode, trailing: dict[str, Any]) -> Refusal:
    """A failure, taken apart."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return Refusal(code, status.message, info.reason, dict(info.metadata), trailing)


def failing(call: Callable[[], object]) -> Refusal:
    """The failure of a call that must fail."""
    try:
        call()
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
        refusal = refusal_of(status, error.code(), trailing)
        refusal.message = error.details()
        return refusal
    raise AssertionError("expected the call to fail")


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"

"""A private server in a process of its own: for tests, for scripts, for whoever has no server yet."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

from gradoracle import neighbours
from gradoracle.errors import ServerUnavailableError

_READY = "gradoracle listening on "
_STDERR_SHOWN = 4000  # characters
_STOP_WITHIN = 15.0  # seconds, before the process is killed


class Address(str):
    """host:port of a server that was started here."""

    __slots__ = ("metrics",)

    metrics: str
    """host:port of its metrics."""


@contextlib.contextmanager
def local_server(
    workers: int | None = 1, *, start_timeout: float = 60.0, shared_memory: bool = True, **settings: Any
) -> Iterator[Address]:
    """Starts a server on a free port of this machine, gives its address, and stops it at the end.

        with local_server(workers=2) as address, Client(address) as client:
            …

    At a loopback address without TLS, or at a path, its clients ask without gRPC, and hand over large tensors as memory
    files, where this system has such files; not with `shared_memory=False`.

    `workers` is their number for each device; None is one a core, or one a GPU. `settings` are further flags of the
    server, as `gradoracle serve --help` lists them, with underscores: `device="cpu"`, `max_queue=4`; a list repeats the
    flag. GRADORACLE_… variables of the environment do not reach this server. It also stops when this process ends in
    any way.

    Needs gradoracle[server] here. Raises ServerUnavailableError, with what the server wrote, where it does not start
    within `start_timeout` seconds.
    """
    if importlib.util.find_spec("gradoracle_server") is None:
        raise ServerUnavailableError(
            "a local server needs the packages of gradoracle[server]; "
            "install them with: pip install 'gradoracle[server]'"
        )
    flags = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "workers": workers, **settings}
    # A port is where this user's clients find the rest by themselves; a path has to be told to offer it.
    offered = "true" if str(flags["listen"]).startswith("unix:") and neighbours.are_possible() else "auto"
    flags["shared_memory"] = offered if shared_memory else "false"
    with _running(flags) as (process, stderr):
        yield _ready(process, stderr, start_timeout)


@contextlib.contextmanager
def _running(flags: Mapping[str, object]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The server's process, and what it writes to stderr."""
    # The server stops at the end of its stdin, and stdin ends with this process, however that ends.
    command = [sys.executable, "-m", "gradoracle_server", *_command_line(flags), "--stop-on-stdin-eof"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADORACLE_")}
    with tempfile.TemporaryFile() as stderr:  # not a pipe, which would be full one day
        process = subprocess.Popen(  # noqa: S603  # our own server, by this interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the server in order
        )
        try:
            yield process, stderr
        finally:
            _stop(process)


def _command_line(flags: Mapping[str, object]) -> Iterator[str]:
    for name, value in flags.items():
        for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            yield f"--{name.replace('_', '-')}"
            yield str(one).lower() if isinstance(one, bool) else str(one)


def _ready(process: subprocess.Popen[bytes], stderr: IO[bytes], timeout: float) -> Address:
    """The address, once the server tells it."""
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # It reads on after the first line, so that the pipe never fills.
    threading.Thread(target=_read, args=(process.stdout, lines), name="gradoracle server stdout", daemon=True).start()
    try:
        line = lines.get(timeout=timeout).decode(errors="replace").strip()
    except queue.Empty:
        raise _failed(f"the local server was not ready within {timeout:g} s", stderr) from None
    if not line.startswith(_READY):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # it ended, or wrote what no server writes
        raise _failed(f"the local server did not start (exit code {process.poll()})", stderr)
    address, _, rest = line.removeprefix(_READY).partition(" ")
    found = Address(address)
    found.metrics = rest.removeprefix("(metrics ").removesuffix(")")
    return found


def _read(stdout: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(b"")


def _failed(what: str, stderr: IO[bytes]) -> ServerUnavailableError:
    stderr.seek(0)
    written = stderr.read().decode(errors="replace").strip()
    shown = written if len(written) <= _STDERR_SHOWN else f"…{written[-_STDERR_SHOWN:]}"
    return ServerUnavailableError(f"{what}; it wrote:\n{shown}" if shown else f"{what}, and wrote nothing")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

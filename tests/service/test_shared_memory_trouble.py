"""Shared memory when something comes between: a signal's exception, no descriptor, no memory, thousands of tensors."""

from __future__ import annotations

import contextlib
import gc
import mmap
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from front_server import Server, eventually
from real_server import start

import gradoracle as go
from gradoracle import memory_files, requests, shared_memory
from gradoracle.memory_files import Connection, File
from gradoracle_server.front import wire

TRIPLE = "sum(x * 3)"
X = np.ones(40_000)
MODULES = (memory_files.__file__, shared_memory.__file__)


class Interruption(BaseException):
    """What a signal's handler raises."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker, and shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"unix:{Path(folder) / 'g.sock'}"
        with start("--listen", place, "--shared-memory", "--workers", "1", "--threads", "1") as server:
            yield server
            assert "incident" not in server.log


@pytest.fixture
def client(server: Server) -> Iterator[go.Client]:
    """A client that shares memory with it."""
    with go.Client(server.address, shared_memory=True, timeout=30) as client:
        yield client


def triple(client: go.Client, x: Any = X) -> Any:
    """An array of 3.0."""
    return client.vjp(TRIPLE, {"x": x}).gradients["x"]


def is_shared(array: Any) -> bool:
    """Whether an array is a view of shared memory."""
    return isinstance(array.base, shared_memory._Held)


def connection(client: go.Client) -> Connection:
    """The client's connection to the second socket."""
    assert client._memory is not None
    found = client._memory._connection
    assert found is not None
    return found


# ---- Interrupted


class Tracer:
    """Raises before so many lines of the modules have run, other than those that run as something dies, where what is
    raised is only printed."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        at: FrameType | None = frame
        while at is not None and at.f_code.co_filename in MODULES:
            if at.f_code.co_name in ("__del__", "<lambda>"):
                return None
            at = at.f_back
        if at is frame:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise Interruption
        return self


def interrupted(client: go.Client, lines: int) -> bool:
    """Whether a call has as many lines as that; it is interrupted there."""
    sys.settrace(Tracer(lines))
    try:
        assert (triple(client) == 3.0).all()
    except Interruption:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("used", [False, True])
def test_wherever_a_call_is_interrupted_no_file_is_lost(server: Server, used: bool) -> None:
    """Each is free or of use to somebody, and the next call is right at once."""
    lines = 0
    while True:
        with go.Client(server.address, shared_memory=True, timeout=10) as client:
            if used:
                triple(client)
            is_done = not interrupted(client, lines)
            found, began = triple(client), time.monotonic()
            assert (found == 3.0).all()
            assert is_shared(found), lines
            there = connection(client)
            assert there.files == set(there._idle) | set(there.viewed), lines
            assert time.monotonic() - began < 5
            del found
            assert there.files == set(there._idle), lines
        if is_done:
            break
        lines += 1
    assert lines > (60 if used else 100)
    gc.collect()
    eventually(lambda: server_files(server) == 0)


def server_files(server: Server) -> int:
    """How many files of callers the front has open."""
    found = 0
    for one in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(one.readlink()).startswith("/memfd:gradoracle (")
    return found


def test_whoever_keeps_the_exception_keeps_no_file(client: go.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a debugger does, and a test runner: with it come the frames that it went through."""
    kept = []
    write = File.write

    def interrupting(file: File, data: Any, offset: int) -> None:
        write(file, data, offset)
        raise Interruption

    monkeypatch.setattr(File, "write", interrupting)
    for _ in range(3):
        with pytest.raises(Interruption) as caught:
            triple(client)
        kept.append(caught.value)
        assert set() == connection(client).files
    monkeypatch.undo()
    assert is_shared(triple(client))


# One may come while Python forgets an object, where there is nobody to raise to, and Python says so.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(function|bound method) :pytest.PytestUnraisableExceptionWarning"
)
def test_signals_while_large_tensors_are_copied(client: go.Client) -> None:
    """The path is as good as before after more of them than a client may have files."""
    x = np.ones(2_000_000)
    triple(client)

    def handler(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for turn in range(40):
            with contextlib.suppress(Interruption):
                signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0005 * (turn % 20))
                triple(client, x)
                time.sleep(1)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert is_shared(triple(client, x))
    there = connection(client)
    assert there.files == set(there._idle)


# ---- Without descriptors, or memory


def not_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the process have no descriptors left to map a file with."""

    def none_left(*_: Any, **__: Any) -> mmap.mmap:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(mmap, "mmap", none_left)


def test_an_answer_that_cannot_be_mapped_is_read(client: go.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call's, and those of many; the file is used again."""
    not_mapped(monkeypatch)
    for _ in range(3):
        found = triple(client)
        assert (found == 3.0).all()
        assert not is_shared(found)
    assert 1 == len(connection(client).files) == len(connection(client)._idle)
    many = list(client.map([go.request("vjp", TRIPLE, {"x": X})] * 5))
    assert all((one.gradients["x"] == 3.0).all() for one in many)


def test_no_memory_for_an_answer(client: go.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told; of many calls only those that there was none for fail."""
    read, turns = File.read, iter((False, True, False, True))

    def now_and_then(file: File, offset: int, length: int) -> Any:
        if next(turns):
            raise MemoryError
        return read(file, offset, length)

    not_mapped(monkeypatch)
    monkeypatch.setattr(File, "read", now_and_then)
    many = list(client.map([go.request("vjp", TRIPLE, {"x": X})] * 3, return_exceptions=True, window=1))
    text = f"the answer has come, but there is no memory here for its {X.nbytes} bytes"
    assert (many[0].gradients["x"] == 3.0).all()
    assert (go.GradOracleError, text) == (type(many[1]), str(many[1]))
    assert (many[2].gradients["x"] == 3.0).all()
    with pytest.raises(go.GradOracleError, match=text):
        triple(client)
    assert set() == connection(client).files


async def test_many_that_find_no_memory_go_in_chunks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised while gRPC asks for the next message would end the stream without its text."""

    def refused(*_: Any) -> None:
        raise go.GradOracleError("the server does not take this client's memory: no", reason="INTERNAL")

    monkeypatch.setattr(Connection, "take", refused)
    asked = [go.request("vjp", TRIPLE, {"x": X})] * 3
    with go.Client(server.address, shared_memory=True) as client:
        found = list(client.map(asked))
    async with go.AsyncClient(server.address, shared_memory=True) as client:
        found += [one async for one in client.map(asked)]
    assert [True] * 6 == [(one.gradients["x"] == 3.0).all() for one in found]


# ---- Thousands


def test_requests_of_thousands_of_fields(client: go.Client) -> None:
    """The server finds the memory among the first of them."""
    g = go.Graph()
    inputs = [g.input(f"x{place}") for place in range(4_200)]
    total = inputs[0].sum()
    for one in inputs[1:]:
        total = total + one
    g.output("y", total)
    primals = {f"x{place}": np.array(1.0) for place in range(4_200)} | {"x0": np.ones(32_768)}
    assert 32_768.0 + 4_199 == client.evaluate(g, primals).outputs["y"]
    assert 1 == len(connection(client).files)


def test_where_the_memory_of_a_request_stands() -> None:
    """Before all that may be many."""
    g = go.Graph()
    names = [f"x{place}" for place in range(5_000)]
    for name in names:
        g.output(f"{name}_out", g.input(name) * 2.0)
    request = requests.evaluate(g, dict.fromkeys(names, 1.0))
    file = File()
    file.token = b"t" * 16
    place = wire.memory(b"".join(shared_memory._pieces(request, file, [])))
    assert place is not None
    assert 0 == place[0]


def test_more_places_than_the_server_takes() -> None:
    """Such a request goes through gRPC; of small tensors there may be as many as one likes."""
    g, large, small = go.Graph(), np.zeros(8192), 1.0
    names = [f"x{place}" for place in range(shared_memory._ATTACHED_AT_MOST + 1)]
    for name in names:
        g.input(name)
    g.output("y", g.input("z"))
    z = np.zeros(40_000)
    few = dict.fromkeys(names[1:], large) | {names[0]: small, "z": z}
    assert not shared_memory.Memory.suits(requests.evaluate(g, dict.fromkeys(names, large) | {"z": z}))
    assert not shared_memory.Memory.suits(requests.evaluate(g, few))
    assert shared_memory.Memory.suits(requests.evaluate(g, few | {names[1]: small}))
    places = [(2**48 + place * 2**16, large.data) for place in range(shared_memory._ATTACHED_AT_MOST)]
    file = File()
    file.token, file.uses = b"t" * 16, 2**63
    field = shared_memory._pieces(requests.evaluate(g, {"z": z} | dict.fromkeys(names, small)), file, places)[0]
    assert len(field) < 64 * 1024

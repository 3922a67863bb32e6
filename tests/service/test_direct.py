"""Calls of clients on this machine that go without gRPC: the same answers and errors, and gRPC after a hitch."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import stat
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import front_server
import numpy as np
import pytest
import real_server
from callers import by_tasks, by_threads, no_grpc, told
from front_server import Server, eventually, start
from google.rpc import status_pb2

import gradoracle as go
from gradoracle import direct, quiet, stream
from gradoracle.v1 import service_pb2
from gradoracle_server import wire_format
from gradoracle_server.front.direct import DirectCalls
from gradoracle_server.front.places import Place

BUSY, IDLE = 'gradoracle_workers{device="cpu",state="busy"}', 'gradoracle_workers{device="cpu",state="idle"}'
LATE = r"the timeout of 0\.3 s passed before|the deadline passed while"  # the client's words, or the server's
HANDLED = (
    'grpc_server_handled_total{grpc_code="OK",grpc_method="Evaluate",'
    'grpc_service="gradoracle.v1.GradientService",grpc_type="unary"}'
)
LENGTH = struct.Struct("<I")


def flags(folder: Path) -> tuple[str, ...]:
    """Of a server in a folder."""
    return ("--listen", f"unix:{folder / 'g.sock'}", "--shared-memory")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real one, with two workers."""
    folder = tmp_path_factory.mktemp("direct")
    with real_server.start(*flags(folder), "--workers", "2", "--threads", "1") as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Server]:
    """A server whose two workers do what they are told."""
    with start(*flags(tmp_path), "--workers", "2", "--max-queue", "2") as server:
        yield server


def path_of(server: Server) -> str:
    """Where its socket for calls is."""
    return f"{server.address.removeprefix('unix:')}.memory.calls"


class Caller:
    """A connection of no client of ours. The test's end closes it."""

    all: ClassVar[list[Caller]] = []

    def __init__(self, server: Server, greeting: bytes | None = b"") -> None:
        self.all.append(self)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path_of(server))  # it waits for its turn only where it has no timeout
        self.socket.settimeout(60)
        if greeting is not None:
            self.send(greeting)

    def send(self, message: bytes) -> None:
        self.socket.sendall(LENGTH.pack(len(message)) + message)

    def call(self, number: int, text: str) -> None:
        """Tells a fake worker what to do."""
        self.send(b"".join(stream.parts(number, told(text))))

    def receive(self) -> service_pb2.StreamResponse | None:
        """The next message; None at the end."""
        try:
            head = self._exactly(LENGTH.size)
            return service_pb2.StreamResponse.FromString(self._exactly(LENGTH.unpack(head)[0]))
        except (EOFError, ConnectionResetError):
            return None

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            if not (data := self.socket.recv(count - len(found))):
                raise EOFError
            found += data
        return found

    def answers(self, count: int) -> list[tuple[bytes, bytes]]:
        """Of so many calls of vjp, the output and the gradient."""
        found: list[service_pb2.StreamAnswer] = []
        while len(found) < count:
            message = self.receive()
            assert message is not None
            found += message.answers
        tensors = [(*one.compute_vjp.outputs, *one.compute_vjp.gradients) for one in found]
        assert all(tensors)
        return [tuple(one.tensor.data for one in each) for each in tensors]  # type: ignore[misc]

    @staticmethod
    def messages(request: go.Request[Any], count: int) -> list[bytes]:
        """So many calls, each in a message of its own."""
        return [b"".join(stream.parts(number, request)) for number in range(1, count + 1)]

    @property
    def is_closed(self) -> bool:
        """Whether the server has ended it."""
        return self.receive() is None


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Closes the connections of a test."""
    yield
    while Caller.all:
        Caller.all.pop().socket.close()


# ---- Answers


def test_answers_are_those_of_grpc(server: Server) -> None:
    """Of every method, to the last bit; none of them was asked for through gRPC."""
    x, y = np.random.default_rng(0).normal(size=(2, 5, 4))
    graph = "sum(sin(x) * y)"
    primals = {"x": x, "y": y}
    with (
        go.Client(server.address, shared_memory=False) as plain,
        go.Client(server.address, shared_memory=True) as client,
    ):
        no_grpc(client)
        for call in (
            lambda one: one.evaluate(graph, primals).outputs["out"],
            lambda one: one.vjp(graph, primals).gradients["x"],
            lambda one: one.jvp(graph, primals, {"x": y}).tangents["out"],
            lambda one: one.jacobian("sin(x) * y", primals).jacobian["out", "y"],
            lambda one: one.hessian(graph, primals).hessian["x", "x"],
            lambda one: one.vjp("sum(dropout(x, 0.5, True))", {"x": x}, seed=3).gradients["x"],
        ):
            assert call(client).tobytes() == call(plain).tobytes()
        assert client.check(graph, primals).verdict == plain.check(graph, primals).verdict
        assert client.inspect(graph, primals)["x"] == plain.inspect(graph, primals)["x"]
        assert client.server_info().version == plain.server_info().version
        assert len(client.operators("sin")) == len(plain.operators("sin"))
        assert client.vjp(graph, primals).timing.total > 0
        assert len(client._direct.idle) == 1


async def test_answers_are_those_of_grpc_awaited(server: Server) -> None:
    """The same for asyncio."""
    x = np.random.default_rng(0).normal(size=(3, 4))
    async with (
        go.AsyncClient(server.address, shared_memory=False) as plain,
        go.AsyncClient(server.address, shared_memory=True) as client,
    ):
        no_grpc(client)  # type: ignore[arg-type]
        mine, its = [(await one.vjp("sum(sin(x))", {"x": x})).gradients["x"] for one in (client, plain)]
        assert mine.tobytes() == its.tobytes()  # type: ignore[union-attr]
        assert len(client._direct.idle) == 1


def test_however_it_arrives_a_call_has_the_same_answer(server: Server) -> None:
    """In one piece, which is read and answered without a turn of the event loop for each task; in two; beside others in
    one message, and in messages of their own: the same bits."""
    x = np.linspace(-1, 1, 300)
    request = go.request("vjp", "sum(sin(x) * exp(x))", {"x": x})
    caller = Caller(server)
    whole = b"".join(stream.parts(1, request))
    caller.send(whole)
    (alone,) = caller.answers(1)
    framed = LENGTH.pack(len(whole)) + whole
    for cut in (2, 40, len(framed) - 1):
        caller.socket.sendall(framed[:cut])
        time.sleep(0.02)
        caller.socket.sendall(framed[cut:])
        assert [alone] == caller.answers(1)
    caller.send(b"".join(caller.messages(request, 5)))
    assert [alone] * 5 == caller.answers(5)
    caller.socket.sendall(b"".join(LENGTH.pack(len(one)) + one for one in caller.messages(request, 5)))
    assert [alone] * 5 == caller.answers(5)


def test_large_answers_come_in_pieces(server: Server) -> None:
    """A Jacobian of 8 MB, of a request of 8 kB."""
    x = np.arange(1000.0)
    with go.Client(server.address, shared_memory=True) as client:
        no_grpc(client)
        found = client.jacobian("x * x", {"x": x}).jacobian["out", "x"]
    assert np.array_equal(found, np.diag(2 * x))


def test_large_tensors_go_in_memory(server: Server) -> None:
    """Without gRPC too: by the client's own thread and by tasks."""
    x = np.random.default_rng(1).normal(size=300_000)
    with (
        go.Client(server.address, shared_memory=False) as plain,
        go.Client(server.address, shared_memory=True) as client,
    ):
        no_grpc(client)
        for _ in range(3):
            found = client.vjp("sum(x**3)", {"x": x}).gradients["x"]
            assert found.tobytes() == plain.vjp("sum(x**3)", {"x": x}).gradients["x"].tobytes()  # type: ignore[union-attr]

    async def awaited() -> bool:
        async with go.AsyncClient(server.address, shared_memory=True) as client:
            no_grpc(client)  # type: ignore[arg-type]
            return np.array_equal((await client.vjp("sum(x**3)", {"x": x})).gradients["x"], found)  # type: ignore[arg-type]

    assert asyncio.run(awaited())


def test_large_messages_go_through_grpc(server: Server) -> None:
    """Where no tensor is large enough for memory, and all of them are for the socket."""
    many = {f"x{k}": np.full(30_000, float(k)) for k in range(8)}
    with go.Client(server.address, shared_memory=True) as client:
        asked = client._channels.unary
        seen: list[int] = []
        client._channels.unary = lambda *given: seen.append(1) or asked(*given)  # type: ignore[method-assign]
        found = client.evaluate(" + ".join(many), many).outputs["out"]
    assert seen == [1]
    assert np.array_equal(found, np.full(30_000, 28.0))


def test_each_thread_gets_its_own_answer(server: Server) -> None:
    """Of many that call again and again; connections are used again."""
    with go.Client(server.address, shared_memory=True) as client:
        no_grpc(client)

        def call(k: int) -> list[float]:
            return [float(client.vjp("x**2 * k", {"x": float(x), "k": float(k)}).gradients["x"]) for x in range(50)]  # type: ignore[arg-type]

        assert by_threads(16, call) == [[2.0 * x * k for x in range(50)] for k in range(16)]
        assert 1 <= len(client._direct.idle) <= 16
        assert not client._direct.busy


async def test_each_task_gets_its_own_answer(server: Server) -> None:
    """The same for asyncio."""
    async with go.AsyncClient(server.address, shared_memory=True) as client:
        no_grpc(client)  # type: ignore[arg-type]

        async def call(k: int) -> list[float]:
            return [float((await client.vjp("x**2 * k", {"x": x, "k": k})).gradients["x"]) for x in range(20)]  # type: ignore[arg-type]

        assert await by_tasks(16, call) == [[2.0 * x * k for x in range(20)] for k in range(16)]
        assert not client._direct.busy


# ---- Errors


@pytest.mark.parametrize(
    ("graph", "primals"),
    [("sum(sinn(x))", {"x": 1.0}), ("x + y", {"x": [1.0, 2.0], "y": [1.0, 2.0, 3.0]}), ("x * 2", {"z": 1.0})],
)
def test_errors_are_those_of_grpc(server: Server, graph: str, primals: dict[str, Any]) -> None:
    """The same class, reason, words and details."""
    found = []
    for shared in (True, None):
        with go.Client(server.address, shared_memory=shared) as client, pytest.raises(go.GradOracleError) as raised:
            client.vjp(graph, primals)
        found.append((type(raised.value), str(raised.value), vars(raised.value)))
    assert found[0] == found[1]


def test_a_call_that_takes_too_long(fake: Server) -> None:
    """It is told so by the time it has, its work is stopped, and the next one has a connection of its own."""
    with go.Client(fake.address, shared_memory=True) as client:
        no_grpc(client)
        began = time.monotonic()
        with pytest.raises(go.DeadlineExceededError, match=LATE):
            client._call(told("sleep 60"), 0.3)
        assert time.monotonic() - began < 10
        eventually(lambda: fake.metric(BUSY) == 0)
        client._call(told("echo"), 10)


async def test_a_task_that_is_cancelled(fake: Server) -> None:
    """Its worker is free again."""
    async with go.AsyncClient(fake.address, shared_memory=True) as client:
        task = asyncio.create_task(client._call(told("sleep 60"), 50))
        await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 0)
        with pytest.raises(go.DeadlineExceededError, match=LATE):
            await client._call(told("sleep 60"), 0.3)
        await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 0)


def test_a_crash_is_told(fake: Server) -> None:
    """With what gRPC says of it."""
    with go.Client(fake.address, shared_memory=True) as client:
        no_grpc(client)
        with pytest.raises(go.WorkerCrashedError):
            client._call(told("signal SIGSEGV"), 30)


def test_where_there_is_no_room_grpc_waits_for_it(fake: Server, tmp_path: Path) -> None:
    """Two workers are busy and two calls wait: the fifth is asked for again, as the server says, until it is served."""
    mark = tmp_path / "mark"
    with go.Client(fake.address, shared_memory=True) as client:
        busy = [threading.Thread(target=client._call, args=(told(f"until {mark}"), 60)) for _ in range(4)]
        for one in busy:
            one.start()
        eventually(lambda: fake.metric('gradoracle_queue_depth{device="cpu"}') == 2)
        threading.Timer(0.2, mark.touch).start()
        client._call(told("echo"), 60)
        for one in busy:
            one.join()


def test_closing_ends_calls(fake: Server) -> None:
    """Who waits for an answer is told that the client was closed."""
    client = go.Client(fake.address, shared_memory=True)
    found: list[BaseException] = []

    def call() -> None:
        try:
            client._call(told("sleep 60"), 50)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: fake.metric(BUSY) == 1)
    client.close()
    thread.join(20)
    assert [type(one) for one in found] == [go.ServerUnavailableError]
    assert "the client was closed" in str(found[0])
    eventually(lambda: fake.metric(BUSY) == 0)


@pytest.mark.filterwarnings("error")
def test_a_client_that_is_forgotten(fake: Server) -> None:
    """It leaves no connection, and no warning."""
    client = go.Client(fake.address, shared_memory=True)
    client._call(told("echo"), 30)
    (connection,) = map(weakref.ref, client._direct.idle)
    assert connection() is not None
    del client
    gc.collect()
    assert connection() is None


@pytest.mark.filterwarnings("error")
async def test_an_asynchronous_client_that_is_forgotten(fake: Server) -> None:
    """The same."""
    client = go.AsyncClient(fake.address, shared_memory=True)
    await client._call(told("echo"), 30)
    (connection,) = map(weakref.ref, client._direct.idle)
    assert connection() is not None
    del client
    gc.collect()
    assert connection() is None


def test_a_client_that_is_forgotten_while_results_come(fake: Server) -> None:
    """It lives until they have come, and a server of its own with it."""
    client = go.Client(fake.address)
    results, alive = client.map([told("echo"), told("echo")]), weakref.ref(client)
    next(results)
    del client
    gc.collect()
    assert alive() is not None
    assert len(list(results)) == 1
    gc.collect()
    assert alive() is None


async def test_an_asynchronous_client_that_is_forgotten_while_results_come(fake: Server) -> None:
    """The same."""
    client = go.AsyncClient(fake.address)
    results, alive = client.map([told("echo"), told("echo")]), weakref.ref(client)
    await anext(results)
    del client
    gc.collect()
    assert alive() is not None
    assert len([one async for one in results]) == 1
    gc.collect()
    assert alive() is None


def test_giving_up_is_told_whatever_copies_there_are(fake: Server) -> None:
    """A child that was forked off meanwhile has one of each connection."""
    with go.Client(fake.address, shared_memory=True) as client:
        client._call(told("echo"), 30)
        (connection,) = client._direct.idle
        copy = os.dup(connection.fileno())
        try:
            with pytest.raises(go.DeadlineExceededError):
                client._call(told("sleep 60"), 0.3)
            eventually(lambda: fake.metric(BUSY) == 0)
        finally:
            os.close(copy)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_no_time_at_all(fake: Server, timeout: float) -> None:
    """The deadline has passed before anything is sent."""
    with go.Client(fake.address, shared_memory=True) as client:
        no_grpc(client)
        with pytest.raises(go.DeadlineExceededError):
            client._call(told("echo"), timeout)


@pytest.mark.parametrize("timeout", [1e12, math.inf])
async def test_all_the_time_there_is(fake: Server, timeout: float) -> None:
    """More than a system call takes."""
    with go.Client(fake.address, shared_memory=True) as client:
        no_grpc(client)
        client._call(told("echo"), timeout)
    async with go.AsyncClient(fake.address, shared_memory=True) as awaited:
        no_grpc(awaited)  # type: ignore[arg-type]
        await awaited._call(told("echo"), timeout)


def test_calls_end_before_a_server_of_the_clients_own() -> None:
    """Which would wait for them."""
    client = go.Client("127.0.0.1:1")
    order: list[str] = []
    client._owned.callback(lambda: order.append("server"))
    client._direct.close = lambda: order.append("calls")  # type: ignore[method-assign]
    client.close()
    assert order == ["calls", "server"]


# ---- Where there is a hitch


def test_closing_while_a_call_connects(fake: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is not made, or its connection is not kept."""
    for when in ("before", "after"):
        client = go.Client(fake.address, shared_memory=True)
        whole = direct.Direct._connected if when == "before" else direct._asked

        def closing(*given: Any, client: go.Client = client, whole: Any = whole) -> Any:
            found = whole(*given)
            client.close()
            return found

        with monkeypatch.context() as patch:
            if when == "before":
                patch.setattr(direct.Direct, "_connected", closing)
                with pytest.raises(go.ServerUnavailableError, match="the client was closed"):
                    client._call(told("echo"), 30)
            else:
                patch.setattr(direct, "_asked", closing)
                client._call(told("echo"), 30)
        assert client._direct.idle == []
        assert not client._direct.busy


def test_closing_while_a_connection_is_put_aside(fake: Server) -> None:
    """It is closed like the others."""
    client = go.Client(fake.address, shared_memory=True)

    class Racing(list[socket.socket]):
        raced = False

        def __len__(self) -> int:
            if not self.raced:
                self.raced = True
                client.close()
            return super().__len__()

    client._direct.idle = Racing()
    client._call(told("echo"), 30)
    assert list(client._direct.idle) == []


def test_no_descriptor_for_a_connection(fake: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then gRPC is asked, which has its own already."""

    def none_left(*_: Any) -> socket.socket:
        raise OSError(24, "Too many open files")

    with go.Client(fake.address, shared_memory=True) as client:
        monkeypatch.setattr(quiet, "Socket", none_left)
        client._call(told("echo"), 30)
        assert client._direct.idle == []


def test_a_server_that_starts_anew(tmp_path: Path) -> None:
    """Connections that have ended are noticed, and made again; meanwhile calls go through gRPC."""
    client = go.Client(f"unix:{tmp_path / 'g.sock'}", shared_memory=True)
    with client:
        for _ in range(2):
            with start(*flags(tmp_path), "--workers", "1") as server:
                eventually(lambda: _answers(client))
                client._direct._next_attempt = 0.0
                client._call(told("echo"), 30)
                assert len(client._direct.idle) == 1
                assert server.stop() == 0
        with pytest.raises(go.ServerUnavailableError):
            client._call(told("echo"), 30)


def _answers(client: go.Client) -> bool:
    try:
        client._call(told("echo"), 30)
    except go.ServerUnavailableError:
        return False
    return True


def test_a_server_without_that_socket(tmp_path: Path) -> None:
    """All calls go through gRPC, and the socket is not looked for at each."""
    with start(*flags(tmp_path), "--workers", "1") as server, go.Client(server.address, shared_memory=True) as client:
        Path(path_of(server)).unlink()
        for _ in range(3):
            client._call(told("echo"), 30)
        assert client._direct._next_attempt > time.monotonic()
        assert client._direct.idle == []


def test_a_path_that_is_too_long_for_calls(tmp_path: Path) -> None:
    """The server does without them, and so do its clients."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{'x' * (98 - len(folder) - 1)}"
        with start("--listen", f"unix:{path}", "--shared-memory", "--workers", "1") as server:
            assert Path(f"{path}.memory").exists()
            assert not any(one.name.endswith(".calls") for one in Path(folder).iterdir())
            with go.Client(server.address, shared_memory=True) as client:
                client._call(told("echo"), 30)
                assert client._direct.idle == []


def test_a_server_that_traces_has_no_such_socket(tmp_path: Path) -> None:
    """Each call has a span of its own, whose parent only gRPC's metadata can name."""
    pytest.importorskip("opentelemetry.sdk")
    with start(*flags(tmp_path), "--otlp-endpoint", "http://127.0.0.1:9") as server:
        assert not Path(path_of(server)).exists()
        assert Path(path_of(server).removesuffix(".calls")).exists()


def test_a_child_that_was_forked_off_asks_through_grpc(server: Server) -> None:
    """It has its parent's connections, and must not use them, nor end them."""
    with go.Client(server.address, shared_memory=True) as client:
        client.vjp("x**2", {"x": 3.0})
        client._direct._process = -1
        client.vjp("x**2", {"x": 3.0})
        (connection,) = client._direct.idle
        copy = connection.dup()  # what its parent has
        client._direct.close()
        copy.settimeout(30)
        copy.sendall(direct.framed(b"".join(stream.parts(1, go.request("vjp", "x**2", {"x": 3.0})))))
        assert len(copy.recv(1 << 16)) > 4
        copy.close()


def test_what_the_server_sends_is_looked_at(tmp_path: Path) -> None:
    """An answer that is none, or that ends too early, is asked for through gRPC."""
    (tmp_path / "x").touch()  # whose it is, is whose the server is
    target = go.channel.target(f"unix:{tmp_path}/x", tls=None, token=None, timeout=None, channels=1, shared_memory=True)
    for said in (LENGTH.pack(3) + b"\xff\xff\xff", LENGTH.pack(9) + b"short", b"\1"):
        path = direct.place_of(target)
        assert path is not None
        Path(path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            asking = direct.Direct(target)
            found: list[Any] = []
            thread = threading.Thread(
                target=lambda asking=asking, found=found: found.append(asking.result(told("echo"), 30, 30))
            )
            thread.start()
            with listening.accept()[0] as peer:
                assert peer.recv(1 << 16)
                peer.sendall(said)
            thread.join(20)
            assert found == [None]
            assert asking.idle == []


# ---- The socket


def test_its_permissions_are_those_of_grpcs(fake: Server) -> None:
    """Who may call through gRPC may call here."""
    ours, grpcs = (Path(one).stat().st_mode for one in (path_of(fake), fake.address.removeprefix("unix:")))
    assert stat.S_IMODE(ours) == stat.S_IMODE(grpcs)


def test_it_goes_with_the_server(tmp_path: Path) -> None:
    """A server that stops leaves nothing behind; one that finds a left-over takes its place."""
    for _ in range(2):
        with start(*flags(tmp_path), "--workers", "1") as server:
            path = path_of(server)
            server.process.kill()
            server.process.wait()
            assert Path(path).exists()
    with start(*flags(tmp_path), "--workers", "1") as server:
        assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    """By a file that is no socket: said before anything is started."""
    (tmp_path / "g.sock.memory.calls").write_text("")
    code, said = front_server.refused(*flags(tmp_path))
    assert code == 2
    assert "--shared-memory: expected an address that is free and of this machine" in said
    assert "g.sock.memory.calls: a file of that name exists and is no socket" in said


def test_several_calls_over_one_connection(fake: Server) -> None:
    """By id, as they are ready; one that is cancelled is stopped."""
    caller = Caller(fake)
    caller.call(1, "sleep 60")
    caller.call(2, "echo")
    answer = caller.receive()
    assert answer is not None
    assert [one.id for one in answer.answers] == [2]
    caller.send(stream.cancelled(1))
    eventually(lambda: fake.metric(BUSY) == 0)
    caller.socket.close()


@pytest.mark.parametrize(
    "said",
    [
        LENGTH.pack(1024 * 1024 + 1),
        LENGTH.pack(0xFFFF_FFFF) + b"x",
        LENGTH.pack(3) + b"\xff\xff\xff",
        LENGTH.pack(2) + b"\x0a\x05",
    ],
    ids=["too long", "absurdly long", "no message", "a message that ends early"],
)
def test_what_is_no_message_ends_the_connection(fake: Server, said: bytes) -> None:
    """And nothing else."""
    caller, other = Caller(fake), Caller(fake)
    caller.socket.sendall(said)
    assert caller.is_closed
    other.call(1, "echo")
    assert other.receive() is not None
    assert "incident" not in fake.log


def test_noise(fake: Server) -> None:
    """Random bytes, cut anywhere: no connection's end is the server's."""
    numbers = np.random.default_rng(0)
    good = b"".join(stream.parts(1, told("echo")))
    for _ in range(200):
        caller = Caller(fake, None)
        data = bytearray(LENGTH.pack(0) + LENGTH.pack(len(good)) + good)
        for place in numbers.integers(0, len(data), 3):
            data[place] = numbers.integers(0, 256)
        with caller.socket:
            caller.socket.sendall(bytes(data[: numbers.integers(1, len(data) + 1)]))
    caller = Caller(fake)
    caller.call(7, "echo")
    answer = caller.receive()
    assert answer is not None
    assert [one.id for one in answer.answers] == [7]
    eventually(lambda: fake.metric(BUSY) == 0)
    assert "incident" not in fake.log


def test_who_sends_much_and_reads_nothing_is_held_up(fake: Server) -> None:
    """What waits for such a one is bounded; others are served."""
    caller, other = Caller(fake), Caller(fake)
    caller.socket.settimeout(2)
    sent = 0
    try:
        for number in range(1, 100_000):
            caller.call(number, "answer 100000")
            sent = number
    except TimeoutError:
        pass
    assert 0 < sent < 50_000
    other.call(1, "echo")
    assert other.receive() is not None
    caller.socket.close()
    eventually(lambda: fake.metric(BUSY) == 0)


def test_a_gone_caller_frees_its_workers(fake: Server) -> None:
    """And what waits for it is forgotten."""
    caller = Caller(fake)
    for number in range(1, 5):
        caller.call(number, "sleep 60")
    eventually(lambda: fake.metric(BUSY) == 2)
    caller.socket.close()
    eventually(lambda: fake.metric(BUSY) == 0 and fake.metric('gradoracle_queue_depth{device="cpu"}') == 0)


def test_stopping_lets_calls_finish(tmp_path: Path) -> None:
    """Those that are running are answered, connections that have none do not keep the server."""
    with start(*flags(tmp_path), "--workers", "1") as server:
        idle, caller = Caller(server), Caller(server)
        caller.call(1, "sleep 1")
        eventually(lambda: server.metric(BUSY) == 1)
        server.process.send_signal(signal.SIGTERM)
        answer = caller.receive()
        assert answer is not None
        assert [one.id for one in answer.answers] == [1]
        assert caller.is_closed
        assert idle.is_closed
        assert server.process.wait(30) == 0


def test_stopping_sends_what_was_answered(tmp_path: Path) -> None:
    """However large it is, and though its call counts as over."""
    with start(*flags(tmp_path), "--workers", "1", "--max-message-bytes", "1GiB") as server:
        caller = Caller(server)
        caller.call(1, "answer 60000000")
        eventually(lambda: server.metric(BUSY) == 0 and server.metric(HANDLED) == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in server.log)
        time.sleep(0.5)
        answer = caller.receive()
        assert answer is not None
        assert [len(one.evaluate.outputs[0].tensor.data) for one in answer.answers] == [60_000_000]
        assert caller.is_closed
        assert server.process.wait(30) == 0


def test_a_caller_who_goes_while_nothing_is_read(tmp_path: Path) -> None:
    """A stream that is full is not read on: that its client has gone is found out all the same."""
    with start(*flags(tmp_path), "--workers", "1", "--max-queue", "3000") as server:
        caller = Caller(server)
        for number in range(1, 1300):
            caller.call(number, "sleep 60" if number > 200 else "echo")  # whose answers tell that they are not large
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 1024)
        caller.socket.close()
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 0, 30)


async def test_who_leaves_in_the_middle_of_an_answer_costs_nothing_more(tmp_path: Path) -> None:
    """What was to be sent is not even read."""
    written = 0

    async def write(connection: Any) -> None:
        nonlocal written
        while written < 10_000:
            await connection.write(bytes(100_000))
            written += 1

    async def serve(connection: Any) -> None:
        writing = asyncio.create_task(write(connection))  # a task of its own, as a stream has
        try:
            await asyncio.wait({writing})
        finally:
            writing.cancel()

    calls = DirectCalls(Place(str(tmp_path / "calls")), SimpleNamespace(serve=serve), None)  # type: ignore[arg-type]
    await calls.open(0o600)
    _, writer = await asyncio.open_unix_connection(tmp_path / "calls")
    writer.write(LENGTH.pack(0))
    while not written:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    before = written
    writer.transport.abort()
    while calls._connections:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert written == before
    calls.close()


def test_who_leaves_while_the_device_is_looked_for(tmp_path: Path) -> None:
    """The call ends, so that a server that stops waits for nobody."""
    message = service_pb2.StreamRequest()
    message.calls.add(id=1).compute_vjp.device = "cpu"
    # Empty fields that no request has, by the hundred thousand, in front of the device.
    request = message.calls[0].compute_vjp.SerializeToString()
    many = b"\xa2\x01\x00" * 200_000 + request
    call = b"\x08\x01" + wire_format.headed(4, len(many)) + many
    with start(*flags(tmp_path), "--workers", "1", "--drain-timeout", "10m") as server:
        for number in range(10):
            caller = Caller(server)
            caller.send(wire_format.headed(1, len(call)) + call)
            time.sleep(0.002 * number)
            caller.socket.close()
        eventually(lambda: vjps(server, "started") == vjps(server, "handled") > 0)
        server.process.terminate()
        assert server.process.wait(60) == 0


def vjps(server: Server, what: str) -> float:
    """How many calls of ComputeVjp have started, or were handled."""
    lines = server.get("/metrics")[1].splitlines()
    mine = [line for line in lines if line.startswith(f"grpc_server_{what}_total{{") and '"ComputeVjp"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in mine)


def test_answers_that_nobody_reads(tmp_path: Path) -> None:
    """Over all connections they take so much and no more; in the end each call is answered."""
    count = 300
    with start(*flags(tmp_path), "--workers", "1", "--max-queue-bytes", "64MiB") as server:
        callers = [Caller(server) for _ in range(4)]

        def ask(caller: Caller) -> None:
            for number in range(1, count + 1):
                caller.call(number, "answer 640000")

        asking = [threading.Thread(target=ask, args=(caller,)) for caller in callers]
        for thread in asking:
            thread.start()
        seen: list[float] = []

        def rests() -> bool:
            seen.append(server.metric(HANDLED))
            time.sleep(0.5)
            return len(seen) > 2 and seen[-1] == seen[-3]

        eventually(rests)
        assert seen[-1] * 640_000 < 64 * 2**20
        for caller in callers:
            ids: list[int] = []
            while len(ids) < count:
                response = caller.receive()
                assert response is not None
                assert all(one.WhichOneof("response") == "evaluate" for one in response.answers)
                ids += [one.id for one in response.answers]
            assert sorted(ids) == list(range(1, count + 1))
        for thread in asking:
            thread.join(30)


def test_calls_are_counted_like_others(fake: Server) -> None:
    """By method; a connection is no call."""
    streams = 'grpc_method="Stream",grpc_service="gradoracle.v1.GradientService",grpc_type="bidi_stream"'
    with go.Client(fake.address, shared_memory=True) as client:
        for _ in range(3):
            client._call(told("echo"), 30)
    assert fake.metric(HANDLED) == 3
    assert fake.metric(f"grpc_server_started_total{{{streams}}}") == 0


# ---- Credentials


def test_a_connection_needs_credentials(tmp_path: Path) -> None:
    """Without the server's token it is closed, and gRPC says why; a token that is taken away ends it."""
    tokens = tmp_path / "tokens"
    tokens.write_text("first\nsecond\n")
    with start(*flags(tmp_path), "--workers", "1", "--token-file", str(tokens)) as server:
        for greeting in (b"", b"Bearer wrong", b"Basic first", b"\xff"):
            assert Caller(server, greeting).is_closed
        for token in (None, "wrong"):
            with go.Client(server.address, shared_memory=True, token=token) as stranger:
                with pytest.raises(go.AuthenticationError):
                    stranger._call(told("echo"), 30)
                assert stranger._direct.idle == []
        first, second = (go.Client(server.address, shared_memory=True, token=one) for one in ("first", "second"))
        with first, second:
            for client in (first, second):
                client._call(told("echo"), 30)
                assert len(client._direct.idle) == 1
            tokens.write_text("second\n")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: "read again" in server.log)
            no_grpc(second)
            second._call(told("echo"), 30)
            with pytest.raises(go.AuthenticationError):
                first._call(told("echo"), 30)


def test_a_token_that_is_taken_away(tmp_path: Path) -> None:
    """What runs by then finishes, as through gRPC, and calls beside it are refused; then the connection ends."""
    tokens, free = tmp_path / "tokens", tmp_path / "free"
    tokens.write_text("first\nsecond\n")
    with start(*flags(tmp_path), "--workers", "1", "--token-file", str(tokens)) as server:
        busy, idle = (Caller(server, b"Bearer first") for _ in range(2))
        for caller in (busy, idle):
            caller.call(1, "echo")
            assert caller.receive() is not None
        busy.call(1, f"until {free}")
        eventually(lambda: server.metric(BUSY) == 1)
        tokens.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        assert idle.is_closed
        busy.call(2, "echo")
        refused, free_again = busy.receive(), Caller(server, b"Bearer second")
        free_again.call(1, "echo")
        free.touch()
        answered = busy.receive()
        assert refused is not None
        assert answered is not None
        assert (2, "status") == (refused.answers[0].id, refused.answers[0].WhichOneof("response"))
        assert 16 == status_pb2.Status.FromString(refused.answers[0].status).code
        assert (1, "evaluate") == (answered.answers[0].id, answered.answers[0].WhichOneof("response"))
        assert busy.is_closed
        assert free_again.receive() is not None


def test_certificates_are_grpcs_to_show(tmp_path: Path) -> None:
    """A client that speaks TLS asks through gRPC."""
    target = go.channel.target(
        f"unix:{tmp_path}/g.sock", tls=True, token=None, timeout=None, channels=1, shared_memory=True
    )
    assert direct.place_of(target) is None
    unasked = go.channel.target(f"unix:{tmp_path}/g.sock", tls=True, token=None, timeout=None, channels=1)
    assert unasked.memory is None
    assert direct.place_of(unasked) is None


async def test_callers_of_other_namespaces_have_a_turn_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes have no number here, and are not taken for one."""
    monkeypatch.setattr("gradoracle_server.front.direct.peer", lambda _: (0, 1000))
    calls = DirectCalls(Place(str(tmp_path / "calls")), SimpleNamespace(serve=lambda _: asyncio.sleep(60)), None)  # type: ignore[arg-type]
    await calls.open(0o600)
    callers = [await asyncio.open_unix_connection(tmp_path / "calls") for _ in range(2)]
    while len(calls._connections) < 2:
        await asyncio.sleep(0.01)
    assert 2 == len({one.peer() for one in calls._connections})
    calls.close()
    for _, writer in callers:
        writer.close()


async def test_there_is_room_for_so_many(tmp_path: Path) -> None:
    """Who finds none is told by the end of the connection, and asks through gRPC; one that ends makes room."""
    calls = DirectCalls(Place(str(tmp_path / "calls")), SimpleNamespace(serve=lambda _: asyncio.sleep(60)), None)  # type: ignore[arg-type]
    calls._room = 2
    await calls.open(0o600)
    callers = [await asyncio.open_unix_connection(tmp_path / "calls") for _ in range(3)]
    assert await asyncio.wait_for(callers[2][0].read(), 30) == b""
    callers[0][1].close()
    while len(calls._connections) > 1:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "calls")
    while len(calls._connections) < 2:
        await asyncio.sleep(0.01)
    calls.close()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    for one in (writer, callers[1][1], callers[2][1]):
        one.close()


def test_a_call_is_asked_again_where_the_connection_ends(tmp_path: Path) -> None:
    """As gRPC would: requests are pure."""
    mark = tmp_path / "mark"
    with start(*flags(tmp_path), "--workers", "1") as server, go.Client(server.address, shared_memory=True) as client:
        thread_found: list[Any] = []
        thread = threading.Thread(target=lambda: thread_found.append(client._call(told(f"until {mark}"), 60)))
        thread.start()
        eventually(lambda: server.metric(BUSY) == 1)
        for connection in tuple(client._direct.busy):
            connection.shutdown(socket.SHUT_RDWR)
        mark.touch()
        thread.join(30)
        assert len(thread_found) == 1

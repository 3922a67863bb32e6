"""Small calls that many callers make at once go over one stream, and are answered as if each were alone."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import front_server
import grpc
import numpy as np
import pytest
from callers import by_tasks, by_threads, told
from front_server import eventually
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from tcp_proxy import proxy

import gradoracle as go
from gradoracle import channel, gathering, gathering_async, spans, status
from gradoracle.requests import Request
from gradoracle.v1 import service_pb2

_STREAM = 'grpc_method="Stream",grpc_service="gradoracle.v1.GradientService",grpc_type="bidi_stream"'
STARTED, ENDED = f"grpc_server_started_total{{{_STREAM}}}", f'grpc_server_handled_total{{grpc_code="OK",{_STREAM}}}'
BUSY, IDLE = 'gradoracle_workers{device="cpu",state="busy"}', 'gradoracle_workers{device="cpu",state="idle"}'


@pytest.fixture
def fake() -> Iterator[front_server.Server]:
    """A server whose two workers do what they are told."""
    with front_server.start("--workers", "2") as server:
        yield server


def streams(server: front_server.Server) -> float:
    """How many the server has seen."""
    return server.metric(STARTED)


# ---- Answers


def test_each_caller_gets_its_own_answer(server: str) -> None:
    """Of many threads that call again and again, each gets what it has asked, with the bits of a call by itself."""
    xs = np.random.default_rng(0).normal(size=(16, 20, 3))
    with go.Client(server) as client:
        alone = [[client.vjp("sum(sin(x) * k)", {"x": x, "k": float(k)}) for x in of] for k, of in enumerate(xs)]

        def call(k: int) -> list[go.VjpResult]:
            return [client.vjp("sum(sin(x) * k)", {"x": x, "k": float(k)}) for x in xs[k]]

        found = by_threads(16, call)
        assert client._gathering._shared is not None
    for mine, its in zip(alone, found, strict=True):
        for one, other in zip(mine, its, strict=True):
            assert one.gradients["x"].tobytes() == other.gradients["x"].tobytes()  # type: ignore[union-attr]
            assert one.outputs["out"].tobytes() == other.outputs["out"].tobytes()
            assert other.timing.total > 0


async def test_each_task_gets_its_own_answer(server: str) -> None:
    """The same for asyncio."""
    async with go.AsyncClient(server) as client:

        async def call(k: int) -> list[float]:
            return [float((await client.vjp("x**2 * k", {"x": x, "k": k})).gradients["x"]) for x in range(20)]  # type: ignore[arg-type]

        found = await by_tasks(16, call)
        assert client._gathering._shared is not None
    assert [[2.0 * x * k for x in range(20)] for k in range(16)] == found


def test_large_answers_of_small_calls(server: str) -> None:
    """Answers that come in chunks are put together, each from its own."""
    with go.Client(server) as client:

        def call(k: int) -> np.ndarray[Any, Any]:
            return client.jacobian("x * k", {"x": np.arange(400.0), "k": float(k)}, wrt="x").jacobian["out", "x"]

        found = by_threads(8, call)
        assert client._gathering._shared is not None
    for k, one in enumerate(found):
        assert np.array_equal(one, np.eye(400) * k)


ERRONEOUS = [("x.reshape([3])", go.ComputationError), ("x @ ones([4, 4])", go.GradOracleError)]


@pytest.mark.parametrize(("expression", "kind"), ERRONEOUS)
def test_errors_are_those_of_a_call_by_itself(server: str, expression: str, kind: type[Exception]) -> None:
    """Type, text, reason and metadata; and others beside it have their results."""
    with go.Client(server) as client:

        def call(k: int) -> Any:
            return client.evaluate(expression if k % 2 else "x * 2", {"x": np.ones(2)})

        with pytest.raises(go.GradOracleError) as alone:
            call(1)
        found = by_threads(8, call)
    for k, one in enumerate(found):
        if k % 2:
            assert isinstance(one, kind)
            mine = alone.value
            assert (type(mine), str(mine), mine.reason, mine.metadata) == (
                type(one),
                str(one),
                one.reason,
                one.metadata,
            )
        else:
            assert [2.0, 2.0] == one.outputs["out"].tolist()


# ---- When calls go together


def test_a_few_callers_call_by_themselves(fake: front_server.Server) -> None:
    """There is no stream where no more than a few calls are under way; one where there are more; it is used again."""
    with go.Client(fake.address) as client:
        by_threads(gathering.BUSY, lambda _: client._call(told("sleep 0.2"), 10))
        assert 0 == streams(fake)
        by_threads(gathering.BUSY + 2, lambda _: client._call(told("sleep 0.2"), 10))
        assert 1 == streams(fake)
        by_threads(gathering.BUSY + 2, lambda _: client._call(told("sleep 0.2"), 10))
        assert 1 == streams(fake)


def test_a_stream_that_nobody_uses_ends(fake: front_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, in order; who calls then gets another."""
    monkeypatch.setattr(gathering, "IDLE", 0.1)
    with go.Client(fake.address) as client:
        for turn in range(1, 3):
            by_threads(8, lambda _: client._call(told("echo"), 10))
            shared = client._gathering._shared
            assert shared is not None
            eventually(lambda shared=shared: not shared.open)
            eventually(lambda: not any("gradoracle-answers" == one.name for one in threading.enumerate()))
            assert turn == streams(fake)
        eventually(lambda: fake.metric(ENDED) == 2)


async def test_a_stream_that_no_task_uses_ends(fake: front_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for asyncio."""
    monkeypatch.setattr(gathering_async, "IDLE", 0.1)
    async with go.AsyncClient(fake.address) as client:
        for turn in range(1, 3):
            await by_tasks(8, lambda _: client._call(told("echo"), 10))
            shared = client._gathering._shared
            assert shared is not None
            for _ in range(100):
                await asyncio.sleep(0.02)
                if shared._reader.done():
                    break
            assert not shared.open
            assert shared._reader.done()
            assert turn == streams(fake)


@pytest.mark.parametrize(
    ("address", "channels", "expected"),
    [
        ("localhost:1", 1, True),
        ("127.0.0.1:1", 1, True),
        ("[::1]:1", 1, True),
        ("10.1.2.3:1", 1, True),
        ("unix:/run/gradoracle.sock", 1, True),
        ("127.0.0.1:1", 2, False),
        ("gradoracle:1", 1, False),
        ("localhost.example:1", 1, False),
    ],
)
def test_names_of_several_servers_are_not_gathered(address: str, channels: int, expected: bool) -> None:
    """gRPC spreads calls among them, and the calls of one stream would all go to the same."""
    target = channel.target(address, tls=None, token=None, timeout=None, channels=channels)
    assert expected is gathering.may_gather(target)


def test_programs_that_trace_have_a_call_for_each_span(
    fake: front_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span goes with a call's metadata, and a stream has only one set of those."""
    monkeypatch.setattr(spans, "are_made", lambda: True)
    monkeypatch.setattr(spans, "traced", lambda call, path, target: call)
    with go.Client(fake.address) as client:
        by_threads(8, lambda _: client._call(told("sleep 0.1"), 10))
    assert 0 == streams(fake)


def test_large_requests_go_by_themselves(server: str) -> None:
    """What is large for one message does not hold up others in it."""
    with go.Client(server) as client:
        x = np.ones(gathering.SMALL // 8 + 1)
        found = by_threads(8, lambda _: client.vjp("sum(x)", {"x": x}).gradients["x"])
        assert all(np.array_equal(one, x) for one in found)
        graph = go.Graph()
        value = graph.input("x")
        for _ in range(3000):
            value = value + 1
        graph.output("y", value)
        assert len(graph.to_bytes()) > gathering.SMALL
        assert [3001.0] * 8 == by_threads(8, lambda _: float(client.evaluate(graph, {"x": 1.0}).outputs["y"]))
        assert client._gathering._shared is None


# ---- Timeouts, cancellation, and what goes wrong


def test_a_call_has_its_own_timeout(fake: front_server.Server, tmp_path: Path) -> None:
    """One that is late fails as it would by itself, and its work stops; others of the stream are answered."""
    free = tmp_path / "free"
    with go.Client(fake.address) as client:

        def call(k: int) -> Any:
            if k == 0:
                return client._call(told("sleep 60"), 0.5)
            if k == 1:
                time.sleep(0.7)
                free.touch()
            return client._call(told("echo"), 30)

        found = by_threads(8, call)
        assert 1 == streams(fake)
        eventually(lambda: fake.metric(IDLE) == 2)
    late, *others = found
    assert isinstance(late, go.DeadlineExceededError)
    assert late.reason == "DEADLINE_EXCEEDED"
    assert not any(isinstance(one, Exception) for one in others)


def test_the_texts_of_late_calls_are_the_same() -> None:
    """By itself or in company."""
    target = channel.target("127.0.0.1:1", tls=None, token=None, timeout=None, channels=1)
    assert str(target.late(0.5)) == ("the timeout of 0.5 s passed before 127.0.0.1:1 answered; the work is stopped")


class Recorded(queue.SimpleQueue[bytes | None]):
    """A queue that keeps how its messages were asked for: True where the caller would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def get(self, block: bool = True, timeout: float | None = None) -> bytes | None:
        self.asked.append(block)
        return super().get(block, timeout)

    def get_nowait(self) -> bytes | None:
        self.asked.append(False)
        return super().get_nowait()


def sender(waiting: int) -> tuple[Recorded, Iterator[bytes], gathering._Shared, threading.Event]:
    """What a stream sends from, and what it sends, while so many calls are under way; and what ends it."""
    kept: queue.SimpleQueue[Iterator[bytes]] = queue.SimpleQueue()
    silent = threading.Event()

    class Call:
        def __iter__(self) -> Iterator[bytes]:
            silent.wait(30)
            return iter(())

        def cancel(self) -> None:
            silent.set()

    def begin(messages: Iterator[bytes]) -> Call:
        kept.put(messages)
        return Call()

    shared = gathering._Shared(begin)
    recorded = shared._queue = Recorded()
    shared._waiting.update({-number: gathering._Waiter() for number in range(1, waiting + 1)})
    return recorded, kept.get(timeout=30), shared, silent


def test_messages_wait_for_company_where_there_may_be_some() -> None:
    """A message of one among many calls waits; after one that waited in vain the next sixteen do not. What is there
    goes together, and among few calls nothing waits."""
    recorded, messages, _, silent = sender(20)
    waits = []
    for turn in range(18):
        recorded.asked.clear()
        recorded.put(b"%d" % turn)
        assert b"%d" % turn == next(messages)
        waits.append(any(recorded.asked[1:]))
    assert [True] + [False] * 16 + [True] == waits
    for part in (b"a", b"b", b"c"):
        recorded.put(part)
    assert b"abc" == next(messages)
    silent.set()

    recorded, messages, _, silent = sender(3)
    recorded.put(b"alone")
    assert b"alone" == next(messages)
    assert [True, False] == recorded.asked
    silent.set()


def test_who_gives_up_while_the_stream_breaks_disturbs_nobody() -> None:
    """Callers who are told and callers who give up at the same moment are each told once, or not at all."""
    for _ in range(50):
        shared, silent = sender(0)[2:]
        waiters = {number: gathering._Waiter() for number in range(200)}
        shared._waiting.update(waiters)
        leaving = threading.Thread(target=lambda shared=shared: [shared.forget(number) for number in range(0, 200, 2)])
        leaving.start()
        silent.set()
        leaving.join(10)
        assert all(waiters[number].wait(10) for number in range(1, 200, 2))
        assert not shared._waiting


def test_what_falls_back_has_what_is_left_of_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """And still knows the whole of it."""
    monkeypatch.setattr(gathering.Gathering, "_together", lambda *_: time.sleep(0.05))
    target = channel.target("127.0.0.1:1", tls=None, token=None, timeout=None, channels=1)
    gathered = gathering.Gathering(target, lambda: pytest.fail("a stream was begun"))
    asked: list[tuple[float | None, float | None]] = []

    def alone(request: Request[Any], timeout: float | None, left: float | None) -> None:
        asked.append((timeout, left))

    for under_way in ({-1}, {-1, -2, -3}):
        gathered._under_way = under_way
        for timeout in (5.0, 0.01, None):
            gathered.answer(told("echo"), timeout, timeout, alone)
    assert [(5.0, 5.0), (0.01, 0.01), (None, None)] == asked[:3]
    (whole, left), late, unlimited = asked[3:]
    assert whole == 5.0
    assert left is not None
    assert 4.0 < left < 4.96
    assert [(0.01, 0.0), (None, None)] == [late, unlimited]


def test_a_call_without_time_left_says_its_whole_timeout(fake: front_server.Server) -> None:
    """What was left of it is nobody's business."""
    with go.Client(fake.address) as client, pytest.raises(go.DeadlineExceededError) as raised:
        client._alone(told("sleep 60"), 0.5, 0.0)
    assert str(raised.value) == status.late(fake.address, 0.5)


async def test_a_cancelled_task_stops_its_work(fake: front_server.Server) -> None:
    """A task that is cancelled frees its worker, and costs the others nothing."""
    async with go.AsyncClient(fake.address) as client:
        several = [asyncio.create_task(client._call(told("sleep 60"), 50)) for _ in range(6)]
        await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 2)
        assert 1 == streams(fake)
        for one in several:
            one.cancel()
        found = await asyncio.gather(*several, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        await asyncio.to_thread(eventually, lambda: fake.metric(IDLE) == 2)
        again = await by_tasks(8, lambda _: client._call(told("echo"), 10))
        assert not any(isinstance(one, BaseException) for one in again)
        assert 1 == streams(fake)


async def test_a_late_task(fake: front_server.Server) -> None:
    """The same of a timeout."""
    async with go.AsyncClient(fake.address) as client:
        found = await by_tasks(6, lambda k: client._call(told("sleep 60" if k < 2 else "echo"), 0.5 if k < 2 else 30))
        assert [go.DeadlineExceededError] * 2 == [type(one) for one in found[:2]]
        assert not any(isinstance(one, BaseException) for one in found[2:])
        await asyncio.to_thread(eventually, lambda: fake.metric(IDLE) == 2)


def test_what_the_server_has_no_room_for_is_asked_again() -> None:
    """A refusal in the stream is no caller's: it calls by itself, and gRPC repeats that."""
    with front_server.start("--workers", "1", "--max-queue", "4") as narrow, go.Client(narrow.address) as client:
        found = by_threads(8, lambda _: client._call(told("sleep 0.05"), 30))
        assert [] == [one for one in found if isinstance(one, Exception)]
        assert 1 == streams(narrow)


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, type(None)),
        ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE, type(None)),
        ("LIMIT_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED, go.ResourceLimitError),
        ("WORKER_CRASHED", grpc.StatusCode.INTERNAL, go.WorkerCrashedError),
    ],
)
def test_what_is_asked_again(reason: str, code: grpc.StatusCode, expected: type) -> None:
    """What the server does not take just now; whatever else it says is the call's answer."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="gradoracle.v1"))
    status = status_pb2.Status(code=code.value[0], message="no", details=[detail])
    answer = service_pb2.StreamAnswer(id=1, status=status.SerializeToString())
    assert expected is type(gathering.result_of((answer, []), told("echo")))
    assert gathering.result_of(None, told("echo")) is None


def test_connections_are_cut(server: str) -> None:
    """Every call has its answer all the same: who waited for the stream asks by himself."""
    with proxy(server) as way, go.Client(way.address) as client:

        def call(k: int) -> list[float]:
            found = []
            for turn in range(30):
                found.append(float(client.vjp("x**2 * k", {"x": float(turn), "k": float(k)}).gradients["x"]))  # type: ignore[arg-type]
                if k == 0 and turn % 10 == 9:
                    way.cut()
            return found

        found = by_threads(8, call)
        assert way.connections > 3
    assert [[2.0 * turn * k for turn in range(30)] for k in range(8)] == found


def test_a_client_that_is_closed_fails_its_callers(fake: front_server.Server) -> None:
    """Those who wait for a stream, too; nobody waits for ever."""
    client = go.Client(fake.address)
    failures: list[Any] = []
    running = threading.Thread(
        target=lambda: failures.extend(by_threads(6, lambda _: client._call(told("sleep 60"), 50)))
    )
    running.start()
    eventually(lambda: fake.metric(BUSY) == 2)
    client.close()
    running.join(20)
    assert not running.is_alive()
    assert [go.ServerUnavailableError] * 6 == [type(one) for one in failures]
    assert all("was cut off before it was answered" in str(one) for one in failures)


async def test_an_asynchronous_client_that_is_closed(fake: front_server.Server) -> None:
    """The same for asyncio."""
    client = go.AsyncClient(fake.address)
    several = [asyncio.create_task(client._call(told("sleep 60"), 50)) for _ in range(6)]
    await asyncio.to_thread(eventually, lambda: fake.metric(BUSY) == 2)
    await client.close()
    found = await asyncio.wait_for(asyncio.gather(*several, return_exceptions=True), 20)
    assert [go.ServerUnavailableError] * 6 == [type(one) for one in found]


def test_ctrl_c_stops_the_work(fake: front_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What interrupts a caller who waits takes its call back."""
    with go.Client(fake.address) as client:

        def interrupted() -> None:
            with pytest.raises(KeyboardInterrupt):
                client._call(told("sleep 60"), 50)

        def wait(waiter: Any, seconds: float | None) -> bool:
            eventually(lambda: fake.metric(BUSY) == 2)
            raise KeyboardInterrupt

        monkeypatch.setattr(gathering._Waiter, "wait", wait)
        client._gathering._under_way |= {-1, -2, -3}
        for _ in range(2):
            running = threading.Thread(target=interrupted)
            running.start()
        running.join(20)
        eventually(lambda: fake.metric(IDLE) == 2)

"""Tensors in shared memory, from a real client to a real server: the same bits as over gRPC, and nothing left over."""

from __future__ import annotations

import contextlib
import gc
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from front_server import Server, eventually
from real_server import start, workers

import gradoracle as go
from gradoracle import dtypes, shared_memory, stream

MIB = 1024 * 1024
CUBE = "sum(x**3)"


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Server]:
    """A server whose sockets are in a folder."""
    with start("--listen", f"unix:{folder / 'g.sock'}", "--workers", "1", "--threads", "1", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker, and shared memory."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "--shared-memory") as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def shared(server: Server) -> Iterator[go.Client]:
    """A client that shares memory with it."""
    with go.Client(server.address, shared_memory=True) as client:
        yield client


@pytest.fixture(scope="module")
def plain(server: Server) -> Iterator[go.Client]:
    """A client that does not."""
    with go.Client(server.address, shared_memory=False) as client:
        yield client


def numbers(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Gaussian ones."""
    return np.random.default_rng(seed).normal(size=count)


def connection(client: go.Client | go.AsyncClient) -> shared_memory.Connection:
    """The client's connection to the second socket."""
    assert client._memory is not None
    found = client._memory._connection
    assert found is not None
    return found


def reached(client: go.Client, x: Any) -> Any:
    """A gradient of CUBE. gRPC takes its time until it connects again to a server that has been away."""
    end = time.monotonic() + 60
    while True:
        try:
            return client.vjp(CUBE, {"x": x}).gradients["x"]
        except go.ServerUnavailableError:
            assert time.monotonic() < end


def is_shared(array: Any) -> bool:
    """Whether an array is a view of shared memory."""
    return isinstance(array.base, shared_memory._Held)


def same(one: Any, other: Any) -> bool:
    """Whether arrays have the same dtype, shape and bits."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("dtype", sorted(dtypes.NUMBERS))
def test_every_dtype(shared: go.Client, plain: go.Client, dtype: str) -> None:
    """Any dtype goes there and back bit for bit, and gradients have the bits that they have over plain gRPC."""
    kind = np.dtype(dtypes.TO_NUMPY[dtypes.NUMBERS[dtype]])
    raw = np.random.default_rng(1).bytes(600_000 * kind.itemsize)
    array = np.frombuffer(bytes(byte & 1 for byte in raw) if dtype == "bool" else raw, kind).reshape(2, -1)
    g = go.Graph()
    x = g.input("x", requires_grad=False)
    g.output("same", g.call("aten.alias.default", x))
    found = shared.evaluate(g, {"x": array}).outputs["same"]

    assert same(array, found)
    assert is_shared(found)
    assert same(found, plain.evaluate(g, {"x": array}).outputs["same"])
    if dtype.startswith(("float16", "float32", "float64", "bfloat16", "complex")):
        ones = np.ones_like(array)
        with np.errstate(all="ignore"):
            mine, theirs = (one.vjp("x * x", {"x": array}, {"out": ones}) for one in (shared, plain))
        assert is_shared(mine.gradients["x"])
        assert same(mine.gradients["x"], theirs.gradients["x"])
        assert same(mine.outputs["out"], theirs.outputs["out"])


def test_tensors_of_all_sizes_together(shared: go.Client, plain: go.Client) -> None:
    """Large, small and empty tensors, many of them, contiguous or not, keep their places in one request."""
    g = go.Graph()
    arrays = {"big": numbers(90_000).reshape(300, 300).T[::2, ::-3], "empty": np.empty((0, 3)), "one": np.array(2.0)}
    arrays |= {f"x{place}": numbers(9_000 + 8 * place, place) for place in range(40)}
    for name in arrays:
        g.output(f"{name}_out", g.input(name) * 2.0)
    arrays["big"] = np.broadcast_to(arrays["big"], (3, *arrays["big"].shape))
    cotangents = {f"{name}_out": np.full(array.shape, 0.5) for name, array in arrays.items()}
    mine, theirs = (client.vjp(g, arrays, cotangents) for client in (shared, plain))

    for name, array in arrays.items():
        assert same(mine.outputs[f"{name}_out"], array * 2.0)
        assert same(mine.gradients[name], np.ones(array.shape))
        assert same(mine.outputs[f"{name}_out"], theirs.outputs[f"{name}_out"])


def test_every_method(shared: go.Client, plain: go.Client) -> None:
    """Whatever is asked, the answer is that of plain gRPC."""
    x, v = numbers(40_000), numbers(40_000, 2)

    def asked(client: go.Client) -> list[Any]:
        row = client.jacobian("(x * x).sum()", {"x": x}).jacobian["out", "x"]
        product = client.hvp("(x * x * x).sum()", {"x": x}, {"x": v}).products["x"]
        report = client.check(CUBE, {"x": x}, claimed={"x": 3 * x**2})
        wrong = client.check(CUBE, {"x": x}, claimed={"x": 3 * x**2 * (1 + (np.arange(x.size) == 12_345))})
        assert wrong.inputs["x"].worst[0].index == (12_345,)
        return [
            client.evaluate("x.exp()", {"x": x}).outputs["out"],
            client.jvp("x.exp()", {"x": x}, {"x": v}).tangents["out"],
            row,
            product,
            wrong.inputs["x"].errors,
            np.array(report.passed),
            np.array(client.inspect("x.exp()", {"x": x})["x"].shape),
        ]

    mine, theirs = asked(shared), asked(plain)
    assert all(same(one, other) for one, other in zip(mine, theirs, strict=True))
    assert all(is_shared(one) for one in mine[:4])
    assert mine[5]


def test_map(shared: go.Client) -> None:
    """The calls of a stream go the same way; results that pile up are right, and at most eight keep their files."""
    inputs = [numbers(40_000, seed) for seed in range(40)]
    found = list(shared.map(go.request("vjp", CUBE, {"x": x}) for x in inputs))

    gradients = [result.gradients["x"] for result in found]
    for x, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(gradient, 3 * x**2)
    assert 8 >= sum(map(is_shared, gradients)) > 0
    assert len(connection(shared).viewed) <= 8


async def test_awaited(server: Server) -> None:
    """The asyncio client does the same, one call or many."""
    x = numbers(40_000)
    async with go.AsyncClient(server.address, shared_memory=True) as client:
        one = (await client.vjp(CUBE, {"x": x})).gradients["x"]
        many = [result async for result in client.map(go.request("vjp", CUBE, {"x": x}, tag=n) for n in range(20))]

    assert one is not None
    assert is_shared(one)
    np.testing.assert_allclose(one, 3 * x**2)
    assert [same(one, result.gradients["x"]) for result in many] == [True] * 20
    assert list(range(20)) == [result.tag for result in many]


def test_results_are_the_callers_own(server: Server) -> None:
    """A result can be written, is no other's, and outlives the client; what died is used again, by the same client."""
    x = numbers(100_000)
    with go.Client(server.address, shared_memory=True) as client:
        first = client.vjp(CUBE, {"x": x}).gradients["x"]
        second = client.vjp(CUBE, {"x": 2 * x}).gradients["x"]
        assert first is not None
        assert second is not None
        assert 2 == len(connection(client).files)
        first[:] = -1.0
        view = second[10:20]
        del second
        for _ in range(3):
            third = client.vjp(CUBE, {"x": 3 * x}).gradients["x"]
            assert third is not None
            np.testing.assert_allclose(third, 27 * x**2)
            del third
        gc.collect()
        assert 3 == len(connection(client).files)
    assert (first == -1.0).all()
    np.testing.assert_allclose(view, 12 * x[10:20] ** 2)


def test_a_small_part_of_a_file_does_not_keep_it(shared: go.Client) -> None:
    """An answer that is small beside its request is copied out."""
    x = numbers(500_000)
    found = shared.evaluate("x[:10000]", {"x": x}).outputs["out"]

    assert same(found, x[:10000])
    assert not is_shared(found)
    assert not connection(shared).viewed


def test_threads(shared: go.Client) -> None:
    """Calls of several threads do not get each other's memory."""
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(10):
            x = numbers(50_000, 100 * seed + turn)
            gradient = shared.vjp(CUBE, {"x": x}).gradients["x"]
            if gradient is None or not np.allclose(gradient, 3 * x**2):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_a_call_that_fails_costs_its_file(shared: go.Client) -> None:
    """What failed may still be running, so that its file is not used again; the next call is right."""
    x = numbers(40_000)
    with pytest.raises(go.ComputationError):
        shared.evaluate("x @ w", {"x": x.reshape(200, 200), "w": x.reshape(400, 100)})
    assert set() == connection(shared).files
    many = list(
        shared.map(
            [go.request("vjp", "x.reshape(3, -1).sum()", {"x": x}), go.request("vjp", CUBE, {"x": x})],
            return_exceptions=True,
        )
    )
    assert isinstance(many[0], go.GradOracleError)
    np.testing.assert_allclose(many[1].gradients["x"], 3 * x**2)


def test_limits(tmp_path: Path) -> None:
    """Limits hold, and say so in the same words as without shared memory but for the call's number.

    A tensor that is too large has its name, be it for a tensor or, alone, for the queue.
    """
    flags = ("--shared-memory", "--max-tensor-bytes", "1MiB", "--max-queue-bytes", "2MiB")
    with serving(tmp_path, *flags) as server, go.Client(server.address, shared_memory=True) as client:
        with pytest.raises(go.ResourceLimitError) as caught:
            client.vjp(CUBE, {"x": np.zeros(MIB // 8 + 1)})
        text = f'primals["x"]: expected at most {MIB} bytes (--max-tensor-bytes), got {MIB + 8}'
        assert (text, 'primals["x"]') == (str(caught.value), caught.value.metadata["field"])
        with pytest.raises(go.ResourceLimitError) as caught:
            client.evaluate("x + y + z", {name: np.zeros(MIB // 8) for name in "xyz"})
        text = f"the attachments of the request: expected at most {2 * MIB} bytes (--max-queue-bytes), got {3 * MIB}"
        assert text == str(caught.value)
        assert 0.0 == client.vjp(CUBE, {"x": np.zeros(MIB // 8)}).outputs["out"]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_tensor_over_a_limit_has_its_name(tmp_path: Path, shared_memory: bool) -> None:
    """In shared memory and in a stream, over the limit of tensors or, alone, over the queue's; claims as well."""
    flags = (
        "--shared-memory",
        "--max-message-bytes",
        "2MiB",
        "--max-tensor-bytes",
        "6MiB",
        "--max-queue-bytes",
        "8MiB",
    )
    large, small = np.zeros(MIB), np.zeros(3 * MIB // 4 + 1)
    with serving(tmp_path, *flags) as server, go.Client(server.address, shared_memory=shared_memory) as client:
        for call, place in (
            (lambda: client.evaluate("x + y", {"x": small[:2], "y": small}), 'primals["y"]'),
            (lambda: client.vjp("x + y", {"x": 0.0, "y": 0.0}, {"out": small}), 'cotangents["out"]'),
            (lambda: client.jvp("x + y", {"x": 0.0, "y": 0.0}, {"y": small}), 'tangents["y"]'),
            (lambda: client.check("x + y", {"x": 0.0, "y": 0.0}, claimed={"y": small}), 'claimed["y"]'),
            (lambda: client.evaluate("x", {"x": large}), 'primals["x"]'),
        ):
            with pytest.raises(go.ResourceLimitError) as caught:
                call()
            assert str(caught.value).startswith(f"{place}: expected at most {6 * MIB} bytes (--max-tensor-bytes), got ")
            assert place == caught.value.metadata["field"]
    flags = ("--shared-memory", "--max-message-bytes", "2MiB", "--max-tensor-bytes", "0", "--max-queue-bytes", "6MiB")
    with serving(tmp_path, *flags) as server, go.Client(server.address, shared_memory=shared_memory) as client:
        with pytest.raises(go.ResourceLimitError, match=r'^primals\["x"\]: expected at most 6291456 .*max-queue-bytes'):
            client.evaluate("x", {"x": large})
        half = np.zeros(MIB // 2)
        with pytest.raises(go.ResourceLimitError, match=r"^the attachments of (call \d+|the request): expected"):
            client.evaluate("x + y", {"x": half, "y": half})


def test_a_server_that_starts_anew(tmp_path: Path) -> None:
    """The client goes on: over a new connection, or, where the new server shares nothing, over gRPC alone."""
    x = numbers(40_000)
    address = f"unix:{tmp_path / 'g.sock'}"
    with go.Client(address, shared_memory=True) as client:
        with serving(tmp_path, "--shared-memory"):
            before = client.vjp(CUBE, {"x": x}).gradients["x"]
        with serving(tmp_path, "--shared-memory"):
            again = reached(client, x)
            mapped = [one.gradients["x"] for one in client.map([go.request("vjp", CUBE, {"x": x})] * 3)]
        with serving(tmp_path):
            without = reached(client, x)
            mapped += [one.gradients["x"] for one in client.map([go.request("vjp", CUBE, {"x": x})] * 3)]

    assert [True, True, False] == [is_shared(one) for one in (before, again, without)]
    assert all(same(before, one) for one in (again, without, *mapped))


def test_a_server_that_starts_anew_within_a_stream(tmp_path: Path) -> None:
    """A stream that breaks goes on with the next server, whose files are others."""
    x = numbers(40_000)
    running = contextlib.ExitStack()
    with go.Client(f"unix:{tmp_path / 'g.sock'}", shared_memory=True) as client, running:
        running.enter_context(serving(tmp_path, "--shared-memory"))
        results = client.map((go.request("vjp", CUBE, {"x": x}) for _ in range(12)), window=3)
        found = [next(results).gradients["x"]]
        running.close()
        running.enter_context(serving(tmp_path, "--shared-memory"))
        found += [result.gradients["x"] for result in results]

    assert 12 == len(found)
    for gradient in found:
        np.testing.assert_allclose(gradient, 3 * x**2)


def test_a_server_that_shares_nothing(tmp_path: Path) -> None:
    """A client that wants to share memory is told what is missing, for one call and for many."""
    x = numbers(40_000)
    with serving(tmp_path) as server, go.Client(server.address, shared_memory=True) as client:
        text = (
            f"the server at {server.address} offers no shared memory to this client (No such file or directory); "
            "start it with --shared-memory, or make the client without"
        )
        for call in (
            lambda: client.vjp(CUBE, {"x": x}),
            lambda: list(client.map([go.request("vjp", CUBE, {"x": x})])),
        ):
            with pytest.raises(go.GradOracleError) as caught:
                call()
            assert text == str(caught.value)
        assert 27.0 == client.vjp(CUBE, {"x": 3.0}).outputs["out"]  # too small to be shared


def test_no_server(tmp_path: Path) -> None:
    """Where nobody answers, that is said, and not that memory is missing."""
    client = go.Client(f"unix:{tmp_path / 'g.sock'}", shared_memory=True, timeout=60)
    with client, pytest.raises(go.ServerUnavailableError, match="no gradoracle server answers"):
        client.vjp(CUBE, {"x": numbers(40_000)})


@pytest.mark.parametrize("kind", [go.Client, go.AsyncClient])
def test_only_on_this_machine(kind: type[go.Client | go.AsyncClient]) -> None:
    """Another machine's address cannot be meant together with shared memory."""
    with pytest.raises(
        ValueError, match=r"expected an address of this machine beside it, like .* got \'gradoracle\.example:50051\'"
    ):
        kind("gradoracle.example", shared_memory=True)


def test_a_thousand_calls_leave_nothing(server: Server) -> None:
    """Descriptors of the client, the front and the worker are about as many after 1,000 calls as after a few, and so is
    memory, within a few MiB: each call has 256 KiB each way. What the last call had may be given back a moment later,
    but not that of one call in a hundred."""
    x = numbers(32_768)
    with go.Client(server.address, shared_memory=True) as client:

        def calls(count: int) -> list[float]:
            for _ in range(count):
                client.vjp("sum(x)", {"x": x})
            (worker,) = [pid for pid in workers(server) if len(descriptors(pid)) > 3][:1]
            everyone = ["self", server.process.pid, worker]
            return [len(descriptors(pid)) for pid in everyone] + [shared_pages(pid) for pid in everyone[1:]]

        first, last = calls(50), calls(1_000)
    for before, after in zip(first[:3], last[:3], strict=True):
        assert after < before + 10
    for before, after in zip(first[3:], last[3:], strict=True):
        assert after < before + 16 * MIB


def descriptors(pid: int | str) -> list[Path]:
    """What a process has open."""
    return list(Path(f"/proc/{pid}/fd").iterdir())


def shared_pages(pid: int | str) -> float:
    """Bytes of a process's resident memory."""
    return 4096.0 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def test_a_client_that_goes_in_the_middle(server: Server, plain: go.Client) -> None:
    """A client that is closed while it is answered leaves no file with the front, and nobody else notices."""
    x = numbers(300_000)
    client = go.Client(server.address, shared_memory=True)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            client.evaluate("x.erfinv().erfinv().erfinv()", {"x": x})
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    client.close()
    thread.join()
    assert all(isinstance(one, go.GradOracleError | RuntimeError | ValueError) for one in failures)
    eventually(lambda: memory_files(server.process.pid) == 0)
    assert math.isclose(27.0, plain.vjp(CUBE, {"x": 3.0}).outputs["out"])


def memory_files(pid: int) -> int:
    """How many a process has open for calls; a worker's lane, which stays, has another name."""
    found = 0
    for one in descriptors(pid):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(one.readlink()).startswith("/memfd:gradoracle (")
    return found


def test_chunks_remain_where_there_are_no_files_left(shared: go.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that find no file go through gRPC, in chunks where they are large."""
    monkeypatch.setattr("gradoracle.memory_files._FILES_AT_MOST", 0)
    x = numbers(stream.UNARY_AT_MOST // 8 + 1)
    gradient = shared.vjp(CUBE, {"x": x}).gradients["x"]

    assert gradient is not None
    np.testing.assert_allclose(gradient, 3 * x**2)
    assert not is_shared(gradient)

"""The clients against a real server."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradoracle as go
from gradoracle import dtypes, shared_memory, stream

POLYNOMIAL = "9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1"


# ---- Every method


def test_the_contracts_example(client: go.Client) -> None:
    """The first example that a reader sees."""
    g = go.Graph()
    x = g.input("x")
    y = 9 * x**4 + 2 * x**3 + 3 * x**2 + 6 * x + 1
    g.output("y", y)
    r = client.vjp(g, {"x": np.array(2.0)})
    assert (r.outputs["y"], r.gradients["x"]) == (185.0, 330.0)
    assert isinstance(r.outputs["y"], np.ndarray)
    assert r.timing.total > 0


def test_forward_and_second_order(client: go.Client) -> None:
    """jvp, jacobian, hessian and hvp agree with the formulas."""
    x, v = np.array([1.0, 2.0]), np.array([1.0, -1.0])
    assert client.jvp("x**3", {"x": x}, {"x": v}).tangents["out"].tolist() == [3, -12]
    assert client.jacobian("x**3", {"x": x}).jacobian["out", "x"].tolist() == [[3, 0], [0, 12]]
    second = client.hessian("sum(x**3) * y", {"x": x, "y": 2.0})
    assert second.hessian["x", "x"].tolist() == [[12, 0], [0, 24]]
    assert second.hessian["x", "y"].tolist() == [3, 12]
    assert second.gradients["y"] == 9
    assert client.hvp("sum(x**3)", {"x": x}, {"x": v}).products["x"].tolist() == [6, -12]


def test_selections(client: go.Client) -> None:
    """wrt, retain and batched take names and Values; a gradient that does not exist is None."""
    g = go.Graph()
    x, unused = g.input("x"), g.input("unused")
    square = x**2
    g.output("out", square.sum())
    r = client.vjp(g, {"x": [1, 2], unused: 3}, wrt=[x, "unused"], retain=square)
    assert {key: None if one is None else one.tolist() for key, one in r.gradients.items()} == {
        "x": [2, 4],
        "unused": None,
        "pow": [1, 1],
    }
    batched = client.vjp("sum(x**2)", {"x": [[1.0, 2.0], [3.0, 4.0]]}, batched="x")
    assert batched.outputs["out"].tolist() == [5, 25]
    assert batched.gradients["x"].tolist() == [[2, 4], [6, 8]]  # type: ignore[union-attr]


def test_numbers_take_the_outputs_dtype(client: go.Client) -> None:
    """A number as a cotangent or tangent is cast to the dtype where it goes."""
    x = np.array([1, 2], np.float32)
    r = client.vjp("x.sum()", {"x": x}, {"out": 2})
    assert r.gradients["x"].dtype == np.float32  # type: ignore[union-attr]
    assert r.gradients["x"].tolist() == [2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", sorted(dtypes.NUMBERS))
def test_every_dtype_there_and_back(client: go.Client, dtype: str) -> None:
    """Arrays of every dtype come back as they went."""
    kind = dtypes.TO_NUMPY[dtypes.NUMBERS[dtype]]
    array = np.array([[0, 1], [1, 2]]).astype(kind)
    outputs = client.evaluate("x.T", {"x": array}).outputs
    assert outputs["out"].dtype == kind
    assert outputs["out"].tobytes() == array.T.tobytes()


def test_tensors_of_the_servers_making(client: go.Client) -> None:
    """Random contents depend on their seed alone; fills are what they say."""
    g = go.Graph.parse("x + 0")
    one, same, other = (
        client.evaluate(g, {"x": go.normal((3, 4), "float32", seed=seed)}).outputs["out"] for seed in (1, 1, 2)
    )
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    assert client.evaluate(g, {"x": go.fill((2,), 1.5, "bfloat16")}).outputs["out"].dtype == ml_dtypes.bfloat16
    whole = client.evaluate(g, {"x": go.integers(100, 3, 5)}).outputs["out"]
    assert set(whole.tolist()) == {3, 4}


def test_seeds(client: go.Client) -> None:
    """seed=n is what torch.manual_seed(n) is, negative ones too."""
    import torch

    for seed in (0, 7, -1):
        torch.manual_seed(seed)
        expected = torch.rand(3, dtype=torch.float64)
        drawn = client.evaluate("rand_like(x)", {"x": np.zeros(3)}, seed=seed).outputs["out"]
        assert drawn.tolist() == expected.tolist()


def test_inspection(client: go.Client) -> None:
    """inspect tells what autograd sees."""
    g = go.Graph()
    a = g.input("a")
    with g.no_grad():
        g.output("silent", a * 2)
    g.output("b", (a * a).sum(name="b"))
    found = client.inspect(g, {"a": np.zeros((3, 3))})
    assert (found["a"].is_leaf, found["a"].grad_fn, found["a"].shape) == (True, None, (3, 3))
    assert (found["b"].grad_fn, found["b"].target) == ("SumBackward0", "aten.sum.default")
    assert (found["mul"].requires_grad, found["mul_1"].grad_fn) == (False, "MulBackward0")


def test_the_table_is_the_servers(client: go.Client) -> None:
    """The table that comes with the client is the one that the server serves, where both have the same torch."""
    from gradoracle.operators import table

    served = {one.name: one.schema for one in client.operators()}
    assert served == {name: one.text for name, one in table().served.items()}
    refused = {one.name: one.refused for one in client.operators(include_refused=True) if one.refused}
    assert refused == dict(table().refused)
    assert client.server_info().torch_version.startswith(table().torch)


@pytest.mark.parametrize(
    "text",
    [
        "softmax(x @ x.mT, dim=-1).sum()",
        "layer_norm(x, [4]) * gelu(x)",
        "x[..., [0, 2]] * x[:, None, 1:2]",
        "max(x, dim=0)[0] + split(x, 1)[0][0]",
        "einsum('ij,ij->i', x, x)",
        "x.to('float32').double() + x.clone(memory_format='contiguous_format')",
        "conv1d(x[None], x[None, :, :2], stride=2)",
    ],
)
def test_what_the_builder_makes_runs(client: go.Client, text: str) -> None:
    """Graphs of every kind of argument are understood by the server."""
    x = np.random.default_rng(0).normal(size=(3, 4))
    g = go.Graph.parse(text)
    result = client.vjp(g, {"x": x}, {"out": np.ones_like(client.evaluate(g, {"x": x}).outputs["out"])})
    assert result.gradients["x"].shape == x.shape  # type: ignore[union-attr]


# ---- Errors


@pytest.mark.parametrize(
    ("call", "kind", "reason"),
    [
        (lambda c: c.vjp("x*2", {"x": [1.0, 2.0]}), go.TensorError, "INVALID_COTANGENT"),
        (lambda c: c.vjp("x", {"y": 1.0}), go.TensorError, "INPUT_MISMATCH"),
        (lambda c: c.vjp("x", {"x": 1.0}, wrt="z"), go.InvalidRequestError, "INVALID_SELECTION"),
        (lambda c: c.evaluate("linalg_inv(x)", {"x": np.zeros((2, 2))}), go.ComputationError, "COMPUTATION_FAILED"),
        (lambda c: c.evaluate("x", {"x": 1.0}, device="cuda:77"), go.DeviceUnavailableError, "DEVICE_UNAVAILABLE"),
        (lambda c: c.evaluate(go.Graph(), {}), go.InvalidGraphError, "INVALID_GRAPH"),
    ],
)
def test_errors(client: go.Client, call: Any, kind: type[go.GradOracleError], reason: str) -> None:
    """Each fault of a request raises the exception of its reason, over a call and over a stream."""
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind
    assert caught.value.reason == reason


def test_errors_of_nodes(client: go.Client) -> None:
    """An error that torch raises names the node."""
    with pytest.raises(go.ComputationError) as caught:
        client.evaluate("linalg_inv(x, name='h')", {"x": np.zeros((2, 2))})
    assert caught.value.node == "h"
    assert 'node "h"' in str(caught.value)


# ---- Many at a time


def test_map(client: go.Client) -> None:
    """Hundreds of requests over one stream, each with its own answer."""
    numbers = range(300)
    found = client.map(go.request("vjp", POLYNOMIAL, {"x": float(number)}) for number in numbers)
    for number, result in zip(numbers, found, strict=True):
        assert result.gradients["x"] == 36 * number**3 + 6 * number**2 + 6 * number + 6
    unordered = client.map([go.request("evaluate", "x*2", {"x": n}, tag=n) for n in numbers], ordered=False, window=9)
    assert {one.tag: int(one.outputs["out"]) for one in unordered} == {n: 2 * n for n in numbers}


def test_what_is_no_request_in_a_map(client: go.Client) -> None:
    """None, as of a function that forgot to return one, ends nothing."""
    request = go.request("evaluate", "x + 1", {"x": 1.0})
    found = []
    with pytest.raises(TypeError, match=r"expected requests as gradoracle\.request.*, got NoneType"):
        found.extend(client.map(iter([request, None, request])))  # type: ignore[list-item]

    async def asynchronously() -> None:
        async with go.AsyncClient(client.address) as own:
            async for _ in own.map([None, request]):  # type: ignore[list-item]
                pass

    with pytest.raises(TypeError, match="got NoneType"):
        asyncio.run(asynchronously())


def test_calls_that_signals_interrupt(client: go.Client) -> None:
    """gRPC's locks, which an exception in the middle leaves as they are, are no matter of the next calls, nor of the
    end."""
    program = Path(__file__).parent / "interrupted_client.py"
    done = subprocess.run(
        [sys.executable, str(program), client.address, "300"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("answered\n", 0), done.stderr[-2000:]


def test_map_of_every_method(client: go.Client) -> None:
    """A stream carries any method, and errors as answers."""
    primals = {"x": [1.0, 2.0]}
    asked = [
        go.request("evaluate", "x", primals),
        go.request("vjp", "x.sum()", primals),
        go.request("jvp", "x", primals, {"x": [1, 1]}),
        go.request("jacobian", "x", primals),
        go.request("hessian", "x.sum()", primals),
        go.request("hvp", "x.sum()", primals, {"x": [1, 1]}),
        go.request("inspect", "x", primals),
        go.request("vjp", "x", primals, tag="wrong"),
        go.request("server_info"),
        go.request("operators", "softmax"),
    ]
    found = list(client.map(asked, return_exceptions=True))
    assert [type(one).__name__ for one in found] == [
        "EvaluateResult",
        "VjpResult",
        "JvpResult",
        "JacobianResult",
        "HessianResult",
        "HvpResult",
        "Inspection",
        "TensorError",
        "ServerInfo",
        "list",
    ]
    assert found[7].tag == "wrong"


def test_large_tensors(client: go.Client) -> None:
    """Tensors of many chunks come back whole, over a call that becomes a stream and over map."""
    x = np.random.default_rng(0).normal(size=(stream.UNARY_AT_MOST // 8 // 1000 + 1, 1000))
    expected = x * 2
    assert np.array_equal(client.vjp("sum(x**2)", {"x": x}).gradients["x"], expected)  # type: ignore[arg-type]
    small = np.ones(3)
    asked = [
        go.request("vjp", "sum(x**2 * y)", {"x": x, "y": 1.0}),
        go.request("vjp", "sum(x**2)", {"x": small}),
        go.request("vjp", "sum(x**2)", {"x": x.astype(np.float32)}),
    ]
    large, other, single = client.map(asked)
    assert np.array_equal(large.gradients["x"], expected)
    assert other.gradients["x"].tolist() == [2, 2, 2]
    assert np.array_equal(single.gradients["x"], x.astype(np.float32) * 2)


# ---- Threads and asyncio


def test_threads(client: go.Client) -> None:
    """One client serves many threads at once."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: float(client.evaluate("x*3", {"x": float(n)}).outputs["out"]), range(64)))
    assert found == [3.0 * n for n in range(64)]


async def test_asyncio(server: str) -> None:
    """The asyncio client does the same, many calls at once."""
    async with go.AsyncClient(server, channels=2) as client:
        many = await asyncio.gather(*(client.vjp(POLYNOMIAL, {"x": float(n)}) for n in range(32)))
        assert many[2].gradients["x"] == 330
        found = [one async for one in client.map(go.request("evaluate", "x", {"x": n}) for n in range(100))]
        assert [int(one.outputs["out"]) for one in found] == list(range(100))
        x = np.ones(stream.UNARY_AT_MOST // 8 + 1)
        assert (await client.vjp("sum(x**2)", {"x": x})).gradients["x"].sum() == 2 * x.size  # type: ignore[union-attr]
        with pytest.raises(go.TensorError):
            await client.vjp("x*2", {"x": [1.0, 2.0]})


# ---- Servers of one's own


def test_local(tmp_path: Path) -> None:
    """Client.local() starts a server with the settings given, and stops it with the client."""
    with go.Client.local(device="cpu", max_graph_nodes=2) as client:
        assert client.server_info().limits.graph_nodes == 2
        assert client.vjp("x**2", {"x": 3.0}).gradients["x"] == 6
        address = client.address
    with go.Client(address) as client, pytest.raises(go.ServerUnavailableError):
        client.server_info()


@pytest.mark.parametrize("kind", [go.Client, go.AsyncClient])
async def test_its_clients_share_memory_with_it(kind: type[Any]) -> None:
    """Large tensors go there and back as memory files, with the bits that they have over gRPC, which can be had too."""
    x = np.random.default_rng(0).normal(size=200_000)

    async def gradient(client: Any) -> Any:
        found = client.vjp("sum(sin(x))", {"x": x})
        return (await found if inspect.isawaitable(found) else found).gradients["x"]

    async def closed(client: Any) -> None:
        found = client.close()
        if inspect.isawaitable(found):
            await found

    with go.local_server(device="cpu", threads=1) as address:
        sharing, plain, by_name = kind(address), kind(address, shared_memory=False), kind(str(address))
        found = [await gradient(client) for client in (sharing, plain, by_name)]
        assert [True, False, True] == [isinstance(one.base, shared_memory._Held) for one in found]
        assert 1 == len({one.tobytes() for one in found})
        for client in (sharing, plain, by_name):
            await closed(client)
    own = kind.local(device="cpu")
    assert isinstance((await gradient(own)).base, shared_memory._Held)
    await closed(own)


@pytest.mark.parametrize("missing", ["asked", "memory files"])
def test_a_server_of_ones_own_without_shared_memory(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody wants it, or the system has none, all goes through gRPC."""
    settings = {"shared_memory": False} if missing == "asked" else {}
    if missing == "memory files":
        monkeypatch.delattr(os, "memfd_create")
    x = np.ones(100_000)
    with go.local_server(device="cpu", **settings) as address, go.Client(address) as client:
        found = client.vjp("sum(x**2)", {"x": x}).gradients["x"]
        assert found is not None
        assert 2 * x.size == found.sum()
        assert not isinstance(found.base, shared_memory._Held)
        assert not client._direct.idle


def test_settings_of_the_environment_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server is private: what the environment says of servers is not for it."""
    monkeypatch.setenv("GRADORACLE_TOKEN_FILE", "/nonexistent")
    with go.local_server(device="cpu") as address:
        assert address.metrics.startswith("127.0.0.1:")


def test_a_server_that_does_not_start() -> None:
    """The error shows what the server wrote."""
    with pytest.raises(go.ServerUnavailableError) as caught, go.local_server(workers=0):
        pass
    assert str(caught.value).startswith("the local server did not start (exit code 2); it wrote:\n")
    assert "--workers" in str(caught.value)


def test_a_server_that_is_slow_to_start() -> None:
    """A server that takes too long is an error, and is stopped."""
    with (
        pytest.raises(go.ServerUnavailableError, match=r"was not ready within 0\.01 s"),
        go.local_server(device="cpu", start_timeout=0.01),
    ):
        pass


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that starts a local server, prints its address, and waits."""
    program = (
        "import sys, gradoracle as go\n"
        "with go.local_server(device='cpu') as address:\n"
        "    print(address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_local_server_dies_with_its_client(child: subprocess.Popen[str]) -> None:
    """Even if the client is killed, its server stops."""
    assert child.stdout is not None
    address = child.stdout.readline().strip()
    with go.Client(address) as client:
        client.server_info()
        child.kill()
        child.wait()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                client.server_info()
            except go.ServerUnavailableError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server still answers")

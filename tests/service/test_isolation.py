"""What one request leaves behind for another to see: nothing in memory, generators, caches or logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import front_server
import grpc
import numpy as np
import pytest
import real_server

import gradoracle as go
from gradoracle.v1 import graph_pb2, service_pb2, service_pb2_grpc

SECRET = 987654321.0123
DIGITS = "98765432"
Stub = service_pb2_grpc.GradientServiceStub


@pytest.fixture(scope="module")
def running() -> Iterator[front_server.Server]:
    with real_server.start("--workers", "1", "--log-format", "json") as server:
        yield server


@pytest.fixture(scope="module")
def stub(running: front_server.Server) -> Iterator[Stub]:
    with front_server.connect(running) as stub:
        yield stub


@pytest.fixture(scope="module")
def client(running: front_server.Server) -> Iterator[go.Client]:
    with go.Client(running.address) as client:
        yield client


def argument(value: Any) -> graph_pb2.Argument:
    if isinstance(value, str):
        return graph_pb2.Argument(value=value)
    if isinstance(value, list):
        return graph_pb2.Argument(integers=graph_pb2.IntList(values=value))
    if isinstance(value, float):
        return graph_pb2.Argument(real=value)
    return graph_pb2.Argument(integer=value)


def request(target: str, *args: Any, x: np.ndarray, i: np.ndarray) -> service_pb2.EvaluateRequest:
    """y = target(args), written out by hand: the client would refuse some of it. Strings are references."""
    message = service_pb2.EvaluateRequest()
    message.graph.nodes.add(name="y", target=f"aten.{target}", args=[argument(one) for one in args])
    message.graph.outputs.add(name="y", value="y")
    for name, array, dtype in (("x", x, "DTYPE_FLOAT64"), ("i", i, "DTYPE_INT64")):
        message.graph.inputs.add(name=name, requires_grad=name == "x")
        primal = message.primals.add(name=name).tensor
        primal.dtype, primal.shape[:], primal.data = dtype, array.shape, array.tobytes()
    return message


def leave_secrets(stub: Stub) -> None:
    """Requests that fill memory of many sizes with the secret, and give it up again."""
    for size in (1, 4, 20, 100, 1000, 5000, 20_000, 200_000):
        full = np.full(size, SECRET)
        answer = stub.Evaluate(request("mul.Tensor", "x", "x", x=full, i=np.arange(2)), timeout=60)
        assert np.frombuffer(answer.outputs[0].tensor.data)[0] == SECRET * SECRET


UNINITIALISED = {
    "empty.memory_format": ([1000],),
    "new_empty.default": ("x", [1000]),
    "new_empty_strided.default": ("x", [1000], [1]),
    "empty_strided.default": ([1000], [1]),
    "empty_permuted.default": ([1000], [0]),
    "empty_like.default": ("x",),
    "resize_.default": ("x", [1000]),
    "resize.default": ("x", [1000]),
    "resize_as_.default": ("x", "i"),
    "set_.source_Tensor": ("x", "i"),
    "_resize_output.default": ("x", [1000], 0),
    "_reshape_alias.default": ("x", [1000], [1]),
    "_unsafe_view.default": ("x", [4]),
    "_unsafe_index.Tensor": ("x", "i"),
    "as_strided_.default": ("x", [1000], [1]),
    "_nested_view_from_buffer.default": ("x", "i", "i", "i"),
    "to_padded_tensor.default": ("x", 0.0),
}


@pytest.mark.parametrize("target", UNINITIALISED)
def test_uninitialised_memory_is_not_served(target: str, stub: Stub) -> None:
    """Operators that would show what memory held before, or reach past a tensor's own, are refused by name."""
    message = request(target, *UNINITIALISED[target], x=np.ones(4), i=np.arange(4))
    refusal = front_server.failing(lambda: stub.Evaluate(message, timeout=60))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "OPERATOR_REFUSED") == (refusal.code, refusal.reason)
    assert refusal.message.startswith(f'node "y": "aten.{target}" is not served: it ')


BEYOND = {
    "as_strided": ("as_strided.default", ("x", [1000], [1]), "out of bounds for storage"),
    "as_strided from an offset": ("as_strided.default", ("x", [4], [1], 5000), "out of bounds for storage"),
    "as_strided from before": ("as_strided.default", ("x", [4], [1], -1), "invalid storage offset -1"),
    "as_strided by a stride": ("as_strided.default", ("x", [2], [2**40]), "out of bounds for storage"),
    "as_strided_copy": ("as_strided_copy.default", ("x", [1000], [1]), "out of bounds for storage"),
    "as_strided_scatter": ("as_strided_scatter.default", ("x", "x", [1000], [1]), ""),
    "select": ("select.int", ("x", 0, 1000), "out of range"),
    "narrow": ("narrow.default", ("x", 0, 2, 1000), "exceeds dimension size"),
    "unfold": ("unfold.default", ("x", 0, 1000, 1), "maximum size"),
    "index_select": ("index_select.default", ("x", 0, "i"), "out of range"),
    "gather": ("gather.default", ("x", 0, "i"), "out of bounds"),
    "take": ("take.default", ("x", "i"), "out of range"),
    "view": ("view.default", ("x", [1000]), "invalid for input of size"),
    "reshape": ("reshape.default", ("x", [1000]), "invalid for input of size"),
    "expand": ("expand.default", ("x", [1000]), "must match the existing size"),
    "embedding": ("embedding.default", ("m", "i"), "out of range"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_nothing_is_read_beyond_a_tensor(name: str, stub: Stub) -> None:
    """Views, indices and shapes that reach past a tensor's memory are errors, whatever lies there."""
    leave_secrets(stub)
    target, args, words = BEYOND[name]
    shape = (2, 2) if "m" in args else (4,)
    given = ["x" if one == "m" else one for one in args]
    message = request(target, *given, x=np.ones(shape), i=np.array([0, 1000]))
    refusal = front_server.failing(lambda: stub.Evaluate(message, timeout=60))
    assert grpc.StatusCode.INVALID_ARGUMENT is refusal.code
    assert words in refusal.message
    assert DIGITS not in refusal.message


FRESH: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "zeros_like.default": (("x",), (1000,)),
    "rand_like.default": (("x",), (1000,)),
    "new_zeros.default": (("x", [1000]), (4,)),
    "constant_pad_nd.default": (("x", [0, 996]), (4,)),
    "slice_backward.default": (("x", [1000], 0, 0, 4, 1), (4,)),
    "select_backward.default": (("x", [1000], 0, 3), ()),
}


@pytest.mark.parametrize("target", FRESH)
def test_fresh_memory_holds_no_secret(target: str, stub: Stub) -> None:
    """Tensors that the server makes hold what they are said to hold, after others held the secret."""
    args, shape = FRESH[target]
    leave_secrets(stub)
    message = request(target, *args, x=np.zeros(shape), i=np.arange(2))
    found = np.frombuffer(stub.Evaluate(message, timeout=60).outputs[0].tensor.data)
    assert found.size == 1000
    assert (np.abs(found) <= 1).all()
    if "rand" not in target:
        assert not found.any()


def test_private_operators_show_no_memory(stub: Stub, client: go.Client) -> None:
    """One that returns 18 numbers and writes 3 of them, given shapes that do not belong together: the rest is zeros."""
    g = go.Graph()
    x = g.input("x")
    scale = g.ops.ones([2, 3, 3], dtype="float64")
    norms = g.call("aten._weight_norm_interface.default", x, scale, 0)[1]
    g.output("y", norms)
    for _ in range(5):
        leave_secrets(stub)
        found = client.evaluate(g, {"x": np.ones(3)}).outputs["y"].ravel()
        assert ([1.0] * 3, [0.0] * 15) == (found[:3].tolist(), found[3:].tolist())


def test_generators_begin_anew_with_each_request(client: go.Client) -> None:
    """What one request drew, and from which seed, decides nothing of the next, seeded or not."""
    g = go.Graph()
    g.output("y", go.ops.rand_like(g.input("x")))

    def drawn(seed: int | None) -> list[float]:
        found: list[float] = client.evaluate(g, {"x": np.zeros(5)}, seed=seed).outputs["y"].tolist()
        return found

    plain, seeded = drawn(None), drawn(7)
    for other in (None, 1, 2**63 - 1):
        client.evaluate("bernoulli(x)", {"x": np.full(7, 0.5)}, seed=other)
        drawn(other)
        assert (plain, seeded) == (drawn(None), drawn(7))
    assert plain != seeded


def test_a_cached_graph_is_that_of_its_own_contents(client: go.Client) -> None:
    """Graphs that differ in a constant alone, or in a name alone, never stand in for one another."""

    def ask(constant: float) -> float:
        g = go.Graph()
        g.output("y", g.input("x") + g.constant(np.array(constant)))
        return float(client.evaluate(g, {"x": 0.0}).outputs["y"])

    assert [SECRET, 1.0, SECRET, 0.0, -0.0] == [ask(one) for one in (SECRET, 1.0, SECRET, 0.0, -0.0)]


def failures() -> dict[str, tuple[str, Callable[[go.Client], object]]]:
    """Requests that fail with a value of theirs in torch's words: the digits that the caller sees, and the call."""
    index = np.array([987654321])
    rows = np.array([[0.5, -SECRET], [1, 1]])

    def call(build: Callable[[Any, Any], Any], x: np.ndarray, i: np.ndarray = index) -> Callable[[go.Client], object]:
        g = go.Graph()
        g.output("out", build(g.input("x"), g.input("i", requires_grad=False)))
        return lambda client: client.evaluate(g, {"x": x, "i": i})

    return {
        "index": (DIGITS, call(lambda x, i: x[i], np.ones(4))),
        "target": (DIGITS, call(lambda x, i: go.ops.nll_loss(x, i), np.ones((1, 4)))),
        "embedding": ("", call(lambda x, i: go.ops.embedding(x, i), np.ones((4, 4)))),
        "probability": ("", call(lambda x, i: go.ops.bernoulli(x), np.full(3, SECRET))),
        "weights": ("", call(lambda x, i: go.ops.multinomial(x, 1), rows)),
        "singular": ("", call(lambda x, i: go.ops.linalg_inv(x), np.full((2, 2), SECRET))),
        "crash": ("", call(lambda x, i: go.ops.max_pool2d_with_indices_backward(
            x, x, [3, 3], [1, 1], [1, 1], [1, 1], False, i), np.full((1, 1, 4, 4), SECRET),
            np.full((1, 1, 4, 4), 2**40 + 987654321))),
    }  # fmt: skip


def fail(name: str, client: go.Client, running: front_server.Server) -> None:
    """One of the failures, after which the log must not hold the values."""
    digits, call = failures()[name]
    with pytest.raises(go.GradOracleError) as caught:
        call(client)
    assert digits in str(caught.value)
    if name == "crash":
        front_server.eventually(lambda: "SIGSEGV" in running.log, 60)
    assert client.evaluate("x + 1", {"x": SECRET}).outputs["out"] == SECRET + 1
    for trace in (DIGITS, np.float64(SECRET).hex()[4:12], np.float64(SECRET).tobytes().hex()):
        assert trace not in running.log


@pytest.mark.parametrize("name", failures())
def test_logs_hold_no_values(name: str, client: go.Client, running: front_server.Server) -> None:
    """What the caller is told of their values, and what a crash was about, does not get into the log."""
    fail(name, client, running)


def test_workers_of_a_real_server_are_confined(client: go.Client, running: front_server.Server) -> None:
    """Each has given up its privileges and is under a filter; the log says by what."""
    line = next(one for one in running.log.splitlines() if "are confined by: " in one)
    held = line.partition("are confined by: ")[2].strip('"}').split(", ")
    if "no privileges" not in held:
        pytest.skip("this container lets nobody give up privileges")
    pids = real_server.workers(running)
    assert pids
    wanted = ["NoNewPrivs:\t1", f"CapEff:\t{'0' * 16}", *(["Seccomp:\t2"] if "seccomp" in held else [])]
    for pid in pids:  # of which one may just be coming up, or be gone
        front_server.eventually(
            lambda pid=pid: not (found := real_server.status(pid)) or all(one in found for one in wanted), 60
        )
    assert "NoNewPrivs:\t0" in real_server.status(running.process.pid)


def test_confinement_can_be_left_out_and_text_logs_hold_no_values_either() -> None:
    """--sandbox off is what it says, and the log says so."""
    with real_server.start("--workers", "1", "--sandbox", "off") as server, go.Client(server.address) as client:
        assert client.evaluate("x + 1", {"x": 1.0}).outputs["out"] == 2.0
        assert "workers of cpu are confined by: nothing" in server.log
        assert [] == real_server.workers(server)
        for name in failures():
            fail(name, client, server)

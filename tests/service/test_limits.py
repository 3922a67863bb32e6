"""Memory, before work: requests that would take more than the server allows are refused with limit, allowed and asked.

Each of these is small on the wire. None of them may cost the worker: the server says how many it had to replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import front_server
import grpc
import numpy as np
import pytest
import real_server

import gradoracle as go
from gradoracle.v1 import service_pb2, tensor_pb2

ALLOWED = 256 * 2**20
HUGE = 10**12
INPUTS = {"v": np.linspace(0.1, 1, 20), "m": np.eye(10), "i": np.arange(20)}


@pytest.fixture(scope="module")
def running() -> Iterator[front_server.Server]:
    with real_server.start("--workers", "1", "--max-memory-bytes", str(ALLOWED)) as server:
        yield server


@pytest.fixture
def client(running: front_server.Server) -> Iterator[go.Client]:
    """A client; afterwards the server must not have replaced a worker."""
    before = real_server.replaced(running)
    with go.Client(running.address) as client:
        yield client
        assert client.evaluate("x + 1", {"x": 1.0}).outputs["out"] == 2.0
    assert before == real_server.replaced(running)


Build = Callable[[Callable[..., Any], Any, Any, Any], Any]
"""What is asked for, given `call` (an overload's name, less "aten.", and its arguments) and the inputs v, m and i."""

BOMBS: dict[str, Build] = {
    "zeros": lambda call, v, m, i: call("zeros.default", [HUGE]),
    "zeros, uncountable": lambda call, v, m, i: call("zeros.default", [2**40, 2**40]),
    "full": lambda call, v, m, i: call("full.default", [10**6, 10**6], 1.0),
    "new_ones": lambda call, v, m, i: call("new_ones.default", v, [HUGE]),
    "randn": lambda call, v, m, i: call("randn.default", [HUGE]),
    "arange": lambda call, v, m, i: call("arange.default", HUGE),
    "linspace": lambda call, v, m, i: call("linspace.default", 0.0, 1.0, HUGE),
    "eye": lambda call, v, m, i: call("eye.default", 10**7),
    "tril_indices": lambda call, v, m, i: call("tril_indices.default", 10**6, 10**6),
    "randperm": lambda call, v, m, i: call("randperm.default", HUGE),
    "hann_window": lambda call, v, m, i: call("hann_window.default", HUGE),
    "repeat": lambda call, v, m, i: call("repeat.default", m, [10**6, 10**6]),
    "tile": lambda call, v, m, i: call("tile.default", v, [10**10]),
    "repeat_interleave": lambda call, v, m, i: call("repeat_interleave.self_int", v, 10**10),
    "one_hot": lambda call, v, m, i: call("one_hot.default", i, HUGE),
    "combinations": lambda call, v, m, i: call("combinations.default", v, 9),
    "combinations, more than numbers count": lambda call, v, m, i: call("combinations.default", v, 10**15),
    "cartesian_prod": lambda call, v, m, i: call("cartesian_prod.default", [v] * 12),
    "meshgrid": lambda call, v, m, i: call("stack.default", call("meshgrid.default", [v] * 9)),
    "vander": lambda call, v, m, i: call("linalg_vander.default", v, N=10**10),
    "bincount": lambda call, v, m, i: call("bincount.default", i, None, HUGE),
    "histc": lambda call, v, m, i: call("histc.default", v, HUGE),
    "multinomial": lambda call, v, m, i: call("multinomial.default", v, HUGE, True),
    "pad": lambda call, v, m, i: call("pad.default", m, [10**9, 10**9]),
    "constant_pad_nd": lambda call, v, m, i: call("constant_pad_nd.default", m, [0, 0, HUGE, 0]),
    "expand and contiguous": lambda call, v, m, i: call("contiguous.default", call("expand.default", v, [10**9, 20])),
    "expand as an output": lambda call, v, m, i: call("expand.default", v, [10**9, 20]),
    "stack of expanded": lambda call, v, m, i: call("stack.default", [call("expand.default", v, [10**7, 20])] * 3),
    "add of expanded": lambda call, v, m, i: call("add.Tensor", v, call("expand.default", v, [10**9, 20])),
    "outer": lambda call, v, m, i: call("outer.default", *[call("reshape.default", big(call, v), [-1])] * 2),
    "kron": lambda call, v, m, i: call("kron.default", *[big(call, v)] * 2),
    "cdist": lambda call, v, m, i: call("cdist.default", *[call("reshape.default", big(call, v), [-1, 1])] * 2),
    "einsum": lambda call, v, m, i: call("einsum.default", "ij,kl->ijkl", [big(call, v)] * 2),
    "block_diag": lambda call, v, m, i: call("block_diag.default", [big(call, v)] * 300),
    "diag_embed": lambda call, v, m, i: call("diag_embed.default", call("reshape.default", big(call, v), [-1])),
    "matrix_power": lambda call, v, m, i: call("matrix_power.default", call("eye.default", 5_000), 2**62),
    "matrix_exp": lambda call, v, m, i: call("matrix_exp.default", call("eye.default", 5_000)),
    "im2col": lambda call, v, m, i: call("im2col.default", image(call, m), [3, 3], [1, 1], [10**6, 10**6], [1, 1]),
    "unfold": lambda call, v, m, i: call(
        "contiguous.default", call("unfold.default", call("zeros.default", [100_000]), 0, 50_000, 1)
    ),
    "col2im": lambda call, v, m, i: call(
        "col2im.default", call("expand.default", v, [1, 1, 20]), [10**6, 10**6], [1, 1], [1, 1], [0, 0], [10**6, 51_000]
    ),
    "upsample": lambda call, v, m, i: call("upsample_nearest2d.vec", image(call, m), [10**6, 10**6], None),
    "conv2d": lambda call, v, m, i: call("conv2d.default", *[image(call, m)] * 2, None, [1, 1], [10**6, 10**6]),
    "adaptive_avg_pool2d": lambda call, v, m, i: call("adaptive_avg_pool2d.default", image(call, m), [10**6, 10**6]),
    "affine_grid": lambda call, v, m, i: call(
        "affine_grid_generator.default", call("zeros.default", [1, 2, 3]), [1, 1, 10**6, 10**6], True
    ),
    "fft": lambda call, v, m, i: call("fft_fft.default", v, HUGE),
    "tensor_split": lambda call, v, m, i: call(
        "stack.default", call("tensor_split.sections", v, 10**9)
    ),
    "unbind": lambda call, v, m, i: call(
        "stack.default", call("unbind.int", call("expand.default", call("sum.default", v), [10**9]))
    ),
    "what depends on values": lambda call, v, m, i: call("masked_select.default", v, call("gt.Scalar", v, -1.0)).repeat(
        [10**11]
    ),
    "repeat_interleave by values": lambda call, v, m, i: call(
        "repeat_interleave.self_Tensor", v, call("mul.Scalar", call("add.Scalar", i, 1), 10**10)
    ),
    "one_hot by values": lambda call, v, m, i: call("one_hot.default", call("mul.Scalar", i, 10**10)),
}  # fmt: skip


def big(call: Callable[..., Any], v: Any) -> Any:
    """160 kB, of 20 numbers."""
    return call("contiguous.default", call("expand.default", v, [1000, 20]))


def image(call: Callable[..., Any], m: Any) -> Any:
    return call("reshape.default", m, [1, 1, 10, 10])


def graph_of(build: Build) -> go.Graph:
    g = go.Graph()
    inputs = [g.input(name, requires_grad=name != "i") for name in INPUTS]
    g.output("out", build(lambda target, *args, **kwargs: g.call(f"aten.{target}", *args, **kwargs), *inputs))
    return g


def check(error: go.ResourceLimitError) -> None:
    """The three figures, in the metadata and in the words."""
    assert ("LIMIT_EXCEEDED", "max-memory-bytes") == (error.reason, error.metadata["limit"])
    assert str(ALLOWED) == error.metadata["allowed"]
    asked = error.metadata["asked"]
    assert asked == f"more than {ALLOWED}" or int(asked) > ALLOWED
    assert "memory" in str(error) or "allocate" in str(error)


@pytest.mark.parametrize("name", BOMBS)
def test_small_requests_for_much_memory(name: str, client: go.Client) -> None:
    """Refused before work, or at the latest by the allocator: with limit, allowed and asked, and the node at fault."""
    with pytest.raises(go.ResourceLimitError) as caught:
        client.evaluate(graph_of(BOMBS[name]), INPUTS)
    check(caught.value)
    if "output" not in str(caught.value)[:6]:
        assert caught.value.node
        assert f'node "{caught.value.node}": aten.' in str(caught.value)


def test_the_words_of_a_refusal(client: go.Client) -> None:
    """Location, what is asked for and what is allowed."""
    with pytest.raises(go.ResourceLimitError) as caught:
        client.evaluate("x + zeros([1000000000000])", {"x": np.zeros(1)})
    expected = (
        'node "zeros": aten.zeros.default: with a float32 tensor of shape [1000000000000] the request needs '
        f"4000000000008 bytes, over the server's limit of {ALLOWED} for one request (--max-memory-bytes)"
    )
    assert expected == str(caught.value)
    assert {
        "limit": "max-memory-bytes", "allowed": str(ALLOWED), "asked": "4000000000008", "node": "zeros",
        "target": "aten.zeros.default",
    } == caught.value.metadata  # fmt: skip


N = 20_000
METHODS: dict[str, Callable[[go.Client], object]] = {
    "jvp": lambda client: client.jvp("outer(x, x)", {"x": np.zeros(N)}, {"x": np.ones(N)}),
    "vjp": lambda client: client.vjp("outer(x, x).sum()", {"x": np.zeros(N)}),
    "vjp, for what it keeps": lambda client: client.vjp(
        "exp(exp(exp(exp(exp(exp(x)))))).sum()", {"x": np.zeros(6_000_000)}
    ),
    "jacobian": lambda client: client.jacobian("exp(x)", {"x": np.zeros(N)}),
    "hessian": lambda client: client.hessian("exp(x).sum()", {"x": np.zeros(N)}),
    "batched vjp": lambda client: client.vjp(
        "(x * y).sum()", {"x": np.zeros((5000, 1)), "y": np.zeros(N)}, batched=["x"]
    ),
    "inspect": lambda client: client.inspect(
        "exp(exp(exp(exp(exp(exp(exp(x)))))))", {"x": np.zeros(5_000_000)}
    ),
    "check": lambda client: client.check("exp(exp(exp(x))).sum()", {"x": np.zeros(5_000_000)}),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_counts_what_it_needs(method: str, client: go.Client) -> None:
    """Values kept for the pull-back, blocks of Jacobians and Hessians, and examples count."""
    with pytest.raises(go.ResourceLimitError) as caught:
        METHODS[method](client)
    check(caught.value)


def test_values_that_are_given_up_do_not_count(client: go.Client) -> None:
    """A long chain holds two of its values at once: 12 times 40 MB run within 256 MiB."""
    result = client.evaluate(go.Graph.parse("x" + " + x" * 12 + " - 13 * x"), {"x": np.ones(5_000_000)})
    assert not result.outputs["out"].any()


@pytest.mark.parametrize("contents", ["fill", "random"])
def test_tensors_that_the_server_makes(contents: str, client: go.Client, running: front_server.Server) -> None:
    """Inputs that are drawn or filled in count before they are: each is within --max-tensor-bytes, all are not."""
    request = service_pb2.EvaluateRequest()
    request.graph.outputs.add(name="y", value="x0")
    for place in range(4):
        request.graph.inputs.add(name=f"x{place}")
        tensor = request.primals.add(name=f"x{place}").tensor
        tensor.dtype, tensor.shape[:] = tensor_pb2.DTYPE_FLOAT64, [10_000_000]
        if contents == "fill":
            tensor.fill.real = 1.0
        else:
            tensor.random.normal.mean = 0.0
    with front_server.connect(running) as stub:
        refusal = front_server.failing(lambda: stub.Evaluate(request, timeout=60))
    expected = (
        'primals["x3"]: with a float64 tensor of shape [10000000] the tensors of the request take 320000000 bytes, '
        f"over the server's limit of {ALLOWED} for one request (--max-memory-bytes)"
    )
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, expected) == (refusal.code, refusal.message)
    assert ("max-memory-bytes", str(ALLOWED), "320000000") == tuple(
        refusal.metadata[key] for key in ("limit", "allowed", "asked")
    )


def test_what_drawing_takes_counts_too(client: go.Client, running: front_server.Server) -> None:
    """Bools are drawn as int64, eight times their size."""
    request = service_pb2.EvaluateRequest()
    request.graph.inputs.add(name="x")
    request.graph.outputs.add(name="y", value="x")
    tensor = request.primals.add(name="x").tensor
    tensor.dtype, tensor.shape[:] = tensor_pb2.DTYPE_BOOL, [50_000_000]
    tensor.random.integers.high = 2
    with front_server.connect(running) as stub:
        refusal = front_server.failing(lambda: stub.Evaluate(request, timeout=60))
    assert ("LIMIT_EXCEEDED", "450000000") == (refusal.reason, refusal.metadata["asked"])


def test_the_limit_is_told(client: go.Client) -> None:
    """Callers can ask what they may have."""
    assert ALLOWED == client.server_info().limits.memory_bytes


def evaluated(running: front_server.Server, request: service_pb2.EvaluateRequest) -> service_pb2.EvaluateResponse:
    """The answer to a request as it is."""
    with front_server.connect(running) as stub:
        response: service_pb2.EvaluateResponse = stub.Evaluate(request, timeout=60)
    return response


def test_what_one_caller_left_behind_is_not_missed_by_the_next(client: go.Client, running: front_server.Server) -> None:
    """A graph is kept with its constants, but given up for a request that needs the memory that it takes."""
    left = service_pb2.EvaluateRequest()
    constant = left.graph.constants.add(name="c").value
    constant.dtype, constant.shape[:], constant.fill.real = tensor_pb2.DTYPE_FLOAT64, [25_000_000], 1.0
    node = left.graph.nodes.add(name="y", target="aten.sum.default")
    node.args.add(value="c")
    left.graph.outputs.add(name="y", value="y")
    needed = service_pb2.EvaluateRequest()
    needed.graph.inputs.add(name="x")
    needed.graph.nodes.add(name="y", target="aten.sum.default").args.add(value="x")
    needed.graph.outputs.add(name="y", value="y")
    tensor = needed.primals.add(name="x").tensor
    tensor.dtype, tensor.shape[:], tensor.fill.real = tensor_pb2.DTYPE_FLOAT64, [25_000_000], 1.0

    for request in (needed, left, needed):
        (output,) = evaluated(running, request).outputs
        assert np.frombuffer(output.tensor.data).tolist() == [25e6]


def test_a_message_that_cannot_be_read_for_want_of_memory(client: go.Client, running: front_server.Server) -> None:
    """It is refused for that, and not as malformed: protobuf's own error is the same for both."""
    request = service_pb2.EvaluateRequest()
    request.graph.outputs.add(name="y", value="x")
    request.graph.inputs.add(name="x")
    request.graph.constants.add(name="c").value.data = bytes(200 * 2**20)
    with front_server.connect(running) as stub:
        refusal = front_server.failing(lambda: stub.Evaluate(request, timeout=60))
    assert ("LIMIT_EXCEEDED", "max-memory-bytes", str(ALLOWED), f"more than {ALLOWED}") == (
        refusal.reason,
        *(refusal.metadata[key] for key in ("limit", "allowed", "asked")),
    )


def test_large_data_need_no_memory_to_be_read(running: front_server.Server) -> None:
    """What is wrong with a tensor is told though its data would not fit twice: they are left where they came."""
    request = service_pb2.EvaluateRequest()
    request.graph.outputs.add(name="y", value="x")
    request.graph.inputs.add(name="x")
    request.primals.add(name="x").tensor.data = bytes(200 * 2**20)
    with front_server.connect(running) as stub:
        refusal = front_server.failing(lambda: stub.Evaluate(request, timeout=60))
    assert ("INVALID_TENSOR", "a dtype") == (refusal.reason, refusal.metadata["expected"])

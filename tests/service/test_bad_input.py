"""Bad input through a real server, by plain gRPC: the status, the words, the place, and a server that goes on.

Plain gRPC, because the client library would refuse much of this before it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from gradoracle.v1 import graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2

OK, INVALID_ARGUMENT = 0, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def stub(server: str) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    with grpc.insecure_channel(server) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


def ref(name: str) -> graph_pb2.Argument:
    return graph_pb2.Argument(value=name)


def node(name: str, target: str, *args: graph_pb2.Argument) -> graph_pb2.Node:
    return graph_pb2.Node(name=name, target=target, args=args)


def graph(*nodes: graph_pb2.Node, output: str = "y", inputs: tuple[str, ...] = ("x",)) -> graph_pb2.Graph:
    return graph_pb2.Graph(
        inputs=[graph_pb2.Input(name=name) for name in inputs],
        nodes=nodes,
        outputs=[graph_pb2.Output(name="out", value=output)],
    )


def tensor(shape: tuple[int, ...] = (2,), **changes: Any) -> tensor_pb2.Tensor:
    data = np.ones([max(size, 0) for size in shape]).tobytes()
    fields = {"dtype": tensor_pb2.DTYPE_FLOAT64, "shape": shape, "data": data}
    return tensor_pb2.Tensor(**{**fields, **changes})


def request(made: graph_pb2.Graph, x: tensor_pb2.Tensor | None = None, **fields: Any) -> service_pb2.ComputeVjpRequest:
    primals = [tensor_pb2.NamedTensor(name="x", tensor=x if x is not None else tensor())]
    return service_pb2.ComputeVjpRequest(graph=made, **{"primals": primals, **fields})


NEG = node("y", "aten.neg.default", ref("x"))
INTEGER = graph_pb2.Argument(integer=3)

CASES = {
    "unknown node": (
        request(graph(node("y", "aten.mul.Tensor", ref("x"), ref("qq")))),
        "UNKNOWN_REFERENCE",
        'node "y": refers to "qq", and nothing has that name; known here: "x"',
        "graph.nodes[0].args[1]",
    ),
    "cycle": (
        request(graph(node("y", "aten.neg.default", ref("z")), node("z", "aten.neg.default", ref("y")))),
        "CYCLE",
        'node "y": its arguments depend on its own result: y -> z -> y',
        "graph.nodes[0].args[0]",
    ),
    "duplicate name": (
        request(graph(NEG, NEG)),
        "DUPLICATE_NAME",
        'graph.nodes[1].name: the name "y" stands twice; inputs, constants and nodes share one set of names',
        "graph.nodes[1].name",
    ),
    "too few arguments": (
        request(graph(node("y", "aten.mm.default", ref("x")))),
        "INVALID_ARGUMENT",
        'node "y": aten.mm.default is missing its argument "mat2", got 1',
        "graph.nodes[0]",
    ),
    "too many arguments": (
        request(graph(node("y", "aten.neg.default", ref("x"), ref("x")))),
        "INVALID_ARGUMENT",
        'node "y": aten.neg.default takes at most 1 positional argument, got 2',
        "graph.nodes[0]",
    ),
    "argument of the wrong kind": (
        request(graph(node("y", "aten.mm.default", ref("x"), INTEGER))),
        "INVALID_ARGUMENT",
        'node "y": aten.mm.default argument 1 "mat2" expects a tensor, got int 3',
        "graph.nodes[0].args[1]",
    ),
    "argument without a kind": (
        request(graph(node("y", "aten.neg.default", graph_pb2.Argument()))),
        "INVALID_ARGUMENT",
        'node "y": args[0]: an argument without a kind: expected one of Argument.kind, got none',
        "graph.nodes[0].args[0]",
    ),
    "unknown dtype of an argument": (
        request(graph(node("y", "aten.to.dtype", ref("x"), graph_pb2.Argument(dtype=77)))),
        "INVALID_ARGUMENT",
        'node "y": args[1]: unknown dtype: expected a number of the proto\'s dtype enum, got number 77',
        "graph.nodes[0].args[1]",
    ),
    "unknown device of an argument": (
        request(graph(node("y", "aten.neg.default", graph_pb2.Argument(device="tpu-v9!")))),
        "INVALID_ARGUMENT",
        'node "y": args[0]: unknown device: expected "cpu", "cuda" or "cuda:N", got \'tpu-v9!\'',
        "graph.nodes[0].args[0]",
    ),
    "unknown dtype of a tensor": (
        request(graph(NEG), tensor(dtype=99)),
        "INVALID_TENSOR",
        'primals["x"]: expected a dtype of gradoracle.v1.Dtype, got number 99',
        'primals["x"]',
    ),
    "data too short": (
        request(graph(NEG), tensor((2, 3), data=bytes(40))),
        "INVALID_TENSOR",
        'primals["x"]: a float64 tensor of shape [2, 3] needs 48 bytes of data, got 40 bytes',
        'primals["x"]',
    ),
    "data too long": (
        request(graph(NEG), tensor((2, 3), data=bytes(56))),
        "INVALID_TENSOR",
        'primals["x"]: a float64 tensor of shape [2, 3] needs 48 bytes of data, got 56 bytes',
        'primals["x"]',
    ),
    "negative size": (
        request(graph(NEG), tensor((2, -3))),
        "INVALID_TENSOR",
        'primals["x"]: sizes must not be negative, got shape [2, -3]',
        'primals["x"]',
    ),
    "output that does not exist": (
        request(graph(NEG, output="yes")),
        "UNKNOWN_REFERENCE",
        'output "out": refers to "yes", and nothing has that name',
        "graph.outputs[0].value",
    ),
    "no graph": (
        service_pb2.ComputeVjpRequest(),
        "INVALID_GRAPH",
        "graph.outputs: expected at least one output, got none",
        "graph.outputs",
    ),
    "missing primal": (
        request(graph(NEG), primals=[]),
        "INPUT_MISMATCH",
        'primals: no tensor for the input "x"',
        "primals",
    ),
    "primal twice": (
        request(graph(NEG), primals=[tensor_pb2.NamedTensor(name="x", tensor=tensor())] * 2),
        "DUPLICATE_NAME",
        'primals: the name "x" stands twice',
        "primals",
    ),
    "no cotangent": (
        request(graph(NEG)),
        "INVALID_COTANGENT",
        'grad can be implicitly created only for scalar outputs, but output "out" has shape (2,); '
        "give a cotangent of that shape",
        "cotangents",
    ),
    "wrt twice": (
        request(graph(NEG), wrt=["x"], retain=["y", "y"]),
        "DUPLICATE_NAME",
        'retain: the name "y" stands twice',
        "retain",
    ),
    "torch raises": (
        request(graph(node("y", "aten.mm.default", ref("x"), ref("x")))),
        "COMPUTATION_FAILED",
        'node "y": aten.mm.default: self must be a matrix',
        "",
    ),
}


def failure(stub: service_pb2_grpc.GradientServiceStub, message: Any) -> tuple[grpc.RpcError, status_pb2.Status]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ComputeVjp(message, timeout=30)
    trailers = dict(caught.value.trailing_metadata())
    return caught.value, status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


@pytest.mark.parametrize("case", CASES)
def test_bad_requests_get_a_status_with_location_expected_and_got(
    case: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    """INVALID_ARGUMENT, the message, ErrorInfo with the reason and BadRequest with the field; the next call works."""
    message, reason, text, field = CASES[case]
    error, status = failure(stub, message)
    assert error.code() is INVALID_ARGUMENT
    assert error.details() == status.message == text
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "gradoracle.v1")
    assert status.details[1].Unpack(bad)
    assert (bad.field_violations[0].field, bad.field_violations[0].description) == (field, text)
    good = request(graph(NEG), cotangents=[tensor_pb2.NamedTensor(name="out", tensor=tensor())])
    gradient = stub.ComputeVjp(good, timeout=30).gradients[0]
    assert np.frombuffer(gradient.tensor.data).tolist() == [-1.0, -1.0]


def test_bytes_that_are_no_message(server: str) -> None:
    """What is no request at all is INVALID_ARGUMENT too, with the type that was expected."""
    with grpc.insecure_channel(server) as channel:
        call = channel.unary_unary("/gradoracle.v1.GradientService/Evaluate")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff\xff", timeout=30)
    assert caught.value.code() is INVALID_ARGUMENT
    assert caught.value.details().startswith("the request's bytes are no EvaluateRequest: expected a serialized ")


def test_a_device_that_is_not_there(stub: service_pb2_grpc.GradientServiceStub) -> None:
    """FAILED_PRECONDITION, with the devices that there are."""
    error, status = failure(stub, request(graph(NEG), device="cuda:99"))
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (info.reason, info.metadata["device"]) == ("DEVICE_UNAVAILABLE", "cuda:99")
    assert "cpu" in info.metadata["devices"]
    assert "cuda:99" in error.details()


def test_a_method_that_does_not_exist(server: str) -> None:
    """A call of an unknown method is UNIMPLEMENTED and harms nothing."""
    with grpc.insecure_channel(server) as channel:
        call = channel.unary_unary("/gradoracle.v1.GradientService/Integrate")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

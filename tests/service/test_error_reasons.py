"""Every reason of errors.proto is provoked, and comes with the status code and the keys that its comment tells."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from front_server import Refusal, command, connect, eventually, failing, start

from gradoracle.v1 import errors_pb2, graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2

PROTO = Path(__file__).resolve().parents[2] / "proto/gradoracle/v1/errors.proto"
METHOD = "/gradoracle.v1.GradientService/"
Stub = service_pb2_grpc.GradientServiceStub
Provocation = Callable[[grpc.Channel, Path], Refusal]
PROVOKED: dict[str, Provocation] = {}


def provokes(reason: str) -> Callable[[Provocation], Provocation]:
    """Marks a function, of a channel to a real server and of a folder for files, as one that provokes a reason."""

    def mark(function: Provocation) -> Provocation:
        PROVOKED[reason] = function
        return function

    return mark


def reasons() -> dict[str, str]:
    """The comment of each reason in the proto, less UNSPECIFIED."""
    found = re.findall(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = \d+;", PROTO.read_text())
    return {name: " ".join(comment.replace("//", " ").split()) for comment, name in found if name != "UNSPECIFIED"}


@pytest.fixture(scope="module")
def channel(server: str) -> Iterator[grpc.Channel]:
    """A connection to a real server."""
    with grpc.insecure_channel(server, [("grpc.enable_retries", 0)]) as channel:
        yield channel


def test_every_reason_is_provoked() -> None:
    """A reason without a test below is one that nobody knows to be given."""
    numbers = dict(errors_pb2.ErrorReason.items())

    assert set(PROVOKED) == {name.removeprefix("ERROR_REASON_") for name, number in numbers.items() if number}
    assert set(reasons()) == set(PROVOKED)


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_reason(reason: str, channel: grpc.Channel, tmp_path: Path) -> None:
    """The reason is given, with the code that its comment names and no keys but those that it lists."""
    refusal = PROVOKED[reason](channel, tmp_path)

    comment = reasons()[reason]
    assert reason == refusal.reason
    assert refusal.code.name in comment.replace(",", " ").replace(".", " ").split()
    assert refusal.message
    listed = re.sub(r"\b(and|where|one|is|at|fault|or|an|id|that|the|server's|log|holds|too)\b", " ", comment)
    assert set(refusal.metadata) <= set(re.findall(r"\w+", listed.partition("Keys:")[2]))


# ---- Faults of requests, as workers find them


def graph(*targets: str, **arguments: list[str]) -> graph_pb2.Graph:
    """A graph of an input x and nodes n0, n1, …, each applied to x or to the values given by its name."""
    made = graph_pb2.Graph()
    made.inputs.add(name="x")
    for place, target in enumerate(targets):
        node = made.nodes.add(name=f"n{place}", target=target)
        for value in arguments.get(node.name, ["x"]):
            node.args.add(value=value)
    made.outputs.add(name="out", value=f"n{len(targets) - 1}" if targets else "x")
    return made


def primals(array: Any = 1.0, name: str = "x") -> list[tensor_pb2.NamedTensor]:
    """A tensor for it."""
    array = np.asarray(array, np.float64)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=array.shape, data=array.tobytes())
    return [tensor_pb2.NamedTensor(name=name, tensor=tensor)]


def evaluated(channel: grpc.Channel, made: graph_pb2.Graph, **fields: Any) -> Refusal:
    """What the evaluation of a graph fails with."""
    fields.setdefault("primals", primals())
    return failing(lambda: Stub(channel).Evaluate(service_pb2.EvaluateRequest(graph=made, **fields)))


@provokes("MALFORMED_REQUEST")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return failing(lambda: channel.unary_unary(METHOD + "Evaluate")(b"\x0a\xff"))


@provokes("INVALID_GRAPH")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph_pb2.Graph(), primals=[])


@provokes("UNKNOWN_REFERENCE")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.sin.default", n0=["nowhere"]))


@provokes("CYCLE")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.sin.default", "aten.sin.default", n0=["n1"], n1=["n0"]))


@provokes("DUPLICATE_NAME")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    made = graph("aten.sin.default")
    made.inputs.add(name="x")
    return evaluated(channel, made)


@provokes("UNKNOWN_OPERATOR")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.frobnicate.default"))


@provokes("OPERATOR_REFUSED")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.set_.source_Tensor", n0=["x", "x"]))


@provokes("INVALID_ARGUMENT")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.sin.default", n0=["x", "x"]))


@provokes("INVALID_TENSOR")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    short = primals()
    short[0].tensor.data = b"123"
    return evaluated(channel, graph("aten.sin.default"), primals=short)


@provokes("INPUT_MISMATCH")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.sin.default"), primals=primals(name="y"))


@provokes("INVALID_COTANGENT")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    request = service_pb2.ComputeVjpRequest(graph=graph("aten.sin.default"), primals=primals([1.0, 2.0]))
    return failing(lambda: Stub(channel).ComputeVjp(request))


@provokes("INVALID_SELECTION")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    request = service_pb2.ComputeVjpRequest(graph=graph("aten.sin.default"), primals=primals(), wrt=["y"])
    return failing(lambda: Stub(channel).ComputeVjp(request))


@provokes("COMPUTATION_FAILED")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.inverse.default"), primals=primals([[0.0, 0.0], [0.0, 0.0]]))


@provokes("DEVICE_UNAVAILABLE")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return evaluated(channel, graph("aten.sin.default"), device="cuda:77")


@provokes("NOT_SERVED")
def _(channel: grpc.Channel, _: Path) -> Refusal:
    return failing(lambda: channel.unary_unary(METHOD + "Integrate")(b""))


# ---- What the front says, with workers that do as they are told


@contextlib.contextmanager
def front(*flags: str) -> Iterator[tuple[Any, Stub]]:
    """A server of one such worker, and a connection to it."""
    with start("--workers", "1", *flags) as server, connect(server, **{"grpc.enable_retries": 0}) as stub:
        yield server, stub


@provokes("MEMORY_UNKNOWN")
def _(_: object, folder: Path) -> Refusal:
    with front("--listen", f"unix:{folder / 'g.sock'}", "--shared-memory") as (_server, stub):
        request = command()
        request.memory.token = bytes(16)
        return failing(lambda: stub.Evaluate(request))


@provokes("OVERLOADED")
def _(*_: object) -> Refusal:
    with front("--max-queue", "1") as (server, stub):
        calls = [stub.Evaluate.future(command("sleep 60"))]
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        calls.append(stub.Evaluate.future(command()))
        eventually(lambda: server.metric('gradoracle_queue_depth{device="cpu"}') == 1)
        refusal = failing(lambda: stub.Evaluate(command()))
        for call in calls:
            call.cancel()
    return refusal


@provokes("LIMIT_EXCEEDED")
def _(*_: object) -> Refusal:
    with front("--max-message-bytes", "1KiB") as (_server, stub):
        return failing(lambda: stub.Evaluate(command(data=bytes(2000))))


@provokes("DEADLINE_EXCEEDED")
def _(*_: object) -> Refusal:
    with front("--request-timeout", "200ms") as (_server, stub):
        return failing(lambda: stub.Evaluate(command("sleep 60")))


@provokes("WORKER_CRASHED")
def _(*_: object) -> Refusal:
    with front() as (_server, stub):
        return failing(lambda: stub.Evaluate(command("signal SIGSEGV")))


@provokes("INTERNAL")
def _(*_: object) -> Refusal:
    with front() as (server, stub):
        refusal = failing(lambda: stub.Evaluate(command("refuse 99")))
        assert refusal.metadata["incident"] in server.log
        assert f"internal error, incident {refusal.metadata['incident']}" == refusal.message
    return refusal


@provokes("SHUTTING_DOWN")
def _(*_: object) -> Refusal:
    with front() as (server, stub):

        def endless() -> Iterator[service_pb2.StreamRequest]:
            message = service_pb2.StreamRequest()
            message.calls.add(id=1, evaluate=command())
            yield message
            server.process.wait()

        stream = stub.Stream(endless())
        assert next(stream).answers
        server.process.send_signal(signal.SIGTERM)
        return failing(lambda: next(stream))


@provokes("UNAUTHENTICATED")
def _(_: grpc.Channel, folder: Path) -> Refusal:
    (folder / "tokens").write_text("secret\n")
    with front("--token-file", str(folder / "tokens")) as (_server, stub):
        return failing(lambda: stub.Evaluate(command()))


# ---- One place


def test_statuses_are_made_in_one_place() -> None:
    """Only statuses.py, the front's and the workers', makes a status; only the front's ends a call with one."""
    server = Path(__file__).resolve().parents[2] / "server/gradoracle_server"
    text = {str(path.relative_to(server)): path.read_text() for path in server.rglob("*.py")}

    makers = {name for name, source in text.items() if "make_status(" in source}
    enders = {name for name, source in text.items() if re.search(r"context\.(abort|set_code|set_details)", source)}

    assert {"rpc_status.py", "front/statuses.py", "worker/statuses.py"} == makers
    assert {"front/statuses.py"} == enders

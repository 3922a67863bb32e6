"""The clients against a server that only pretends: what they send, and what they make of what comes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import gradoracle as go
from gradoracle import channel, gathering, requests, stream
from gradoracle.v1 import service_pb2, tensor_pb2

GRAPH = go.Graph.parse("x**2 * y")
MIB = 1024 * 1024


def tensor(value: Any) -> tensor_pb2.Tensor:
    """A message of an array."""
    array = np.asarray(value)
    dtype = {"float64": tensor_pb2.DTYPE_FLOAT64, "int64": tensor_pb2.DTYPE_INT64}[array.dtype.name]
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def failure(message: str, reason: str = "INVALID_TENSOR") -> status_pb2.Status:
    """A status as servers send it."""
    found = any_pb2.Any()
    found.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="gradoracle.v1"))
    return status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=message, details=[found])


class Pretender(grpc.GenericRpcHandler):
    """Answers by `answer`, and keeps what came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, Any]] = []
        self.remaining: list[float | None] = []
        self.answer: Callable[[bytes], Any] = lambda _: service_pb2.EvaluateResponse()
        self.converse: Callable[[Iterator[bytes]], Iterator[bytes]] = iter
        self.peers: set[str] = set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a path."""
        path = details.method

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            self._note(path, request, context)
            answer = self.answer(request)
            if isinstance(answer, status_pb2.Status):
                context.set_trailing_metadata((("grpc-status-details-bin", answer.SerializeToString()),))
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, answer.message)
            found: bytes = answer.SerializeToString()
            return found

        def streaming(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self._note(path, b"", context)
            yield from self.converse(self._noted(path, messages))

        if path == stream.PATH:
            return grpc.stream_stream_rpc_method_handler(streaming)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _note(self, path: str, request: bytes, context: grpc.ServicerContext) -> None:
        self.seen.append((path, request))
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        self.peers.add(context.peer())

    def _noted(self, path: str, messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            self.seen.append((path, message))
            yield message


@pytest.fixture
def pretender() -> Iterator[Pretender]:
    """A server that pretends, with its address as `address`."""
    handler = Pretender()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    server.start()
    yield handler
    server.stop(None).wait()


@pytest.fixture
def client(pretender: Pretender) -> Iterator[go.Client]:
    """A client of it."""
    with go.Client(pretender.address, timeout=30) as client:  # type: ignore[attr-defined]
        yield client


# ---- Requests


ARRAYS: dict[str, Any] = {"x": [1, 2], "y": np.array(3, np.int64)}
PRIMALS = [
    service_pb2.ComputeVjpRequest(
        primals=[
            tensor_pb2.NamedTensor(name="x", tensor=tensor([1.0, 2.0])),
            tensor_pb2.NamedTensor(name="y", tensor=tensor(3)),
        ]
    ).primals
][0]
ONE = [tensor_pb2.NamedTensor(name="x", tensor=tensor([1.0, 0.0]))]
OUT = [tensor_pb2.NamedTensor(name="out", tensor=tensor(1.0))]


@pytest.mark.parametrize(
    ("method", "args", "options", "rpc", "expected"),
    [
        ("evaluate", (), {"device": "cpu", "seed": 7}, "Evaluate", {"device": "cpu", "seed": 7}),
        ("evaluate", (), {"seed": -1}, "Evaluate", {"seed": 2**64 - 1}),
        ("vjp", (), {}, "ComputeVjp", {}),
        (
            "vjp",
            ({"out": 1},),
            {"wrt": "x", "retain": ["pow", "out"], "batched": ("x",)},
            "ComputeVjp",
            {"cotangents": OUT, "wrt": ["x"], "retain": ["pow", "out"], "batched": ["x"]},
        ),
        (
            "vjp",
            (None,),
            {"wrt": GRAPH.value("x"), "retain": [GRAPH.value("pow")]},
            "ComputeVjp",
            {"wrt": ["x"], "retain": ["pow"]},
        ),
        ("jvp", ({"x": [1, 0]},), {}, "ComputeJvp", {"tangents": ONE}),
        ("jacobian", (), {"of": "out", "wrt": ["x", "y"]}, "ComputeJacobian", {"of": ["out"], "wrt": ["x", "y"]}),
        ("hessian", ({"out": 1.0},), {"wrt": ["y"]}, "ComputeHessian", {"cotangents": OUT, "wrt": ["y"]}),
        ("hvp", ({"x": [1, 0]}, {"out": 1}), {}, "ComputeHessian", {"vectors": ONE, "cotangents": OUT}),
        ("inspect", (), {"device": "cuda"}, "InspectGraph", {"device": "cuda"}),
    ],
)  # fmt: skip
def test_what_is_sent(
    pretender: Pretender,
    client: go.Client,
    method: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    rpc: str,
    expected: dict[str, Any],
) -> None:
    """Each method sends one message of its RPC with what it was given, and `request` makes the same one."""
    message = getattr(service_pb2, f"{rpc}Request")(graph=GRAPH.message, primals=PRIMALS, **expected)
    pretender.answer = lambda _: getattr(service_pb2, f"{rpc}Response")()
    getattr(client, method)(GRAPH, ARRAYS, *args, **options)
    ((path, sent),) = pretender.seen
    assert path == f"/gradoracle.v1.GradientService/{rpc}"
    assert type(message).FromString(sent) == message
    assert go.request(method, GRAPH, ARRAYS, *args, **options).to_bytes() == sent


def test_questions_about_the_server(pretender: Pretender, client: go.Client) -> None:
    """server_info and operators read their answers into plain data."""
    pretender.answer = lambda _: service_pb2.DescribeServerResponse(
        version="1", devices=[service_pb2.DeviceInfo(name="cpu", workers=2), service_pb2.DeviceInfo(workers=1)]
    )
    info = client.server_info()
    assert (info.version, info.workers, info.devices[0].name, info.limits.queue) == ("1", 3, "cpu", 0)
    pretender.answer = lambda _: service_pb2.ListOperatorsResponse(
        operators=[service_pb2.OperatorInfo(name="aten.exp.default"), service_pb2.OperatorInfo(name="b", refused="no")]
    )
    found = client.operators("exp", include_refused=True)
    assert [(one.name, one.refused) for one in found] == [("aten.exp.default", None), ("b", "no")]
    sent = service_pb2.ListOperatorsRequest.FromString(pretender.seen[-1][1])
    assert (sent.name_contains, sent.include_refused) == ("exp", True)


def test_expressions_are_graphs(pretender: Pretender, client: go.Client) -> None:
    """An expression is sent as the graph that it means."""
    client.evaluate("x**2 * y", ARRAYS)
    client.evaluate(GRAPH, ARRAYS)
    assert pretender.seen[0] == pretender.seen[1]


def test_graphs_may_grow(pretender: Pretender, client: go.Client) -> None:
    """A graph that grew is sent as it is now."""
    graph = go.Graph()
    x = graph.input("x")
    graph.output("a", x * 2)
    client.evaluate(graph, {"x": 1.0})
    graph.output("b", x * 3)
    client.evaluate(graph, {x: 1.0})
    outputs = [len(service_pb2.EvaluateRequest.FromString(sent).graph.outputs) for _, sent in pretender.seen]
    assert outputs == [1, 2]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda c: c.evaluate(3, {}), TypeError, "graph: expected a Graph or an expression, got int"),
        (lambda c: c.evaluate("x", [1]), TypeError, "primals: expected a mapping of names to arrays, got list"),
        (lambda c: c.evaluate("x", {1: 1}), TypeError, "primals: expected names or Values, got int"),
        (lambda c: c.vjp("x", {"x": 1}, wrt=[1]), TypeError, "wrt: expected names or Values, got int"),
        (
            lambda c: c.evaluate("x", {"x": 1}, seed=2**64),
            go.InvalidRequestError,
            f"seed: expected a number from -2**63 to 2**64 - 1, got {2**64}",
        ),
        (
            lambda c: c.hvp("x", {"x": 1}, {}),
            go.InvalidRequestError,
            "vectors: expected a vector for one input at least, got none; hessian() gives the whole Hessian",
        ),
        (lambda c: c.map([], window=0), ValueError, "window: expected 1 or more, got 0"),
        (
            lambda c: list(c.map([("vjp", "x", {})])),
            TypeError,
            "expected requests as gradoracle.request(method, graph, primals, …) makes them, got tuple",
        ),
        (
            lambda c: go.request("vpj", "x", {}),
            ValueError,
            "expected one of evaluate, vjp, jvp, jacobian, hessian, hvp, check, inspect, server_info, operators as the "
            "method, got 'vpj'",
        ),
    ],
)
def test_misuse(client: go.Client, call: Callable[[go.Client], Any], kind: type[Exception], text: str) -> None:
    """A call that cannot be meant fails before anything is sent."""
    with pytest.raises(kind) as caught:
        call(client)
    assert str(caught.value) == text


# ---- Answers


def test_answers(pretender: Pretender, client: go.Client) -> None:
    """Arrays, None for what has no gradient, and the timing by attribute, by key, in total."""
    pretender.answer = lambda _: service_pb2.ComputeVjpResponse(
        outputs=[tensor_pb2.NamedTensor(name="out", tensor=tensor([1.0, 2.0]))],
        gradients=[
            tensor_pb2.NamedTensor(name="x", tensor=tensor(2.0)),
            tensor_pb2.NamedTensor(name="y"),
        ],
        timing=service_pb2.Timing(queue=1, forward=2, backward=4),
    )
    result = client.vjp(GRAPH, ARRAYS)
    assert result.outputs["out"].tolist() == [1, 2]
    assert result.outputs["out"].flags.writeable
    assert result.gradients["x"] == 2
    assert result.gradients["y"] is None
    assert (result.timing.forward, result.timing["backward"], result.timing.total) == (2, 4, 7)
    assert dict(result.timing)["queue"] == 1
    assert list(result.timing) == ["queue", "decode", "plan", "forward", "backward", "check", "encode"]
    with pytest.raises(KeyError):
        result.timing["total"]


def test_blocks(pretender: Pretender, client: go.Client) -> None:
    """Jacobians and Hessians are found by pairs of names."""
    pretender.answer = lambda _: service_pb2.ComputeJacobianResponse(
        blocks=[service_pb2.JacobianBlock(output="o", input="i", tensor=tensor([[1.0]]))]
    )
    assert client.jacobian(GRAPH, ARRAYS).jacobian["o", "i"].shape == (1, 1)
    pretender.answer = lambda _: service_pb2.ComputeHessianResponse(
        blocks=[service_pb2.HessianBlock(row="r", column="c", tensor=tensor(2.0))],
        products=[tensor_pb2.NamedTensor(name="p", tensor=tensor(3.0))],
    )
    assert client.hessian(GRAPH, ARRAYS).hessian["r", "c"] == 2
    assert client.hvp(GRAPH, ARRAYS, {"x": 1.0}).products == {"p": 3}


def test_inspection(pretender: Pretender, client: go.Client) -> None:
    """The state of every value is a plain record; what is empty on the wire is None."""
    pretender.answer = lambda _: service_pb2.InspectGraphResponse(
        values=[
            service_pb2.ValueInfo(name="x", dtype=tensor_pb2.DTYPE_BFLOAT16, shape=[2, 3], stride=[3, 1], is_leaf=True),
            service_pb2.ValueInfo(name="t", grad_fn="MaxBackward0", target="aten.max.dim", is_tuple=True),
        ],
        timing=service_pb2.Timing(forward=1),
    )
    found = client.inspect(GRAPH, ARRAYS)
    assert list(found) == ["x", "t"]
    assert (found["x"].shape, found["x"].dtype, found["x"].grad_fn, found["x"].target) == (
        (2, 3),
        "bfloat16",
        None,
        None,
    )
    assert (found["t"].dtype, found["t"].grad_fn, found["t"].is_tuple) == (None, "MaxBackward0", True)
    assert found.timing.forward == 1


def test_errors_are_translated(pretender: Pretender, client: go.Client) -> None:
    """A status becomes the exception of its reason; gRPC's own is its cause."""
    pretender.answer = lambda _: failure("primals: …")
    with pytest.raises(go.TensorError, match="primals: …") as caught:
        client.evaluate(GRAPH, ARRAYS)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert caught.value.reason == "INVALID_TENSOR"


def test_timeouts(pretender: Pretender, client: go.Client) -> None:
    """A call's timeout wins over the client's, and passes as an error that says which."""
    client.evaluate(GRAPH, ARRAYS)
    client.evaluate(GRAPH, ARRAYS, timeout=10)
    assert [round(seconds or 0, -1) for seconds in pretender.remaining] == [30, 10]
    done = threading.Event()
    pretender.answer = lambda _: done.wait(30) and service_pb2.EvaluateResponse()
    with pytest.raises(go.DeadlineExceededError, match=r"the timeout of 0\.05 s passed before 127\.0\.0\.1"):
        client.evaluate(GRAPH, ARRAYS, timeout=0.05)
    done.set()


def test_token_and_channels(pretender: Pretender) -> None:
    """The token goes with every call; calls are spread over the connections."""
    with go.Client(pretender.address, token="secret", channels=3) as client:  # type: ignore[attr-defined]  # noqa: S106
        for _ in range(6):
            client.evaluate(GRAPH, ARRAYS)
    assert {one["authorization"] for one in pretender.metadata} == {"Bearer secret"}
    assert len(pretender.peers) == 3


def test_closed(pretender: Pretender) -> None:
    """A closed client says so."""
    client = go.Client(pretender.address)  # type: ignore[attr-defined]
    client.close()
    client.close()
    for use in (lambda: client.evaluate(GRAPH, ARRAYS), lambda: list(client.map([]))):
        with pytest.raises(RuntimeError, match="this client is closed; make a new one"):
            use()
    assert repr(client) == f"<Client of {client.address}, closed>"


def test_nobody_there() -> None:
    """Where no server answers, the error says where it was looked for and how to start one."""
    with (
        go.Client("127.0.0.1:1") as client,
        pytest.raises(go.ServerUnavailableError, match=r"answers at 127.0.0.1:1: "),
    ):
        client.server_info()


# ---- Where it connects


def test_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is the argument, else the environment's, else localhost; a port may be left out."""
    monkeypatch.delenv(channel.ADDRESS, raising=False)
    assert go.Client().address == "localhost:50051"
    monkeypatch.setenv(channel.ADDRESS, "there:1")
    assert go.Client().address == "there:1"
    assert go.Client("here").address == "here:50051"
    assert go.Client("unix:/run/x.sock").address == "unix:/run/x.sock"
    assert [go.Client(one).address for one in ("[::1]:5", "ipv4:127.0.0.1:5")] == ["[::1]:5", "ipv4:127.0.0.1:5"]


@pytest.mark.parametrize("address", [":::", "http://a:1", "a:99999", "a:0", "a:port", ":50051", "::1", "a:1:2"])
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything connects, by the name of where it was given."""
    text = f'expected "host:port" or "unix:path", got {address!r}'
    with pytest.raises(ValueError, match="^" + re.escape(f"address: {text}") + "$"):
        go.Client(address)
    monkeypatch.setenv(channel.ADDRESS, address)
    with pytest.raises(ValueError, match="^" + re.escape(f"GRADORACLE_ADDRESS: {text}") + "$"):
        go.Client()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"address": ""}, 'address: expected "host:port" or "unix:path", got \'\''),
        ({"address": "http://a:1"}, 'address: expected "host:port" or "unix:path", got \'http://a:1\''),
        ({"timeout": 0}, "timeout: expected seconds, more than 0, or None, got 0"),
        ({"channels": 0}, "channels: expected 1 or more, got 0"),
        ({"token": "a\nb"}, "token: expected printable ASCII characters, got others"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], text: str) -> None:
    """A client is not made with what it cannot use; a token is never shown."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is asserted
        go.Client(**options)
    assert str(caught.value) == text


def test_certificates(tmp_path: Any) -> None:
    """Certificates are paths or bytes; a client's own needs its key."""
    with pytest.raises(ValueError, match="TLS: expected key beside cert, got none"):
        go.TLS(cert=b"")
    with pytest.raises(FileNotFoundError):
        go.Client("a:1", tls=tmp_path / "none.pem")
    go.Client("a:1", tls=True).close()


# ---- Many at a time


def echo(answer: Callable[[service_pb2.StreamCall], service_pb2.StreamAnswer]) -> Callable[..., Iterator[bytes]]:
    """A conversation that answers each call as it comes."""

    def converse(messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            calls = service_pb2.StreamRequest.FromString(message).calls
            if calls:
                yield service_pb2.StreamResponse(answers=[answer(call) for call in calls]).SerializeToString()

    return converse


def squared(call: service_pb2.StreamCall) -> service_pb2.StreamAnswer:
    """x*x, or a failure where x is negative."""
    (x,) = np.frombuffer(call.evaluate.primals[0].tensor.data)
    if x < 0:
        return service_pb2.StreamAnswer(id=call.id, status=failure(f"negative {x}").SerializeToString())
    answer = service_pb2.StreamAnswer(id=call.id)
    answer.evaluate.outputs.add(name="out", tensor=tensor(x * x))
    return answer


def ask(*numbers: float, **options: Any) -> list[requests.Request[Any]]:
    """A request for each number."""
    return [go.request("evaluate", "x*x", {"x": float(number)}, **options) for number in numbers]


def test_map_in_order(pretender: Pretender, client: go.Client) -> None:
    """Results come in the order of the requests, however they are answered."""

    def backwards(messages: Iterator[bytes]) -> Iterator[bytes]:
        calls = []
        for message in messages:
            calls += service_pb2.StreamRequest.FromString(message).calls
            if len(calls) == 5:
                for call in reversed(calls):
                    yield service_pb2.StreamResponse(answers=[squared(call)]).SerializeToString()
                calls = []

    pretender.converse = backwards
    found = list(client.map(ask(*range(10)), window=5))
    assert [float(one.outputs["out"]) for one in found] == [x * x for x in range(10)]
    assert [one.tag for one in found] == list(range(10))
    unordered = [one.tag for one in client.map(ask(*range(5)), window=5, ordered=False)]
    assert unordered == [4, 3, 2, 1, 0]


def test_map_reads_ahead_as_far_as_its_window(pretender: Pretender, client: go.Client) -> None:
    """No more requests are taken than the window holds beyond the results that were taken."""
    pretender.converse = echo(squared)
    taken = []

    def source() -> Iterator[requests.Request[Any]]:
        for number in range(20):
            taken.append(number)
            yield from ask(number)

    results = client.map(source(), window=3)
    assert taken == []
    for count in range(1, 21):
        next(results)
        assert len(taken) <= count + 3
    assert next(results, None) is None


def test_map_of_nothing(client: go.Client) -> None:
    """No requests give no results."""
    assert list(client.map([])) == []


def test_map_failures(pretender: Pretender, client: go.Client) -> None:
    """A failure raises at its turn and ends the map, or takes the place of a result, with the request's tag."""
    pretender.converse = echo(squared)
    results = client.map(ask(1, -2, 3))
    assert next(results).outputs["out"] == 1
    with pytest.raises(go.TensorError, match=r"negative -2\.0") as caught:
        next(results)
    assert caught.value.tag == 1
    assert next(results, "over") == "over"
    found = list(client.map(ask(1, -2, 3, tag="mine"), return_exceptions=True))
    assert [type(one).__name__ for one in found] == ["EvaluateResult", "TensorError", "EvaluateResult"]
    assert [one.tag for one in found] == ["mine"] * 3


def test_map_on_a_stream_that_breaks(pretender: Pretender, client: go.Client) -> None:
    """A stream that ends before every call is answered is an error, whether the server meant it or not."""
    pretender.converse = lambda messages: iter(())
    with pytest.raises(go.ServerUnavailableError, match="ended the stream before it had answered every call"):
        list(client.map(ask(1)))

    def breaks(messages: Iterator[bytes]) -> Iterator[bytes]:
        next(messages)
        yield service_pb2.StreamResponse().SerializeToString()
        raise ValueError("broken")

    pretender.converse = breaks
    with pytest.raises(go.GradOracleError, match="broken"):
        list(client.map(ask(1)))


def test_map_of_another_kind_of_answer(pretender: Pretender, client: go.Client) -> None:
    """An answer of another method is the server's fault, and says so."""
    pretender.converse = echo(lambda call: service_pb2.StreamAnswer(id=call.id, attachments=0))
    with pytest.raises(go.GradOracleError, match="the server answered Evaluate with nothing"):
        list(client.map(ask(1)))


def test_map_given_up(pretender: Pretender, client: go.Client) -> None:
    """Leaving a map early ends its stream; the client goes on."""
    pretender.converse = echo(squared)
    for result in client.map(ask(*range(10))):
        assert result.tag == 0
        break
    assert len(list(client.map(ask(1, 2)))) == 2


def test_errors_of_the_source_pass_through(pretender: Pretender, client: go.Client) -> None:
    """What the caller's own iterator raises reaches the caller as it is."""
    pretender.converse = echo(squared)

    def source() -> Iterator[requests.Request[Any]]:
        yield from ask(1)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(client.map(source()))


def attaching(messages: Iterator[bytes]) -> Iterator[bytes]:
    """Gives each call's tensors back as attachments, in chunks of odd sizes."""
    chunks: dict[tuple[int, int], bytes] = {}
    for message in messages:
        came = service_pb2.StreamRequest.FromString(message)
        assert len(message) < 2 * MIB + 4096
        for chunk in came.chunks:
            assert len(chunk.data) <= MIB
            place = chunk.call_id, chunk.attachment
            chunks[place] = chunks.get(place, b"") + chunk.data
        for call in came.calls:
            answer = service_pb2.StreamAnswer(id=call.id, attachments=len(call.evaluate.primals))
            for place, primal in enumerate(call.evaluate.primals):
                data = primal.tensor.data
                if primal.tensor.HasField("attachment"):
                    data = chunks[call.id, primal.tensor.attachment]
                for start in range(0, max(len(data), 1), 700_001):
                    part = service_pb2.Chunk(call_id=call.id, attachment=place, data=data[start : start + 700_001])
                    yield service_pb2.StreamResponse(chunks=[part]).SerializeToString()
                made = tensor_pb2.Tensor(dtype=primal.tensor.dtype, shape=primal.tensor.shape, attachment=place)
                answer.evaluate.outputs.add(name=primal.name, tensor=made)
            yield service_pb2.StreamResponse(answers=[answer]).SerializeToString()


LARGE = {
    "a": np.arange(3 * MIB // 8 + 5, dtype=np.float64),
    "b": np.arange(6.0).reshape(2, 3),
    "c": np.zeros((0, 2)),
    "d": np.arange(MIB, dtype=np.uint8).reshape(MIB // 4, 4),
}


def test_large_tensors_go_in_chunks(pretender: Pretender, client: go.Client) -> None:
    """In a stream, tensors of 1 MiB or more go as attachments in chunks; what comes so is an array of its own."""
    pretender.converse = attaching
    for result in client.map([go.request("evaluate", "a", LARGE)] * 2):
        for name, array in LARGE.items():
            assert np.array_equal(result.outputs[name], array)
            assert result.outputs[name].flags.writeable


def test_large_requests_go_over_a_stream(pretender: Pretender, client: go.Client) -> None:
    """A call with more bytes of tensors than a message should hold goes over a stream by itself."""
    pretender.converse = attaching
    array = np.arange(stream.UNARY_AT_MOST // 8 + 1, dtype=np.float64)
    assert np.array_equal(client.evaluate("a", {"a": array}).outputs["a"], array)
    assert {path for path, _ in pretender.seen} == {stream.PATH}
    assert round(pretender.remaining[0] or 0, -1) == 30

    pretender.converse = echo(lambda c: service_pb2.StreamAnswer(id=c.id, status=failure("no").SerializeToString()))
    with pytest.raises(go.TensorError, match="no"):
        client.evaluate("a", {"a": array})


def test_small_requests_share_messages(pretender: Pretender, client: go.Client) -> None:
    """Requests that are ready together go in one message."""
    pretender.converse = echo(squared)
    assert len(list(client.map(ask(*range(300)), window=300))) == 300
    messages = [message for path, message in pretender.seen if message]
    assert len(messages) < 300


# ---- asyncio


async def test_async_calls(pretender: Pretender) -> None:
    """The asyncio client sends and reads as the other does."""
    pretender.answer = lambda _: service_pb2.ComputeVjpResponse(
        gradients=[tensor_pb2.NamedTensor(name="x", tensor=tensor(2.0))]
    )
    address = pretender.address  # type: ignore[attr-defined]
    async with go.AsyncClient(address, token="secret", timeout=30) as client:  # noqa: S106
        result = await client.vjp(GRAPH, ARRAYS, wrt="x")
        assert result.gradients == {"x": 2}
        many = await asyncio.gather(*(client.vjp(GRAPH, ARRAYS) for _ in range(gathering.BUSY)))
        assert [{"x": 2}] * gathering.BUSY == [one.gradients for one in many]
        pretender.answer = lambda _: failure("no")
        with pytest.raises(go.TensorError, match="no"):
            await client.evaluate(GRAPH, ARRAYS)
    assert pretender.metadata[0]["authorization"] == "Bearer secret"
    assert pretender.seen[0][1] == go.request("vjp", GRAPH, ARRAYS, wrt="x").to_bytes()
    with pytest.raises(RuntimeError, match="this client is closed"):
        await client.server_info()


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("evaluate", (GRAPH, ARRAYS)),
        ("vjp", (GRAPH, ARRAYS)),
        ("jvp", (GRAPH, ARRAYS, {"x": 1})),
        ("jacobian", (GRAPH, ARRAYS)),
        ("hessian", (GRAPH, ARRAYS)),
        ("hvp", (GRAPH, ARRAYS, {"x": 1})),
        ("inspect", (GRAPH, ARRAYS)),
        ("server_info", ()),
        ("operators", ()),
    ],
)
async def test_async_methods_are_the_same(pretender: Pretender, method: str, args: tuple[Any, ...]) -> None:
    """Every method of one client is one of the other, with the same parameters, and sends the same bytes."""
    import inspect

    blocking = inspect.signature(getattr(go.Client, method))
    awaited = inspect.signature(getattr(go.AsyncClient, method))
    assert blocking == awaited
    pretender.answer = lambda _: service_pb2.DescribeServerResponse()
    address = pretender.address  # type: ignore[attr-defined]
    with go.Client(address) as client:
        await asyncio.to_thread(getattr(client, method), *args)
    async with go.AsyncClient(address) as other:
        await getattr(other, method)(*args)
    assert pretender.seen[0] == pretender.seen[1]


async def test_async_map(pretender: Pretender) -> None:
    """map gives results as they come, from any kind of iterable, with failures at their turn."""
    pretender.converse = echo(squared)

    async def source() -> AsyncIterator[requests.Request[Any]]:
        for request in ask(1, -2, 3):
            await asyncio.sleep(0)
            yield request

    async with go.AsyncClient(pretender.address) as client:  # type: ignore[attr-defined]
        found = [one async for one in client.map(source(), return_exceptions=True)]
        assert [one.tag for one in found] == [0, 1, 2]
        assert isinstance(found[1], go.TensorError)
        with pytest.raises(go.TensorError):
            [one async for one in client.map(ask(-1))]
        assert len([one async for one in client.map(ask(*range(200)), window=7, ordered=False)]) == 200
        async for one in client.map(ask(*range(200))):
            assert one.tag == 0
            break
        assert [one async for one in client.map([])] == []


async def test_async_streams(pretender: Pretender) -> None:
    """Large requests go over a stream; one that ends early is an error."""
    pretender.converse = attaching
    array = np.arange(stream.UNARY_AT_MOST // 8 + 1, dtype=np.float64)
    async with go.AsyncClient(pretender.address, channels=2) as client:  # type: ignore[attr-defined]
        assert np.array_equal((await client.evaluate("a", {"a": array})).outputs["a"], array)
        pretender.converse = lambda messages: iter(())
        pretender.answer = lambda _: service_pb2.DescribeServerResponse()
        with pytest.raises(go.ServerUnavailableError, match="ended the stream"):
            await client.evaluate("a", {"a": array})
    assert len(pretender.peers) == 2


async def test_async_nobody_there() -> None:
    """Where no server answers, the error says so."""
    async with go.AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(go.ServerUnavailableError, match=r"answers at 127.0.0.1:1: "):
            await client.server_info()
        with pytest.raises(go.ServerUnavailableError, match=r"answers at 127.0.0.1:1: "):
            [one async for one in client.map(ask(1))]

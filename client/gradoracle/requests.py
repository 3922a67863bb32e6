"""Requests: what is asked of a server, as bytes; the same for every client and transport."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import Message

from gradoracle import checks, results, tensors, wire
from gradoracle.errors import InvalidRequestError
from gradoracle.graph import Graph
from gradoracle.selections import Names, chosen, name_of, nothing_chosen
from gradoracle.taken import LARGE, taken
from gradoracle.tensors import ArrayLike, WireTensor
from gradoracle.v1 import check_pb2, service_pb2

R = TypeVar("R")

Tensors: TypeAlias = Mapping[Any, ArrayLike]
"""Arrays by the names of their values, or by the Values themselves."""

SERVICE = "/gradoracle.v1.GradientService/"

# Field numbers of service.proto, for what is written by hand.
_PRIMALS = 2
_COTANGENTS = {"vjp": 5, "hessian": 5, "check": 5}
_TANGENTS = 5
_VECTORS = 7
_CLAIMED = 6

_MODES = {"probe": check_pb2.CHECK_MODE_PROBE, "full": check_pb2.CHECK_MODE_FULL}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[R]):
    """An RPC, and how its response is read."""

    name: str
    """The client's name for it."""
    rpc: str
    """The proto's name for it."""
    stream_field: str
    """The field of StreamCall and StreamAnswer that holds its request and response."""
    stream_number: int
    """The number of that field, the same in both."""
    request: Callable[..., Message]
    response: Callable[[bytes], Message]
    read: Callable[[Any, results.Attachments], R]
    lists_tensors: bool
    """Whether its response is lists of tensors, and nothing else that is large."""

    def answer(self, data: bytes) -> R:
        """The result of a call by itself, from the bytes of its response."""
        small, attached = taken(data) if self.lists_tensors and len(data) >= LARGE else (data, ())
        return self.read(self.response(small), attached)

    @property
    def path(self) -> str:
        """What gRPC calls it."""
        return SERVICE + self.rpc


def _method(name: str, rpc: str, stream_field: str, read: Callable[[Any, results.Attachments], R]) -> Method[R]:
    request, response = getattr(service_pb2, f"{rpc}Request"), getattr(service_pb2, f"{rpc}Response")
    number = service_pb2.StreamCall.DESCRIPTOR.fields_by_name[stream_field].number
    lists = any("tensor" in one.fields_by_name for field in response.DESCRIPTOR.fields if (one := field.message_type))
    return Method(name, rpc, stream_field, number, request, response.FromString, read, lists)


EVALUATE = _method("evaluate", "Evaluate", "evaluate", results.evaluate)
VJP = _method("vjp", "ComputeVjp", "compute_vjp", results.vjp)
JVP = _method("jvp", "ComputeJvp", "compute_jvp", results.jvp)
JACOBIAN = _method("jacobian", "ComputeJacobian", "compute_jacobian", results.jacobian)
HESSIAN = _method("hessian", "ComputeHessian", "compute_hessian", results.hessian)
HVP = _method("hvp", "ComputeHessian", "compute_hessian", results.hvp)
CHECK = _method("check", "CheckGradients", "check_gradients", checks.report)
INSPECT = _method("inspect", "InspectGraph", "inspect_graph", results.inspection)
SERVER_INFO = _method("server_info", "DescribeServer", "describe_server", results.server_info)
OPERATORS = _method("operators", "ListOperators", "list_operators", results.operators)

METHODS = (EVALUATE, VJP, JVP, JACOBIAN, HESSIAN, HVP, CHECK, INSPECT, SERVER_INFO, OPERATORS)


@dataclasses.dataclass(slots=True, eq=False)
class Request(Generic[R]):
    """One call, ready to be sent any number of times. `gradoracle.request` makes one for `Client.map`."""

    method: Method[R]
    graph: bytes
    """The field `graph`, serialized; empty where the request has none."""
    head: bytes
    """The other fields but tensors, serialized."""
    tensors: tuple[tuple[int, str, WireTensor], ...] = ()
    """(number of the field, name, tensor)."""
    tag: object = None
    """Whatever the caller wants to know the result by."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of its tensors' elements."""
        return sum(tensor.nbytes for _, _, tensor in self.tensors)

    def to_bytes(self) -> bytes:
        """The serialized message."""
        pieces: list[wire.Piece] = [self.graph, self.head]
        for field, name, tensor in self.tensors:
            pieces += tensors.named_field(field, name, tensor)
        return b"".join(pieces)

    def kept(self) -> Request[R]:
        """The same, safe from later changes to the arrays."""
        mine = tuple((field, name, tensor.kept()) for field, name, tensor in self.tensors)
        return dataclasses.replace(self, tensors=mine)

    def __repr__(self) -> str:
        return f"<Request {self.method.name}{f' {self.tag!r}' if self.tag is not None else ''}>"


# ---- One function a method


def evaluate(
    graph: Graph | str, primals: Tensors, *, device: str | None = None, seed: int | None = None
) -> Request[results.EvaluateResult]:
    """Asks for outputs."""
    graph = graph_of(graph)
    return Request(EVALUATE, graph.request_field(), _head(EVALUATE, device, seed), _primals(graph, primals))


def vjp(
    graph: Graph | str,
    primals: Tensors,
    cotangents: Tensors | None = None,
    *,
    wrt: Names | None = None,
    retain: Names = (),
    batched: Names = (),
    device: str | None = None,
    seed: int | None = None,
) -> Request[results.VjpResult]:
    """Asks for gradients."""
    graph = graph_of(graph)
    head = _head(VJP, device, seed, wrt=wrt, retain=retain, batched=batched)
    given = _primals(graph, primals) + _floating(_COTANGENTS["vjp"], "cotangents", cotangents)
    return Request(VJP, graph.request_field(), head, given)


def jvp(
    graph: Graph | str, primals: Tensors, tangents: Tensors, *, device: str | None = None, seed: int | None = None
) -> Request[results.JvpResult]:
    """Asks for tangents."""
    graph = graph_of(graph)
    given = _primals(graph, primals) + _floating(_TANGENTS, "tangents", tangents)
    return Request(JVP, graph.request_field(), _head(JVP, device, seed), given)


def jacobian(
    graph: Graph | str,
    primals: Tensors,
    *,
    of: Names | None = None,
    wrt: Names | None = None,
    device: str | None = None,
    seed: int | None = None,
) -> Request[results.JacobianResult]:
    """Asks for Jacobians."""
    graph = graph_of(graph)
    head = _head(JACOBIAN, device, seed, of=of, wrt=wrt)
    return Request(JACOBIAN, graph.request_field(), head, _primals(graph, primals))


def hessian(
    graph: Graph | str,
    primals: Tensors,
    cotangents: Tensors | None = None,
    *,
    wrt: Names | None = None,
    device: str | None = None,
    seed: int | None = None,
) -> Request[results.HessianResult]:
    """Asks for second derivatives."""
    graph = graph_of(graph)
    head = _head(HESSIAN, device, seed, wrt=wrt)
    given = _primals(graph, primals) + _floating(_COTANGENTS["hessian"], "cotangents", cotangents)
    return Request(HESSIAN, graph.request_field(), head, given)


def hvp(
    graph: Graph | str,
    primals: Tensors,
    vectors: Tensors,
    cotangents: Tensors | None = None,
    *,
    wrt: Names | None = None,
    device: str | None = None,
    seed: int | None = None,
) -> Request[results.HvpResult]:
    """Asks for products of second derivatives with vectors."""
    if not vectors:
        raise InvalidRequestError(
            "vectors: expected a vector for one input at least, got none; hessian() gives the whole Hessian",
            reason="INVALID_COTANGENT",
            metadata={"field": "vectors"},
        )
    graph = graph_of(graph)
    given = _primals(graph, primals) + _floating(_COTANGENTS["hessian"], "cotangents", cotangents)
    given += _floating(_VECTORS, "vectors", vectors)
    return Request(HVP, graph.request_field(), _head(HVP, device, seed, wrt=wrt), given)


def check(
    graph: Graph | str,
    primals: Tensors,
    *,
    claimed: Tensors | None = None,
    cotangents: Tensors | None = None,
    wrt: Names | None = None,
    order: int = 1,
    mode: str = "probe",
    forward_mode: bool = False,
    batched_gradients: bool = False,
    device: str | None = None,
    seed: int | None = 0,
) -> Request[checks.CheckReport]:
    """Asks for a judgement."""
    if mode not in _MODES:
        _unknown_option("mode", "'probe' or 'full'", mode)
    if order not in (1, 2):
        _unknown_option("order", "1 or 2", order)
    if claimed is not None and not _mapping(claimed, "claimed"):
        nothing_chosen("claimed")
    graph = graph_of(graph)
    options = service_pb2.CheckGradientsRequest(
        order=order, mode=_MODES[mode], forward_mode=forward_mode, batched_gradients=batched_gradients
    )
    head = _head(CHECK, device, seed, wrt=wrt) + options.SerializeToString()
    points = _primals(graph, primals)
    given = _floating(_COTANGENTS["check"], "cotangents", cotangents)
    given += _floating(_CLAIMED, "claimed", None if claimed is None else _as_primals(claimed, primals))
    return Request(CHECK, graph.request_field(), head, points + given)


def _unknown_option(field: str, expected: str, got: object) -> NoReturn:
    metadata = {"field": field, "expected": expected, "got": str(got)}
    raise InvalidRequestError(
        f"{field}: expected {expected}, got {got!r}", reason="INVALID_SELECTION", metadata=metadata
    )


def _as_primals(claimed: Tensors, primals: Tensors) -> Tensors:
    """Claims that are Python numbers, which have no dtype of their own, in that of their input."""
    dtypes = {name_of(key, "primals"): getattr(value, "dtype", None) for key, value in primals.items()}
    found: dict[Any, ArrayLike] = {}
    for key, value in _mapping(claimed, "claimed").items():
        dtype = dtypes.get(name_of(key, "claimed"))
        plain = isinstance(value, bool | int | float | complex | list | tuple)
        if plain and isinstance(dtype, np.dtype) and dtype.kind in "fcV":
            value = tensors.as_array(value, f'claimed["{name_of(key, "claimed")}"]', floating=True)
            value = value if value.dtype.kind == "c" and dtype.kind != "c" else value.astype(dtype)
        found[key] = value
    return found


def inspect(
    graph: Graph | str, primals: Tensors, *, device: str | None = None, seed: int | None = None
) -> Request[results.Inspection]:
    """Asks for the state of every value."""
    graph = graph_of(graph)
    return Request(INSPECT, graph.request_field(), _head(INSPECT, device, seed), _primals(graph, primals))


def server_info() -> Request[results.ServerInfo]:
    """Asks what the server is."""
    return Request(SERVER_INFO, b"", b"")


def operators(name_contains: str = "", *, include_refused: bool = False) -> Request[list[results.OperatorInfo]]:
    """Asks for operators."""
    message = service_pb2.ListOperatorsRequest(name_contains=name_contains, include_refused=include_refused)
    return Request(OPERATORS, b"", message.SerializeToString())


_BUILDERS: Mapping[str, Callable[..., Request[Any]]] = {
    "evaluate": evaluate,
    "vjp": vjp,
    "jvp": jvp,
    "jacobian": jacobian,
    "hessian": hessian,
    "hvp": hvp,
    "check": check,
    "inspect": inspect,
    "server_info": server_info,
    "operators": operators,
}


def request(method: str, /, *args: Any, tag: object = None, **options: Any) -> Request[Any]:
    """A call to be made later, by `Client.map`: `request("vjp", graph, primals, wrt="x", tag="case 7")`.

    `method` is the name of a method of Client, and what follows are its arguments, but `timeout`. The arrays are
    copied, so that the request does not change when they do. `tag` comes back on the result, or on the error; without
    one it is the place among the requests of `Client.map`, counted from 0.
    """
    builder = _BUILDERS.get(method)
    if builder is None:
        raise ValueError(f"expected one of {', '.join(_BUILDERS)} as the method, got {method!r}")
    made = builder(*args, **options).kept()
    made.tag = tag
    return made


# ---- Parts


@lru_cache(maxsize=256)
def _parsed(expression: str) -> Graph:
    return Graph.parse(expression)


def graph_of(graph: Graph | str) -> Graph:
    """The graph itself, or that of an expression, which must not be changed: it serves the next request too."""
    if isinstance(graph, Graph):
        return graph
    if isinstance(graph, str):
        return _parsed(graph)
    raise TypeError(f"graph: expected a Graph or an expression, got {type(graph).__name__}")


def _head(method: Method[Any], device: str | None, seed: int | None, **names: Names | None) -> bytes:
    """Everything but graph and tensors."""
    options: dict[str, Any] = {
        key: found for key, value in names.items() if value is not None and (found := chosen(value, key))
    }
    if device is not None:
        options["device"] = device if type(device) is str else _device(device)
    if seed is not None:
        options["seed"] = _seed(seed)
    return method.request(**options).SerializeToString() if options else b""


def _device(device: object) -> str:
    """The name of a device, of a torch.device too."""
    if isinstance(device, str) or (type(device).__module__, type(device).__name__) == ("torch", "device"):
        return str(device)
    raise TypeError(f'device: expected a text, "cpu", "cuda" or "cuda:1", or a torch.device, got {device!r}')


def _seed(seed: int) -> int:
    """What torch.manual_seed takes: 64 bits, negative numbers counting from the end."""
    try:
        seed = operator.index(seed)  # numpy's whole numbers are some, too
    except TypeError:
        raise TypeError(f"seed: expected a whole number, got {seed!r}") from None
    if not -(2**63) <= seed < 2**64:
        raise InvalidRequestError(
            f"seed: expected a number from -2**63 to 2**64 - 1, got {seed}", metadata={"field": "seed"}
        )
    return seed % 2**64


def _primals(graph: Graph, primals: Tensors) -> tuple[tuple[int, str, WireTensor], ...]:
    found = []
    for key, value in _mapping(primals, "primals").items():
        name = key if type(key) is str else name_of(key, "primals")
        encoded = tensors.encode(value, "primals", name, floating=graph.requires_grad(name))
        found.append((_PRIMALS, name, encoded))
    return tuple(found)


def _floating(number: int, field: str, given: Tensors | None) -> tuple[tuple[int, str, WireTensor], ...]:
    """Cotangents and their kin: numbers among them become floats, which the server casts to the value's dtype."""
    if given is None:
        return ()
    found = []
    for key, value in _mapping(given, field).items():
        name = name_of(key, field)
        found.append((number, name, tensors.encode(value, field, name, floating=True)))
    return tuple(found)


def _mapping(given: Tensors, field: str) -> Tensors:
    if not isinstance(given, Mapping):
        raise TypeError(f"{field}: expected a mapping of names to arrays, got {type(given).__name__}")
    return given

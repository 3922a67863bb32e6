"""Small cases together in one request.

A request costs the service some tenths of a millisecond before and after its work, which is most of the time of a graph
of a few nodes. So cases with the same graph and options travel as one graph that holds it several times over, each copy
with its own inputs and outputs. Autograd runs the same operators on the same tensors in the same order as it would for
each alone, so the bits are the same (a test holds this).

Packed are only vjp and evaluate, small graphs without random operators and without functions of their own, and small
tensors. Where a pack fails its cases run again, each alone, so that each has its own error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from gradoracle import dtypes, requests, wire
from gradoracle.graph import Graph
from gradoracle.operators import table
from gradoracle.requests import Request
from gradoracle.results import PHASES, EvaluateResult, Timing, VjpResult
from gradoracle.tensors import WireTensor
from gradoracle.v1 import graph_pb2, tensor_pb2

T = TypeVar("T")

NODES = 16
"""Nodes of a graph that may be packed."""
BYTES = 16 * 1024
"""Bytes of the tensors of a case that may be packed."""

_NAME = 190  # bytes
_WAITING = 64  # graphs of which a pack is being filled; the oldest goes when there is another


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What cases of one pack have in common."""

    method: str
    graph: Graph = dataclasses.field(compare=False)
    key: bytes
    """Graph and options, serialized."""
    tensors: tuple[tuple[int, str], ...]
    """Fields and names."""
    options: tuple[tuple[str, Any], ...]

    def __hash__(self) -> int:
        return hash((self.method, self.key, self.tensors))


def kind_of(method: str, graph: Graph, request: Request[Any], options: dict[str, Any]) -> Kind | None:
    """The kind of a case, or None where it is to travel alone."""
    if method not in ("vjp", "evaluate") or options.get("batched") or not _is_simple(request.graph):
        return None
    if sum(_bytes(tensor) for _, _, tensor in request.tensors) > BYTES:
        return None
    fixed = tuple((name, tuple(one) if isinstance(one, list) else one) for name, one in sorted(options.items()))
    tensors = tuple((field, name) for field, name, _ in request.tensors)
    return Kind(method, graph, request.graph + request.head, tensors, fixed)


def _bytes(tensor: WireTensor) -> int:
    """Bytes of a tensor's elements, of one that the server makes too."""
    if tensor.data is not None:
        return len(tensor.data)
    message = tensor_pb2.Tensor.FromString(tensor.head)
    width = dtypes.TO_NUMPY[message.dtype].itemsize if message.dtype in dtypes.TO_NUMPY else 1
    return math.prod(message.shape) * width


@functools.lru_cache(maxsize=1024)
def _is_simple(field: bytes) -> bool:
    """Whether a graph, as the field of a request, may be packed."""
    graph = requests.EVALUATE.request()
    graph.MergeFromString(field)
    message: graph_pb2.Graph = graph.graph  # type: ignore[attr-defined]  # EvaluateRequest has it
    if not 0 < len(message.nodes) <= NODES or message.functions or message.constants:
        return False
    names = [one.name for group in (message.inputs, message.nodes, message.outputs) for one in group]
    if any(len(name.encode()) > _NAME for name in names):  # it would have no room for the copy's number
        return False
    served = table().served
    targets = {node.target for node in message.nodes}
    return all(one == "getitem" or (one in served and not served[one].random) for one in targets)


class Packer:
    """Puts the items of a stream into packs of one kind, at most `size` each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open: dict[Kind, list[Any]] = {}

    def packs(self, items: Iterable[tuple[Kind | None, T]]) -> Iterator[tuple[Kind | None, list[T]]]:
        """The items, those of no kind alone."""
        for kind, item in items:
            if kind is None or self._size == 1:
                yield None, [item]
                continue
            pack = self._open.setdefault(kind, [])
            pack.append(item)
            if len(pack) >= self._size:
                yield kind, self._open.pop(kind)
            elif len(self._open) > _WAITING:
                oldest = next(iter(self._open))
                yield oldest, self._open.pop(oldest)
        while self._open:
            oldest = next(iter(self._open))
            yield oldest, self._open.pop(oldest)


# ---- The request of a pack


def packed(kind: Kind, parts: list[Request[Any]]) -> Request[Any]:
    """One request for all of them."""
    graph, head = _copies(kind, len(parts))
    tensors = tuple(
        (field, f"{place}.{name}", tensor) for place, part in enumerate(parts) for field, name, tensor in part.tensors
    )
    return Request(parts[0].method, graph, head, tensors)


@functools.lru_cache(maxsize=64)
def _copies(kind: Kind, count: int) -> tuple[bytes, bytes]:
    """The fields of a request for so many copies of a graph: graph, options."""
    message = graph_pb2.Graph()
    for place in range(count):
        message.MergeFrom(_renamed(kind.graph.message, f"{place}."))
    options = dict(kind.options)
    for name in ("wrt", "retain"):
        chosen = options.get(name)
        if chosen is not None:
            chosen = (chosen,) if isinstance(chosen, str) else chosen
            options[name] = [f"{place}.{one}" for place in range(count) for one in chosen]
    request = (requests.vjp if kind.method == "vjp" else requests.evaluate)(Graph(), {}, **options)
    return wire.bytes_field(1, message.SerializeToString(deterministic=True)), request.head


def _renamed(graph: graph_pb2.Graph, prefix: str) -> graph_pb2.Graph:
    for group in (graph.inputs, graph.nodes, graph.outputs):
        for one in group:
            one.name = prefix + one.name
    for output in graph.outputs:
        output.value = prefix + output.value
    for node in graph.nodes:
        for argument in (*node.args, *(one.argument for one in node.kwargs)):
            _rename(argument, prefix)
    return graph


def _rename(argument: graph_pb2.Argument, prefix: str) -> None:
    if argument.HasField("value"):
        argument.value = prefix + argument.value
    elif argument.HasField("list"):
        for item in argument.list.items:
            _rename(item, prefix)


# ---- Its result


def unpacked(result: VjpResult | EvaluateResult, count: int) -> list[Any]:
    """The results of each, in order; each with its share of the time."""
    timing = Timing(*(getattr(result.timing, phase) / count for phase in PHASES))
    outputs = _by_place(result.outputs, count)
    if isinstance(result, EvaluateResult):
        return [EvaluateResult(outputs=one, timing=timing) for one in outputs]
    gradients = _by_place(result.gradients, count)
    return [VjpResult(outputs=one, gradients=two, timing=timing) for one, two in zip(outputs, gradients, strict=True)]


def _by_place(named: dict[str, T], count: int) -> list[dict[str, T]]:
    found: list[dict[str, T]] = [{} for _ in range(count)]
    for name, array in named.items():
        place, _, own = name.partition(".")
        found[int(place)][own] = array
    return found

"""Graphs from messages to the engine's form."""

from __future__ import annotations

import torch

from gradoracle.v1 import graph_pb2 as pb
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import STRUCTURES, Argument, FunctionSpec, GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.worker.tensors import DTYPES, Incoming

_MEMORY_FORMATS = {
    pb.MEMORY_FORMAT_CONTIGUOUS: torch.contiguous_format,
    pb.MEMORY_FORMAT_PRESERVE: torch.preserve_format,
    pb.MEMORY_FORMAT_CHANNELS_LAST: torch.channels_last,
    pb.MEMORY_FORMAT_CHANNELS_LAST_3D: torch.channels_last_3d,
}
_LAYOUTS = {
    pb.LAYOUT_STRIDED: torch.strided,
    pb.LAYOUT_SPARSE_COO: torch.sparse_coo,
    pb.LAYOUT_SPARSE_CSR: torch.sparse_csr,
    pb.LAYOUT_SPARSE_CSC: torch.sparse_csc,
    pb.LAYOUT_SPARSE_BSR: torch.sparse_bsr,
    pb.LAYOUT_SPARSE_BSC: torch.sparse_bsc,
}


def read(message: pb.Graph, incoming: Incoming, max_nodes: int) -> GraphSpec:
    """The engine's form of a graph. Raises Fault where an argument or a constant is malformed, or nodes are too many.

    What the graph means is not looked at here: `plan.build` does.
    """
    asked = _count(message)
    if max_nodes and asked > max_nodes:
        text = f"graph.nodes: {asked} nodes, over the server's limit of {max_nodes}"
        raise Fault(
            "LIMIT_EXCEEDED", text, field="graph.nodes", limit="max-graph-nodes", allowed=max_nodes, asked=asked
        )
    return _graph(message, incoming)


def is_whole(message: pb.Graph) -> bool:
    """Whether a graph's message holds all of it: no constant's contents are an attachment of the call."""
    if any(one.value.HasField("attachment") for one in message.constants):
        return False
    return all(is_whole(one.forward) and is_whole(one.backward) for one in message.functions)


def _count(message: pb.Graph) -> int:
    """The nodes of a graph and of its functions."""
    inner = sum(len(one.forward.nodes) + len(one.backward.nodes) for one in message.functions)
    return len(message.nodes) + inner


def _graph(message: pb.Graph, incoming: Incoming) -> GraphSpec:
    inputs = tuple(_input(one, place) for place, one in enumerate(message.inputs))
    constants = tuple(
        (one.name, incoming.tensor(one.value, f'graph.constants["{one.name}"]')) for one in message.constants
    )
    nodes = tuple(_node(one, place) for place, one in enumerate(message.nodes))
    outputs = tuple((one.name, one.value) for one in message.outputs)
    functions = tuple(
        FunctionSpec(one.name, _graph(one.forward, incoming), _graph(one.backward, incoming))
        for one in message.functions
    )
    return GraphSpec(inputs, nodes, outputs, constants, functions)


def _input(message: pb.Input, place: int) -> InputSpec:
    if not 0 <= message.structure < len(STRUCTURES):
        field = f"graph.inputs[{place}].structure"
        text = f"{field}: expected a gradoracle.v1.Structure, got number {message.structure}"
        raise Fault("INVALID_GRAPH", text, field=field)
    tracked = message.requires_grad if message.HasField("requires_grad") else True
    return InputSpec(message.name, tracked, STRUCTURES[message.structure])


def _node(message: pb.Node, place: int) -> NodeSpec:
    field = f"graph.nodes[{place}]"
    args = tuple(argument(one, message, f"{field}.args[{at}]") for at, one in enumerate(message.args))
    kwargs: dict[str, Argument] = {}
    for at, one in enumerate(message.kwargs):
        path = f"{field}.kwargs[{at}]"
        if one.name in kwargs:
            text = f'node "{message.name}": the keyword argument "{one.name}" stands twice'
            raise Fault("DUPLICATE_NAME", text, field=path, name=one.name, node=message.name)
        kwargs[one.name] = argument(one.argument, message, path)
    return NodeSpec(message.name, message.target, args, kwargs, message.no_grad)


def argument(message: pb.Argument, node: pb.Node, path: str) -> Argument:
    """One argument as a Python value."""
    kind = message.WhichOneof("kind")
    if kind == "value":
        return Ref(message.value)
    if kind in ("integer", "real", "boolean", "text"):
        plain: Argument = getattr(message, kind)
        return plain
    if kind == "none":
        return None
    if kind == "integers":
        return list(message.integers.values)
    if kind == "list":
        return _list(message.list, node, path)
    if kind == "complex":
        return complex(message.complex.real, message.complex.imag)
    return _special(message, kind, node, path)


def _list(message: pb.ArgumentList, node: pb.Node, path: str) -> list[Argument]:
    items = []
    for place, item in enumerate(message.items):
        at = f"{path}.list.items[{place}]"
        if item.WhichOneof("kind") in ("list", "integers"):
            raise _wrong(node, at, "a list must not hold another list", "a single argument", "a list")
        items.append(argument(item, node, at))
    return items


def _special(message: pb.Argument, kind: str | None, node: pb.Node, path: str) -> Argument:
    """torch's own kinds: dtype, device, memory format, layout."""
    if kind == "dtype" and message.dtype in DTYPES:
        return DTYPES[message.dtype]
    if kind == "memory_format" and message.memory_format in _MEMORY_FORMATS:
        return _MEMORY_FORMATS[message.memory_format]
    if kind == "layout" and message.layout in _LAYOUTS:
        return _LAYOUTS[message.layout]
    if kind == "device":
        try:
            return torch.device(message.device)
        except RuntimeError:
            raise _wrong(node, path, "unknown device", '"cpu", "cuda" or "cuda:N"', repr(message.device[:40])) from None
    if kind is None:
        raise _wrong(node, path, "an argument without a kind", "one of Argument.kind", "none")
    number = getattr(message, kind)
    raise _wrong(node, path, f"unknown {kind}", f"a number of the proto's {kind} enum", f"number {number}")


def _wrong(node: pb.Node, path: str, what: str, expected: str, got: str) -> Fault:
    text = (
        f'node "{node.name}": {path.partition(".nodes")[2].partition(".")[2]}: {what}: expected {expected}, got {got}'
    )
    return Fault("INVALID_ARGUMENT", text, field=path, node=node.name, target=node.target, expected=expected, got=got)

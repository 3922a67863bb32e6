"""Runs a client's graph with torch, overload by overload, knowing nothing of the server."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import gradoracle as go
from gradoracle import dtypes, tensors
from gradoracle.v1 import graph_pb2

_MEMORY_FORMATS = {
    graph_pb2.MEMORY_FORMAT_CONTIGUOUS: torch.contiguous_format,
    graph_pb2.MEMORY_FORMAT_PRESERVE: torch.preserve_format,
    graph_pb2.MEMORY_FORMAT_CHANNELS_LAST: torch.channels_last,
    graph_pb2.MEMORY_FORMAT_CHANNELS_LAST_3D: torch.channels_last_3d,
}


def outputs(graph: go.Graph, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The graph's outputs for tensors, arrays or numbers."""
    message = graph.message
    values: dict[str, Any] = {name: torch.as_tensor(value) for name, value in inputs.items()}
    values |= {one.name: torch.from_numpy(tensors.decode(one.value)) for one in message.constants}
    for node in message.nodes:
        args = [_argument(one, values) for one in node.args]
        kwargs = {one.name: _argument(one.argument, values) for one in node.kwargs}
        with torch.set_grad_enabled(not node.no_grad):
            values[node.name] = _function(node.target)(*args, **kwargs)
    return {one.name: values[one.value] for one in message.outputs}


def output(graph: go.Graph, **inputs: Any) -> torch.Tensor:
    """The one output of a graph."""
    (value,) = outputs(graph, inputs).values()
    return value


def array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    """As numpy."""
    return value.detach().numpy()


def _function(target: str) -> Any:
    if target == "getitem":
        return operator.getitem
    namespace, base, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), base), overload)


def _argument(argument: graph_pb2.Argument, values: Mapping[str, Any]) -> Any:
    match argument.WhichOneof("kind"):
        case "value":
            return values[argument.value]
        case "none":
            return None
        case "integers":
            return list(argument.integers.values)
        case "list":
            return [_argument(item, values) for item in argument.list.items]
        case "complex":
            return complex(argument.complex.real, argument.complex.imag)
        case "dtype":
            return getattr(torch, dtypes.NAMES[argument.dtype])
        case "memory_format":
            return _MEMORY_FORMATS[argument.memory_format]
        case "layout":
            return getattr(torch, graph_pb2.Layout.Name(argument.layout).removeprefix("LAYOUT_").lower())
        case kind:
            return getattr(argument, str(kind))

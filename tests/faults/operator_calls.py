"""Requests that call one operator, whatever the client would say to its arguments.

An argument is what JSON has (numbers, text, booleans, null, lists), or an object:
{"int64": nested numbers}, under any dtype's name; {"normal": shape, "of": dtype}, drawn by the server;
{"fill": number, "shape": sizes, "of": dtype}; {"dtype": name}; {"layout": name}; {"device": name};
{"memory_format": name}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gradoracle.v1 import graph_pb2, service_pb2, tensor_pb2

_INT64 = range(-(2**63), 2**63)


class Call:
    """A graph of one operator and what stands behind it, under construction."""

    def __init__(self) -> None:
        self.graph = graph_pb2.Graph()
        self.primals: list[tensor_pb2.NamedTensor] = []

    def node(self, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Adds a node; its name."""
        name = f"n{len(self.graph.nodes)}"
        node = graph_pb2.Node(name=name, target=target)
        for one in args:
            self._fill(node.args.add(), one)
        for key, one in kwargs.items():
            self._fill(node.kwargs.add(name=key).argument, one)
        self.graph.nodes.append(node)
        return name

    def output(self, value: str) -> None:
        """Makes a value an output."""
        self.graph.outputs.add(name="out", value=value)

    def evaluate(self) -> bytes:
        """As an EvaluateRequest."""
        return service_pb2.EvaluateRequest(graph=self.graph, primals=self.primals).SerializeToString()

    def vjp(self) -> bytes:
        """As a ComputeVjpRequest without cotangents."""
        return service_pb2.ComputeVjpRequest(graph=self.graph, primals=self.primals).SerializeToString()

    def _fill(self, argument: graph_pb2.Argument, one: Any) -> None:
        if one is None:
            argument.none.SetInParent()
        elif isinstance(one, bool):
            argument.boolean = one
        elif isinstance(one, int):
            argument.integer = one
        elif isinstance(one, float):
            argument.real = one
        elif isinstance(one, complex):
            argument.complex.real, argument.complex.imag = one.real, one.imag
        elif isinstance(one, str):
            argument.text = one
        elif isinstance(one, list):
            argument.list.SetInParent()
            for item in one:
                self._fill(argument.list.items.add(), item)
        else:
            self._fill_special(argument, one)

    def _fill_special(self, argument: graph_pb2.Argument, one: Mapping[str, Any]) -> None:
        if "value" in one:
            argument.value = one["value"]
        elif "dtype" in one:
            argument.dtype = tensor_pb2.Dtype.Value(f"DTYPE_{one['dtype'].upper()}")
        elif "layout" in one:
            argument.layout = graph_pb2.Layout.Value(f"LAYOUT_{one['layout'].upper()}")
        elif "memory_format" in one:
            argument.memory_format = graph_pb2.MemoryFormat.Value(f"MEMORY_FORMAT_{one['memory_format'].upper()}")
        elif "device" in one:
            argument.device = one["device"]
        else:
            argument.value = self._input(tensor(one))

    def _input(self, made: tensor_pb2.Tensor) -> str:
        name = f"x{len(self.primals)}"
        self.graph.inputs.add(name=name, requires_grad=made.dtype in _DIFFERENTIABLE)
        self.primals.append(tensor_pb2.NamedTensor(name=name, tensor=made))
        return name


_DIFFERENTIABLE = {
    tensor_pb2.DTYPE_FLOAT32,
    tensor_pb2.DTYPE_FLOAT64,
    tensor_pb2.DTYPE_COMPLEX64,
    tensor_pb2.DTYPE_COMPLEX128,
}


def tensor(one: Mapping[str, Any]) -> tensor_pb2.Tensor:
    """A tensor as it goes over the wire."""
    if "normal" in one:
        made = tensor_pb2.Tensor(dtype=_dtype(one.get("of", "float64")), shape=one["normal"])
        made.random.normal.SetInParent()
        return made
    if "fill" in one:
        made = tensor_pb2.Tensor(dtype=_dtype(one["of"]), shape=one["shape"])
        if isinstance(one["fill"], float):
            made.fill.real = one["fill"]
        else:
            made.fill.integer = one["fill"]
        return made
    ((dtype, content),) = one.items()
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.asarray(content).astype(kind)
    return tensor_pb2.Tensor(dtype=_dtype(dtype), shape=array.shape, data=array.tobytes())


def _dtype(name: str) -> tensor_pb2.Dtype.ValueType:
    return tensor_pb2.Dtype.Value(f"DTYPE_{name.upper()}")

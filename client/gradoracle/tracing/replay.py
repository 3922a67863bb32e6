"""A small interpreter of graph.proto, by which tracing checks what it is about to return.

It keeps the server's rules as graph.proto and the operators' documentation tell them, and shares no code with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradoracle.dtypes import NAMES
from gradoracle.v1 import graph_pb2 as pb
from gradoracle.v1 import tensor_pb2

_MEMORY_FORMATS = {
    pb.MEMORY_FORMAT_CONTIGUOUS: torch.contiguous_format,
    pb.MEMORY_FORMAT_PRESERVE: torch.preserve_format,
    pb.MEMORY_FORMAT_CHANNELS_LAST: torch.channels_last,
    pb.MEMORY_FORMAT_CHANNELS_LAST_3D: torch.channels_last_3d,
}
_STATE = ("running_mean", "running_var")
_PLAIN = ("integer", "real", "boolean", "text")


class OutsideWriteError(Exception):
    """The graph would change an input or a constant."""


def replay(graph: pb.Graph, inputs: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The outputs, in order, for the inputs in order. Autograd records where it is enabled and the node allows."""
    return Replay(graph, device)(inputs)


class Replay:
    """A graph, decoded once to be run several times."""

    def __init__(self, graph: pb.Graph, device: torch.device) -> None:
        self._device = device
        self._inputs = [one.name for one in graph.inputs]
        self._outputs = [one.value for one in graph.outputs]
        self._constants = {one.name: _constant(one.value).to(device) for one in graph.constants}
        self._functions = {f"function.{one.name}": _function(one, device) for one in graph.functions}
        self._nodes = [self._decoded(node) for node in graph.nodes]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values.update(self._constants)
        outside = [(one, one._version) for one in values.values()]
        enabled = torch.is_grad_enabled()
        for name, no_grad, run in self._nodes:
            with torch.set_grad_enabled(enabled and not no_grad):
                values[name] = run(values)
        if any(one._version != version for one, version in outside):
            raise OutsideWriteError
        return [values[name] for name in self._outputs]

    def _decoded(self, node: pb.Node) -> tuple[str, bool, Callable[[Mapping[str, Any]], Any]]:
        args = [_argument(one) for one in node.args]
        kwargs = {one.name: _argument(one.argument) for one in node.kwargs}
        if node.target == "getitem":
            return node.name, node.no_grad, lambda values: args[0](values)[args[1](values)]
        function: Callable[..., Any]
        copies: frozenset[int | str] = frozenset()
        if node.target in self._functions:
            function = self._functions[node.target]
        else:
            function = overload = _overload(node.target)
            copies = _state(overload)
            if "device" not in kwargs and _makes_of_nothing(overload):
                kwargs["device"] = lambda _: self._device

        def run(values: Mapping[str, Any]) -> Any:
            given = [one(values) for one in args]
            named = {name: one(values) for name, one in kwargs.items()}
            for place in copies:  # the server keeps running statistics from being changed
                if isinstance(place, int) and place < len(given) and given[place] is not None:
                    given[place] = given[place].clone()
                elif isinstance(place, str) and named.get(place) is not None:
                    named[place] = named[place].clone()
            return function(*given, **named)

        return node.name, node.no_grad, run


def _overload(target: str) -> torch._ops.OpOverload:
    namespace, base, name = target.split(".")
    found: torch._ops.OpOverload = getattr(getattr(getattr(torch.ops, namespace), base), name)
    return found


@functools.cache
def _makes_of_nothing(overload: torch._ops.OpOverload) -> bool:
    """Whether an overload makes a tensor, on a device, out of no other."""
    kinds = {one.name: str(one.type) for one in overload._schema.arguments}
    return "device" in kinds and not any("Tensor" in kind for kind in kinds.values())


@functools.cache
def _state(overload: torch._ops.OpOverload) -> frozenset[int | str]:
    """Places and names of an overload's running statistics."""
    found: set[int | str] = set()
    for place, one in enumerate(overload._schema.arguments):
        if one.name in _STATE:
            found |= {place, one.name}
    return frozenset(found)


def _argument(message: pb.Argument) -> Callable[[Mapping[str, Any]], Any]:
    """What gives an argument's value, once the values of the graph are known."""
    kind = message.WhichOneof("kind")
    if kind == "value":
        name = message.value
        return lambda values: values[name]
    if kind == "list":
        items = [_argument(one) for one in message.list.items]
        return lambda values: [one(values) for one in items]
    value = _fixed(message, kind)
    return lambda _: value


def _fixed(message: pb.Argument, kind: str | None) -> Any:
    if kind in _PLAIN:
        return getattr(message, kind)
    if kind == "integers":
        return list(message.integers.values)
    if kind == "complex":
        return complex(message.complex.real, message.complex.imag)
    if kind == "dtype":
        return getattr(torch, NAMES[message.dtype])
    if kind == "device":
        return torch.device(message.device)
    if kind == "memory_format":
        return _MEMORY_FORMATS[message.memory_format]
    if kind == "layout":
        return getattr(torch, pb.Layout.Name(message.layout).removeprefix("LAYOUT_").lower())
    return None


def _constant(message: tensor_pb2.Tensor) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, NAMES[message.dtype])
    own = torch.zeros(tuple(message.shape), dtype=dtype)
    if own.numel():
        raw = torch.frombuffer(bytearray(message.data), dtype=torch.uint8)
        own.view(-1).view(torch.uint8).copy_(raw)
    return own


def _function(message: pb.Function, device: torch.device) -> Callable[..., Any]:
    """What a node calls: an autograd.Function by the two graphs, whose backward is differentiated in its turn."""
    forward, backward = Replay(message.forward, device), Replay(message.backward, device)
    names = [one.name for one in message.forward.inputs]
    given = {one.name: place for place, one in enumerate(message.backward.outputs)}

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: torch.Tensor) -> Any:
            ctx.save_for_backward(*inputs)
            values = [one.clone() if any(one is each for each in inputs) else one for one in forward(inputs)]
            ctx.mark_non_differentiable(
                *(one for one in values if not (one.dtype.is_floating_point or one.dtype.is_complex))
            )
            return values[0] if len(values) == 1 else tuple(values)

        @staticmethod
        def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
            found = backward((*ctx.saved_tensors, *cotangents))
            return tuple(found[given[name]] if name in given else None for name in names)

    def call(*tensors: torch.Tensor) -> Any:
        return Given.apply(*tensors)  # type: ignore[no-untyped-call]

    return call

"""Short ways to write graphs in the engine's form, for the engine's tests."""

from __future__ import annotations

from typing import Any

import torch

from gradoracle.v1 import tensor_pb2
from gradoracle_server.engine import plan
from gradoracle_server.engine.graph import FUNCTION, GETITEM, Argument, GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.worker.tensors import Outgoing

CPU = torch.device("cpu")


def phases() -> Phases:
    return Phases(CPU)


def node(name: str, target: str, *args: Any, no_grad: bool = False, **kwargs: Any) -> NodeSpec:
    """A node; strings that begin with "%" are references, and bare names of overloads are ATen's."""
    full = target if target == GETITEM or target.startswith(("aten.", FUNCTION)) else f"aten.{target}"
    return NodeSpec(
        name, full, tuple(_argument(one) for one in args), {k: _argument(v) for k, v in kwargs.items()}, no_grad
    )


def _argument(value: Any) -> Argument:
    if isinstance(value, str) and value.startswith("%"):
        return Ref(value[1:])
    if isinstance(value, list):
        return [_argument(item) for item in value]
    return value  # type: ignore[no-any-return]


def graph(
    inputs: str | list[InputSpec],
    nodes: list[NodeSpec],
    outputs: str | dict[str, str],
    constants: dict[str, torch.Tensor] | None = None,
) -> GraphSpec:
    """A graph; inputs and outputs may be names with spaces between, an output named as its value."""
    specs = [InputSpec(name) for name in inputs.split()] if isinstance(inputs, str) else inputs
    named = {name: name for name in outputs.split()} if isinstance(outputs, str) else outputs
    return GraphSpec(tuple(specs), tuple(nodes), tuple(named.items()), tuple((constants or {}).items()))


def build(*args: Any, **kwargs: Any) -> Plan:
    """The plan of `graph(…)` on the CPU."""
    return plan.build(graph(*args, **kwargs), CPU)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes: tells -0.0 from 0.0 and takes NaN for equal to itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    messages = (tensor_pb2.Tensor(), tensor_pb2.Tensor())
    for message, tensor in zip(messages, (left, right), strict=True):
        Outgoing(False).fill(message, tensor)
    return messages[0].data == messages[1].data

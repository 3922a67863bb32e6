"""The engine's form of a graph, before it is a program: plain data, arguments already Python values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an input, constant or node by name."""

    name: str


Argument: TypeAlias = (
    "Ref | bool | int | float | complex | str | torch.dtype | torch.device | torch.memory_format | torch.layout "
    "| list[Argument] | None"
)

STRUCTURES = ("", "symmetric", "hermitian", "lower_triangular", "upper_triangular", "positive_definite")
"""The sets in which an input may move; "" is anywhere. Indexed by the proto's Structure."""

GETITEM = "getitem"
"""The target of a node that takes one element of a tuple or list."""

FUNCTION = "function."
"""What the target of a node begins with that calls one of the graph's functions."""


@dataclasses.dataclass(frozen=True, slots=True)
class InputSpec:
    """A tensor that comes with each request."""

    name: str
    requires_grad: bool = True
    structure: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class NodeSpec:
    """One call of an operator."""

    name: str
    target: str
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = dataclasses.field(default_factory=dict)
    no_grad: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSpec:
    """A program: see graph.proto for the rules, which `plan.build` holds it to."""

    inputs: tuple[InputSpec, ...]
    nodes: tuple[NodeSpec, ...]
    outputs: tuple[tuple[str, str], ...]  # (name of the output, name of the value)
    constants: tuple[tuple[str, torch.Tensor], ...] = ()
    functions: tuple[FunctionSpec, ...] = ()

    @property
    def structures(self) -> dict[str, str]:
        """The structure of each input that has one."""
        return {one.name: one.structure for one in self.inputs if one.structure}


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionSpec:
    """An operator with a gradient of its own: see Function in graph.proto."""

    name: str
    forward: GraphSpec
    backward: GraphSpec

"""Plans: graphs that keep the rules, and the programs that they are turned into.

Nothing is reordered, merged or left out: a node whose result nobody wants still runs, because its random draws, its
error, or what it changes in place, are part of the program.

In-place overloads may change values that the graph itself made. What came from outside is never changed: inputs may be
looked at again by who sent them, and constants serve the next request with the same graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from gradoracle_server.engine import fresh, functions, rules
from gradoracle_server.engine.graph import GraphSpec
from gradoracle_server.engine.operators import Operator
from gradoracle_server.engine.program import Program
from gradoracle_server.engine.raising import Raising

NOTHING_AROUND: AbstractContextManager[object] = contextlib.nullcontext()

CHALF = "aten.chalf.default"
"""The only operator whose name is its dtype."""

_VARIANTS = 8  # programs kept for one graph, by what they return beside the outputs
_EACH = 10_000  # bytes that a plan takes, and each of its programs
_SPEC, _PROGRAM = 20, 10  # bytes that they take for each byte of the graph's message
_A_NEED = 300  # bytes, for each input, of what `limits` remembers


@dataclasses.dataclass(slots=True)
class Plan:
    """A checked graph, ready to run on one device."""

    spec: GraphSpec
    device: torch.device
    operators: dict[str, Operator]  # by node; getitem nodes and calls of functions have none
    constants: dict[str, torch.Tensor]
    functions: dict[str, Callable[..., Any]]  # by name
    _programs: dict[tuple[str, ...], Program] = dataclasses.field(default_factory=dict)
    needs: dict[Any, Any] = dataclasses.field(default_factory=dict)  # kept by `limits`
    wants_zeros: bool = False  # whether it must run on memory that holds zeros: see `fresh`
    _constant_bytes: int = -1  # -1: not counted yet

    def dtypes(self, inputs: Sequence[torch.Tensor]) -> set[torch.dtype]:
        """Those that it has of its own, with some inputs: its constants', and those that it names."""
        return _dtypes(self.spec)

    @property
    def around(self) -> AbstractContextManager[object]:
        """What is to hold while its backward runs."""
        return NOTHING_AROUND

    @property
    def output_values(self) -> tuple[str, ...]:
        """The value behind each output, in order."""
        return tuple(value for _, value in self.spec.outputs)

    def held(self, text: int) -> int:
        """About the bytes of memory that it keeps; `text` are those of the graph's message. Rather too many."""
        constants = self._constant_bytes
        if constants < 0:
            constants = self._constant_bytes = sum(value.nbytes for value in self.constants.values())
        programs = max(1, len(self._programs)) + (1 if self.functions else 0)
        needs = len(self.needs) * _A_NEED * (4 + len(self.spec.inputs))
        written = max(0, text - constants) * (_SPEC + _PROGRAM * programs)
        return constants + (1 + programs) * _EACH + written + needs

    def program(self, extra: Sequence[str] = ()) -> Program:
        """The program that returns the outputs' values and then those named in `extra`. Kept for the next time."""
        key = tuple(extra)
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) >= _VARIANTS:
                self._programs.pop(next(iter(self._programs)))
            program = self._programs[key] = Program(self, self.output_values + key)
        return program

    def rebuilt(self, spec: GraphSpec) -> Plan:
        """The plan of another graph on the same device."""
        return build(spec, self.device)

    def raising(self) -> Plan | None:
        """The same graph, with whatever its operators get and make raised to float64; None where it is no graph."""
        return RaisingPlan(self)


class RaisingPlan(Plan):
    """A graph in float64, of whatever dtypes its operators are."""

    __slots__ = ("_around", "_plan")

    def __init__(self, plan: Plan) -> None:
        super().__init__(
            plan.spec, plan.device, plan.operators, plan.constants, plan.functions, wants_zeros=plan.wants_zeros
        )
        self._plan, self._around = plan, Raising()

    @property
    def around(self) -> AbstractContextManager[object]:
        return self._around

    def program(self, extra: Sequence[str] = ()) -> Program:
        program, around = self._plan.program(extra), self._around

        def run(inputs: Sequence[torch.Tensor], *, recorded: bool = False) -> tuple[Any, ...]:
            with around:
                return program(inputs, recorded=True) if recorded else program(inputs)

        return run  # type: ignore[return-value]  # a Program is used as a callable, and as nothing else


def _dtypes(spec: GraphSpec) -> set[torch.dtype]:
    found = {value.dtype for _, value in spec.constants}
    for node in spec.nodes:
        found |= {one for one in (*node.args, *node.kwargs.values()) if isinstance(one, torch.dtype)}
        if node.target == CHALF:
            found.add(torch.complex32)
    for one in spec.functions:
        found |= _dtypes(one.forward) | _dtypes(one.backward)
    return found


def build(spec: GraphSpec, device: torch.device) -> Plan:
    """Checks the graph and builds its plan. Raises Fault with the first rule broken."""
    operators = rules.check(spec, device)
    constants = {name: value.to(device) for name, value in spec.constants}
    own = {
        one.name: functions.operator(one, build(one.forward, device).program(), build(one.backward, device).program())
        for one in spec.functions
    }
    return Plan(spec, device, operators, constants, own, wants_zeros=fresh.needed(spec))

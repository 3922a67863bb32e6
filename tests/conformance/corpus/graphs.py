"""Checks of graphs in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

import gradoracle as go
from gradoracle_server.engine import check, plan, program
from gradoracle_server.engine.graph import GraphSpec, InputSpec
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.program import Program
from gradoracle_server.engine.report import Report
from gradoracle_server.worker import graphs
from gradoracle_server.worker.tensors import Incoming

_CPU = torch.device("cpu")


@dataclasses.dataclass(slots=True)
class FunctionPlan(Plan):
    """A plan whose program is a Python function, so that it may hold what a graph cannot: faults."""

    function: Callable[..., torch.Tensor] = torch.clone

    def program(self, extra: Sequence[str] = ()) -> Program:
        """Raises Fault where the function raises, as a graph's program does."""

        def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            try:
                return (self.function(*inputs),)
            except Exception as error:
                raise program.computation_failed(error) from error

        return run  # type: ignore[return-value]  # a Program is used as a callable, and as nothing else


def plan_of_function(function: Callable[..., torch.Tensor], count: int) -> FunctionPlan:
    """A plan of a function of `count` tensors, x0, x1, …, with one output, out0."""
    spec = GraphSpec(tuple(InputSpec(f"x{place}") for place in range(count)), (), (("out0", "out0"),))
    return FunctionPlan(spec, _CPU, operators={}, constants={}, functions={}, function=function)


def plan_of(graph: go.Graph) -> Plan:
    """A client's graph as the engine's program."""
    return plan.build(graphs.read(graph.message, Incoming(_CPU, 1 << 40, None), 0), _CPU)


def checked(
    made: Plan,
    primals: Mapping[str, torch.Tensor],
    *,
    claimed: Mapping[str, torch.Tensor] | None = None,
    cotangents: Mapping[str, torch.Tensor] | None = None,
    wrt: tuple[str, ...] = (),
    options: check.Options,
) -> Report:
    """What a worker does with a CheckGradients request."""
    phases = Phases(_CPU)
    return check.check(
        made, primals, phases, claimed=claimed or {}, cotangents=cotangents or {}, wrt=wrt, options=options
    )

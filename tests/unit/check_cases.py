"""Torch functions as plans, wrong gradients planted in them, and short ways to check, for the tests of the checker."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradoracle_server.engine import check as checks
from gradoracle_server.engine import program
from gradoracle_server.engine.graph import GraphSpec, InputSpec
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.report import Report

F64 = torch.float64


@dataclasses.dataclass(slots=True)
class FunctionPlan(Plan):
    """A plan whose program is a Python function, so that it may hold what a graph cannot: faults."""

    function: Callable[..., Any] = torch.clone

    def program(self, extra=()):
        def run(inputs):
            try:
                found = self.function(*inputs)
            except RuntimeError as error:  # as a graph's program does; torch's for a missing jvp is one, too
                raise program.computation_failed(error) from error
            return found if isinstance(found, tuple) else (found,)

        return run

    def rebuilt(self, spec):
        return dataclasses.replace(self, spec=spec)


def plan_of(function: Callable[..., Any], inputs: Mapping[str, torch.Tensor], **structures: str) -> FunctionPlan:
    """A plan with the inputs' names; its outputs are named out0, out1, …"""
    with torch.no_grad():
        found = function(*inputs.values())
    count = len(found) if isinstance(found, tuple) else 1
    specs = tuple(InputSpec(name, structure=structures.get(name, "")) for name in inputs)
    spec = GraphSpec(specs, (), tuple((f"out{place}", f"out{place}") for place in range(count)))
    return FunctionPlan(spec, torch.device("cpu"), operators={}, constants={}, functions={}, function=function)


def check(
    function: Callable[..., Any],
    *args: torch.Tensor,
    claimed: Mapping[str, torch.Tensor] | None = None,
    cotangents: Mapping[str, torch.Tensor] | None = None,
    structures: Mapping[str, str] | None = None,
    wrt: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Checks a function's gradients, or claims; inputs are named after its parameters, or x0, x1, …"""
    inputs = dict(zip(_names(function, len(args)), args, strict=True))
    made = plan_of(function, inputs, **(structures or {}))
    return planned(made, inputs, claimed=claimed, cotangents=cotangents, wrt=wrt, **options)


def planned(
    plan: Plan,
    inputs: Mapping[str, torch.Tensor],
    *,
    claimed: Mapping[str, torch.Tensor] | None = None,
    cotangents: Mapping[str, torch.Tensor] | None = None,
    wrt: Sequence[str] = (),
    **options: Any,
) -> Report:
    """The same where there is a plan already, as there is in a server that has seen the graph."""
    return checks.check(
        plan,
        inputs,
        Phases(torch.device("cpu")),
        claimed=claimed or {},
        cotangents=cotangents or {},
        wrt=wrt,
        options=checks.Options(**options),
    )


def _names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        found = []
    names = [one.name for one in found if one.kind is one.POSITIONAL_OR_KEYWORD][:count]
    return names if len(names) == count else [f"x{place}" for place in range(count)]


def planted(forward: Callable[..., torch.Tensor], wrong: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """`forward` with another backward: wrong(inputs, cotangent, right gradients) -> gradients."""

    class Planted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs):
            return forward(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, cotangent):
            inputs = [one.detach().requires_grad_() for one in ctx.saved_tensors]
            with torch.enable_grad():
                right = torch.autograd.grad(forward(*inputs), inputs, cotangent)
            return wrong(inputs, cotangent, right)

    return Planted.apply

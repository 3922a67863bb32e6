"""A Python callable where a plan is expected, so that the checks can judge what no graph expresses.

Checks run graphs by their plans. `CallablePlan` is a plan whose program calls a function of tensors instead: kernels
behind a torch.autograd.Function, control flow that depends on values, numpy. It runs in the process of whoever owns the
function, and one point at a time: what vmap makes of code that it cannot see into is not to be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import GraphSpec, InputSpec
from gradoracle_server.engine.plan import NOTHING_AROUND, Plan
from gradoracle_server.engine.program import Program
from gradoracle_server.engine.raising import Raising, raised

Function = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""Tensors for the inputs in, one tensor an output out. It leaves the tensors that it gets as they are."""


class CallablePlan(Plan):
    """A plan that calls a function."""

    __slots__ = ("_function", "_met", "_narrow", "_raisable", "_raising", "_shapes", "_wide")

    def __init__(
        self,
        function: Function,
        inputs: Sequence[tuple[InputSpec, torch.Tensor]],
        outputs: Sequence[str],
        *,
        raisable: bool,
        raising: bool = False,
    ) -> None:
        """`raisable`: the function computes the same in float64 throughout when it is given float64 tensors; with
        `raising`, when its own are raised, too. Where it does not, it has no shadow, and low precision is judged by
        differences in low precision."""
        device = inputs[0][1].device if inputs else torch.device("cpu")
        spec = GraphSpec(tuple(one for one, _ in inputs), (), tuple((name, name) for name in outputs))
        super().__init__(spec, device, {}, {}, {})
        self._function, self._raisable, self._narrow = function, raisable, False
        self._raising, self._wide = raising, NOTHING_AROUND
        self._met: set[torch.dtype] | None = None  # the dtypes of its own tensors, once looked at
        self._shapes = [(one.shape, one.dtype) for _, one in inputs]

    def program(self, extra: Sequence[str] = ()) -> Program:
        """Calls the function. There are no values inside it that could be asked for."""
        return self._run  # type: ignore[return-value]  # a Program is used as a callable, and as nothing else

    def rebuilt(self, spec: GraphSpec) -> CallablePlan:
        """The same function for tensors of float64; where it is none there, for tensors that are rounded again, which
        gives low-precision outputs and so no faithful shadow."""
        found = CallablePlan.__new__(CallablePlan)
        Plan.__init__(found, spec, self.device, {}, {}, {})
        found._function, found._raisable, found._shapes = self._function, self._raisable, self._shapes
        found._narrow, found._raising, found._met = not self._raisable, self._raising, None
        found._wide = Raising() if self._raising else NOTHING_AROUND
        return found

    def raising(self) -> Plan | None:
        """It is known beforehand whether its tensors are to be raised; where not, its backward may round all the same:
        where it casts what it gets."""
        if not self._raisable or self._raising:
            return None
        found = self.rebuilt(self.spec)
        found._wide = Raising()
        return found

    def dtypes(self, inputs: Sequence[torch.Tensor]) -> set[torch.dtype]:
        """Those of the tensors that the function holds and makes, where they are raised."""
        if self._raising and self._met is None:
            around = Raising()
            with torch.enable_grad(), around:
                self._function([raised(one) for one in inputs])
            self._met = around.met
        return self._met or set()

    @property
    def around(self) -> AbstractContextManager[object]:
        """Of a shadow: that torch raises what the function holds itself."""
        return self._wide

    def _run(self, inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        if any(torch._C._functorch.is_functorch_wrapped_tensor(one) for one in inputs):
            raise RuntimeError("a function that cannot be seen into is not batched")
        for spec, one, (shape, _) in zip(self.spec.inputs, inputs, self._shapes, strict=True):
            if one.shape != shape:
                message = f'input "{spec.name}" has shape {list(shape)}, got a tensor of shape {list(one.shape)}'
                raise Fault("COMPUTATION_FAILED", message)
        if self._narrow:
            inputs = [one.to(dtype) for one, (_, dtype) in zip(inputs, self._shapes, strict=True)]
        # Also where only values are wanted: functions that call autograd themselves need it, and no backward runs.
        with torch.enable_grad(), self._wide:
            return tuple(self._function(inputs))


def is_smooth_in_float64(function: Function, inputs: Sequence[torch.Tensor], *, raising: bool = False) -> bool:
    """Whether a function of low-precision tensors computes in float64 throughout when it is given float64 ones; with
    `raising`, when its own are raised, too.

    It must take them and give float64 back, and twice a small step must move its outputs twice as far, and not at all
    only where a long one does not either: roundings to a coarser precision on the way would show.
    """
    generator = torch.Generator().manual_seed(0x5A0)
    wide = [raised(one.detach()) for one in inputs]
    moves = [
        one.abs() * (torch.randint(0, 2, one.shape, generator=generator).to(one.device) * 2 - 1)
        if one.dtype.is_floating_point or one.dtype.is_complex
        else None
        for one in wide
    ]

    def at(step: float) -> list[torch.Tensor]:
        point = [one if move is None else one + step * move for one, move in zip(wide, moves, strict=True)]
        with torch.enable_grad(), Raising() if raising else NOTHING_AROUND:
            return [one.detach() for one in function(point)]

    try:
        points = [at(step) for step in (0.0, _STEP, 2 * _STEP, _LONG)]
    except Exception:
        return False
    return all(_straight(*four) for four in zip(*points, strict=True))


_STEP = 1e-6  # relative
_LONG = 2.0**-6
_BENT = 1e-9  # relative to the output; one rounding to float32 is 6e-8


def _straight(here: torch.Tensor, near: torch.Tensor, far: torch.Tensor, away: torch.Tensor) -> bool:
    if here.dtype not in (torch.float64, torch.complex128):
        return False
    if bool(((here == near) & (here == far) & (here != away)).any()):
        return False
    known = here.abs().isfinite() & near.abs().isfinite() & far.abs().isfinite()
    bend = torch.where(known, (far - 2 * near + here).abs(), 0.0)
    size = torch.where(known, here.abs(), 0.0)
    return not here.numel() or bool(bend.max() <= _BENT * size.max() + torch.finfo(torch.float64).tiny)

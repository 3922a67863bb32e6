"""Points where functions have kinks: ties of a maximum, relu at 0. There no gradient is right; what is said counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from conformance.corpus.checkers import Case, checked
from conformance.corpus.planting import Wrong, planted, right
from gradoracle_server.engine.report import Mode, Verdict

Function = Callable[[torch.Tensor], torch.Tensor]

_TIES = torch.tensor([[1.0, 3.0, 3.0], [2.5, 0.5, 1.25]], dtype=torch.float64)
_LOW_TIES = torch.tensor([[1.0, 1.0, 3.0], [2.5, 0.5, 1.25]], dtype=torch.float64)
_ZERO = torch.tensor([-1.5, 0.0, 2.25, 0.75], dtype=torch.float64)
_ONE = torch.tensor([-0.5, 1.0, 2.25, 0.75], dtype=torch.float64)

REDUCTIONS: dict[str, tuple[Function, torch.Tensor]] = {
    "amax": (lambda x: x.amax(-1), _TIES),
    "amin": (lambda x: x.amin(-1), _LOW_TIES),
    "max": (lambda x: x.max(-1).values, _TIES),
    "min": (lambda x: x.min(-1).values, _LOW_TIES),
    "aminmax": (lambda x: x.aminmax(dim=-1).max, _TIES),
    "topk": (lambda x: x.topk(1, -1).values[:, 0], _TIES),
    "kthvalue": (lambda x: x.kthvalue(3, -1).values, _TIES),
    "sort": (lambda x: x.sort(-1).values[:, 2], _TIES),
    "cummax": (lambda x: x.cummax(-1).values[:, 2], _TIES),
    "max_pool1d": (lambda x: F.max_pool1d(x[None], 3)[0, :, 0], _TIES),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x[None], 1)[0, :, 0], _TIES),
    "norm, p = inf": (lambda x: x.norm(float("inf"), -1), _TIES),
}
"""Along the last axis; tied where the value is reached twice."""

ELEMENTWISE: dict[str, tuple[Function, torch.Tensor]] = {
    "relu": (torch.relu, _ZERO),
    "abs": (torch.abs, _ZERO),
    "clamp at 1": (lambda x: x.clamp(max=1.0), _ONE),
    "maximum": (lambda x: torch.maximum(x, torch.ones_like(x)), _ONE),
    "minimum": (lambda x: torch.minimum(x, torch.ones_like(x)), _ONE),
    "fmax": (lambda x: torch.fmax(x, torch.ones_like(x)), _ONE),
    "hardtanh": (F.hardtanh, _ONE),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), _ZERO),
    "relu6": (F.relu6, _ZERO),
    "threshold": (lambda x: F.threshold(x, 0.0, 0.0), _ZERO),
    "l1_loss": (lambda x: F.l1_loss(x, torch.ones_like(x), reduction="none"), _ONE),
}


def _given(change: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Wrong:
    """change(right gradient, cotangent as wide as the input, where the kink is)."""

    def wrong(inputs: Any, cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        (point,) = inputs
        if cotangent.dim() == point.dim():
            at = (point == 0) if bool((point == 0).any()) else (point == 1)
            wide = cotangent
        else:
            at = torch.zeros_like(point, dtype=torch.bool)
            at[0] = torch.tensor([0, 1, 1] if bool(point[0, 1] == point[0, 2]) else [1, 1, 0], dtype=torch.bool)
            wide = cotangent[..., None].expand_as(point)
        return (change(right[0], wide, at),)

    return wrong


FAULTS: dict[str, Wrong] = {
    "torch's own choice": right,
    "the whole gradient to every tie": _given(lambda g, u, at: torch.where(at, u, g)),
    "twice the larger slope": _given(lambda g, u, at: torch.where(at, 2 * u, g)),
    "minus twice the larger slope": _given(lambda g, u, at: torch.where(at, -2 * u, g)),
    "right at the kink, wrong beside it": _given(lambda g, u, at: torch.where(at, g, 1.01 * g)),
}


def cases() -> Iterator[Case]:
    """Each function with each backward."""
    for name, (function, point) in {**REDUCTIONS, **ELEMENTWISE}.items():
        for fault, wrong in FAULTS.items():
            yield Case(f"kink: {fault}", planted(function, wrong), (point,), operator=name)


def said(case: Case) -> dict[str, str]:
    """What each of our modes says of the gradient at the kink: a verdict, with whether the claim is inside."""
    found = {}
    for mode in (Mode.PROBE, Mode.FULL):
        report = checked(case, mode)
        words = report.verdict.name
        if report.verdict is Verdict.NON_DIFFERENTIABLE:
            words += {True: ", inside", False: ", outside", None: ""}[report.inputs[0].claim_inside]
        found[mode.name.lower()] = words
    return found

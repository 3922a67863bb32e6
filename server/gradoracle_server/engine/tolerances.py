"""The one rule by which every check decides, and what rounding alone does to a gradient."""

from __future__ import annotations

import dataclasses
import math

import torch

from gradoracle_server.engine.report import Verdict

RELATIVE = 1e-9
"""What a float64 gradient may differ from the numerical one by, relative to the gradient along the direction, however
narrow the bars: special functions are not computed to the last bit. torch's trigamma, the gradient of digamma, has nine
and a half digits."""

ASKED = 1e-6
"""The resolution, relative to the gradient along the direction, below which a check that finds no fault is no proof."""

ASKED_LOW = 0.5
"""The same where a gradient in low precision is held against one in float64: more spread than this tells nothing."""


_UNITS = 8.0  # in the last place
_SPREADS = 5.0  # of what a few runs of Monte Carlo arithmetic showed


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What the rule said, and the figures it had."""

    verdict: Verdict
    error: float
    bound: float


def judge(error: float, bar: float, allowance: float, scale: float, asked: float = ASKED) -> Judgement:
    """The rule. With bound = bar + allowance:

        INCONCLUSIVE  where the bar is infinite: nothing is known of the true derivative
        FAIL          unless error <= bound, so that NaN fails
        PASS          where error <= bound <= asked * scale
        INCONCLUSIVE  where error <= bound, but the bound is wider than that

    error: |claimed - numerical|. bar: the numerical derivative's error bar, which holds the truth. allowance: what
    rounding may do to the claim. scale: the size of the gradient along the direction.
    """
    bound = bar + allowance
    if math.isinf(bar):
        return Judgement(Verdict.INCONCLUSIVE, error, bound)
    if not error <= bound:
        return Judgement(Verdict.FAIL, error, bound)
    if bound <= asked * scale:
        return Judgement(Verdict.PASS, error, bound)
    return Judgement(Verdict.INCONCLUSIVE, error, bound)


def rounding(gradient: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The allowance for a float64 gradient, (C,), along directions, (P, C): shape (P,)."""
    terms = directions * gradient
    epsilon = torch.finfo(torch.float64).eps
    allowed: torch.Tensor = RELATIVE * terms.norm(dim=1) + 16 * epsilon * terms.abs().sum(1)
    return allowed


def elementwise(reference: torch.Tensor, epsilon: float, spread: torch.Tensor | None) -> torch.Tensor:
    """The allowance for each element of a gradient that was computed with that machine epsilon, given it in float64.

    What rounding anywhere in the graph does is `spread`, as Monte Carlo arithmetic measured it; beside it stand a few
    units in the last place of the element itself and, for sums inside one operator, of the typical element.
    """
    magnitude = reference.abs().nan_to_num(posinf=0.0)
    typical = magnitude.square().mean().sqrt() if magnitude.numel() else magnitude.sum()
    found = _UNITS * epsilon * (magnitude + typical)
    if epsilon <= torch.finfo(torch.float64).eps:
        found = found + RELATIVE * magnitude
    return found if spread is None else found + _SPREADS * spread


def finite(value: float) -> float:
    """A figure for a report: infinite where it is not a number."""
    return math.inf if math.isnan(value) else value

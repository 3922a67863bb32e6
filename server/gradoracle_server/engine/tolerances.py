"""The one rule by which every check decides, and what rounding alone does to a gradient."""

from __future__ import annotations

import dataclasses
import math

import torch

from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.report import Verdict

RELATIVE = 1e-9
"""What a float64 gradient may differ from the numerical one by, relative to the gradient along the direction, however
narrow the bars: special functions are not computed to the last bit. torch's trigamma, the gradient of digamma, has nine
and a half digits."""

FAULT = 1e-8
"""The relative fault in a single element that a check in float64 takes pains to see."""

_COARSE_FAULT = 1e-7
"""The same at the most, in whatever precision: a reference is to be right."""

ASKED = 1e-6
"""The resolution, relative to the gradient along the direction, below which a check that finds no fault is no proof."""

ASKED_COARSE = 1e-2
"""The same where a gradient in low precision is held against slopes."""

ASKED_LOW = 0.5
"""The same where a gradient in low precision is held against one in float64: more spread than this tells nothing."""


_FINITE = torch.finfo(torch.float64).max
_TINY = torch.finfo(torch.float64).tiny  # what is less has fewer digits
_UNITS = 8.0  # in the last place
SPREADS = 5.0
"""What a few runs of Monte Carlo arithmetic showed is multiplied by."""


@dataclasses.dataclass(frozen=True, slots=True)
class Judgements:
    """What the rule said of P comparisons, and the figures it had; all of shape (P,)."""

    error: torch.Tensor
    bound: torch.Tensor
    within: torch.Tensor  # bool
    narrow: torch.Tensor  # bool: the bound is, so that being within it is a proof

    @property
    def failed(self) -> torch.Tensor:
        """(P,) of bool: FAIL."""
        return ~self.within & ~self.bound.isinf()

    @property
    def verdict(self) -> Verdict:
        """On all of them together."""
        if bool((self.within & self.narrow).all()):
            return Verdict.PASS
        return Verdict.FAIL if bool(self.failed.any()) else Verdict.INCONCLUSIVE

    @property
    def excess(self) -> torch.Tensor:
        """How far beyond its bound each error is, or near to it: error / bound, infinite for NaN."""
        relative = torch.where(self.bound > 0, self.error / self.bound, self.error)
        return relative.nan_to_num(nan=math.inf, posinf=math.inf)


def judge(
    error: torch.Tensor, bar: torch.Tensor, allowance: torch.Tensor, scale: torch.Tensor, asked: float = ASKED
) -> Judgements:
    """The rule. With bound = bar + allowance:

        INCONCLUSIVE  where the bar is infinite: nothing is known of the true derivative
        FAIL          unless error <= bound, so that NaN fails
        PASS          where error <= bound <= asked * scale
        INCONCLUSIVE  where error <= bound, but the bound is wider than that

    error: |claimed - numerical|. bar: the numerical derivative's error bar, which holds the truth. allowance: what
    rounding may do to the claim. scale: the size of the gradient along the direction. All of shape (P,).
    """
    bound = bar + allowance
    return Judgements(error, bound, error <= bound, bound <= (asked * scale).clamp(max=_FINITE))


def fault(epsilon: float) -> float:
    """The relative fault in a single element that a check takes pains to see, of what is on trial in a precision with
    that machine epsilon: less than that epsilon cannot be one."""
    return min(max(FAULT, epsilon), _COARSE_FAULT)


def rounding(total: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The allowance, (P,), for a float64 gradient along directions, given the sums of magnitudes and the norms of the
    terms of their products, (P,) both."""
    least = torch.add(total.clamp(max=_TINY), total, alpha=16 * torch.finfo(torch.float64).eps)
    return least.add_(size, alpha=RELATIVE)


def elementwise(reference: torch.Tensor, epsilon: float, spread: torch.Tensor | None) -> torch.Tensor:
    """The allowance for each element of a gradient that was computed with that machine epsilon, given it in float64.

    What rounding anywhere in the graph does is `spread`, as Monte Carlo arithmetic measured it; beside it stand a few
    units in the last place of the element itself and, for sums inside one operator, of the typical element.
    """
    magnitude = reference.abs().nan_to_num_(posinf=0.0)
    typical = norm(magnitude) / math.sqrt(max(1, magnitude.numel()))
    units = _UNITS * epsilon
    relative = units + RELATIVE if epsilon <= torch.finfo(torch.float64).eps else units
    found = torch.add(units * typical + min(typical, _TINY), magnitude, alpha=relative)
    return found if spread is None else found + SPREADS * spread


def finite(value: float) -> float:
    """A figure for a report: infinite where it is not a number."""
    return math.inf if math.isnan(value) else value

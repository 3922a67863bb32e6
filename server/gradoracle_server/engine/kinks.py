"""Kinks and edges of the domain: outputs whose slopes from the two sides differ."""

from __future__ import annotations

import torch

from gradoracle_server.engine import finite_difference
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.slopes import Slopes, Values

_APART = 4.0
"""How far apart one-sided derivatives are, in units of their bars together, where they are taken to differ."""


def found(passes: Passes, values: Values, plain: Slopes, doubtful: torch.Tensor) -> Slopes:
    """Slopes that were taken to have no kinks, with those that they have: the doubtful coordinates, (P, M) of bool, are
    looked at from each side alone."""
    two_sided = plain.coordinates
    row, column = doubtful.nonzero(as_tuple=True)
    both = values.found[row, :, :, column].permute(1, 2, 0)  # (2, K, D)
    derivative, bar = _from_each_side(passes, both, column, values.ladder)
    value_here, bar_here = two_sided.value[row, column], two_sided.bar[row, column]
    bars = bar[0] + bar[1]
    gap = (derivative[0] - derivative[1]).abs()
    apart = (gap > _APART * bars) & (bar_here > gap / 8)
    kink = bars.isfinite() & (apart | derivative.isinf().any(0))
    low_here = torch.where(kink, torch.minimum(derivative[0], derivative[1]), value_here)
    high_here = torch.where(kink, torch.maximum(derivative[0], derivative[1]), value_here)
    alone = ~kink & bar_here.isinf()
    bar_here = torch.where(kink, bars, bar_here)
    if bool(alone.any()):  # at an edge of the domain one side has no values
        for side in (0, 1):
            edge = alone & bar[side].isfinite() & ~both[1 - side].isfinite().any(0)
            low_here = torch.where(edge, derivative[side], low_here)
            high_here = torch.where(edge, derivative[side], high_here)
            bar_here = torch.where(edge, bar[side], bar_here)
    low, high, widths = two_sided.value.clone(), two_sided.value.clone(), two_sided.bar.clone()
    low[row, column], high[row, column], widths[row, column] = low_here, high_here, bar_here
    kinked = torch.zeros_like(plain.kinked)
    kinked[row[kink | low_here.isinf()]] = True
    return _totals(passes, plain, low, high, widths, kinked)


def _from_each_side(
    passes: Passes, both: torch.Tensor, column: torch.Tensor, ladder: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One-sided derivatives of D outputs, the columns named, and their bars, (2, D); infinite limits have none."""
    side = both.new_tensor([[1.0], [-1.0]])
    centre = passes.centre[column]
    one = finite_difference.one_sided(
        both, centre, ladder, side, passes.epsilon[column], None if passes.noise is None else passes.noise[column]
    )
    limit = finite_difference.diverges(both, centre, ladder, passes.loud, passes.faint)
    infinite = limit != 0
    return torch.where(infinite, limit, one.value), torch.where(infinite, 0.0, one.bar)


def _totals(
    passes: Passes,
    plain: Slopes,
    low: torch.Tensor,
    high: torch.Tensor,
    bar: torch.Tensor,
    kinked: torch.Tensor,
) -> Slopes:
    weight = passes.weight
    zero = weight == 0
    ends = [torch.where(zero, 0.0, low * weight), torch.where(zero, 0.0, high * weight)]
    lowest, highest = torch.minimum(*ends).sum(1), torch.maximum(*ends).sum(1)
    return Slopes(
        (lowest + highest) / 2,
        passes.summed(bar),
        lowest,
        highest,
        kinked,
        plain.coordinates,
        first=plain.first,
    )

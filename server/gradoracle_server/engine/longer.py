"""Slopes by steps longer than the usual ones, where rounding of the values hides a small fault: it counts less then.

Where the function bends too much for such steps, the bars say so, or the two of a pair do not agree. Each output
decides for itself: one that does not move at all bears the longest steps, and its rounding is most of the bar where
many outputs stand still.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from gradoracle_server.engine import slopes
from gradoracle_server.engine.finite_difference import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.slopes import Slopes

FACTORS = ((8.0, 12.0), (64.0, 96.0))
"""What steps are multiplied by: pairs, of which the second is the first's witness."""

FACTORS_AGAIN = ((10.0, 14.0), (80.0, 112.0))
"""Others, for a second opinion."""

_WITNESS = 4.0  # times the bar of the first of a pair: what the second's may be


def sharper(
    passes: Passes,
    measured: Callable[[torch.Tensor], Slopes],
    directions: torch.Tensor,
    found: Slopes,
    factors: Sequence[tuple[float, float]] = FACTORS,
) -> tuple[Slopes, torch.Tensor]:
    """Slopes along directions, (P, C), of each output those or what longer steps gave, whichever has the narrower bar;
    and how many times as long its steps were, (P, M).

    `measured` gives slopes along directions, `found` those of the usual steps. Directions with a kink, or at an edge of
    the domain, stay as they were.
    """
    best = found.coordinates
    plain = ~found.kinked & ((best.bar * passes.strength).isfinite() | (passes.weight == 0)).all(1)
    reach, doubted = torch.ones_like(best.bar), ~plain[:, None].expand(best.bar.shape)
    for pair in factors:
        longer, other = (measured(directions * one).coordinates.scaled(1 / one) for one in pair)
        sure = ~doubted & (other.bar <= _WITNESS * longer.bar)
        sure &= (longer.value - other.value).abs() <= longer.bar + other.bar
        apart = (longer.value - best.value).abs()
        contradicted = sure & (apart > longer.bar + best.bar)
        better = sure & ~contradicted & (longer.bar < best.bar)
        if bool(contradicted.any()):  # short steps may have seen how the function rounds inside
            bar = torch.where(contradicted, torch.maximum(best.bar, apart), best.bar)
            best, doubted = dataclasses.replace(best, bar=bar), doubted | contradicted
        if bool(better.any()):
            best = _mixed(better, longer, best)
            reach = torch.where(better, pair[0], reach)
    if best is found.coordinates:
        return found, reach
    return found.replaced(plain, slopes.plain(passes, best.of(plain), smooth=found.smooth)), reach


def _mixed(better: torch.Tensor, longer: Derivative, best: Derivative) -> Derivative:
    """Of each coordinate, (P, M) of bool, the one or the other."""
    return dataclasses.replace(
        best,
        value=torch.where(better, longer.value, best.value),
        bar=torch.where(better, longer.bar, best.bar),
    )

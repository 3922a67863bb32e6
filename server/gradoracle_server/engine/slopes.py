"""Slopes: derivatives of <weight, outputs> along directions of one input, with bars, kinks and edges of the domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import finite_difference
from gradoracle_server.engine.finite_difference import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Rung

_VALUES = 1 << 22  # coordinates of points and outputs that are worked on together
_KINK = 4.0
"""How far apart one-sided derivatives are, in units of their bars together, where they are taken to differ."""


@dataclasses.dataclass(slots=True)
class Slopes:
    """What values say of P directions; all of shape (P,) but the coordinates'.

    `low` and `high` differ where an output has a kink: the one-sided slopes. `value` is then their mean.
    """

    value: torch.Tensor
    bar: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    kinked: torch.Tensor  # bool: an output has a kink, or an infinite slope
    coordinates: Derivative  # of the outputs, (P, M)

    def of(self, rows: torch.Tensor) -> Slopes:
        """Those of some directions, (P,) of bool."""
        return Slopes(
            self.value[rows],
            self.bar[rows],
            self.low[rows],
            self.high[rows],
            self.kinked[rows],
            Derivative(self.coordinates.value[rows], self.coordinates.bar[rows]),
        )

    @staticmethod
    def joined(pieces: Sequence[Slopes]) -> Slopes:
        """Those of several lists of directions, one after another."""
        return Slopes(
            torch.cat([one.value for one in pieces]),
            torch.cat([one.bar for one in pieces]),
            torch.cat([one.low for one in pieces]),
            torch.cat([one.high for one in pieces]),
            torch.cat([one.kinked for one in pieces]),
            Derivative(
                torch.cat([one.coordinates.value for one in pieces]),
                torch.cat([one.coordinates.bar for one in pieces]),
            ),
        )

    def replaced(self, rows: torch.Tensor, others: Slopes) -> Slopes:
        """These with some directions' slopes (P of bool) taken from others, which has one for each such direction."""

        def mixed(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            result = mine.clone()
            result[rows] = theirs
            return result

        return Slopes(
            mixed(self.value, others.value),
            mixed(self.bar, others.bar),
            mixed(self.low, others.low),
            mixed(self.high, others.high),
            mixed(self.kinked, others.kinked),
            Derivative(
                mixed(self.coordinates.value, others.coordinates.value),
                mixed(self.coordinates.bar, others.coordinates.bar),
            ),
        )


@dataclasses.dataclass(slots=True)
class Values:
    """Values along P directions: what one ladder saw."""

    ladder: list[float]
    plus: torch.Tensor  # (P, K, M), or (P, K) once weighted
    minus: torch.Tensor


def rungs(passes: Passes, seen: Values, accepted: Slopes) -> list[Rung]:
    """What the plain central difference of each step gives along the first direction, against the accepted slope.

    The bound is the truncation that two rungs show by their distance, and the rounding of the values.
    """
    found: list[Rung] = []
    true = float(accepted.value[0])
    differences = [float((seen.plus[0, k] - seen.minus[0, k]) / (2 * step)) for k, step in enumerate(seen.ladder)]
    for k, step in enumerate(seen.ladder):
        truncation = abs(differences[k] - differences[max(k - 1, 0)]) / 3 if k else abs(differences[0] - true)
        error = abs(differences[k] - true)
        found.append(Rung(step, error, truncation + passes.rounding / step))
    return found


def sample(passes: Passes, space: Space, directions: torch.Tensor, longest: float) -> Values:
    """Evaluates one ladder along directions of shape (P, C): 2 K passes a direction."""
    ladder = finite_difference.steps(longest)
    lengths = [*ladder, *(-step for step in ladder)]
    count = directions.shape[0]
    found = []
    # Directions one after another where the points of all would be large.
    together = count if passes.batching else 1
    for start in range(0, count, together):
        rows = directions[start : start + together]
        points = space.moved(rows, lengths)
        found.append(passes.at({space.place: points}, points.shape[0]))
    values = (torch.cat(found) if len(found) > 1 else found[0]).reshape(count, 2, len(ladder), passes.centre.numel())
    return Values(ladder, values[:, 0], values[:, 1])


def measure(
    passes: Passes, space: Space, directions: torch.Tensor, wanted: torch.Tensor, seen: list[Values] | None = None
) -> Slopes:
    """Slopes along directions, with further ladders for those whose bar is wider than `wanted`, of shape (P,).

    The first direction's values are appended to `seen`, where it is given, for a curve of error against step.
    """
    values = 2 * finite_difference.RUNGS * (passes.centre.numel() + space.size)
    together = max(1, _VALUES // max(1, values))
    if directions.shape[0] <= together:
        return _measure(passes, space, directions, wanted, seen)
    pieces = []
    for start in range(0, directions.shape[0], together):
        rows = slice(start, start + together)
        pieces.append(_measure(passes, space, directions[rows], wanted[rows], seen if start == 0 else None))
    return Slopes.joined(pieces)


def _measure(
    passes: Passes, space: Space, directions: torch.Tensor, wanted: torch.Tensor, seen: list[Values] | None
) -> Slopes:
    slopes = _on_ladder(passes, space, directions, finite_difference.LADDERS[0], None, seen)
    for longest in finite_difference.LADDERS[1:]:
        wide = ~(slopes.bar <= wanted) | slopes.kinked  # what looks like a kink may be one that is only near
        if not wide.any():
            break
        known = Derivative(slopes.coordinates.value[wide], slopes.coordinates.bar[wide])
        finer = _on_ladder(passes, space, directions[wide], longest, known, seen if bool(wide[0]) else None)
        slopes = slopes.replaced(wide, finer)
    return slopes


def _on_ladder(
    passes: Passes,
    space: Space,
    directions: torch.Tensor,
    longest: float,
    known: Derivative | None,
    seen: list[Values] | None,
) -> Slopes:
    values = sample(passes, space, directions, longest)
    if seen is not None:
        seen.append(Values(values.ladder, values.plus[:1] @ passes.weight, values.minus[:1] @ passes.weight))
    found = finite_difference.central(values.plus, values.minus, passes.centre, values.ladder, passes.epsilon)
    if known is not None:
        found = found.with_longer(known)
    weight = passes.weight
    total = (found.value * weight).nan_to_num().sum(1)
    bar = _weighted(found.bar, weight)
    plain = Slopes(total, bar, total, total, torch.zeros_like(bar, dtype=torch.bool), found)
    doubtful = _doubtful(found, passes)
    if not doubtful.any():
        return plain
    return _with_kinks(passes, values, plain, doubtful)


def _weighted(bar: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(P,) sum of |weight| * bar; an unknown derivative with weight 0 does not matter."""
    return torch.where(weight == 0, 0.0, bar * weight.abs()).sum(1)


def _doubtful(found: Derivative, passes: Passes) -> torch.Tensor:
    """Output coordinates, (P, M) of bool, whose two-sided derivative is so unsure that a kink may be the cause."""
    settled = torch.maximum(1e-3 * found.value.abs(), passes.settled)
    return ~(found.bar <= settled) & (passes.weight != 0)


def _with_kinks(passes: Passes, values: Values, plain: Slopes, doubtful: torch.Tensor) -> Slopes:
    """Looks at the doubtful coordinates from each side alone."""
    centre, weight = passes.centre, passes.weight
    two_sided = plain.coordinates
    right = finite_difference.one_sided(values.plus, centre, values.ladder, 1.0, passes.epsilon)
    left = finite_difference.one_sided(values.minus, centre, values.ladder, -1.0, passes.epsilon)
    limits = [
        finite_difference.diverges(values.plus, centre, values.ladder, 1.0),
        finite_difference.diverges(values.minus, centre, values.ladder, -1.0),
    ]
    sides = [_or_infinite(right, limits[0]), _or_infinite(left, limits[1])]
    bars = sides[0].bar + sides[1].bar
    gap = (sides[0].value - sides[1].value).abs()
    infinite = sides[0].value.isinf() | sides[1].value.isinf()
    apart = (gap > _KINK * bars) & (two_sided.bar > gap / 8)
    kink = doubtful & bars.isfinite() & (apart | infinite)
    alone = doubtful & ~kink & two_sided.bar.isinf()
    at_edge = [
        alone & one.bar.isfinite() & ~values_.isfinite().any(1)
        for one, values_ in ((sides[0], values.minus), (sides[1], values.plus))
    ]
    low = torch.where(kink, torch.minimum(sides[0].value, sides[1].value), two_sided.value)
    high = torch.where(kink, torch.maximum(sides[0].value, sides[1].value), two_sided.value)
    bar = torch.where(kink, bars, two_sided.bar)
    for edge, side in zip(at_edge, sides, strict=True):
        low, high = torch.where(edge, side.value, low), torch.where(edge, side.value, high)
        bar = torch.where(edge, side.bar, bar)
    return _totals(two_sided, bar, low, high, weight, kink)


def _or_infinite(side: Derivative, limit: torch.Tensor) -> Derivative:
    """A one-sided derivative, or its infinite limit."""
    infinite = limit != 0
    return Derivative(torch.where(infinite, limit, side.value), torch.where(infinite, 0.0, side.bar))


def _totals(
    two_sided: Derivative,
    bar: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    weight: torch.Tensor,
    kink: torch.Tensor,
) -> Slopes:
    zero = weight == 0
    ends = [torch.where(zero, 0.0, low * weight), torch.where(zero, 0.0, high * weight)]
    lowest, highest = torch.minimum(*ends).sum(1), torch.maximum(*ends).sum(1)
    infinite_edge = (low.isinf() & (weight != 0)).any(1)
    return Slopes(
        (lowest + highest) / 2,
        _weighted(bar, weight),
        lowest,
        highest,
        (kink & (weight != 0)).any(1) | infinite_edge,
        two_sided,
    )

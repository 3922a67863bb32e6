"""Slopes: derivatives of <weight, outputs> along directions of one input, with bars, kinks and edges of the domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import finite_difference
from gradoracle_server.engine.finite_difference import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

_SHORT = 2.0**-4  # the longest step of the three that do for most smooth functions
_HOPELESS = 1e3  # times the wanted bar: then shorter steps are tried, however little they promise
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
    smooth: bool = False  # no direction has a kink or an infinite bar, so that `low` and `high` are `value`
    first: list[Values] = dataclasses.field(default_factory=list)  # along the first direction, weighted; by ladder
    _noise: torch.Tensor | None = None

    def noise(self, weight: torch.Tensor) -> torch.Tensor:
        """(P,): how far the slopes are off, as far as the outputs' errors are independent of each other.

        Bars are added up as if all errors pointed the same way; these are not: it is no bound, but a reason to look.
        """
        if self._noise is None:
            bars = self.coordinates.bar * weight
            if not self.smooth:
                bars = torch.where(weight == 0, 0.0, bars)
            self._noise = torch.linalg.vector_norm(bars, dim=1)
        return self._noise

    def of(self, rows: torch.Tensor | slice) -> Slopes:
        """Those of some directions, (P,) of bool or a slice."""
        return Slopes(
            self.value[rows],
            self.bar[rows],
            self.low[rows],
            self.high[rows],
            self.kinked[rows],
            self.coordinates.of(rows),
            self.smooth,
        )

    def scaled(self, factor: float) -> Slopes:
        """Those along directions so many times as long."""
        return Slopes(
            self.value * factor,
            self.bar * factor,
            self.low * factor,
            self.high * factor,
            self.kinked,
            self.coordinates.scaled(factor),
            self.smooth,
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
            finite_difference.joined([one.coordinates for one in pieces], 0),
            all(one.smooth for one in pieces),
            pieces[0].first,
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
            self.coordinates.replaced(rows, others.coordinates),
            self.smooth and others.smooth,
            self.first + others.first if rows[0] else self.first,
        )


@dataclasses.dataclass(slots=True)
class Values:
    """Values along P directions: what one ladder saw."""

    ladder: list[float]
    found: torch.Tensor  # at the positive steps and the negative ones: (P, 2, K, M), or (P, 2, K) once weighted

    @property
    def plus(self) -> torch.Tensor:
        """(P, K, M), at the positive steps."""
        return self.found[:, 0]

    @property
    def minus(self) -> torch.Tensor:
        """The same at the negative ones."""
        return self.found[:, 1]


@dataclasses.dataclass(slots=True)
class Question:
    """Directions of one input, (P, C), and the bars, (P,), that are narrow enough to look no further."""

    space: Space
    directions: torch.Tensor
    wanted: torch.Tensor
    quickly: bool = False  # with a short ladder first: where there are so many that passes count

    @property
    def ladder(self) -> list[float]:
        """The first ladder."""
        if self.quickly:
            return finite_difference.steps(_SHORT, 3)
        return finite_difference.steps(finite_difference.LADDERS[0])

    @property
    def further(self) -> tuple[float, ...]:
        """The longest steps of the ladders after that."""
        return finite_difference.LADDERS if self.quickly else finite_difference.LADDERS[1:]


def measure(passes: Passes, question: Question) -> Slopes:
    """Slopes along directions, with further ladders for those whose bar is wider than wanted."""
    together = max(1, _VALUES // max(1, _values(passes, question.space)))
    count = question.directions.shape[0]
    if count <= together:
        return _measured(passes, question)
    pieces = []
    for start in range(0, count, together):
        rows = slice(start, start + together)
        part = dataclasses.replace(question, directions=question.directions[rows], wanted=question.wanted[rows])
        pieces.append(_measured(passes, part))
    return Slopes.joined(pieces)


def measure_all(passes: Passes, questions: Sequence[Question]) -> list[Slopes]:
    """The same for several inputs, whose first ladders are climbed down in one batch where that is small."""
    sizes = [one.directions.shape[0] * _values(passes, one.space) for one in questions]
    alone = len(questions) < 2 or not passes.batching or sum(sizes) * len(questions) > _VALUES
    if alone or any(one.quickly for one in questions):
        return [measure(passes, one) for one in questions]
    values = _sampled_together(passes, questions, questions[0].ladder)
    both = _on_ladder(passes, values)
    found, start = [], 0
    for one in questions:
        rows = slice(start, start + one.directions.shape[0])
        mine = both.of(rows)
        part = Values(values.ladder, values.found[rows])
        mine.first = _first(passes, part)
        found.append(_climbed(passes, one, mine, part))
        start = rows.stop
    return found


def _values(passes: Passes, space: Space) -> int:
    """The numbers that one direction makes on a ladder."""
    return 2 * finite_difference.RUNGS * (passes.centre.numel() + space.size)


def sample(passes: Passes, space: Space, directions: torch.Tensor, ladder: list[float]) -> Values:
    """Evaluates one ladder along directions of shape (P, C): 2 K passes a direction."""
    lengths = _both_ways(ladder)
    count = directions.shape[0]
    found = []
    # Directions one after another where the points of all would be large.
    together = count if passes.batching else 1
    for start in range(0, count, together):
        points = space.moved(directions[start : start + together], lengths)
        found.append(passes.at({space.place: points}, points.shape[0]))
    values = torch.cat(found) if len(found) > 1 else found[0]
    return Values(ladder, values.reshape(count, 2, len(ladder), passes.centre.numel()))


def _sampled_together(passes: Passes, questions: Sequence[Question], ladder: list[float]) -> Values:
    """The same for the directions of several inputs, one input's after another's."""
    lengths = _both_ways(ladder)
    count = sum(one.directions.shape[0] for one in questions)
    total, start = count * len(lengths), 0
    points: dict[int, torch.Tensor] = {}
    for one in questions:
        moved = one.space.moved(one.directions, lengths)
        base = one.space.base.expand(total, *one.space.base.shape)
        stop = start + moved.shape[0]
        points[one.space.place] = torch.cat([base[:start], moved, base[stop:]])
        start = stop
    values = passes.at(points, total)
    return Values(ladder, values.reshape(count, 2, len(ladder), passes.centre.numel()))


def _both_ways(ladder: list[float]) -> list[float]:
    return [*ladder, *(-step for step in ladder)]


def _measured(passes: Passes, question: Question) -> Slopes:
    values = sample(passes, question.space, question.directions, question.ladder)
    found = _on_ladder(passes, values)
    found.first = _first(passes, values)
    return _climbed(passes, question, found, values)


def _climbed(passes: Passes, question: Question, slopes: Slopes, values: Values) -> Slopes:
    """From the first ladder's slopes, and values, down to shorter steps, for those directions that want them."""
    wide = _wide(passes, question, slopes)
    if wide is None:
        return slopes
    least = torch.full_like(slopes.coordinates.value, torch.inf)
    rows = torch.arange(len(slopes.bar), device=slopes.bar.device)
    for longest in question.further:
        if longest < passes.shortest:
            break
        least[rows] = torch.minimum(least[rows], finite_difference.least_change(values.found, passes.centre))
        rows = wide.nonzero().flatten()
        values = sample(passes, question.space, question.directions[wide], finite_difference.steps(longest))
        finer = _on_ladder(passes, values, slopes.coordinates.of(wide), least[wide])
        finer.first = _first(passes, values)
        slopes = slopes.replaced(wide, finer)
        wide = _wide(passes, question, slopes)
        if wide is None:
            break
    return slopes


def _wide(passes: Passes, question: Question, slopes: Slopes) -> torch.Tensor | None:
    """(P,) of bool: directions that shorter steps may tell more of; None where there are none. What looks like a kink
    may be one that is near."""
    bar = slopes.noise(passes.weight) if question.quickly else slopes.bar
    narrow = bar <= question.wanted
    if slopes.smooth and bool(narrow.all()):
        return None
    wide = ~narrow
    if slopes.coordinates.settled is not None and bool(wide.any()):
        open_ = _weighted(torch.where(slopes.coordinates.settled, 0.0, slopes.coordinates.bar), passes.weight)
        wide = wide & ((open_ > question.wanted) | ~(bar <= _HOPELESS * question.wanted))
    wide = wide | slopes.kinked
    return wide if bool(wide.any()) else None


def _first(passes: Passes, values: Values) -> list[Values]:
    return [Values(values.ladder, values.found[:1] @ passes.weight)]


def _on_ladder(
    passes: Passes, values: Values, known: Derivative | None = None, least: torch.Tensor | None = None
) -> Slopes:
    """Slopes from values; `known` and `least` are what longer ladders gave."""
    found = finite_difference.central(values.found, passes.centre, values.ladder, passes.epsilon)
    if passes.unsteady:
        found.bar += (found.value.abs() * (passes.unsteady / values.ladder[-1])).nan_to_num(0.0, 0.0)
    if known is not None and least is not None:
        loud = finite_difference.loud(passes.centre)
        faint = finite_difference.faint(passes.centre, passes.epsilon)
        found = found.with_longer(known, least, values.ladder[0], loud, faint)
    weight = passes.weight
    settled = found.bar <= torch.maximum(1e-3 * found.value.abs(), passes.settled)
    if bool(settled.all()):
        total, bar = found.value @ weight, found.bar @ passes.strength
        return Slopes(total, bar, total, total, torch.zeros_like(bar, dtype=torch.bool), found, True)
    total = (found.value * weight).nan_to_num().sum(1)
    bar = _weighted(found.bar, weight)
    # Coordinates whose two-sided derivative is so unsure that a kink may be the cause.
    doubtful = ~settled & (weight != 0)
    smooth = not doubtful.any()
    plain = Slopes(total, bar, total, total, torch.zeros_like(bar, dtype=torch.bool), found, smooth)
    return plain if smooth else _with_kinks(passes, values, plain, doubtful)


def _weighted(bar: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(P,) sum of |weight| * bar; an unknown derivative with weight 0 does not matter."""
    return torch.where(weight == 0, 0.0, bar * weight.abs()).sum(1)


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

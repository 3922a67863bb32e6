"""Slopes that tell more than those of the usual steps do, where rounding of the values hides a small fault.

Longer steps first: rounding counts less then, and where the function bends too much for that, the bars say so, or two
lengths do not agree. Where bars stay too wide, slopes are measured again and again, at steps of other lengths. A bar
adds up the most that rounding may do to each output, as if all of it pointed the same way; how far the slopes scatter
says what it did, also what rounding inside of the function did. The error of the extrapolation, which grows at least as
the fourth power of the step, scatters as well; rounding that is the same at all lengths is only what does not move an
output at all, and to outputs that hardly move, all of their bars are left. Not to those that do not depend on what is
moved: which stay the same in every bit when it moves a million times its size, and when it is NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import finite_difference, ladders
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.slopes import Question, Slopes

_FAR = 2.0**20  # times an input's size
_PAIRS = ((8.0, 12.0), (64.0, 96.0))
_BANDS = ((8.0, 64.0), (64.0, 512.0), (1.0, 8.0))  # of lengths among which slopes are measured again and again
_BENT = 2.0**14
"""Times the usual bar. One that is wider, of a step among those of a band, says that the function bends too much there
for a mean to be sharper."""
_NOISE = 1024.0  # times what rounding of an output makes of its bar; inside of a function more is rounded
_TIMES = 8
_NUMBERS = 1 << 24  # that one band may take: a second or so
_SCATTER = 12.0
"""Standard errors that a mean of so many slopes is taken to be off by at the most. Student's t of 7 degrees of freedom
is beyond 12 once in 160,000 times, and what fails is measured once more, at other lengths. Only of values in float64:
lower precision rounds by so much that its scatter is not the same at all lengths."""

_ENOUGH = 1.6
"""Times the bar wanted, which is a quarter of the fault to be seen: with what is allowed for rounding that makes half
of it, and nothing is gained by means where longer steps did that."""

_SHIFT = 1.1  # of all lengths, when what they saw is looked at again
_HARDLY = 1024.0  # units in the last place of an output: what moves by less may be rounded to the same at all lengths


@dataclasses.dataclass(slots=True)
class Reach:
    """How far the steps along P directions reach."""

    longer: torch.Tensor  # (P,): how many times as far as the usual ones, at the most
    touched: torch.Tensor  # (P, M) of bool: the outputs that may depend on what is moved

    @classmethod
    def usual(cls, found: Slopes) -> Reach:
        """Of the usual steps, of which it is not known what they touch."""
        return cls(torch.ones_like(found.bar), torch.ones_like(found.coordinates.value, dtype=torch.bool))

    def of(self, rows: torch.Tensor) -> Reach:
        """That of some directions, (P,) of bool."""
        return Reach(self.longer[rows], self.touched[rows])

    def replaced(self, rows: torch.Tensor, others: Reach) -> Reach:
        """This with some directions', (P,) of bool, taken from others, which has one for each of those."""
        longer, touched = self.longer.clone(), self.touched.clone()
        longer[rows], touched[rows] = others.longer, others.touched
        return Reach(longer, touched)

    def joined(self, others: Reach) -> Reach:
        """This and those of other directions."""
        return Reach(torch.cat([self.longer, others.longer]), torch.cat([self.touched, others.touched]))


@dataclasses.dataclass(slots=True)
class Sharpened:
    """Slopes along P directions, of the usual steps or of others, whichever have the narrower bar."""

    slopes: Slopes
    reach: Reach


def sharpened(
    passes: Passes,
    space: Space,
    directions: torch.Tensor,
    usual: Slopes,
    wanted: torch.Tensor,
    *,
    again: bool,
) -> Sharpened:
    """Of slopes found along directions, (P, C), each as sharp as it takes for a bar of `wanted`, (P,); `again`: at
    other lengths than the first time."""
    if bool(_bends(passes, usual, wanted).all()):
        return Sharpened(usual, Reach.usual(usual))
    shift = _SHIFT if again else 1.0
    factors = [factor * shift for pair in _PAIRS for factor in pair]
    longer = _Lengthened.of(factors, ladders.plainly(passes, space, _lengthened(directions, factors)))
    return _sharper(_Alone(passes, space, directions), usual, longer, wanted, shift)


def measured(passes: Passes, question: Question, wanted: torch.Tensor) -> Sharpened:
    """The same of slopes that are yet to be measured, by the usual steps and by longer ones together."""
    factors = [factor for pair in _PAIRS for factor in pair]
    usual, found = ladders.measure_beside(passes, question, _lengthened(question.directions, factors))
    if bool(_bends(passes, usual, wanted).all()):
        return Sharpened(usual, Reach.usual(usual))
    alone = _Alone(passes, question.space, question.directions)
    return _sharper(alone, usual, _Lengthened.of(factors, found), wanted, 1.0)


def _sharper(alone: _Alone, usual: Slopes, longer: _Lengthened, wanted: torch.Tensor, shift: float) -> Sharpened:
    """Of usual slopes and those of longer steps, the sharper, and means of more where neither do."""
    passes = alone.passes
    found = Sharpened(usual, Reach.usual(usual))
    # Beside a kink all lengths may agree on what is not so.
    doubted = usual.kinked | usual.bar.isinf() | ladders.unsure(passes, usual)
    agree = longer.agree()
    for pair in range(len(agree)):
        doubted = doubted | _by_longer(found, agree[pair] & ~doubted, longer, 2 * pair)
    enough = _ENOUGH * wanted
    # Of each band, a length in it or at its end, of those that were measured.
    straight = longer.bar[[1, 3, 0]] <= _BENT * usual.bar
    rows = (found.slopes.bar > enough) & ~doubted & found.slopes.bar.isfinite() & straight.any(0)
    if not bool(rows.any()) or not alone.is_worth_it(int(rows.sum())):
        return found
    if bool((usual.coordinates.value[rows] == 0).any()):
        found = unmasked(passes, alone.space, alone.directions, found, rows)
        alone = dataclasses.replace(alone, untouched=~found.reach.touched)
        rows = rows & (found.slopes.bar > enough)
    bands = list(zip(_BANDS, straight, strict=True))
    farther = longer.bar[2] < longer.bar[0]
    if not bool(farther[rows].any()):  # the shortest lengths first where the longest tell less
        bands = [bands[2], bands[0], bands[1]]
    elif bool(farther[rows].all()):
        bands = [bands[1], bands[0], bands[2]]
    for band, suits in bands:
        if bool((chosen := rows & suits).any()):
            _by_means(alone, found, chosen, (band[0] * shift, band[1] * shift))
            rows = rows & (found.slopes.bar > enough)
    return found


def _lengthened(directions: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """(F * P, C): directions, (P, C), so many times as long, length after length."""
    return (directions.new_tensor(factors)[:, None, None] * directions).flatten(0, 1)


def _bends(passes: Passes, usual: Slopes, wanted: torch.Tensor) -> torch.Tensor:
    """(P,) of bool: where the function bends too much for the bar wanted, so that longer steps could only be worse:
    the shortest were the best, and rounding of the outputs is not why."""
    coordinates = usual.coordinates
    if coordinates.settled is None:
        return torch.zeros_like(usual.kinked)
    rounded = coordinates.settled | (coordinates.bar <= _NOISE * passes.floors)
    return passes.summed(torch.where(rounded, 0.0, coordinates.bar)) > wanted


def _by_longer(found: Sharpened, sure: torch.Tensor, longer: _Lengthened, place: int) -> torch.Tensor:
    """Takes slopes of longer steps that are sharper, of those that are sure, (P,) of bool, where those found do not
    contradict them. Returns where these do, (P,) of bool: short steps may have seen how the function rounds. What is
    not sharper is no witness: it may have jumped over a pole."""
    usual, value, bar = found.slopes, longer.value[place], longer.bar[place]
    sure = sure & (bar < usual.bar)
    apart = (value - usual.value).abs()
    contradicted = sure & (apart > bar + usual.bar)
    better = sure & ~contradicted
    if bool(contradicted.any()):
        wider = torch.where(contradicted, torch.maximum(usual.bar, apart), usual.bar)
        found.slopes = dataclasses.replace(usual, bar=wider)
    if bool(better.any()):
        found.slopes = found.slopes.replaced(better, longer.at(place).of(better))
        found.reach.longer[better] = longer.factors[place]
    return contradicted


def _by_means(alone: _Alone, found: Sharpened, rows: torch.Tensor, band: tuple[float, float]) -> None:
    """Takes means of slopes along some directions, (P,) of bool, where they are sharper and contradict nothing."""
    mean, usual = alone.repeated(rows, band), found.slopes.of(rows)
    sharper = (mean.bar < usual.bar) & ((mean.value - usual.value).abs() <= mean.bar + usual.bar)
    if bool(sharper.any()):
        better = rows.clone()
        better[rows] = sharper
        found.slopes = found.slopes.replaced(better, mean.of(sharper))
        found.reach.longer[better] = band[1]


def unmasked(passes: Passes, space: Space, directions: torch.Tensor, found: Sharpened, rows: torch.Tensor) -> Sharpened:
    """Slopes along directions, (P, C), with bars in which outputs do not count that some of them, (P,) of bool, do not
    reach: what rounding does to a large one is no business of a direction that leaves it alone."""
    slopes, coordinates = found.slopes, found.slopes.coordinates
    if coordinates.value.shape[1] != passes.centre.numel():  # measured in groups
        return found
    rows = rows & ((coordinates.value == 0) & (passes.weight != 0)).any(1) & slopes.bar.isfinite() & ~slopes.kinked
    if not bool(rows.any()):
        return found
    untouched = torch.zeros_like(coordinates.value, dtype=torch.bool)
    untouched[rows] = _untouched(passes, space, directions[rows]) & (coordinates.value[rows] == 0)
    bars = torch.where(untouched, 0.0, coordinates.bar)
    bar = torch.where(untouched.any(1), torch.minimum(passes.summed(bars), slopes.bar), slopes.bar)
    narrower = dataclasses.replace(slopes, bar=bar, coordinates=dataclasses.replace(coordinates, bar=bars), _noise=None)
    return Sharpened(narrower, Reach(found.reach.longer, found.reach.touched & ~untouched))


def _untouched(passes: Passes, space: Space, directions: torch.Tensor) -> torch.Tensor:
    """(P, M) of bool: outputs that are the same, in every bit, with NaN for what a direction moves, and far along it.

    NaN gets through all arithmetic, also where an output is too large to show what is added to it, and what is far
    through comparisons."""
    poison = torch.where(directions != 0, torch.nan, 0.0)
    points = torch.stack([directions * _FAR, directions * -_FAR, poison], 1).flatten(0, 1)
    moved = {space.place: space.moved(points, [1.0])}
    values = passes.tried(moved, len(points)) if passes.batching else passes.at(moved, len(points))
    if values is None:
        return torch.zeros((len(directions), passes.centre.numel()), dtype=torch.bool, device=directions.device)
    return (values.view(len(directions), 3, -1) == passes.centre).all(1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lengthened:
    """Slopes along P directions with steps that are F times as long each, for one direction of the usual length, as if
    no output had a kink."""

    factors: Sequence[float]
    value: torch.Tensor  # (F, P)
    bar: torch.Tensor  # (F, P)
    unsure: torch.Tensor  # (F, P) of bool: an output may have a kink there
    found: Slopes  # as they were measured, length after length

    @classmethod
    def of(cls, factors: Sequence[float], plain: tuple[Slopes, torch.Tensor]) -> _Lengthened:
        """What was measured plainly, along directions that are so many times as long."""
        found, unsure = plain
        value, bar, unsure = (one.view(len(factors), -1) for one in (found.value, found.bar, unsure))
        column = value.new_tensor(factors)[:, None]
        return cls(factors, value / column, bar / column, unsure, found)

    def agree(self) -> torch.Tensor:
        """(F / 2, P) of bool: where two lengths after each other are sure of the same."""
        unsure = self.unsure[0::2] | self.unsure[1::2]
        (value, other), (bar, other_bar) = ((one[0::2], one[1::2]) for one in (self.value, self.bar))
        return ~unsure & (other_bar <= 4 * bar) & ((value - other).abs() <= bar + other_bar)

    def at(self, place: int) -> Slopes:
        """Those of one length."""
        count = self.value.shape[1]
        return self.found.of(slice(place * count, (place + 1) * count)).scaled(1 / self.factors[place])


@dataclasses.dataclass(frozen=True, slots=True)
class _Alone:
    """Directions, along which slopes are measured, and the outputs that these do not move."""

    passes: Passes
    space: Space
    directions: torch.Tensor  # (P, C)
    untouched: torch.Tensor | None = None  # (P, M) of bool; None where not known of any

    def is_worth_it(self, count: int) -> bool:
        """Whether slopes along so many directions are to be measured again and again."""
        passes = self.passes
        numbers = count * _TIMES * 2 * finite_difference.RUNGS * (passes.centre.numel() + self.space.size)
        fine = passes.noise is None and bool((passes.epsilon <= finite_difference.EPSILON).all())
        return numbers <= _NUMBERS and fine

    def repeated(self, rows: torch.Tensor, band: tuple[float, float]) -> Slopes:
        """Means of slopes whose steps are of several lengths; the bar is infinite where they do not agree within
        theirs. No output has a kink at the point itself, or the usual steps would have seen it, and one that longer
        steps reach makes what they see scatter.

        Rounding counts less the longer the step is, if it is of the outputs, and as much, if it is of what moves: the
        weights are between what is best for one and for the other, and the standard error assumes neither (J. G.
        MacKinnon, H. White, "Some heteroskedasticity-consistent covariance matrix estimators with improved finite
        sample properties", 1985: HC3).
        """
        ratio = (band[1] / band[0]) ** (1 / _TIMES)  # no power of 2, whose ladders would share their steps
        factors = [band[0] * ratio ** (place + 1) for place in range(_TIMES)]
        lengthened = _lengthened(self.directions[rows], factors)
        measured = _Lengthened.of(factors, ladders.plainly(self.passes, self.space, lengthened))
        share = measured.value.new_tensor(factors)[:, None]
        share /= share.sum()
        mean = (share * measured.value).sum(0)
        off = (measured.value - mean).abs()
        error = torch.linalg.vector_norm(share * off / (1 - share), dim=0)
        longest = measured.at(_TIMES - 1)
        moved = longest.coordinates.value.abs() * (factors[-1] * finite_difference.LADDERS[0])
        hardly = moved <= _HARDLY * self.passes.epsilon * self.passes.centre.abs()
        hardly = hardly if self.untouched is None else hardly & ~self.untouched[rows]
        left = torch.where(hardly, longest.coordinates.bar, 0.0) @ self.passes.strength
        known = ((off <= measured.bar) & measured.bar.isfinite()).all(0)
        bar = torch.where(known, _SCATTER * error + left, torch.inf)
        return dataclasses.replace(longest, value=mean, low=mean, high=mean, bar=bar)

"""Measures slopes: climbs down ladders of steps along directions, as far as it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from gradoracle_server.engine import finite_difference, kinks
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.sampling import asked, sample
from gradoracle_server.engine.slopes import Question, Questions, Slopes, Values

_HOPELESS = 1e3  # times the wanted bar: then shorter steps are tried, however little they promise
_WILD = 2e-4  # of what the longest steps move an output by, that a millionth of their length may move it by
_WILD_LOW = 0.1  # in float32, that a thousandth may
_RESOLVED = 1e-3  # of the longest steps, that the shortest are at the most for this to be asked: not in float16
_ROUNDED = 16.0  # units in the last place
_Change = Callable[[], torch.Tensor]
_VALUES = 1 << 22  # coordinates of points and outputs that are worked on together


def measure(passes: Passes, question: Question) -> Slopes:
    """Slopes along directions, with further ladders for those whose bar is wider than wanted."""
    pieces = []
    for rows in _groups(passes, question.space, question.directions.shape[0]):
        part = question if rows is None else question.of(rows)
        values = sample(passes, part.space, part.directions, part.ladder)
        slopes = _climbed(passes, part, _on_ladder(passes, values), _further(passes, part))
        pieces.append(_but_wild(passes, part, slopes))
    return Slopes.joined(pieces) if len(pieces) > 1 else pieces[0]


def plainly(passes: Passes, space: Space, directions: torch.Tensor) -> tuple[Slopes, torch.Tensor]:
    """Slopes along directions, (P, C), on the first ladder alone, as if no output had a kink; and the directions, (P,)
    of bool, along which one may have."""
    pieces, doubts = [], []
    for rows in _groups(passes, space, directions.shape[0]):
        part = directions if rows is None else directions[rows]
        values = sample(passes, space, part, finite_difference.steps(finite_difference.LADDERS[0]))
        seen = _on_ladder(passes, values)
        pieces.append(seen.slopes)
        doubts.append(seen.slopes.kinked if seen.doubtful is None else seen.doubtful.any(1))
    if len(pieces) == 1:
        return pieces[0], doubts[0]
    return Slopes.joined(pieces), torch.cat(doubts)


def measure_beside(
    passes: Passes, question: Question, others: torch.Tensor
) -> tuple[Slopes, tuple[Slopes, torch.Tensor]]:
    """What `measure` says of a question, and `plainly` of other directions of the same input; both first ladders are
    climbed down together where that is small."""
    count, space = len(question.directions), question.space
    directions = torch.cat([question.directions, others])
    if _groups(passes, space, len(directions)) != [None] or question.quickly:
        return measure(passes, question), plainly(passes, space, others)
    seen = _on_ladder(passes, sample(passes, space, directions, question.ladder))
    mine = seen.of(passes, slice(0, count))
    slopes = _but_wild(passes, question, _climbed(passes, question, mine, _further(passes, question)))
    rest = slice(count, len(directions))
    plain = seen.slopes.of(rest)
    return slopes, (plain, plain.kinked if seen.doubtful is None else seen.doubtful[rest].any(1))


def _groups(passes: Passes, space: Space, count: int) -> Sequence[slice | None]:
    """Directions, so many, whose values are worked on together; None for all of them."""
    together = max(1, _VALUES // max(1, _values(passes, space)))
    if count <= together:
        return [None]
    return [slice(start, start + together) for start in range(0, count, together)]


def measure_all(passes: Passes, questions: Sequence[Question]) -> list[Slopes]:
    """The same for several inputs, whose first ladders are climbed down together where that is small."""
    sizes = [one.directions.shape[0] * _values(passes, one.space) for one in questions]
    moved = len(questions) if passes.batching else 1  # inputs at each point
    if len(questions) < 2 or sum(sizes) * moved > _VALUES or any(one.quickly for one in questions):
        return [measure(passes, one) for one in questions]
    together = Questions(questions)
    values = asked(passes, together, questions[0].ladder)
    climbed = _climbed(passes, together, _on_ladder(passes, values), _further(passes, questions[0]))
    slopes = _but_wild(passes, together, climbed)
    found, start = [], 0
    for one in questions:
        rows = slice(start, start + one.directions.shape[0])
        part = slopes.of(rows)
        part.first = _first(passes, values, start) if start else slopes.first
        found.append(part)
        start = rows.stop
    return found


def _but_wild(passes: Passes, question: Question | Questions, slopes: Slopes) -> Slopes:
    """Slopes, unknown along directions in which an output moves about as far in the shortest steps as in the longest:
    it oscillates faster than any of them, or has no derivative, and what steps agree on is an accident."""
    if slopes.smooth and not passes.unsteady:
        return slopes
    rows = ~slopes.kinked & (slopes.bar > question.wanted) & slopes.bar.isfinite()
    if not bool(rows.any()) or not bool((rows := rows & unsure(passes, slopes)).any()):
        return slopes
    lengths, most = [finite_difference.LADDERS[0], finite_difference.LADDERS[-1]], _WILD
    if passes.unsteady:
        lengths[1], most = passes.shortest / 8, _WILD_LOW
        if lengths[1] > _RESOLVED * lengths[0]:
            return slopes
    values = asked(passes, question.of(rows), lengths)
    far, near = (values.found - passes.centre).abs().amax(1).unbind(1)
    rounded = (_ROUNDED * passes.epsilon * passes.centre.abs()).clamp(min=passes.loud)
    seen = far.isfinite() & (near > rounded) & (passes.weight != 0)
    wild = (seen & (near >= most * far)).any(1)
    if not bool(wild.any()):
        return slopes
    rows = rows.clone()
    rows[rows.clone()] = wild
    return dataclasses.replace(slopes, bar=torch.where(rows, torch.inf, slopes.bar))


def _values(passes: Passes, space: Space) -> int:
    """The numbers that one direction makes on a ladder."""
    return 2 * finite_difference.RUNGS * (passes.centre.numel() + space.size)


def _further(passes: Passes, question: Question) -> list[float]:
    """The longest steps of the ladders after the first one."""
    return [longest for longest in question.further if longest >= passes.shortest]


@dataclasses.dataclass(slots=True)
class _Seen:
    """What one ladder saw."""

    values: Values
    slopes: Slopes  # as if no output had a kink
    doubtful: torch.Tensor | None  # (P, M) of bool: where an output may have one; None where none may

    def of(self, passes: Passes, rows: slice) -> _Seen:
        """The same of some directions."""
        values = Values(self.values.ladder, self.values.found[rows])
        slopes = self.slopes.of(rows)
        slopes.first = _first(passes, values)
        return _Seen(values, slopes, None if self.doubtful is None else self.doubtful[rows])


def _climbed(
    passes: Passes, question: Question | Questions, seen: _Seen, further: Sequence[float], before: _Change | None = None
) -> Slopes:
    """From what one ladder saw down to shorter steps, for those directions that want them; `before` gives the smallest
    change that longer ladders saw."""
    slopes, wide = _told(passes, question, seen, last=not further)
    if wide is None or not further:
        return slopes
    wide = _moving(passes, question, seen, wide, further)
    if not bool(wide.any()):
        return slopes

    def least() -> torch.Tensor:
        change = finite_difference.least_change(seen.values.found[wide], passes.centre)
        return change if before is None else torch.minimum(before()[wide], change)

    every = bool(wide.all())
    part = question if every else question.of(wide)
    known = seen.slopes.coordinates if every else seen.slopes.coordinates.of(wide)
    values = asked(passes, part, finite_difference.steps(further[0]))
    finer = _climbed(passes, part, _on_ladder(passes, values, known, least), further[1:], least)
    found = slopes.replaced(wide, finer)
    found.smooth = finer.smooth and (every or seen.doubtful is None or not bool((seen.doubtful.any(1) & ~wide).any()))
    return found


def _told(
    passes: Passes, question: Question | Questions, seen: _Seen, *, last: bool
) -> tuple[Slopes, torch.Tensor | None]:
    """The slopes that a ladder gives, and the directions, (P,) of bool, that shorter steps may tell more of; None where
    there are none. What looks like a kink may be one that is near, and what it is does not matter while shorter steps
    follow anyway."""
    slopes = seen.slopes
    wide = _wide(passes, question, slopes)
    if seen.doubtful is None:
        return slopes, wide
    looked_at = seen.doubtful.any(1)
    if wide is not None and not last:
        looked_at &= ~wide | slopes.bar.isinf()
    if bool(looked_at.any()):
        slopes = kinks.found(passes, seen.values, slopes, seen.doubtful & looked_at[:, None])
        wide = _wide(passes, question, slopes)
    return slopes, wide


def _wide(passes: Passes, question: Question | Questions, slopes: Slopes) -> torch.Tensor | None:
    """(P,) of bool: directions that shorter steps may tell more of; None where there are none."""
    bar = slopes.noise(passes) if question.quickly else slopes.bar
    narrow = bar <= question.wanted
    if slopes.smooth and bool(narrow.all()):
        return None
    wide = ~narrow
    if slopes.coordinates.settled is not None and bool(wide.any()):
        open_ = passes.summed(torch.where(slopes.coordinates.settled, 0.0, slopes.coordinates.bar))
        wide = wide & ((open_ > question.wanted) | ~(bar <= _HOPELESS * question.wanted))
    wide = wide | slopes.kinked
    return wide if bool(wide.any()) else None


def _moving(
    passes: Passes, question: Question | Questions, seen: _Seen, wide: torch.Tensor, further: Sequence[float]
) -> torch.Tensor:
    """Of wide directions, (P,) of bool, those that still are when shorter steps move a value, where none of the first
    ladder did; whether they do takes no extrapolation, and all their lengths at once."""
    still = seen.slopes.coordinates.still
    if still is None or not bool((still := wide & still.all(1)).any()):
        return wide
    rungs = finite_difference.RUNGS if passes.batching else 1  # in a loop each is paid for
    lengths = [step for longest in further for step in finite_difference.steps(longest, rungs)]
    values = asked(passes, question.of(still), lengths)
    wide = wide.clone()
    wide[still] = (values.found != passes.centre).flatten(1).any(1)
    return wide


def _first(passes: Passes, values: Values, row: int = 0) -> list[Values]:
    return [Values(values.ladder, values.found[row : row + 1] @ passes.weight)]


def unsure(passes: Passes, slopes: Slopes) -> torch.Tensor:
    """(P,) of bool: directions along which the slope of an output is so unsure that a kink may be the cause."""
    return (~_settled(passes, slopes.coordinates) & (passes.weight != 0)).any(1)


def _settled(passes: Passes, found: Derivative) -> torch.Tensor:
    return found.bar <= torch.maximum(1e-3 * found.value.abs(), passes.settled)


def _on_ladder(passes: Passes, values: Values, known: Derivative | None = None, least: _Change | None = None) -> _Seen:
    """Slopes from values; `known` and `least` are what longer ladders gave."""
    found = finite_difference.central(values.found, passes.centre, values.ladder, passes.units, passes.noise)
    if passes.unsteady:
        found.bar += (found.value.abs() * (passes.unsteady / values.ladder[-1])).nan_to_num(0.0, 0.0)
    if known is not None and least is not None:
        quiet = passes.noise is not None
        found = found.with_longer(
            known, least, values.ladder[0], passes.loud, passes.faint, quiet=quiet, flat=passes.flat
        )
    weight, first = passes.weight, _first(passes, values)
    settled = _settled(passes, found)
    if bool(settled.all()):
        total, bar = found.value @ weight, found.bar @ passes.strength
        kinked = torch.zeros_like(bar, dtype=torch.bool)
        return _Seen(values, Slopes(total, bar, total, total, kinked, found, True, first), None)
    total = (found.value * weight).nan_to_num().sum(1)
    bar = passes.summed(found.bar)
    # Coordinates whose two-sided derivative is so unsure that a kink may be the cause.
    doubtful = ~settled & (weight != 0)
    smooth = not doubtful.any()
    plain = Slopes(total, bar, total, total, torch.zeros_like(bar, dtype=torch.bool), found, smooth, first)
    return _Seen(values, plain, None if smooth else doubtful)

"""Holds the gradient of one input against slopes, and finds the elements that are wrong or have a kink."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from gradoracle_server.engine import slopes as slopes_module
from gradoracle_server.engine import tolerances
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Rung, Verdict
from gradoracle_server.engine.slopes import Slopes
from gradoracle_server.engine.tolerances import Judgement

ALL_UNITS = 256
"""Real coordinates up to which a failure or a kink is located by moving each on its own."""

FEW_UNITS = 64
"""Real coordinates up to which each is moved on its own in any case: no element can hide behind larger ones."""

_DOUBTED = 4  # directions that are measured once more in another way before they are believed
_FOUND = 10  # wrong elements named, and blocks followed, at most


@dataclasses.dataclass(slots=True)
class Assessment:
    """What slopes along P directions say of a gradient."""

    verdict: Verdict
    judgements: list[Judgement]  # one a direction
    kinked: bool

    @property
    def worst(self) -> Judgement:
        """The one that is furthest beyond its bound, or nearest to it."""
        return max(self.judgements, key=lambda one: _excess(one))

    @property
    def tightest(self) -> Judgement:
        return min(self.judgements, key=lambda one: one.bound)


def _excess(judgement: Judgement) -> float:
    if math.isnan(judgement.error):
        return math.inf
    return judgement.error / judgement.bound if judgement.bound > 0 else judgement.error


class Examiner:
    """One input: its directions, what was measured along them, and the search for single elements."""

    def __init__(
        self,
        passes: Passes,
        space: Space,
        generator: torch.Generator,
        *,
        probes: int,
        every: bool,
        expected: torch.Tensor,
        spread: Callable[[], torch.Tensor],
        asked: float = tolerances.ASKED,
    ) -> None:
        """`expected`, (C,), is about what the gradient is: only its size matters. `every`: units instead of probes.
        `spread` gives what rounding of the inputs does to each gradient element, (C,), when it comes to that."""
        self.passes, self.space, self._generator = passes, space, generator
        self._expected = expected.nan_to_num(0.0, 0.0, 0.0)
        self._spread, self._asked = spread, asked
        self._rows: list[slopes_module.Values] = []
        self.units = every or space.size <= FEW_UNITS
        if self.units:
            self.directions, _ = space.units(range(space.size))
        else:
            self.directions = space.drawn(probes, generator)
        self.slopes = self._measured(self.directions, self._rows)

    @property
    def all_units(self) -> int:
        """Real coordinates up to which each is measured on its own where it matters."""
        return ALL_UNITS

    def _measured(
        self, directions: torch.Tensor, seen: list[slopes_module.Values] | None = None, enough: float = 0.0
    ) -> Slopes:
        wanted = self._wanted(directions).clamp(min=enough)
        return slopes_module.measure(self.passes, self.space, directions, wanted, seen)

    def curve(self) -> list[Rung]:
        """Error against step along the first direction, on every ladder that was used."""
        return [rung for values in self._rows for rung in slopes_module.rungs(self.passes, values, self.slopes)]

    def _wanted(self, directions: torch.Tensor) -> torch.Tensor:
        """Bars, (P,), that are narrow enough to look no further."""
        fine = tolerances.RELATIVE / 10 * max(1.0, math.sqrt(self.space.size) / 10)
        return fine * self._size(directions, self._expected)

    def assess(
        self, gradient: torch.Tensor, *, generous: bool = False, allowance: torch.Tensor | None = None
    ) -> Assessment:
        """The gradient, (C,), along the directions; `generous` allows for what rounding of the inputs does to it, and
        `allowance`, (C,), for what each element may be off by beside."""
        return self._assessed(gradient, self.directions, self.slopes, generous, allowance)

    def _assessed(
        self,
        gradient: torch.Tensor,
        directions: torch.Tensor,
        found: Slopes,
        generous: bool,
        more: torch.Tensor | None = None,
    ) -> Assessment:
        claimed = (directions * gradient).sum(1)
        error = _distance(claimed, found)
        allowance = tolerances.rounding(gradient, directions)
        if generous:
            allowance = allowance + 4 * (directions.abs() * self._spread()).sum(1)
        if more is not None:
            allowance = allowance + (directions.abs() * more).sum(1)
        scale = torch.maximum(self._size(directions, gradient), found.value.abs())
        faint = self.passes.magnitude * 1e-3
        rows = zip(
            error.tolist(), found.bar.tolist(), allowance.nan_to_num(0.0, 0.0).tolist(), scale.tolist(), strict=True
        )
        judged = [
            tolerances.judge(
                e, b, a, s if s > b + a else max(s, faint), self._asked
            )  # a gradient that is as good as zero
            for e, b, a, s in rows
        ]
        kinked = bool(found.kinked.any())
        verdict = next(
            (v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if any(one.verdict == v for one in judged)), Verdict.PASS
        )
        return Assessment(verdict, judged, kinked)

    def _size(self, directions: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """(P,): the size of a gradient along directions; along single axes not less than a typical element's."""
        along: torch.Tensor = (directions * gradient).norm(dim=1)
        known = gradient[gradient.isfinite()]
        if self.units and known.numel():
            return torch.maximum(along, directions.abs().amax(1) * known.square().mean().sqrt())
        return along

    def confirm(self, assessment: Assessment) -> None:
        """Measures the directions that fail worst on every ladder: a slope that shorter steps contradict is no
        evidence."""
        rows = self._worst_rows(assessment)
        nothing = torch.zeros(int(rows.sum()), dtype=torch.float64, device=self.directions.device)
        finer = slopes_module.measure(self.passes, self.space, self.directions[rows], nothing)
        self.slopes = self.slopes.replaced(rows, finer)

    def _worst_rows(self, assessment: Assessment) -> torch.Tensor:
        """(P,) of bool: the few directions that are furthest from a pass."""
        judged = assessment.judgements
        count = 1 if self.space.size > ALL_UNITS else _DOUBTED
        worst = sorted(range(len(judged)), key=lambda k: -_excess(judged[k]))[:count]
        rows = torch.zeros(len(judged), dtype=torch.bool, device=self.directions.device)
        rows[worst] = True
        return rows

    def doubt(self, assessment: Assessment) -> None:
        """Measures the directions that are furthest from a pass without batches, which are not taken on trust; and
        all of them where batches turn out to give something else."""
        if not self.passes.batching:
            return
        rows = self._worst_rows(assessment)
        self.passes.batching = False
        alone = self._measured(self.directions[rows])
        batched = self.slopes.of(rows)
        same = (alone.value - batched.value).abs() <= alone.bar + batched.bar
        # torch 2.13's rule for index_fill gives all points the last one's value: no slope, and a wide bar.
        same &= batched.bar <= 4 * alone.bar + self._wanted(self.directions[rows])
        same |= (alone.value == batched.value) | (alone.bar.isinf() & batched.bar.isinf())
        if bool((same & (alone.kinked == batched.kinked)).all()):
            self.passes.batching = True
        else:
            self.slopes = self._measured(self.directions)

    def narrow(self) -> None:
        """Measures again with steps relative to each element alone: for inputs that span many magnitudes."""
        space = self.space.relative()
        if self.units or bool((space.scale == self.space.scale).all()):
            return
        self.space = space
        self.directions = space.drawn(self.directions.shape[0], self._generator)
        self.slopes = self._measured(self.directions)

    def element_slopes(self, coordinates: list[int]) -> tuple[Slopes, torch.Tensor]:
        """Slopes along single coordinates, and the lengths of those directions."""
        directions, lengths = self.space.units(coordinates)
        return self._measured(directions), lengths

    def suspects(self, gradient: torch.Tensor) -> list[int] | None:
        """Coordinates whose gradient is wrong, the worst first; None where too many are to name them all.

        A single direction's residual is split between halves of the index set, level by level (D. Dorfman's group
        testing, 1943, in its adaptive form): a level costs one ladder for each block that is still wrong.
        """
        if self.space.size <= ALL_UNITS:
            return self._by_units(gradient)
        mover = self.space.drawn(1, self._generator)
        blocks = [(0, self.space.size, *self._residual(gradient, mover, 0, self.space.size, 0.0))]
        while any(stop - start > 1 for start, stop, _, _ in blocks):
            halves = []
            for start, stop, residual, bound in blocks:
                if stop - start == 1:
                    halves.append((start, stop, residual, bound))
                    continue
                middle = (start + stop) // 2
                enough = abs(residual) / 256 if math.isfinite(residual) else 0.0
                left, left_bound = self._residual(gradient, mover, start, middle, enough)
                right, right_bound = residual - left, bound + left_bound
                if (
                    not math.isfinite(right) or right_bound / 8 < abs(right) <= 8 * right_bound
                ):  # too near to tell by subtraction
                    right, right_bound = self._residual(gradient, mover, middle, stop, enough)
                halves += [(start, middle, left, left_bound), (middle, stop, right, right_bound)]
            blocks = [one for one in halves if not abs(one[2]) <= one[3]]
            if len(blocks) > _FOUND:
                return None
        blocks.sort(key=lambda one: -abs(one[2]))
        return [start for start, _, _, _ in blocks]

    def _residual(
        self, gradient: torch.Tensor, mover: torch.Tensor, start: int, stop: int, enough: float
    ) -> tuple[float, float]:
        """Claimed minus numerical slope along one block of a direction, and its bound."""
        part = torch.zeros_like(mover)
        part[:, start:stop] = mover[:, start:stop]
        part = self.space.along(part)
        found = self._measured(part, enough=enough)
        claimed = (part * gradient).sum()
        bound = found.bar + tolerances.rounding(gradient.nan_to_num(0.0, 0.0, 0.0), part)
        return float(claimed - found.value[0]), float(bound[0])

    def _by_units(self, gradient: torch.Tensor) -> list[int]:
        directions, _ = self.space.units(range(self.space.size))
        found = self.slopes if self.units else self._measured(directions)
        assessment = self._assessed(gradient, directions, found, generous=True)
        wrong = [k for k, one in enumerate(assessment.judgements) if one.verdict is Verdict.FAIL]
        return sorted(wrong, key=lambda k: -_excess(assessment.judgements[k]))

    def kinks(self) -> list[int] | None:
        """Coordinates along which an output has a kink; None where they were not found."""
        if self.space.size <= ALL_UNITS:
            directions, _ = self.space.units(range(self.space.size))
            found = self.slopes if self.units else self._measured(directions)
            return torch.nonzero(found.kinked).flatten().tolist() or None
        mover = self.space.drawn(1, self._generator)
        blocks = [(0, self.space.size)]
        while any(stop - start > 1 for start, stop in blocks):
            halves = []
            for start, stop in blocks:
                middle = (start + stop) // 2
                halves += [(start, middle), (middle, stop)] if stop - start > 1 else [(start, stop)]
            blocks = [one for one in halves if self._has_kink(mover, *one)]
            if len(blocks) > _FOUND or not blocks:
                return None
        return [start for start, _ in blocks]

    def _has_kink(self, mover: torch.Tensor, start: int, stop: int) -> bool:
        part = torch.zeros_like(mover)
        part[:, start:stop] = mover[:, start:stop]
        return bool(self._measured(self.space.along(part)).kinked.any())

    def beside(self, gradient: torch.Tensor, kinks: list[int]) -> Assessment | None:
        """The gradient along directions that leave the kinked coordinates alone; None where nothing else is."""
        among = torch.ones(self.space.size, dtype=torch.bool, device=gradient.device)
        among[kinks] = False
        if not among.any():
            return None
        directions = self.space.drawn(max(2, self.directions.shape[0] // 2), self._generator, among)
        kept = torch.where(among, gradient, 0.0)  # an infinite slope times a step of 0 is no number
        return self._assessed(kept, directions, self._measured(directions), generous=True)


def _distance(claimed: torch.Tensor, found: Slopes) -> torch.Tensor:
    """How far each claim is outside its interval of slopes; NaN where it is NaN."""
    outside = torch.maximum(found.low - claimed, claimed - found.high)
    outside = torch.where((claimed == found.low) | (claimed == found.high), 0.0, outside)  # infinities that agree
    unknown = torch.isinf(found.bar) & ~claimed.isnan()
    return torch.where(unknown & outside.isnan(), 0.0, outside.clamp(min=0.0))

"""Looks closer at the gradient of one input: at what looks wrong, at kinks, and at single elements."""

from __future__ import annotations

import dataclasses
import math

import torch

from gradoracle_server.engine import finite_difference, ladders, noise, sampling, tolerances
from gradoracle_server.engine.products import Assessment, Products, distance
from gradoracle_server.engine.refinement import ALL_UNITS, NEGLIGIBLE, Refinement
from gradoracle_server.engine.report import Verdict
from gradoracle_server.engine.sharpening import Reach, Sharpened, sharpened, unmasked
from gradoracle_server.engine.slopes import Question, Slopes

_DOUBTED = 4  # directions that are measured once more in another way before they are believed
_ELSEWHERE = 8  # directions: along one of them an error is a tenth of its size by accident once in twelve times
_OTHERWISE = 1.1  # times the usual steps
_CLEARLY = 1e3  # times what slopes by other steps differ by
_BENT = 1 / 16  # of a bar, that shorter steps make of it where the function bends: longer ones can only be worse
_BLURRED = 1e-4  # a bar beside its slope, where more than rounding inside of a function is unclear
_BESIDE = 2.0**-4  # of the others' scale: an element is small beside them


class Examiner(Refinement):
    """What was measured along the directions of one input, and what else there is to be measured."""

    doubted = False
    """Whether batches have been compared with a loop."""

    in_batches = False
    """Whether the slopes have come out of batches that have not been compared."""

    _listened = False

    def agrees_elsewhere(self, gradient: torch.Tensor, allowance: torch.Tensor) -> bool:
        """Whether a gradient that is allowed to be off by so much in each element, (C,), agrees with slopes along
        further directions: along one, a large error may be small by accident."""
        if self.units:
            return True
        directions = self.space.drawn(_ELSEWHERE, self.generator)
        found = self.assessed(gradient, directions, self.measured(directions, math.inf), allowance)
        return bool(found.judgements.within.all())

    def confirm(self, assessment: Assessment, *, every: bool = False) -> torch.Tensor:
        """Measures the directions that fail worst, or `every` one that fails, on every ladder: a slope that shorter
        steps contradict is no evidence. Gives which, (P,) of bool."""
        if self.slopes.coordinates.value.shape[1] != self.passes.centre.numel():  # measured in groups
            self.slopes = ladders.measure(self.passes, self.question)
        rows = assessment.judgements.failed if self._quickly or every else self._worst_rows(assessment)
        nothing = torch.zeros(int(rows.sum()), dtype=torch.float64, device=self.directions.device)
        finer = ladders.measure(self.passes, Question(self.space, self.directions[rows], nothing))
        if self._reach is None:
            self._exchange(rows, finer, None)
            return rows
        directions = self.directions[rows]
        again = sharpened(self.passes, self.space, directions, finer, self._fine()[rows], again=True)
        if self._unmasked:
            again = unmasked(self.passes, self.space, directions, again, torch.ones_like(finer.kinked))
        self._exchange(rows, again.slopes, again.reach)
        return rows

    def _worst_rows(self, assessment: Assessment) -> torch.Tensor:
        """(P,) of bool: the few directions that are furthest from a pass."""
        excess = assessment.judgements.excess
        count = 1 if self.space.size > ALL_UNITS else _DOUBTED
        rows = torch.zeros(len(excess), dtype=torch.bool, device=self.directions.device)
        rows[excess.topk(min(count, len(excess))).indices] = True
        return rows

    def doubt(self, assessment: Assessment) -> None:
        """Measures the directions that are furthest from a pass without batches, which are not taken on trust; and
        all of them where batches turn out to give something else. The longest ladder is enough to tell."""
        self.doubted = True
        if self.passes.batching:
            agree = self.passes.batches_agree(self.space.place) and self._alike(self._worst_rows(assessment))
            self.passes.batching = agree
        if self.in_batches and not self.passes.batching:  # which the check of another input may have shown
            self.slopes = ladders.measure(self.passes, self.question)
        self.in_batches = False

    def _alike(self, rows: torch.Tensor) -> bool:
        """Whether slopes along some directions, (P,) of bool, are the same in batches and without."""
        directions = self.directions[rows]
        batched = self.measured(directions, math.inf)
        self.passes.batching = False
        alone = self.measured(directions, math.inf)
        self.passes.batching = True
        same = (alone.value - batched.value).abs() <= alone.bar + batched.bar
        # torch 2.13's rule for index_fill gives all points the last one's value: no slope, and a wide bar.
        same &= batched.bar <= 4 * alone.bar + self._wanted(Products.of(self._expected, directions))
        same |= (alone.value == batched.value) | (alone.bar.isinf() & batched.bar.isinf())
        return bool((same & (alone.kinked == batched.kinked)).all())

    def outrun(self, gradient: torch.Tensor) -> bool:
        """Takes slopes for unknown that look infinite where the gradient, (C,), is finite, and steeper than between the
        point and the nearest ones: then a pole may be nearer than these are, of a matrix that is nearly singular, say.
        Whether any is."""
        rows = self.slopes.kinked & (self.slopes.low.isinf() | self.slopes.high.isinf())
        if not bool(rows.any()):
            return False
        length = finite_difference.steps(finite_difference.LADDERS[-1])[-1]
        values = sampling.sample(self.passes, self.space, self.directions[rows], [length]).found - self.passes.centre
        secants = (torch.where(self.passes.weight == 0, 0.0, values) @ self.passes.weight).abs() / length
        said = Products.of(gradient, self.directions[rows]).sum.abs()
        steeper = said.isfinite() & (said > secants.nan_to_num(0.0, 0.0).flatten(1).amax(1))
        rows[rows.clone()] = steeper
        if bool(rows.any()):
            bar = torch.where(rows, torch.inf, self.slopes.bar)
            self.slopes = dataclasses.replace(self.slopes, bar=bar, kinked=self.slopes.kinked & ~rows)
            self._blind = None
        return bool(rows.any())

    @property
    def is_lost(self) -> bool:
        """Whether nothing is known along some direction, though no kink is seen there."""
        return bool((self.slopes.bar.isinf() & ~self.slopes.kinked).any())

    def listen(self, gradient: torch.Tensor) -> bool:
        """Measures again where the values are noisier than rounding of the outputs explains, and a gradient, (C,), that
        slopes do not bear out may be right all the same. Whether they are."""
        before, self._listened = self._listened, True
        if (
            before
            or (heard := noise.heard(self.passes, self.space, self.generator)) is None
            or self._is_contradicted(gradient)
        ):
            return False
        self.passes.take_noise(heard)
        self.slopes, self._reach, self._blind = ladders.measure(self.passes, self.question), None, None
        return True

    def _is_contradicted(self, gradient: torch.Tensor) -> bool:
        """Whether a gradient, (C,), is off along a direction by far more than what slopes by steps of other lengths
        differ by: no noise does that, but an oscillation looks like it that is faster than the distances at which noise
        is heard."""
        rows = slice(None) if len(self.directions) <= ALL_UNITS else slice(_DOUBTED)
        directions, before = self.directions[rows], self.slopes.of(rows)
        again = self.measured(directions * _OTHERWISE).scaled(1 / _OTHERWISE)
        apart = torch.maximum((again.value - before.value).abs(), again.bar + before.bar)
        off = distance(Products.of(gradient, directions).sum, before)
        return bool(((off > _CLEARLY * apart) & ~before.kinked & ~again.kinked).any())

    def narrow(self, gradient: torch.Tensor) -> None:
        """Measures again with steps relative to each element alone: for inputs that span many magnitudes. What is small
        beside the others may have a kink, or an edge, as near as it is to 0."""
        space = self.space.relative()
        nearer = space.scale < self.space.scale
        if not bool(nearer.any()):
            return
        if self.units:
            self._narrow_units(nearer & (self.slopes.kinked | self.slopes.bar.isinf()), gradient)
            return
        before = self.space, self._directions, self.slopes, self._reach
        self.space, self._reach = space, None
        self._directions = space.drawn(self.directions.shape[0], self.generator)
        self.slopes = self.measured(self.directions)
        if bool(self.slopes.kinked.any()):
            self.space, self._directions, self.slopes, self._reach = before
        self._blind = None

    def _narrow_units(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        """The same for some elements that are moved alone, (C,) of bool. Of what moves the function by no more than its
        rounding nothing is known then, and not that it has a kink."""
        if not bool(rows.any()) or self.slopes.coordinates.value.shape[1] != self.passes.centre.numel():
            return
        own = self.space.relative().scale
        directions, lengths = self.space.scaled(own).units(rows.nonzero().flatten().tolist())
        found = self.measured(directions)
        better = ~found.kinked & found.bar.isfinite()
        if not bool(better.any()):
            return
        enough = self._asked * gradient[rows].abs() * lengths
        sharper = sharpened(self.passes, self.space, directions, found, enough, again=False)
        bar = torch.where(sharper.slopes.bar <= enough, sharper.slopes.bar, torch.inf)
        found = dataclasses.replace(sharper.slopes, bar=bar, smooth=False)
        rows = rows.clone()
        rows[rows.clone()] = better
        self._rescale(rows, own, found.of(better), sharper.reach.of(better))

    def _rescale(self, rows: torch.Tensor, scale: torch.Tensor, found: Slopes, reach: Reach | None) -> None:
        """Takes other scales, (C,), for elements that are moved alone, (C,) of bool, and the slopes along those."""
        self.space = self.space.scaled(torch.where(rows, scale, self.space.scale))
        self._directions, self._last = None, None
        self._alone = None if self._alone is None else self.space.lengths()
        self._exchange(rows, found, reach)

    def widen(self, assessment: Assessment) -> bool:
        """Measures elements that are moved alone, and are small beside the others, by steps of the others' size, where
        too little can be said by such of their own: these move the function by less than its rounding. Whether any
        tells more."""
        if not self.units or self.slopes.coordinates.value.shape[1] != self.passes.centre.numel():
            return False
        judged, other = assessment.judgements, self.space.typical()
        rows = judged.within & ~judged.narrow & judged.bound.isfinite() & (self.space.scale <= _BESIDE * other)
        if not bool(rows.any()):
            return False
        coordinates = rows.nonzero().flatten().tolist()
        scale = torch.where(rows, other, self.space.scale)
        directions, lengths = self.space.scaled(scale).units(coordinates)
        found, before, ratio = self.measured(directions), self.slopes.of(rows), lengths / self.space.lengths()[rows]
        agrees = ~((found.value - before.value * ratio).abs() > found.bar + before.bar * ratio)
        better = agrees & ~found.kinked & (found.bar < before.bar * ratio)
        if not bool(better.any()):
            return False
        rows[rows.clone()] = better
        self._rescale(rows, scale, found.of(better), None)
        return True

    def element_slopes(
        self, coordinates: list[int], gradient: torch.Tensor | None = None, unrest: torch.Tensor | None = None
    ) -> tuple[Slopes, torch.Tensor]:
        """Slopes along single coordinates, and the lengths of those directions; `unrest`, (M,), is what rounding inside
        of the function does to each output that they move.

        Where a gradient, (C,), is given that is right as a whole: as sharp as it takes to see small faults in elements
        of it, and by steps that are shorter than the usual ones only where those tell next to nothing, for a kink or a
        pole is near. Short ones see how a function rounds inside, which their bars do not tell.
        """
        directions, lengths = self.space.units(coordinates)
        if gradient is None:
            found = self.measured(directions)
            return self._unmasked_by(directions, found, tolerances.RELATIVE * found.value.abs()), lengths
        found = self.measured(directions, math.inf)
        size = gradient[coordinates].abs() * lengths
        blurred = _is_blurred(found, size)
        bent = torch.zeros_like(blurred)
        if bool(blurred.any()):
            nearer = self.measured(directions[blurred])
            bent[blurred] = nearer.bar <= _BENT * found.bar[blurred]
            found = found.replaced(blurred, nearer)
        usual, said = found, gradient[coordinates] * lengths

        def off(by: Slopes) -> torch.Tensor:
            return ((said - by.value).abs() > by.bar + tolerances.RELATIVE * size) & (size > 0)

        fine = self.fault / 4 * size
        unclear = ((found.bar > fine) & (size > 0)) | off(found)
        longer = unclear & ~bent
        if bool(longer.any()):
            sharper = sharpened(
                self.passes, self.space, directions[longer], found.of(longer), fine[longer], again=False
            ).slopes
            found = found.replaced(longer, sharper)
        found = self._unmasked_by(directions, found, torch.where((said - found.value).abs() > fine, 0.0, torch.inf))
        if bool((wrong := off(found)).any()):
            found = self._unless_contradicted(directions, usual, found, wrong)
        if unrest is not None:
            moved = (found.coordinates.value != 0).to(unrest.dtype) @ (self.passes.strength * unrest)
            found = dataclasses.replace(found, bar=found.bar + moved / finite_difference.LADDERS[0])
        return found, lengths

    def _unmasked_by(self, directions: torch.Tensor, found: Slopes, enough: torch.Tensor) -> Slopes:
        """Slopes along directions, (P, C), without outputs that these do not reach where bars are not narrow enough."""
        before = Sharpened(found, Reach.usual(found))
        return unmasked(self.passes, self.space, directions, before, found.bar > enough).slopes

    def blurred(self, coordinates: list[int], gradient: torch.Tensor) -> torch.Tensor:
        """Which of single coordinates, (P,) of bool, the usual steps tell next to nothing of."""
        directions, lengths = self.space.units(coordinates)
        return _is_blurred(self.measured(directions, math.inf), gradient[coordinates].abs() * lengths)

    def _unless_contradicted(
        self, directions: torch.Tensor, usual: Slopes, found: Slopes, rows: torch.Tensor
    ) -> Slopes:
        """Slopes found along directions, (P, C), but for rows of them, (P,) of bool, those of shorter steps where these
        contradict the usual ones: steps may be longer than the periods of a function, all of them by whole ones."""
        nothing = torch.zeros(int(rows.sum()), dtype=torch.float64, device=directions.device)
        finer = ladders.measure(self.passes, Question(self.space, directions[rows], nothing))
        contradicted = rows.clone()
        before = usual.of(rows)
        contradicted[rows] = ((finer.value - before.value).abs() > before.bar) | (finer.bar > 2 * before.bar)
        return found.replaced(contradicted, finer.of(contradicted[rows])) if bool(contradicted.any()) else found

    def together(self, gradient: torch.Tensor, kinks: list[int], allowance: torch.Tensor | None = None) -> bool:
        """Whether the gradient is between the slopes along the direction that moves all kinked coordinates by the same
        length, as ties move together: each can be inside of its own kink, and their sum outside."""
        if not kinks:
            return True
        mover = torch.zeros((1, self.space.size), dtype=torch.float64, device=gradient.device)
        mover[0, kinks] = float(self.space.scale[kinks].min())
        part = self.space.along(mover)
        kept = torch.where(part[0] != 0, gradient, 0.0)
        return self.assessed(kept, part, self.measured(part), allowance).verdict is not Verdict.FAIL

    def beside(
        self, gradient: torch.Tensor, kinks: list[int], allowance: torch.Tensor | None = None
    ) -> Assessment | None:
        """The gradient along directions that leave the kinked coordinates alone; None where nothing else is."""
        among = torch.ones(self.space.size, dtype=torch.bool, device=gradient.device)
        among[kinks] = False
        if not among.any():
            return None
        directions = self.space.drawn(max(2, self.directions.shape[0] // 2), self.generator, among)
        kept = torch.where(among, gradient, 0.0)  # an infinite slope times a step of 0 is no number
        return self.assessed(kept, directions, self.measured(directions), allowance)


def _is_blurred(found: Slopes, size: torch.Tensor) -> torch.Tensor:
    """Which slopes, (P,) of bool, have bars that are wide beside the size of what is to be seen, where that counts."""
    return (found.kinked | ~(found.bar <= _BLURRED * size)) & (size >= NEGLIGIBLE * size.max())

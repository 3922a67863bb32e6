"""Adds directions for elements of one input in which a fault would not show along those that there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gradoracle_server.engine import sharpening
from gradoracle_server.engine.measurement import FEW_UNITS, Measurement
from gradoracle_server.engine.products import Assessment
from gradoracle_server.engine.sharpening import Reach, Sharpened, sharpened, unmasked
from gradoracle_server.engine.slopes import Question, Slopes

ALL_UNITS = 256
"""Real coordinates up to which a failure or a kink is located by moving each on its own."""

NEGLIGIBLE = 1e-4
"""Of the largest element: faults in what is less are not looked for."""

_BLOCKS = 16  # of elements, at most, that are moved apart from the others
_FLOORS = 4.0
_LONGER = (8.0, 64.0)
"""What the steps of blocks are multiplied by where no bar could be narrower for fewer elements."""


class Refinement(Measurement):
    """What was measured along the directions of one input, and those that are added to see more of it."""

    _refined = False
    _unmasked = False  # whether outputs have been left out of bars
    _all_alone = False  # whether what blocks do not show has been moved alone
    _hidden: tuple[torch.Tensor, torch.Tensor] | None = None  # the last answer of `_unseen`, and what it was made of

    def overlooks(self, gradient: torch.Tensor) -> bool:
        """Whether a small fault in an element that is not small itself would show along none of the directions, where
        each element can still be looked at alone."""
        if self.units or self._all_alone or self.space.size > ALL_UNITS or not self.passes.batching:
            return False
        return bool(self._unseen(gradient).any())

    def unseen(self, gradient: torch.Tensor) -> list[int]:
        """The elements in which that is so."""
        return self._unseen(gradient).nonzero().flatten().tolist()

    def _unseen(self, gradient: torch.Tensor) -> torch.Tensor:
        """(C,) of bool: elements that are not negligible, and in which a small fault would show along no direction."""
        blind = self.blind(gradient)
        if self._hidden is None or self._hidden[0] is not blind:
            magnitude = gradient.abs()
            looked_at = (magnitude >= NEGLIGIBLE * magnitude.max()) & (magnitude > 0)
            self._hidden = blind, looked_at & (blind > self.fault)
        return self._hidden[1]

    def unmask(self, assessment: Assessment) -> bool:
        """Leaves outputs out of bars that a direction does not reach, where it is for such that nothing can be said, or
        what is off lies within the bar. Whether that made one narrower."""
        judged = assessment.judgements
        allowed = judged.bound - self.slopes.bar
        rows = judged.within & (~judged.narrow | (judged.error > allowed))
        if self._unmasked or not bool(rows.any()) or int(rows.sum()) > FEW_UNITS:
            return False
        before, self._unmasked = Sharpened(self.slopes, self._reach or Reach.usual(self.slopes)), True
        found = unmasked(self.passes, self.space, self.directions, before, rows)
        self.slopes, self._reach, self._blind = found.slopes, found.reach, None
        return found is not before

    def refine(self, gradient: torch.Tensor) -> bool:
        """Adds directions that move fewer elements, of one magnitude, for those in which a fault would not show, and
        after that such that move one each, if few are left. Whether there were any.

        Elements that are small beside the others are left out: their faults are.
        """
        if self._refined and self.overlooks(gradient):
            return self._add_alone(gradient)
        if self._refined:
            return False
        if not self.passes.batching:
            return self._add_each(gradient)
        # Fewer at once would not be narrower then: only longer steps help.
        at_floor = self.units or float(self.slopes.bar.min()) <= _FLOORS * self.passes.floor
        if at_floor and self.space.size > ALL_UNITS:  # which cost too much
            return False
        self._refined = True
        if float(self.blind(gradient).max()) <= self.fault:
            return False
        wanted = self._unseen(gradient)
        count = int(wanted.sum())
        if not count:
            return False
        if self.units:
            return self._sharpen(wanted)
        if at_floor and count <= _BLOCKS and float(self.blind(gradient)[wanted].max()) > _LONGER[-1] * self.fault:
            return self._add_alone(gradient)  # longer steps by themselves do not do
        return self._add_blocks(gradient, wanted, _LONGER if at_floor else (1.0,))

    def _add_blocks(self, gradient: torch.Tensor, wanted: torch.Tensor, factors: Sequence[float]) -> bool:
        """Adds directions that move elements wanted, (C,) of bool, of one magnitude each, with steps that are so many
        times as long. Whether any of them tells more."""
        count = int(wanted.sum())
        largest_first = torch.where(wanted, gradient.abs() * self.space.scale, -1.0).argsort(descending=True)[:count]
        masks = torch.zeros((min(_BLOCKS, count), self.space.size), dtype=torch.bool, device=gradient.device)
        rows = torch.arange(count, device=gradient.device) * masks.shape[0] // count
        masks[rows, largest_first] = True
        drawn = self.space.drawn(masks.shape[0], self.generator, masks)
        directions = torch.cat([drawn * factor for factor in factors])
        found = self.measured(directions, math.inf)
        # On one ladder, some have wider bars than the whole.
        useful = (found.bar <= self.slopes.bar.max()) & self._tells(gradient, directions, found)
        if not bool(useful.any()):
            return False
        self._add(directions[useful], found.of(useful), None)
        return True

    def _sharpen(self, rows: torch.Tensor) -> bool:
        """Measures elements that are moved alone, (C,) of bool, with other steps. Whether that tells more."""
        if self.slopes.coordinates.value.shape[1] != self.passes.centre.numel():  # measured in groups
            return False
        before = self.slopes.of(rows)
        after = sharpened(self.passes, self.space, self.directions[rows], before, self._fine()[rows], again=False)
        if after.slopes is before:
            return False
        self._exchange(rows, after.slopes, after.reach)
        return True

    def _add_alone(self, gradient: torch.Tensor) -> bool:
        """Adds directions that move each of the elements alone in which a fault would not show, if they are few.
        Whether any of them tells more."""
        coordinates = self.unseen(gradient)
        if len(coordinates) > _BLOCKS:
            return False
        directions, lengths = self.space.units(coordinates)
        fine = self.fault / 4 * gradient[coordinates].abs() * lengths
        unbound = torch.full_like(lengths, math.inf)
        after = sharpening.measured(self.passes, Question(self.space, directions, unbound), fine)
        known = self._tells(gradient, directions, after.slopes)
        if not bool(known.any()):
            return False
        self._add(directions[known], after.slopes.of(known), after.reach.of(known))
        self._all_alone = True
        return True

    def _add_each(self, gradient: torch.Tensor) -> bool:
        """Likewise by the usual steps, where each takes passes of its own: of a large input's few. Of a small one those
        that are negligible, too, and in one direction those of which the gradient says that nothing depends on them: as
        where each is moved alone, none can hide behind larger ones."""
        self._refined = True
        if self.units or self.space.size > ALL_UNITS:
            return False
        small = self.space.size <= FEW_UNITS
        nothing = (gradient == 0) & small
        hidden = (self.blind(gradient) > self.fault) & ~nothing if small else self._unseen(gradient)
        coordinates = hidden.nonzero().flatten().tolist()
        if len(coordinates) > (FEW_UNITS if small else _BLOCKS):
            return False
        directions, lengths = self.space.units(coordinates)
        enough = self.fault / 4 * gradient[coordinates].abs() * lengths
        if bool(nothing.any()):
            directions = torch.cat([directions, self.space.drawn(1, self.generator, nothing)])
            enough = torch.nn.functional.pad(enough, (0, 1))
        if not len(directions):
            return False
        self._add(directions, self.measured(directions, enough), None)
        return True

    def _tells(self, gradient: torch.Tensor, directions: torch.Tensor, found: Slopes) -> torch.Tensor:
        """(P,) of bool: the directions along which slopes say that a gradient is right, or that it is wrong."""
        judged = self.assessed(gradient, directions, found, generous=False).judgements
        return ((judged.within & judged.narrow) | judged.failed) & ~found.kinked

    def _fine(self) -> torch.Tensor:
        """(P,): bars in which a small fault of a whole direction shows."""
        return self.fault / 4 * self._products(self._expected).total

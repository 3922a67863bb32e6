"""What slopes say of a gradient; anything but agreement is looked at again before it is believed."""

from __future__ import annotations

import dataclasses

import torch

from gradoracle_server.engine import shadow, tolerances
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import instability, roundings
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.products import Assessment
from gradoracle_server.engine.report import Verdict


class Belief:
    """In a gradient, (C,), of the input at a place among the wanted ones."""

    def __init__(self, case: Case, passes: Passes, place: int, examiner: Examiner, gradient: torch.Tensor) -> None:
        self._case, self._passes, self._place = case, passes, place
        self._examiner, self._gradient = examiner, gradient
        self.coarsely: Assessment | None = None
        """What slopes say of it that they fail, where it is right to the last place of a lower precision that is on
        trial: the function may compute in that, as hardsigmoid does, whose gradient is off by 2e-8."""
        self.off = torch.zeros_like(gradient)
        """What each element of it may be off by then, (C,)."""
        self._generous = False
        self._narrowed = False  # whether steps of each element's own size have been tried where there is a kink
        self._inside: torch.Tensor | None = None  # what rounding inside does to the gradient, (C,), where looked at
        self._unrest: torch.Tensor | None = None  # and to the outputs, (M,)

    def found(self) -> Assessment:
        """The verdict."""
        examiner, found = self._examiner, self._assess()
        if (found.kinked or found.verdict is not Verdict.PASS) and examiner.move_alone():
            found = self._assess()
        if not found.kinked and examiner.unmask(found):
            found = self._assess()
        unsure = found.verdict is not Verdict.PASS and not examiner.doubted
        if found.verdict is Verdict.FAIL or found.kinked or unsure:
            examiner.doubt(found)
            found = self._assess()
        if found.kinked:
            found = self._narrowly()
        if found.verdict is Verdict.FAIL or (examiner.is_lost and self._listens()):
            found = self._unless_excused()
        if self.coarsely is not None:
            return found
        if found.verdict is Verdict.INCONCLUSIVE and not found.kinked:
            self._generous = True
            examiner.narrow(self._gradient)
            found = self._assess()
            if found.verdict is Verdict.INCONCLUSIVE and examiner.widen(found):
                return Belief(self._case, self._passes, self._place, examiner, self._gradient).found()
        refinable = found.verdict is Verdict.PASS or (found.verdict is Verdict.INCONCLUSIVE and examiner.units)
        if refinable and not found.kinked and examiner.refine(self._gradient):
            return Belief(self._case, self._passes, self._place, examiner, self._gradient).found()
        return self._unless_unstable(found)

    def _narrowly(self) -> Assessment:
        """What is said where there is a kink, once elements that may have one are moved by steps of their own size."""
        self._examiner.narrow(self._gradient)
        self._narrowed = True
        found = self._assess()
        return self._assess() if not found.kinked and self._examiner.unmask(found) else found

    def _assess(self) -> Assessment:
        found = self._assessed()
        if found.kinked and self._narrowed and self._examiner.outrun(self._gradient):
            return self._assessed()
        return found

    def _assessed(self) -> Assessment:
        return self._examiner.assess(
            self._gradient, generous=self._generous, allowance=self._inside, unrest=self._unrest
        )

    def _unless_excused(self) -> Assessment:
        """What is left of a failure, once all is allowed for that may have made it, the cheapest first."""
        self._generous = True
        found = self._assess()
        if found.verdict is Verdict.FAIL and self._is_right_coarsely():
            return found
        found = self._confirmed(found)
        if found.verdict is Verdict.FAIL and self._inside is None:
            self._inside, self._unrest = roundings(self._case, self._passes, self._place, self._examiner.space)
            found = self._assess()
        if (found.verdict is Verdict.FAIL or self._examiner.is_lost) and self._listens():
            found = self._confirmed(self._assess())
        return found

    def _listens(self) -> bool:
        """Whether noise is heard that changes what slopes say. No noise makes what is no number right."""
        return not bool(self._gradient.isnan().any()) and self._examiner.listen(self._gradient)

    def _is_right_coarsely(self) -> bool:
        """Whether it is right to the last place of float32; where it is rounded to that, as by a backward that casts
        what it gets, within a few places of the typical element, as sums are."""
        if self._case.epsilon > torch.finfo(torch.float64).eps:
            epsilon = torch.finfo(torch.float32).eps
            rounded = shadow.is_rounded([self._gradient])
            sums = tolerances.elementwise(self._gradient, epsilon, None)
            off = sums if rounded else epsilon * self._gradient.abs()
            self.off = off
            found = self._examiner.assess(self._gradient, generous=True, allowance=off)
            right = bool(found.judgements.within.all()) and self._examiner.agrees_elsewhere(self._gradient, off)
            self.coarsely = found if right else None
        return self.coarsely is not None

    def _confirmed(self, found: Assessment) -> Assessment:
        """A failure, once the directions that fail worst are measured on every ladder; and where that shows that some
        of them failed by accident, so may the others have."""
        if found.verdict is not Verdict.FAIL:
            return found
        looked_at = self._examiner.confirm(found) & found.judgements.failed
        found = self._assess()
        if found.verdict is Verdict.FAIL and bool((looked_at & ~found.judgements.failed).any()):
            self._examiner.confirm(found, every=True)
            found = self._assess()
        return found

    def _unless_unstable(self, found: Assessment) -> Assessment:
        """A failure by less than rounding on the way moves the gradient tells nothing: that of a low rank's second
        derivatives, say, has seven digits."""
        if found.verdict is not Verdict.FAIL or found.kinked:
            return found
        moved = tolerances.SPREADS * instability(self._case, self._passes, self._place, self._examiner.space)
        again = self._examiner.assess(self._gradient, generous=True, allowance=moved, unrest=self._unrest)
        return found if again.verdict is Verdict.FAIL else dataclasses.replace(again, verdict=Verdict.INCONCLUSIVE)

"""From slopes to the verdict on one input, with the elements, the kink or the doubt that explain it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from gradoracle_server.engine import diagnose, evidence, tolerances
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.examine import Assessment, Examiner
from gradoracle_server.engine.opinions import ignores_cotangent
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Diagnosis, InputReport, Mismatch, Number, Opinion, Rung, Verdict

MOST_UNITS = 4096
"""Real numbers of an input in full mode."""

_NAMED = 10  # elements in a report

_CONTROL = 10.0
"""The negative control's fault, in units of the smallest that should be caught."""


@dataclasses.dataclass(slots=True)
class _Gradients:
    """One input's gradients in real coordinates, (C,)."""

    claimed: torch.Tensor
    reference: torch.Tensor
    allowance: torch.Tensor  # of each element of the claim, beside the reference

    @property
    def apart(self) -> torch.Tensor:
        """Coordinates whose claim is not the reference's value within the allowance."""
        same = self.claimed == self.reference  # infinities too
        return ~(((self.claimed - self.reference).abs() <= self.allowance) | same)


class Judge:
    """Judges one input after another."""

    def __init__(
        self, case: Case, passes: Passes, generator: torch.Generator, probes: int, asked: float, *, every: bool
    ) -> None:
        self._case, self._passes, self._generator = case, passes, generator
        self._probes, self._asked, self._every = probes, asked, every
        self._rungs: list[Rung] = []

    def ladder(self) -> list[Rung]:
        """Error against step, of the first direction of the first input."""
        return self._rungs

    def input(self, place: int, space: Space, heard: Sequence[Opinion]) -> InputReport:
        """The report on the input at that place among the wanted ones."""
        if space.size == 0:
            return InputReport(space.name, Verdict.PASS, "It has no elements.")
        if self._every and space.size > MOST_UNITS:
            message = (
                f"mode: full moves every element alone, which is for inputs of at most {MOST_UNITS} real numbers; "
                f'input "{space.name}" has {space.size}; probe mode has no limit'
            )
            raise Fault(
                "LIMIT_EXCEEDED", message, field="mode", limit="full mode", allowed=MOST_UNITS, asked=space.size
            )
        gradients = self._gradients(place, space)
        examiner = Examiner(
            self._passes,
            space,
            self._generator,
            probes=self._probes,
            every=self._every,
            expected=gradients.reference,
            spread=lambda: self._spread(place, space),
            asked=self._asked,
        )
        self._rungs = self._rungs or examiner.curve()
        report = self._verdict(place, examiner, gradients)
        failed = [one for one in heard if one.verdicts[place] is Verdict.FAIL]
        if not failed:
            return report
        if report.verdict is not Verdict.FAIL:
            return self._misheard(report, place, failed)
        if ignores_cotangent(failed, place) and report.diagnosis is not Diagnosis.NAN:
            report.diagnosis, report.factor = Diagnosis.IGNORES_COTANGENT, None
            report.explanation = diagnose.IGNORES_COTANGENT
        return report

    def _gradients(self, place: int, space: Space) -> _Gradients:
        case = self._case
        claimed, reference = space.flat(case.claimed[place]), space.flat(case.reference[place])
        if case.epsilon <= torch.finfo(torch.float64).eps:
            return _Gradients(claimed, reference, tolerances.elementwise(reference, case.epsilon, None))
        spread = self._spread(place, space)
        # What underflows is rounded, too.
        tiny = torch.finfo(case.subject.inputs[case.subject.places[place]].dtype).tiny
        least = torch.full_like(reference, tiny)
        if not case.own:  # a claim need not be better than torch
            least = torch.maximum(2 * (space.flat(case.torchs[place]) - reference).abs().nan_to_num(0.0, 0.0), least)
        found = _Gradients(
            claimed, reference, torch.maximum(tolerances.elementwise(reference, case.epsilon, spread), least)
        )
        if found.apart.any():
            inside = self._spread(place, space, inside=True)
            # Where operators compare numbers for equality, as amax does, moving them breaks more than rounding would.
            if inside.norm() <= tolerances.ASKED_LOW * reference.norm():
                spread = torch.maximum(spread, inside)
            spread = torch.maximum(spread, self._parts(space, case.jitter(place)))
            wider = tolerances.elementwise(reference, case.epsilon, spread)
            found.allowance = torch.maximum(wider, least)
        return found

    def _spread(self, place: int, space: Space, *, inside: bool = False) -> torch.Tensor:
        """(C,): what rounding does to each coordinate; both parts of a complex number share theirs."""
        return self._parts(space, self._case.spread(place, inside=inside))

    def _parts(self, space: Space, found: torch.Tensor) -> torch.Tensor:
        found = found.reshape(-1)
        return found.repeat_interleave(2) if space.base.dtype.is_complex else found

    def _verdict(self, place: int, examiner: Examiner, gradients: _Gradients) -> InputReport:
        """Numerics judge the reference; what is not the reference is judged beside it and by single elements."""
        found = self._numerically(examiner, gradients.reference)
        apart = gradients.apart
        if found.kinked:
            return self._at_kink(place, examiner, gradients)
        if found.verdict is Verdict.PASS and not apart.any():
            return self._passed(examiner, gradients, found)
        if found.verdict is Verdict.PASS:
            return self._apart(place, examiner, gradients, apart)
        if apart.any():
            found = examiner.assess(gradients.claimed, generous=True, allowance=gradients.allowance)
        if found.verdict is Verdict.FAIL:
            return self._failed(place, examiner, gradients)
        if found.verdict is Verdict.PASS:
            return self._passed(examiner, gradients, found)
        return self._inconclusive(examiner, gradients, found)

    def _numerically(self, examiner: Examiner, gradient: torch.Tensor) -> Assessment:
        """The verdict of slopes on a gradient; anything but agreement is looked at again before it is believed."""
        found = examiner.assess(gradient)
        if found.verdict is not Verdict.PASS or found.kinked:
            examiner.doubt(found)
            found = examiner.assess(gradient)
        if found.verdict is Verdict.FAIL:
            found = examiner.assess(gradient, generous=True)
        if found.verdict is Verdict.FAIL:
            examiner.confirm(found)
            found = examiner.assess(gradient, generous=True)
        if found.verdict is Verdict.INCONCLUSIVE and not found.kinked:
            examiner.narrow()
            found = examiner.assess(gradient, generous=True)
        return found

    def _passed(self, examiner: Examiner, gradients: _Gradients, found: Assessment) -> InputReport:
        worst = found.worst
        report = InputReport(examiner.space.name, Verdict.PASS, max_error=worst.error, error_bound=worst.bound)
        size = gradients.reference.norm()
        if bool(size > 0) and gradients.allowance.norm() > tolerances.ASKED_LOW * size:
            report.verdict = Verdict.INCONCLUSIVE
            report.explanation = (
                "Rounding to this precision alone changes the gradient by as much as its own size here."
            )
            return report
        report.detection_power, caught = self._control(examiner, gradients.reference, found)
        if self._case.epsilon > torch.finfo(torch.float64).eps:
            self._describe_rounding(report, gradients)
        report.explanation = "It agrees with the numerical derivative."
        if not caught:
            report.explanation += " The negative control was not caught: faults of that size would pass."
        return report

    def _describe_rounding(self, report: InputReport, gradients: _Gradients) -> None:
        """In low precision the figures are those of the claim beside the float64 shadow's gradient."""
        errors = (gradients.claimed - gradients.reference).abs().nan_to_num(0.0, 0.0)
        worst = int((errors / gradients.allowance.clamp(min=1e-300)).argmax())
        report.max_error, report.error_bound = float(errors[worst]), float(gradients.allowance[worst])
        moved = gradients.reference != 0
        if moved.any():
            relative = gradients.allowance[moved] / gradients.reference[moved].abs()
            report.detection_power = max(report.detection_power, float(relative.median()))

    def _control(self, examiner: Examiner, gradient: torch.Tensor, found: Assessment) -> tuple[float, bool]:
        """The relative fault in one element of typical size that the best direction would show; and whether a fault
        ten times as large, planted, is caught."""
        terms = (examiner.directions * gradient).abs()
        typical = torch.where(terms > 0, terms, torch.nan).nanmedian(1).values.tolist()
        best, caught = math.inf, True
        for size, one in zip(typical, found.judgements, strict=True):
            if math.isnan(size) or not math.isfinite(one.bound):
                continue
            power = max(one.bound / size, torch.finfo(torch.float64).eps)
            if power < best:
                best = power
                planted = abs(
                    _CONTROL * power * size - one.error
                )  # the fault may point against the error that is there
                control = tolerances.judge(planted, one.bound, 0.0, max(one.bound / tolerances.ASKED, size))
                caught = control.verdict is Verdict.FAIL
        return (best, caught) if math.isfinite(best) else (0.0, True)

    def _inconclusive(self, examiner: Examiner, gradients: _Gradients, found: Assessment) -> InputReport:
        worst = max(found.judgements, key=lambda one: tolerances.finite(one.bound))
        report = InputReport(examiner.space.name, Verdict.INCONCLUSIVE, max_error=worst.error, error_bound=worst.bound)
        if not bool(self._passes.centre.isfinite().all()):
            report.explanation = "An output is not finite at this point."
        elif math.isinf(worst.bound):
            report.explanation = "The function has no finite values around this point."
        else:
            report.explanation = (
                f"The numerical derivative is known to {worst.bound:.2g} only, which is too wide to tell."
            )
        return report

    def _apart(self, place: int, examiner: Examiner, gradients: _Gradients, apart: torch.Tensor) -> InputReport:
        """The reference stands; the claim differs from it in some elements, and each of those is measured alone."""
        excess = (gradients.claimed - gradients.reference).abs() / gradients.allowance.clamp(min=1e-300)
        excess = torch.where(apart, excess.nan_to_num(nan=torch.inf), -1.0)
        count = min(_NAMED, int(apart.sum()))
        elements = self._elements(examiner, excess.topk(count).indices.tolist())
        rows = self._mismatches(examiner, gradients, elements)
        wrong = [one for one in rows if not one.error <= one.error_bound]
        if not wrong:
            worst = max(rows, key=lambda one: one.error)
            report = InputReport(examiner.space.name, Verdict.INCONCLUSIVE, worst=rows)
            report.max_error, report.error_bound = worst.error, worst.error_bound
            report.explanation = (
                f"{int(apart.sum())} of its coordinates differ from autograd's, by less than the numerical derivative "
                "can tell."
            )
            return report
        return self._failing(place, examiner, gradients, wrong, trusted=gradients.reference)

    def _failed(self, place: int, examiner: Examiner, gradients: _Gradients) -> InputReport:
        """Neither the claim nor autograd agrees with the slopes; wrong elements are searched for."""
        suspects = examiner.suspects(gradients.claimed)
        trusted = None
        if suspects:
            chosen = suspects
        else:
            chosen = (
                gradients.claimed.abs()
                .nan_to_num(torch.inf)
                .topk(min(_NAMED, gradients.claimed.numel()))
                .indices.tolist()
            )
        rows = self._mismatches(examiner, gradients, self._elements(examiner, chosen))
        if examiner.space.size <= examiner.all_units:
            slopes, lengths = examiner.element_slopes(list(range(examiner.space.size)))
            trusted = slopes.value / lengths
        elif suspects:
            trusted = gradients.claimed.clone()
            slopes, lengths = examiner.element_slopes(suspects)
            trusted[suspects] = slopes.value / lengths
        return self._failing(place, examiner, gradients, rows, trusted=trusted)

    def _failing(
        self,
        place: int,
        examiner: Examiner,
        gradients: _Gradients,
        rows: list[Mismatch],
        *,
        trusted: torch.Tensor | None,
    ) -> InputReport:
        rows = sorted(rows, key=lambda one: -tolerances.finite(one.error))[:_NAMED]
        report = InputReport(examiner.space.name, Verdict.FAIL, worst=rows)
        if rows:
            report.max_error, report.error_bound = rows[0].error, rows[0].error_bound
        if trusted is None:
            finding = diagnose.by_slopes(
                (examiner.directions * gradients.claimed).sum(1), examiner.slopes.value, examiner.slopes.bar
            )
        else:
            known = evidence.of(self._case, place, examiner.space, gradients.claimed, trusted, gradients.allowance)
            finding = diagnose.diagnose(known)
            report.errors = (known.claimed - known.true).abs()
        report.diagnosis, report.explanation, report.factor = finding.diagnosis, finding.sentence, finding.factor
        return report

    def _misheard(self, report: InputReport, place: int, failed: list[Opinion]) -> InputReport:
        """Right for the cotangent on trial, and wrong for another."""
        worst = failed[0]
        report.verdict = Verdict.FAIL
        report.max_error, report.error_bound = worst.error, worst.bound
        report.diagnosis = Diagnosis.UNKNOWN
        if ignores_cotangent(failed, place):
            report.diagnosis = Diagnosis.IGNORES_COTANGENT
        report.explanation = f"It is not linear in its cotangent: {worst.explanation}."
        return report

    def _at_kink(self, place: int, examiner: Examiner, gradients: _Gradients) -> InputReport:
        report = InputReport(examiner.space.name, Verdict.NON_DIFFERENTIABLE)
        if bool(gradients.claimed.isnan().any()):
            return self._failed(place, examiner, gradients)
        kinks = examiner.kinks()
        if kinks is None:
            found = examiner.assess(gradients.claimed)
            row = int(examiner.slopes.kinked.nonzero()[0])
            report.kink = (float(examiner.slopes.low[row]), float(examiner.slopes.high[row]))
            report.claim_inside = found.verdict is not Verdict.FAIL
            report.explanation = "The function has a kink here, along a direction that moves many elements."
            return report
        beside = examiner.beside(gradients.claimed, kinks)
        if beside is not None and beside.verdict is Verdict.FAIL:
            return self._failed_beside(place, examiner, gradients, kinks)
        self._describe_kinks(report, examiner, gradients, kinks)
        return report

    def _failed_beside(self, place: int, examiner: Examiner, gradients: _Gradients, kinks: list[int]) -> InputReport:
        """Wrong in elements that have no kink."""
        suspects = [one for one in (examiner.suspects(gradients.claimed) or []) if one not in kinks]
        rows = self._mismatches(examiner, gradients, self._elements(examiner, suspects))
        report = self._failing(place, examiner, gradients, rows, trusted=None)
        if rows:
            report.diagnosis = Diagnosis.SINGLE_ELEMENTS
            report.explanation = "It is wrong in elements where the function is smooth; in others it has a kink."
        return report

    def _describe_kinks(self, report: InputReport, examiner: Examiner, gradients: _Gradients, kinks: list[int]) -> None:
        kinks = kinks[: examiner.all_units]
        slopes, lengths = examiner.element_slopes(kinks)
        low, high, bar = slopes.low / lengths, slopes.high / lengths, slopes.bar / lengths
        claimed = gradients.claimed[kinks]
        slack = bar + gradients.allowance[kinks] + tolerances.RELATIVE * claimed.abs().nan_to_num(0.0, 0.0)
        inside = ((claimed >= low - slack) & (claimed <= high + slack)) | (claimed == low) | (claimed == high)
        outside = torch.maximum(low - claimed, claimed - high).nan_to_num(0.0)
        shown = int(outside.argmax())
        report.kink = (float(low[shown]), float(high[shown]))
        report.claim_inside = bool(inside.all())
        element = self._elements(examiner, [kinks[shown]])[0]
        index = list(_index(examiner.space, element))
        where = f" at {index}" if index else ""
        report.explanation = (
            f"The function has a kink here in {len(kinks)} coordinate{'s' if len(kinks) != 1 else ''}; "
            f"the slopes{where} are {float(low[shown]):.6g} and {float(high[shown]):.6g}, the gradient says "
            f"{float(claimed[shown]):.6g}."
        )
        report.max_error = max(0.0, float(outside[shown]))
        report.error_bound = float(slack[shown])

    def _elements(self, examiner: Examiner, coordinates: Sequence[int]) -> list[int]:
        """The elements that coordinates belong to, each once, in order."""
        parts = 2 if examiner.space.base.dtype.is_complex else 1
        return list(dict.fromkeys(one // parts for one in coordinates))

    def _mismatches(self, examiner: Examiner, gradients: _Gradients, elements: Sequence[int]) -> list[Mismatch]:
        """Each element measured along its own axis, or axes."""
        elements = elements[:_NAMED]
        if not elements:
            return []
        parts = 2 if examiner.space.base.dtype.is_complex else 1
        coordinates = [element * parts + part for element in elements for part in range(parts)]
        slopes, lengths = examiner.element_slopes(coordinates)
        numerical = (slopes.value / lengths).reshape(-1, parts)
        allowance = torch.maximum(
            gradients.allowance[coordinates], tolerances.RELATIVE * gradients.claimed[coordinates].abs()
        ).nan_to_num(0.0, 0.0)
        bars = (slopes.bar / lengths + allowance).reshape(-1, parts)
        claimed = gradients.claimed[coordinates].reshape(-1, parts)
        reference = gradients.reference[coordinates].reshape(-1, parts)
        errors = (claimed - numerical).norm(dim=1)
        return [
            Mismatch(
                index=_index(examiner.space, element),
                claimed=_number(claimed[row]),
                reference=_number(reference[row]),
                numerical=_number(numerical[row]),
                error=float(errors[row]),
                error_bound=float(bars[row].norm()),
            )
            for row, element in enumerate(elements)
        ]


def _index(space: Space, element: int) -> tuple[int, ...]:
    found = []
    for size in reversed(space.base.shape):
        found.append(element % size)
        element //= size
    return tuple(reversed(found))


def _number(parts: torch.Tensor) -> Number:
    values = parts.tolist()
    return complex(*values) if len(values) == 2 else float(values[0])

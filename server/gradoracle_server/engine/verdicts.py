"""From slopes to the verdict on one input, with the elements, the kink or the doubt that explain it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import (
    alone,
    curves,
    diagnose,
    evidence,
    inconclusive,
    jacobians,
    kinked,
    ladders,
    mismatches,
    noise,
    passing,
    search,
    ties,
    tolerances,
)
from gradoracle_server.engine.belief import Belief
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import Gradients, gradients_of, rounding, roundings
from gradoracle_server.engine.jacobians import Jacobian
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.opinions import ignores_cotangent
from gradoracle_server.engine.passes import NoBatchesError, Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.products import Assessment, Products
from gradoracle_server.engine.refinement import ALL_UNITS
from gradoracle_server.engine.report import Diagnosis, InputReport, Mismatch, Opinion, Rung, Verdict
from gradoracle_server.engine.slopes import Slopes

_SMALL = 1e-3  # of the largest element: what a claim is off in less may be rounding inside, where autograd's is right
_LEAST_PROBES = 2  # of a small input, where elements are not moved one by one


class Judge:
    """Judges the inputs: all are measured first, together where that is possible, and then one after another judged."""

    def __init__(
        self, case: Case, passes: Passes, generator: torch.Generator, probes: int, asked: float, *, every: bool
    ) -> None:
        self._case, self._passes, self._generator = case, passes, generator
        self._probes, self._asked, self._every = probes, asked, every
        self._jacobians: list[Jacobian] = []  # in full mode, autograd's

    def inputs(
        self, spaces: Sequence[Space], heard: Sequence[Opinion]
    ) -> tuple[list[InputReport], list[Rung], Opinion]:
        """The reports on the wanted inputs, the error against the step along the first direction of the first, and what
        Taylor's expansion says of all."""
        found = [gradients_of(self._case, place, space, self._passes.magnitude) for place, space in enumerate(spaces)]
        examiners = [self._examiner(place, space, found[place]) for place, space in enumerate(spaces)]
        moving = [one for one in examiners if one.space.size]
        self._measure(examiners, moving)
        curve = curves.rungs(self._passes, moving[0].slopes) if moving else []
        fine = self._case.epsilon <= torch.finfo(torch.float64).eps  # rounding is no remainder
        first = [
            (one.slopes, one.first(mine.claimed if fine else mine.reference)) if one.space.size else None
            for one, mine in zip(examiners, found, strict=True)
        ]
        reports = [
            self._input(place, examiner, gradients, heard)
            for place, (examiner, gradients) in enumerate(zip(examiners, found, strict=True))
        ]
        return reports, curve, curves.taylor(self._passes, first, reports)

    def _measure(self, examiners: Sequence[Examiner], moving: Sequence[Examiner]) -> None:
        """Measures along every examiner's directions; `moving` are those whose input has elements."""
        if self._every:
            jacobians.check_size(self._passes, [one.space for one in examiners])
            self._jacobians = jacobians.of(self._case, self._passes, [one.space for one in examiners])
            for one, matrix in zip(examiners, self._jacobians, strict=True):
                if one.space.size:
                    one.slopes = jacobians.measure(self._passes, one, matrix)
        else:
            for one, measured in zip(moving, self._measured(moving), strict=True):
                one.slopes = measured
        for one in moving:
            one.in_batches = self._passes.batching

    def _measured(self, moving: Sequence[Examiner]) -> list[Slopes]:
        """The slopes that each examiner asks for; of fewer directions where passes cannot be had many at a time."""
        if self._passes.batching:
            with contextlib.suppress(NoBatchesError), self._passes.in_batches():
                return ladders.measure_all(self._passes, [one.question for one in moving])
        for one in moving:
            one.draw(max(_LEAST_PROBES, self._probes))
        return ladders.measure_all(self._passes, [one.question for one in moving])

    def _examiner(self, place: int, space: Space, gradients: Gradients) -> Examiner:
        return Examiner(
            self._passes,
            space,
            self._generator,
            probes=self._probes,
            every=self._every,
            expected=gradients.reference,
            spread=lambda: rounding(self._case, self._passes, place, space),
            asked=self._asked,
            fault=tolerances.fault(self._case.epsilon),
        )

    def _input(self, place: int, examiner: Examiner, gradients: Gradients, heard: Sequence[Opinion]) -> InputReport:
        """The report on the input at that place among the wanted ones."""
        if not examiner.space.size:
            return InputReport(examiner.space.name, Verdict.PASS, "It has no elements.")
        self._passes.take_noise(None)  # what was heard of another input
        report = self._verdict(place, examiner, gradients)
        if self._every and self._case.own:
            self._add_jacobian(place, examiner, report)
        failed = [one for one in heard if one.verdicts[place] is Verdict.FAIL]
        if not failed:
            return report
        if report.verdict is not Verdict.FAIL:
            return self._misheard(report, place, failed)
        if ignores_cotangent(failed, place) and report.diagnosis is not Diagnosis.NAN:
            report.diagnosis, report.factor = Diagnosis.IGNORES_COTANGENT, None
            report.explanation = diagnose.IGNORES_COTANGENT
        return report

    def _add_jacobian(self, place: int, examiner: Examiner, report: InputReport) -> None:
        """Wrong elements of the Jacobian, which say more than those of a gradient. Not where the values are too coarse
        for that: of steps that vanish in them each alone says that it is 0."""
        if not examiner.space.size or not (self._case.faithful or report.verdict in (Verdict.PASS, Verdict.FAIL)):
            return
        count, elements = jacobians.wrong(examiner, self._jacobians[place], mismatches.NAMED)
        values = self._passes.centre
        elements = [
            one
            for one in elements
            if not jacobians.is_rounding(self._case, examiner.space, place, one, float(values[one.output]))
        ]
        if not elements:
            return
        names = jacobians.outputs(self._case)
        parts = 2 if examiner.space.base.dtype.is_complex else 1
        report.worst = [
            Mismatch(
                index=mismatches.index(examiner.space, one.column // parts),
                claimed=one.claimed,
                reference=one.claimed,
                numerical=one.numerical,
                error=abs(one.claimed - one.numerical),
                error_bound=one.bar + tolerances.RELATIVE * abs(one.claimed),
                output=names[one.output][0],
                output_index=names[one.output][1],
            )
            for one in elements
        ]
        said = f"{count} element{'s' if count != 1 else ''} of its Jacobian {'are' if count != 1 else 'is'} wrong."
        if report.verdict is not Verdict.FAIL:
            report.verdict, report.explanation, report.detection_power = Verdict.FAIL, said, 0.0
            report.diagnosis = Diagnosis.SINGLE_ELEMENTS if count <= mismatches.NAMED else Diagnosis.UNKNOWN
            report.max_error, report.error_bound = report.worst[0].error, report.worst[0].error_bound
        else:
            report.explanation = f"{report.explanation} {said}"

    def _verdict(self, place: int, examiner: Examiner, gradients: Gradients) -> InputReport:
        """Numerics judge the reference; what is not the reference is judged beside it and by single elements."""
        belief = Belief(self._case, self._passes, place, examiner, gradients.reference)
        found = belief.found()
        apart = gradients.apart
        if found.kinked:
            return self._at_kink(place, examiner, gradients)
        if belief.coarsely is not None and not apart.any():
            if wrong := self._alone(examiner, gradients, belief.off):
                return self._failing(
                    place, examiner, gradients, wrong, trusted=mismatches.mended(examiner, gradients, wrong)
                )
            return passing.report(self._case, examiner, gradients, belief.coarsely)
        if found.verdict is Verdict.PASS and (bool(found.suspicious.any()) or examiner.overlooks(gradients.reference)):
            wrong = self._single(place, examiner, gradients, found)
            if wrong:
                return self._failing(
                    place, examiner, gradients, wrong, trusted=mismatches.mended(examiner, gradients, wrong)
                )
        if found.verdict is Verdict.PASS and not apart.any():
            return passing.report(self._case, examiner, gradients, found)
        if found.verdict is Verdict.PASS:
            return self._apart(place, examiner, gradients, apart)
        return self._doubted(place, examiner, gradients, found)

    def _doubted(self, place: int, examiner: Examiner, gradients: Gradients, found: Assessment) -> InputReport:
        """The report where slopes do not bear the reference out: the claim may be right all the same."""
        if gradients.apart.any():
            if self._case.epsilon > torch.finfo(torch.float64).eps:
                return self._unaided(place, examiner, gradients)
            found = examiner.assess(gradients.claimed, generous=True, allowance=gradients.alone.allowance)
            if found.verdict is Verdict.PASS:
                return self._verdict(place, examiner, gradients.alone)  # with all the care that a reference has
        if found.verdict is Verdict.FAIL:
            return self._failed(place, examiner, gradients)
        return inconclusive.report(self._passes, examiner, found)

    def _unaided(self, place: int, examiner: Examiner, gradients: Gradients) -> InputReport:
        """The report on a claim in low precision where autograd's gradient is wrong, or there is none: slopes alone
        judge it, of each element where these are few."""
        alone, directions, slopes = gradients.alone, examiner.directions, examiner.slopes
        if examiner.space.size <= ALL_UNITS and not examiner.units:
            elements = list(range(examiner.space.size))
            (directions, _), (slopes, _) = examiner.space.units(elements), examiner.element_slopes(elements)
        found = examiner.assessed(alone.claimed, directions, slopes, alone.allowance, asked=tolerances.ASKED_COARSE)
        if found.verdict is Verdict.FAIL and examiner.listen(alone.claimed):
            return self._unaided(place, examiner, gradients)
        if found.verdict is Verdict.FAIL:
            wider = slopes.bar + noise.carried(self._passes, examiner.space, directions, self._case.epsilon)
            slopes = dataclasses.replace(slopes, bar=wider)
            found = examiner.assessed(alone.claimed, directions, slopes, alone.allowance, asked=tolerances.ASKED_COARSE)
        if found.verdict is Verdict.FAIL:
            return self._failed(place, examiner, alone)
        if found.verdict is not Verdict.PASS:
            return inconclusive.report(self._passes, examiner, found)
        report = passing.report(self._case, examiner, alone, found)
        smallest = Products.of(alone.claimed, directions).smallest_fault(found.judgements.bound)
        report.detection_power = max(report.detection_power, passing.typical(smallest, alone.claimed)[0])
        return report

    def _wrong(
        self, place: int, examiner: Examiner, gradients: Gradients, chosen: Sequence[int], *, least: float = 0.0
    ) -> tuple[list[Mismatch], list[Mismatch]]:
        """Elements where the whole is right: each as it was measured, and those that are wrong; by more than rounding
        inside of the function explains, but for those of more than `least` of the largest, where that is given."""
        rows = mismatches.measured(examiner, gradients, chosen, small=True)
        size = gradients.claimed.abs()
        large = size >= least * size.max() if least else torch.zeros_like(size, dtype=torch.bool)
        apart = [
            k
            for k, one in enumerate(rows)
            if not (one.error <= one.error_bound or bool(large[mismatches.coordinates(examiner, [chosen[k]])].any()))
        ]
        if apart:
            inside = roundings(self._case, self._passes, place, examiner.space)
            again = mismatches.measured(examiner, gradients, [chosen[k] for k in apart], small=True, inside=inside)
            for k, one in zip(apart, again, strict=True):
                rows[k] = one
        wrong = [one for one in rows if not one.error <= one.error_bound]
        if wrong and examiner.listen(gradients.claimed):
            return self._wrong(place, examiner, gradients, chosen, least=least)
        return rows, wrong

    def _single(self, place: int, examiner: Examiner, gradients: Gradients, found: Assessment) -> list[Mismatch]:
        """The elements, if any, that are wrong by themselves where the whole is within the tolerance."""
        if examiner.units:
            return []
        row = int(torch.where(found.suspicious, found.judgements.excess, -1.0).argmax())
        # Where nothing looks wrong, it can only be where that would not show.
        among = None if bool(found.suspicious.any()) else examiner.unseen(gradients.reference)
        # In low precision every element of a claim is off by rounding; it is held against the reference elsewhere.
        coarse = self._case.epsilon > torch.finfo(torch.float64).eps
        suspects = search.suspects(examiner, gradients.reference if coarse else gradients.claimed, row, among)
        chosen = suspects.found if suspects.are_all else []
        return self._wrong(place, examiner, gradients, mismatches.elements(examiner, chosen))[1]

    def _alone(self, examiner: Examiner, gradients: Gradients, off: torch.Tensor) -> list[Mismatch]:
        """The elements, if any, that are wrong by more than each is allowed to be off by, (C,), where a direction that
        moves all of them is not: what is allowed there may be the fault of one."""
        if examiner.units:
            return []
        excess = examiner.assess(gradients.reference).judgements.excess
        found = search.suspects(examiner, gradients.reference, int(excess.argmax())).found
        chosen = mismatches.elements(examiner, found)[: mismatches.NAMED]
        rows = mismatches.measured(examiner, gradients, chosen, small=True)
        allowed = [norm(off[mismatches.coordinates(examiner, [one])]) for one in chosen]
        return [row for row, most in zip(rows, allowed, strict=True) if not row.error <= row.error_bound + most]

    def _apart(self, place: int, examiner: Examiner, gradients: Gradients, apart: torch.Tensor) -> InputReport:
        """The reference stands; the claim differs from it in some elements, and each of those is measured alone."""
        excess = (gradients.claimed - gradients.reference).abs() / gradients.allowance.clamp(min=1e-300)
        excess = torch.where(apart, excess.nan_to_num(nan=torch.inf), -1.0)
        count = min(mismatches.NAMED, int(apart.sum()))
        elements = mismatches.elements(examiner, excess.topk(count).indices.tolist())
        rows, wrong = self._wrong(place, examiner, gradients, elements, least=_SMALL)
        if not wrong and self._case.weights is None:
            inside, _ = roundings(self._case, self._passes, place, examiner.space)
            if tied := ties.by_forward_mode(self._case, place, examiner, gradients, elements, inside):
                report = self._failing(place, examiner, gradients, tied, trusted=gradients.reference)
                report.explanation += f" {ties.SENTENCE}"
                return report
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

    def _failed(self, place: int, examiner: Examiner, gradients: Gradients) -> InputReport:
        """Neither the claim nor autograd agrees with the slopes; wrong elements are searched for."""
        suspects, are_all = search.suspects(examiner, gradients.claimed)
        trusted = None
        if suspects:
            several = are_all and len(suspects) > 1 and bool(gradients.claimed.isfinite().all())
            if several and (joint := search.joint_kink(examiner, suspects)) is not None:
                return kinked.jointly(examiner, gradients, *joint, self._coarse_allowance(gradients))
            chosen = suspects
        else:
            chosen = (
                gradients.claimed.abs()
                .nan_to_num(torch.inf)
                .topk(min(mismatches.NAMED, gradients.claimed.numel()))
                .indices.tolist()
            )
        elements = mismatches.elements(examiner, chosen)
        rows = mismatches.measured(examiner, gradients, elements)
        if all(one.error <= one.error_bound for one in rows):  # longer steps saw what these do not
            rows = mismatches.measured(examiner, gradients, elements, small=True)
            if wrong := [one for one in rows if not one.error <= one.error_bound]:
                return self._failing(
                    place, examiner, gradients, wrong, trusted=mismatches.mended(examiner, gradients, wrong)
                )
        rows = mismatches.strict(rows, examiner, gradients, elements[: len(rows)])
        blur = torch.zeros_like(gradients.claimed)
        if examiner.space.size <= ALL_UNITS:
            along, lengths = examiner.element_slopes(list(range(examiner.space.size)))
            trusted, blur = along.value / lengths, along.bar / lengths
        elif suspects and are_all:
            trusted = gradients.claimed.clone()
            along, lengths = examiner.element_slopes(suspects)
            trusted[suspects], blur[suspects] = along.value / lengths, along.bar / lengths
        report = self._failing(place, examiner, gradients, rows, trusted=trusted, blur=blur)
        few = are_all and 0 < len(suspects) <= min(mismatches.NAMED, examiner.space.size // 2)
        if few and report.diagnosis is Diagnosis.UNKNOWN:  # they are too small for what looks at all elements together
            sharp = self._case.resolution <= torch.finfo(torch.float64).eps
            said = f"It is wrong in {len(suspects)} of {examiner.space.size} elements, and {diagnose.OTHERS[sharp]}."
            report.diagnosis, report.explanation = Diagnosis.SINGLE_ELEMENTS, said
        return report

    def _failing(
        self,
        place: int,
        examiner: Examiner,
        gradients: Gradients,
        rows: list[Mismatch],
        *,
        trusted: torch.Tensor | None,
        blur: torch.Tensor | None = None,
    ) -> InputReport:
        """The report on wrong elements; `trusted`, (C,), is the right gradient, where all of it is known, to within
        `blur`, (C,)."""
        rows = sorted(rows, key=lambda one: -tolerances.finite(one.error))[: mismatches.NAMED]
        report = InputReport(examiner.space.name, Verdict.FAIL, worst=rows)
        if rows:
            report.max_error, report.error_bound = rows[0].error, rows[0].error_bound
        if trusted is None:
            wrong = [(one.claimed, one.numerical) for one in rows if not one.error <= one.error_bound]
            finding = evidence.along(examiner, gradients.claimed, gradients.epsilon, wrong)
        else:
            allowance = gradients.allowance if blur is None else gradients.allowance + blur.nan_to_num(0.0, 0.0)
            known = evidence.of(self._case, place, examiner.space, gradients.claimed, trusted, allowance)
            known.sharp = blur is None or self._case.resolution <= torch.finfo(torch.float64).eps
            finding = diagnose.diagnose(known)
            report.errors = (known.claimed - known.true).abs()
        report.diagnosis, report.explanation, report.factor = finding.diagnosis, finding.sentence, finding.factor
        if finding.diagnosis is Diagnosis.UNKNOWN and evidence.is_cast(self._case, gradients.claimed, rows):
            report.explanation += " All of its elements are numbers of float32: it was rounded to that on the way."
        return report

    def _misheard(self, report: InputReport, place: int, failed: list[Opinion]) -> InputReport:
        """Right for the cotangent on trial, with all inputs, and wrong for another, or without them."""
        worst = failed[0]
        report.verdict = Verdict.FAIL
        report.max_error, report.error_bound = worst.error, worst.bound
        report.diagnosis = Diagnosis.UNKNOWN
        if ignores_cotangent(failed, place):
            report.diagnosis = Diagnosis.IGNORES_COTANGENT
        what = "depends on what else is wanted" if worst.name == alone.FROZEN else "is not linear in its cotangent"
        report.explanation = f"It {what}: {worst.explanation}."
        return report

    def _at_kink(self, place: int, examiner: Examiner, gradients: Gradients) -> InputReport:
        allowance = self._coarse_allowance(gradients)
        if bool(gradients.claimed.isnan().any()) and self._case.weights is None:
            return self._failed(place, examiner, gradients)
        kinks = search.kinks(examiner)
        if kinks is None:
            return kinked.jointly(examiner, gradients, examiner.directions, examiner.slopes, allowance)
        beside = examiner.beside(gradients.claimed, kinks, allowance)
        if beside is not None and beside.verdict is Verdict.FAIL:
            return self._failed_beside(place, examiner, gradients, kinks)
        return kinked.singly(examiner, gradients, kinks, allowance)

    def _coarse_allowance(self, gradients: Gradients) -> torch.Tensor | None:
        """What rounding allows each element of a claim in low precision; None in float64."""
        return gradients.allowance if self._case.epsilon > torch.finfo(torch.float64).eps else None

    def _failed_beside(self, place: int, examiner: Examiner, gradients: Gradients, kinks: list[int]) -> InputReport:
        """Wrong in elements that have no kink."""
        suspects = [one for one in search.suspects(examiner, gradients.claimed).found if one not in kinks]
        rows = mismatches.measured(examiner, gradients, mismatches.elements(examiner, suspects))
        report = self._failing(place, examiner, gradients, rows, trusted=None)
        if rows:
            report.diagnosis = Diagnosis.SINGLE_ELEMENTS
            report.explanation = "It is wrong in elements where the function is smooth; in others it has a kink."
        return report

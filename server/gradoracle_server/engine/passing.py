"""The report on an input whose gradient agrees with the slopes, and its negative control."""

from __future__ import annotations

import math

import torch

from gradoracle_server.engine import tolerances
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import Gradients, spread
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.products import Assessment, Products
from gradoracle_server.engine.report import InputReport, Verdict

_NOTHING = (
    "The function changes by less than its own rounding when this input is moved, which tells such a gradient from no "
    "other, nor from 0."
)
_ROUNDED = 16.0  # times what rounding was seen to do to the gradient
_CONTROL = 10.0
"""The negative control's fault, in units of the smallest that should be caught."""


def report(case: Case, examiner: Examiner, gradients: Gradients, found: Assessment) -> InputReport:
    """PASS, with what would have been seen; INCONCLUSIVE where rounding to the precision on trial hides everything."""
    error, bound = found.figures()
    report = InputReport(examiner.space.name, Verdict.PASS, max_error=error, error_bound=bound)
    coarse = case.epsilon > torch.finfo(torch.float64).eps
    if found.faint is not None and not _is_rounding(case, examiner, gradients.reference, found):
        report.verdict, report.explanation = Verdict.INCONCLUSIVE, _NOTHING
        return report
    if coarse:
        size = norm(gradients.reference)
        if size > 0 and norm(gradients.allowance) > tolerances.ASKED_LOW * size:
            report.verdict = Verdict.INCONCLUSIVE
            report.explanation = (
                "Rounding to this precision alone changes the gradient by as much as its own size here."
            )
            return report
    report.detection_power, caught = _control(examiner, gradients.reference)
    if coarse:
        _describe_rounding(report, gradients)
    report.explanation = "It agrees with the numerical derivative."
    if not caught:
        report.explanation += " The negative control was not caught: faults of that size would pass."
    return report


def _is_rounding(case: Case, examiner: Examiner, gradient: torch.Tensor, found: Assessment) -> bool:
    """Whether a gradient, (C,), that is nothing beside the function is 0 along the directions where it is, or no more
    than rounding on the way leaves of 0."""
    directions = found.directions if found.directions.dim() == 2 else examiner.directions
    directions = directions[found.faint]
    size = Products.of(gradient, directions).size
    if not bool(size.any()):
        return True
    place = case.subject.places.index(examiner.space.place)
    moved = spread(case, place, examiner.space, inside=True, epsilon=case.resolution)
    return bool((size <= _ROUNDED * Products.of(moved, directions).size).all())


def _describe_rounding(report: InputReport, gradients: Gradients) -> None:
    """In low precision the figures are those of the claim beside the float64 shadow's gradient, where it has one."""
    if gradients.claimed is not gradients.reference:
        errors = (gradients.claimed - gradients.reference).abs().nan_to_num(0.0, 0.0)
        worst = int((errors / gradients.allowance.clamp(min=1e-300)).argmax())
        report.max_error, report.error_bound = float(errors[worst]), float(gradients.allowance[worst])
    moved = gradients.reference != 0
    if moved.any():
        relative = gradients.allowance[moved] / gradients.reference[moved].abs()
        report.detection_power = max(report.detection_power, float(relative.median()))


def _control(examiner: Examiner, gradient: torch.Tensor) -> tuple[float, bool]:
    """The relative fault in one element of typical size that the directions would show; and whether a fault ten
    times as large, planted in such an element, is noticed."""
    power, element = typical(examiner.blind(gradient), gradient)
    if not math.isfinite(power):
        return 0.0, True
    return power, examiner.notices(gradient, element, _CONTROL * power)


def typical(faults: torch.Tensor, gradient: torch.Tensor) -> tuple[float, int]:
    """The median of relative faults, (C,), in elements that are not 0, and whose it is; NaN where all are."""
    median, element = faults.masked_fill(gradient == 0, math.nan).nanmedian(0)
    return float(median), int(element)

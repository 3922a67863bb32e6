"""The report on an input along which the function has a kink: its one-sided slopes, and where the gradient is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradoracle_server.engine import mismatches, tolerances
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import Gradients
from gradoracle_server.engine.refinement import ALL_UNITS
from gradoracle_server.engine.report import InputReport, Verdict
from gradoracle_server.engine.slopes import Slopes


def jointly(
    examiner: Examiner,
    gradients: Gradients,
    directions: torch.Tensor,
    slopes: Slopes,
    allowance: torch.Tensor | None,
) -> InputReport:
    """No element has a kink by itself, but one of these directions has, (P, C), that move many."""
    report = InputReport(examiner.space.name, Verdict.NON_DIFFERENTIABLE)
    row = int(slopes.kinked.nonzero()[0])
    report.kink = (float(slopes.low[row]), float(slopes.high[row]))
    found = examiner.assessed(gradients.claimed, directions, slopes, allowance)
    report.claim_inside = found.verdict is not Verdict.FAIL
    report.explanation = "The function has a kink here, along a direction that moves many elements."
    return report


def singly(
    examiner: Examiner, gradients: Gradients, kinks: Sequence[int], allowance: torch.Tensor | None
) -> InputReport:
    """These coordinates have kinks. `allowance`, (C,), is what rounding allows each element of a claim."""
    report = InputReport(examiner.space.name, Verdict.NON_DIFFERENTIABLE)
    kinks = list(kinks[:ALL_UNITS])
    along, lengths = examiner.element_slopes(kinks)
    low, high, bar = along.low / lengths, along.high / lengths, along.bar / lengths
    claimed = gradients.claimed[kinks]
    slack = bar + gradients.allowance[kinks] + tolerances.RELATIVE * claimed.abs().nan_to_num(0.0, 0.0)
    inside = ((claimed >= low - slack) & (claimed <= high + slack)) | (claimed == low) | (claimed == high)
    outside = torch.where(
        inside & slack.isfinite(), 0.0, torch.maximum(low - claimed, claimed - high).nan_to_num(torch.inf, torch.inf)
    )
    shown = int(outside.argmax())
    report.kink = (float(low[shown]), float(high[shown]))
    # Infinite slopes have no sum, and each has been looked at.
    bounded = [one for one, known in zip(kinks, (low.isfinite() & high.isfinite()).tolist(), strict=True) if known]
    report.claim_inside = bool(inside.all()) and examiner.together(gradients.claimed, bounded, allowance)
    element = mismatches.elements(examiner, [kinks[shown]])[0]
    index = list(mismatches.index(examiner.space, element))
    where = f" at {index}" if index else ""
    report.explanation = (
        f"The function has a kink here in {len(kinks)} coordinate{'s' if len(kinks) != 1 else ''}; "
        f"the slopes{where} are {float(low[shown]):.6g} and {float(high[shown]):.6g}, the gradient says "
        f"{float(claimed[shown]):.6g}."
    )
    if bool(inside.all()) and not report.claim_inside:
        report.explanation += " Each is between its slopes, but their sum is not: tied elements move together."
    report.max_error = float(outside[shown])
    report.error_bound = float(slack[shown])
    return report

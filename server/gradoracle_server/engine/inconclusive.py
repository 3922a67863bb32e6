"""The report on an input of which the slopes do not tell whether its gradient is right."""

from __future__ import annotations

import math

import torch

from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.products import Assessment
from gradoracle_server.engine.report import InputReport, Verdict


def report(passes: Passes, examiner: Examiner, found: Assessment) -> InputReport:
    """INCONCLUSIVE, and what is known."""
    judged = found.judgements
    bounds = judged.bound.nan_to_num(nan=math.inf, posinf=math.inf)
    row = int(torch.where(judged.narrow, -1.0, bounds).argmax())
    error, widest = found.figures(row)
    report = InputReport(examiner.space.name, Verdict.INCONCLUSIVE, max_error=error, error_bound=widest)
    if not bool(passes.centre.isfinite().all()):
        report.explanation = "An output is not finite at this point."
    elif math.isinf(widest):
        report.explanation = "No steps around this point agree on a slope."
    else:
        report.explanation = f"The numerical derivative is known to {widest:.2g} only, which is too wide to tell."
    if passes.refusal:
        report.explanation += f" At points beside this one the function {passes.refusal}."
    return report

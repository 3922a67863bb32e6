"""What the values along one direction show at a glance: error against step, and the remainder of Taylor's expansion."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.report import InputReport, Opinion, Rung, Verdict
from gradoracle_server.engine.slopes import Slopes, Values

_LOUD = 16.0  # how often the rounding of the values a remainder is at least, to say anything
_FITTED = 4  # rungs, the finest ones
_BETWEEN = 1.5  # powers of the step: 1, of a wrong gradient, and 2, of a right one


def rungs(passes: Passes, found: Slopes) -> list[Rung]:
    """What the plain central difference of each step gives along the first direction, against the accepted slope.

    The bound is the truncation that two rungs show by their distance, and the rounding of the values.
    """
    true = float(found.value[0])
    curve = []
    for values in found.first:
        plus, minus = values.found[0].tolist()
        differences = [(a - b) / (2 * step) for a, b, step in zip(plus, minus, values.ladder, strict=True)]
        for k, step in enumerate(values.ladder):
            truncation = abs(differences[k] - differences[max(k - 1, 0)]) / 3 if k else abs(differences[0] - true)
            curve.append(Rung(step, abs(differences[k] - true), truncation + passes.rounding / step))
    return curve


def taylor(passes: Passes, measured: Sequence[tuple[Slopes, float] | None], reports: Sequence[InputReport]) -> Opinion:
    """Whether f(x + h v) - f(x) - h <gradient, v> falls with the square of h, as a right gradient's does.

    `measured` has the slopes of each input, and what its gradient says of the first direction. The test is weak, since
    a small error shows at small steps only; so it fails no gradient that extrapolation passes, and helps where that
    cannot tell: then the input's report says what was seen.
    """
    opinion = Opinion(
        "taylor", [], 0.0, 0.0, "the remainder of Taylor's expansion must fall with the square of the step"
    )
    for one, report in zip(measured, reports, strict=True):
        power = None if one is None or not one[0].first else order(passes, one[0].first[0], one[1])
        right = power is None or power > _BETWEEN
        opinion.verdicts.append(Verdict.PASS if right else _weak(report.verdict))
        if power is not None:
            opinion.error = max(opinion.error, 2 - power)
            if report.verdict is Verdict.INCONCLUSIVE:
                report.explanation += f" The remainder of its Taylor expansion falls with the step to the {power:.1f}."
    opinion.bound = 2 - _BETWEEN
    return opinion


def _weak(verdict: Verdict) -> Verdict:
    return Verdict.FAIL if verdict is Verdict.FAIL else Verdict.INCONCLUSIVE


def order(passes: Passes, values: Values, slope: float) -> float | None:
    """The power of the step with which the remainder falls; None where it is rounding."""
    base, rounding = passes.total, passes.rounding
    points = []
    for step, value in zip(values.ladder, values.found[0, 0].tolist(), strict=True):
        remainder = abs(value - base - step * slope)
        if math.isfinite(remainder) and remainder > _LOUD * (rounding + 2.2e-16 * abs(step * slope)):
            points.append((math.log(step), math.log(remainder)))
    points = points[-_FITTED:]
    if len(points) < 2:
        return None
    middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread

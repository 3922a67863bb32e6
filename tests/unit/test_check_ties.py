"""Claims that are closer to the right gradient than the numerical derivative can tell, and what breaks the tie."""

from __future__ import annotations

import torch
from check_cases import check, planted

from gradoracle_server.engine import ties
from gradoracle_server.engine.report import Diagnosis, Verdict

X = torch.linspace(-0.9, 1.1, 5, dtype=torch.float64)
RIGHT = 1e-4 * torch.cos(X)
ONES = {"out0": torch.ones(5, dtype=torch.float64)}


def small_beside_large(x):
    """Rounding of the values hides 1e-8 of its gradient."""
    return 1e3 + 1e-4 * torch.sin(x)


def off(relative):
    """A claim that is wrong in one element."""
    claim = RIGHT.clone()
    claim[2] *= 1 + relative
    return {"x": claim}


def test_forward_mode_breaks_the_tie():
    """It agrees with reverse mode, and not with the claim."""
    assert check(small_beside_large, X, claimed={"x": RIGHT}, cotangents=ONES).verdict is Verdict.PASS
    report = check(small_beside_large, X, claimed=off(1e-8), cotangents=ONES)
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].diagnosis is Diagnosis.SINGLE_ELEMENTS
    assert report.inputs[0].explanation.endswith(ties.SENTENCE)
    assert [one.index for one in report.inputs[0].worst] == [(2,)]


def test_no_forward_mode_no_verdict():
    """A function that has reverse mode only."""
    reverse_only = planted(small_beside_large, lambda inputs, cotangent, right: right)
    report = check(reverse_only, X, claimed={"x0": off(1e-8)["x"]}, cotangents=ONES)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "by less than the numerical derivative can tell" in report.inputs[0].explanation


def test_what_rounding_inside_explains_is_no_fault():
    """Both modes share the values on the way: (x + 1e8) - 1e8 has half of its digits, and so has its cosine."""

    def rounded(x):
        return 20 + 1e-4 * torch.sin((x + 1e8) - 1e8)

    claim = {"x": RIGHT}  # better than autograd's
    report = check(rounded, X, claimed=claim, cotangents=ONES)
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)

"""Forward mode on trial: right, wrong, missing, and where slopes are infinite; for operators and for kernels."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check

import gradoracle as go
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.report import Opinion, Report, Verdict

X = torch.linspace(-0.9, 1.1, 7, dtype=F64)


def sine(pushed):
    """A kernel whose gradient is right, and whose forward mode is `pushed`, given the tangent and x."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return cotangent * x.cos()

    if pushed is not None:
        Sine.jvp = staticmethod(lambda ctx, tangent: pushed(tangent, ctx.saved_tensors[0]))
    return Sine.apply


def forward_mode(report: Report) -> Opinion:
    return next(one for one in report.opinions if one.name == "forward_mode")


JVPS = {
    "right": (lambda tangent, x: tangent * x.cos(), "PASS", "PASS"),
    "off by a millionth": (lambda tangent, x: tangent * x.cos() * (1 + 1e-6), "FAIL", "FAIL"),
    "another's": (lambda tangent, x: tangent * x.sin(), "FAIL", "FAIL"),
    "NaN": (lambda tangent, x: tangent * torch.nan, "FAIL", "FAIL"),
    "infinite": (lambda tangent, x: tangent * torch.inf, "FAIL", "FAIL"),
    "none": (None, "INCONCLUSIVE", "PASS"),
    "one that raises": (lambda tangent, x: tangent @ x[:2], "FAIL", "FAIL"),
    "one that raises what torch does not": (lambda tangent, x: {}[0], "FAIL", "FAIL"),
}
"""What it is, and the verdicts: its own and the whole."""


@pytest.mark.parametrize("name", JVPS)
def test_a_kernels_forward_mode(name):
    pushed, own, whole = JVPS[name]
    report = check(sine(pushed), X, forward_mode=True)
    assert forward_mode(report).verdict.name == own
    assert report.verdict.name == whole


@pytest.mark.parametrize("name", JVPS)
def test_a_kernels_forward_mode_in_the_callers_process(name):
    """What a function gets there is a copy, which has the tangent."""
    pushed, own, whole = JVPS[name]
    report = go.check(sine(pushed), X.clone().requires_grad_(), forward_mode=True)
    found = next(one for one in report.opinions if one.name == "forward_mode")
    assert found.verdict.name == own
    assert report.verdict.name == whole


def test_where_there_is_none_the_report_says_so():
    found = forward_mode(check(sine(None), X, forward_mode=True))
    assert found.explanation.startswith("forward mode must agree with reverse mode, which cannot be asked: You must")


def test_where_it_raises_the_report_says_what():
    found = forward_mode(check(sine(JVPS["one that raises"][0]), X, forward_mode=True))
    assert found.explanation.startswith(
        "forward mode must agree with reverse mode; it raised: inconsistent tensor size"
    )


def test_a_want_of_memory_is_no_verdict():
    def exhausted(tangent, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises((RuntimeError, Fault), match="memory"):
        check(sine(exhausted), X, forward_mode=True)


@pytest.mark.parametrize("x", [0.0, -0.0])
def test_an_infinite_slope_is_no_disagreement(x):
    """Of both modes' sums, each of which is no number."""
    report = check(torch.sqrt, torch.tensor([x, 1.0, 2.0], dtype=F64), forward_mode=True)
    assert forward_mode(report).verdict is not Verdict.FAIL
    assert report.verdict is Verdict.NON_DIFFERENTIABLE


def test_infinite_slopes_of_both_signs():
    """Their sums are infinite, or NaN, whatever the modes do."""
    x = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0], dtype=F64)
    found = forward_mode(check(torch.sqrt, x, forward_mode=True))
    assert found.verdict is not Verdict.FAIL

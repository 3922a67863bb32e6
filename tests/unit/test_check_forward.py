"""Forward mode on trial: right, wrong, missing, and where slopes are infinite; for operators and for kernels."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check

import gradoracle as go
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.report import Opinion, Report, Verdict

X = torch.linspace(-0.9, 1.1, 7, dtype=F64)


def sine(pushed, pulled=lambda cotangent, x: cotangent * x.cos()):
    """A kernel whose forward mode is `pushed`, given the tangent and x, and whose gradient is `pulled`."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, cotangent):
            return pulled(cotangent, *ctx.saved_tensors)

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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", [1e-8, 0.0])
def test_one_element_of_fifty(seed, fault):
    """A fault of 1e-8 in one tangent is lost in the sum of fifty, and not beside the pull-back of the pull-back."""

    def pushed(tangent, x):
        found = tangent * x.cos()
        found[17] *= 1 + fault
        return found

    report = check(sine(pushed), torch.linspace(-0.9, 1.1, 50, dtype=F64), forward_mode=True, seed=seed)
    found = forward_mode(report)
    assert found.verdict is (Verdict.FAIL if fault else Verdict.PASS)
    if fault:
        assert 0.9e-8 < found.error < 4e-8
        assert found.bound < 0.2 * found.error


def test_a_backward_that_is_wrong_by_its_cotangent_is_no_fault_of_forward_mode():
    """The pull-back of the pull-back is believed only where it agrees with the pull-back."""

    class Slope(torch.autograd.Function):  # of a sine, the fault of which is in its own backward
        @staticmethod
        def forward(ctx, cotangent, x):
            ctx.save_for_backward(x)
            return cotangent * x.cos()

        @staticmethod
        def backward(ctx, by):
            (x,) = ctx.saved_tensors
            wrong = by * x.cos()
            wrong[3] = 2 * wrong[3]
            return wrong, None

    kernel = sine(lambda tangent, x: tangent * x.cos(), Slope.apply)
    assert forward_mode(check(kernel, X, forward_mode=True)).verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "normalize"])
def test_tangents_that_are_nothing(name, seed):
    """Of a single element, all of a tangent is what rounding leaves of numbers that cancel."""
    function = {
        "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (1,)),
        "rms_norm": lambda x: torch.nn.functional.rms_norm(x, (1,)),
        "normalize": lambda x: torch.nn.functional.normalize(x, dim=1),
    }[name]
    x = torch.tensor([[3.1], [-0.7]], dtype=F64)
    assert forward_mode(check(function, x, forward_mode=True, seed=seed)).verdict is Verdict.PASS

"""Cotangents that a check draws itself: of outputs of unlike sizes, and of a narrow range."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine.report import Verdict

X = torch.tensor([0.3, -0.7, 1.1, 0.2, 0.9], dtype=F64)


def two(size, factor):
    """Two outputs, the first `size` times as large, the second with a slope that is off by `factor`."""

    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return size * (x * x).sum(), x.sin()

        @staticmethod
        def backward(ctx, first, second):
            (x,) = ctx.saved_tensors
            return first * 2 * size * x + factor * second * x.cos()

    return Two.apply


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1e-10, 1e6, 1e10, 1e14])
@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6])
def test_a_fault_does_not_hide_behind_a_larger_output(size, factor, seed):
    report = check(two(size, factor), X, seed=seed)
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)


def test_an_output_whose_gradient_is_rounding_is_left_as_it_is():
    """Were it as large as the other's, nothing could be said of the sum."""
    for small in (lambda x: x.softmax(0).sum(), lambda x: torch.tanh(x + 17).sum()):
        report = check(lambda x, small=small: (1e6 * x.sin(), small(x)), X)
        assert report.verdict is Verdict.PASS


def test_cotangents_that_are_given_are_left_as_they_are():
    ones = {"out0": torch.ones((), dtype=F64), "out1": torch.ones(5, dtype=F64)}
    report = check(two(1e14, 2.0), X, cotangents=ones)
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_that_overflows_for_a_cotangent_of_two(seed):
    """1 / 2e-5 is in float16's range, and twice as much is not."""
    x = torch.tensor([2e-5, 0.5, 1.0], dtype=torch.float16)
    assert check(torch.log, x, seed=seed).verdict is Verdict.PASS


def test_a_gradient_that_is_infinite_stays_so():
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float16)
    (found,) = check(torch.sqrt, x).inputs
    assert found.verdict is Verdict.NON_DIFFERENTIABLE


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_twice_a_cotangent_may_overflow_on_the_way(factor):
    """The gradient of log(sigmoid(x)) is near 1, and what is pulled back through the logarithm is 53,000."""

    kernel = planted(lambda x: x.sigmoid().log(), lambda inputs, cotangent, right: (factor * right[0],))
    x = torch.tensor([-10.890625, 0.5, 1.0], dtype=torch.float16)
    ones = {"out0": torch.ones(3, dtype=torch.float16)}
    report = check(kernel, x, cotangents=ones)
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)
    (doubled,) = [one for one in report.opinions if one.name == "linear_doubled"]
    assert doubled.verdict is Verdict.PASS
    assert doubled.explanation == "half the cotangent must give half the gradient; twice as much overflows"

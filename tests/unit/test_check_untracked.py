"""Claims on functions that autograd does not follow, or follows wrongly: slopes alone judge them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine.report import Diagnosis, Mode, Verdict


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def numpys(x):
    """Of a function that a kernel of somebody else's computes."""
    weight = draw(x.numel(), seed=2).to(x.dtype)
    return (torch.from_numpy(np.sin(x.detach().numpy())) * weight).sum()


def gradient(x):
    return torch.cos(x) * draw(x.numel(), seed=2).to(x.dtype)


def one(report):
    (found,) = report.inputs
    return found


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("size", [5, 100, 400])
def test_claims_are_judged_as_sharply_as_where_autograd_knows(size, mode):
    """One element of many that is off by 1e-8 is named."""
    x = draw(size)
    right = gradient(x)
    assert check(numpys, x, claimed={"x": right}, mode=mode).verdict is Verdict.PASS
    wrong = right.clone()
    wrong[3] *= 1 + 1e-8
    report = check(numpys, x, claimed={"x": wrong}, mode=mode)
    assert report.verdict is Verdict.FAIL
    assert [found.index for found in one(report).worst] == [(3,)]
    assert one(report).worst[0].reference == 0  # what autograd says
    report = check(numpys, x, claimed={"x": 7 * right}, mode=mode)
    assert (one(report).diagnosis, one(report).factor) == (Diagnosis.SCALED, pytest.approx(7))


@pytest.mark.parametrize("size", [5, 100, 1000])
def test_claims_in_low_precision(size):
    """Right to a few units in the last place is right; and what would be seen is what is said."""
    x = draw(size).float()
    right = gradient(x)
    report = check(numpys, x, claimed={"x": right})
    assert report.verdict is Verdict.PASS
    power = one(report).detection_power
    assert 1e-7 < power < (1e-5 if size <= 256 else 0.1)
    wrong = right.clone()
    wrong[int(right.abs().argsort()[size // 2])] *= 1 + 10 * power  # one of usual size
    assert check(numpys, x, claimed={"x": wrong}).verdict is Verdict.FAIL


def test_autograds_own_gradient_is_zero_there():
    """Which is wrong where the function is not constant, as it is for torch's gradcheck."""
    report = check(lambda x: x.detach() * 2, draw(3))
    assert report.verdict is Verdict.FAIL
    assert one(report).diagnosis is Diagnosis.ZEROED
    assert check(lambda x: torch.floor(x.detach() + 0.5), torch.ones(3, dtype=F64)).verdict is Verdict.PASS
    assert check(lambda x: x.detach() * 2, draw(3), order=2).verdict is Verdict.PASS
    report = check(lambda x: x.detach().argmax(), draw(3))  # no such output could have one
    assert report.verdict is Verdict.NON_DIFFERENTIABLE
    said = "No output is a floating or complex tensor: there is no gradient to check."
    assert one(report).explanation == said


def both(x):
    return numpys(x), x.sum()


def test_of_several_outputs_those_that_need_no_grad_are_constants():
    """As they are for autograd, unless a claim has a cotangent for them."""
    x = draw(4)
    ones = torch.ones(4, dtype=F64)
    cotangents = {"out0": torch.tensor(1.0, dtype=F64), "out1": torch.tensor(1.0, dtype=F64)}
    assert check(both, x).verdict is Verdict.PASS
    assert check(both, x, cotangents=cotangents).verdict is Verdict.PASS
    assert check(both, x, claimed={"x": ones}).verdict is Verdict.PASS
    assert check(both, x, claimed={"x": ones + gradient(x)}, cotangents=cotangents).verdict is Verdict.PASS
    assert check(both, x, claimed={"x": ones}, cotangents=cotangents).verdict is Verdict.FAIL
    only = {"out1": cotangents["out1"]}
    assert check(both, x, claimed={"x": ones}, cotangents=only).verdict is Verdict.PASS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_right_claim_where_autograd_is_wrong(dtype):
    """What a backward formula says is no reason to reject it, nor to look at it less."""
    x = draw(100).to(dtype)
    wrong_in_torch = planted(torch.sin, lambda inputs, cotangent, right: (2 * right[0],))
    ones = {"out0": torch.ones(100, dtype=dtype)}
    assert check(wrong_in_torch, x, claimed={"x0": x.cos()}, cotangents=ones).verdict is Verdict.PASS
    claim = x.cos()
    claim[7] *= 1 + (1e-8 if dtype is F64 else 1e-4)
    assert check(wrong_in_torch, x, claimed={"x0": claim}, cotangents=ones).verdict is Verdict.FAIL
    assert check(wrong_in_torch, x, claimed={"x0": 2 * x.cos()}, cotangents=ones).verdict is Verdict.FAIL


def waves(count):
    """So many of them a unit, of a numpy function."""
    return lambda x: torch.from_numpy(np.sin(np.float32(count) * x.detach().numpy())).sum()


@pytest.mark.parametrize("size", [1, 5, 100])
def test_claims_in_low_precision_that_are_off_by_the_rounding_of_what_is_inside(size):
    """The cosine of what is rounded to 24 bits and is a hundred is off by more than its own last places."""
    for seed in range(6):
        x = draw(size, seed=seed).float()
        right = 100 * torch.cos(100 * x)
        assert check(waves(100), x, claimed={"x": right}).verdict is not Verdict.FAIL
        assert check(waves(100), x, claimed={"x": 1.1 * right}).verdict is Verdict.FAIL


def test_waves_that_float32_does_not_resolve_fail_nobody():
    """What the shortest steps move an output by is as much as what the longest do."""
    for seed in range(6):
        x = draw(1, seed=seed).float()
        assert check(waves(1e6), x, claimed={"x": 1e6 * torch.cos(1e6 * x)}).verdict is Verdict.INCONCLUSIVE


def test_claims_in_low_precision_of_which_slopes_tell_nothing():
    """Where the shortest steps reach further than the waves, right and wrong look alike."""
    x = draw(5).float()
    right = 1e5 * torch.cos(1e5 * x)
    for claimed in (right, -right):
        report = check(waves(1e5), x, claimed={"x": claimed})
        assert report.verdict is Verdict.INCONCLUSIVE
        assert "too wide to tell" in one(report).explanation or "agree on a slope" in one(report).explanation

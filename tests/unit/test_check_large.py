"""Gradients whose squares overflow, and that are infinite in an element."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine.report import Verdict

X = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=F64)


@pytest.mark.parametrize("size", [1e150, 1e154, 1e160, 1e290])
@pytest.mark.parametrize("factor", [1.0, 0.0, -1.0, 1 + 1e-7])
def test_claims_of_large_gradients(size, factor):
    cotangents = {"out0": torch.full((4,), size, dtype=F64)}
    report = check(torch.sin, X, cotangents=cotangents, claimed={"x0": factor * (size * X.cos())})
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)


@pytest.mark.parametrize("size", [1e154, 1e290])
def test_one_large_element_hides_nothing_of_its_own_size(size):
    """At points like others: the logarithm near 0."""
    x = torch.tensor([1 / size, 2 / size, 3 / size], dtype=F64)
    for wrong in (1.0, 0.5, 1 + 1e-7):
        claim = {"x0": torch.tensor([1.0, wrong, 1.0], dtype=F64) / x}
        report = check(torch.log, x, cotangents={"out0": torch.ones(3, dtype=F64)}, claimed=claim)
        assert report.verdict is (Verdict.PASS if wrong == 1 else Verdict.FAIL)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "first"), [(F64, 1e-160), (torch.float32, 1e-15), (torch.float32, 1e-25)])
def test_what_is_beside_an_infinite_element(dtype, first, seed):
    """1/x overflows in one: rounding of that output is no business of the others."""
    others = 1 + torch.rand(7, dtype=F64, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([torch.tensor([first], dtype=F64), others]).to(dtype)
    ones = {"out0": torch.ones(8, dtype=dtype)}
    assert check(planted(torch.reciprocal, lambda inputs, u, right: right), x, cotangents=ones).verdict is Verdict.PASS

    def beside(change):
        return lambda inputs, u, right: (torch.cat([right[0][:1], change(right[0][1:])]),)

    for change in (lambda g: 2 * g, lambda g: -g, torch.zeros_like):
        report = check(planted(torch.reciprocal, beside(change)), x, cotangents=ones)
        assert report.verdict is Verdict.FAIL

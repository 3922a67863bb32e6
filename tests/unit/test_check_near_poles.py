"""Matrices that are nearly singular: the nearest steps are longer than the way to a pole, and values round by much."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine.report import Verdict


def matrix(condition: float, seed: int) -> torch.Tensor:
    """Symmetric and positive definite, of 4 x 4, with eigenvalues from 1 down to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(4, 4, dtype=F64, generator=generator))
    values = condition ** (-torch.arange(4, dtype=F64) / 3)
    found = (axes * values) @ axes.T
    return (found + found.T) / 2


def symmetric(x: torch.Tensor) -> torch.Tensor:
    return (x + x.mT) / 2


FUNCTIONS = {
    "logdet": lambda x: torch.logdet(symmetric(x)),
    "cholesky": lambda x: torch.linalg.cholesky(symmetric(x)),
    "slogdet": lambda x: torch.linalg.slogdet(x)[1],
    "inverse": torch.linalg.inv,
    "solve": lambda x: torch.linalg.solve(x, torch.ones(4, dtype=F64)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("condition", [1e8, 1e10, 1e11, 1e12])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nearly_singular_matrices_have_no_kink_and_no_wrong_gradient(name, condition, seed):
    """They are smooth, but steps that tell of it would be shorter than rounding allows."""
    report = check(FUNCTIONS[name], matrix(condition, seed), seed=seed)
    assert report.inputs[0].verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), report.inputs[0].explanation


def test_rounding_is_held_against_a_large_gradient_itself():
    """Not against the size of the function alone, of which the gradient is thousands of times as much here."""
    report = check(FUNCTIONS["cholesky"], matrix(1e8, 10), seed=10)
    assert report.inputs[0].verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("fault", [1e-6, 0.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_faults_show_where_steps_are_short_enough(name, fault):
    faulty = planted(FUNCTIONS[name], lambda inputs, cotangent, right: (right[0] * (1 + fault),))
    report = check(faulty, matrix(1e3, 0))
    assert report.inputs[0].verdict is (Verdict.FAIL if fault else Verdict.PASS)


def test_a_slope_that_is_infinite_stays_so_for_a_gradient_that_is_less_steep():
    """sqrt(|x|) at 0, whose slopes are infinite, and a gradient of 3 there."""

    def slope(inputs, cotangent, right):
        return (torch.where(inputs[0] == 0, 3.0 * cotangent, right[0]),)

    root = planted(lambda x: x.abs().sqrt(), slope)
    (found,) = check(root, torch.tensor([0.0, 2.0], dtype=F64)).inputs
    assert found.verdict is Verdict.NON_DIFFERENTIABLE
    assert found.kink == (-torch.inf, torch.inf)

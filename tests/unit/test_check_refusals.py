"""Functions that raise where their numbers do not suit them: beside the point they are tried at less and less far."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check
from gradcheck_cases import wrong

import gradoracle as go
from gradoracle_server.engine.report import Verdict

ALIKE = torch.tensor([1.0, 1.0, 2.0], dtype=F64)


def cube(within: float, error: type[Exception] = AssertionError, factor: float = 1.0):
    """x^3, of which the first two elements must be alike within so much; with a gradient that is `factor` too large."""
    cubed = wrong(lambda g, x: factor * 3 * x**2 * g)

    def function(x):
        if abs(float((x[0] - x[1]).detach())) > within:
            raise error(f"expected two alike, got {x[:2].tolist()}")
        return cubed(x)

    return function


@pytest.mark.parametrize("error", [AssertionError, ValueError, RuntimeError, ZeroDivisionError])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.PASS), (1 + 1e-6, Verdict.FAIL)])
def test_what_raises_farther_away_is_measured_nearer(error: type[Exception], factor: float, verdict: Verdict):
    assert check(cube(1e-4, error, factor), ALIKE).verdict is verdict


def test_what_raises_everywhere_beside_the_point_is_not_told():
    report = check(cube(0.0), ALIKE)
    assert report.verdict is Verdict.INCONCLUSIVE
    told = "No steps around this point agree on a slope. At points beside this one the function raises AssertionError: "
    assert report.inputs[0].explanation.startswith(f"{told}expected two alike, got [")


def test_what_raises_at_the_point_itself_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError, match=r"expected two alike, got \[1.0, 3.0\]"):
        check(cube(1e-4, ZeroDivisionError), torch.tensor([1.0, 3.0, 2.0], dtype=F64))


def test_want_of_memory_is_no_edge():
    with pytest.raises(MemoryError):
        check(cube(1e-4, MemoryError), ALIKE)


def test_low_precision_that_takes_nothing_else_is_not_told():
    """Nor does it come out of the runs that round its numbers."""
    assert check(cube(0.0), ALIKE.float()).verdict is Verdict.INCONCLUSIVE


def test_outputs_of_another_shape_beside_the_point_are_told():
    report = check(lambda x: x**2 if float(x.detach()[0]) == 1.0 else x[:2] ** 2, ALIKE)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.inputs[0].explanation.endswith("the function gives an output of shape (2,), not (3,).")


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6])
def test_gradcheck(factor: float):
    """As torch's, whose steps are so small that such functions take them; which the wrong one passes, too."""
    given = ALIKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(cube(1e-4, factor=factor), (given,))
    if factor == 1:
        assert go.gradcheck(cube(1e-4), (given,))
    else:
        with pytest.raises(go.GradcheckError, match="wrong"):
            go.gradcheck(cube(1e-4, factor=factor), (given,))


def test_a_function_that_is_traced():
    """Its graph has none of its assertions, but is held against it where it takes the numbers."""

    def function(x):
        assert bool((x > 0).all()), "expected positive numbers"
        return x.log()

    report = go.check(function, torch.tensor([0.5, 1e-3, 2.0], dtype=F64, requires_grad=True))
    assert report.verdict is go.Verdict.PASS

"""Functions with kinks everywhere, as layers of ReLU have: steps that are short enough see none, and are believed."""

from __future__ import annotations

import functools

import pytest
import torch
from check_cases import F64, check

from gradoracle_server.engine import examine
from gradoracle_server.engine.finite_difference import Derivative
from gradoracle_server.engine.report import Verdict

SIZE, OUTPUTS = 300, 64


@functools.cache
def layers(units: int = 40_000, size: int = SIZE, outputs: int = OUTPUTS):
    """A network of two layers, of whose units some turn on or off in steps of a millionth; and a point."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(units, size, generator=generator, dtype=F64) / size**0.5
    shift = torch.randn(units, generator=generator, dtype=F64)
    second = torch.randn(outputs, units, generator=generator, dtype=F64) / units**0.5

    def network(x):
        return torch.relu(x @ first.T + shift) @ second.T

    return network, torch.randn(size, generator=generator, dtype=F64)


def test_the_right_gradient_passes():
    network, x = layers()
    report = check(network, x)
    assert report.verdict is Verdict.PASS
    assert 0 < report.detection_power < 1e-4


@pytest.mark.parametrize("fault", [1e-5, 1e-7])
def test_one_wrong_element_of_a_claim_fails(fault: float):
    network, x = layers()
    leaf, ones = x.clone().requires_grad_(), torch.ones(OUTPUTS, dtype=F64)
    (claimed,) = torch.autograd.grad(network(leaf) @ ones, leaf)
    claimed[int(claimed.abs().argmax())] *= 1 + fault
    assert check(network, x, claimed={"x": claimed}, cotangents={"out0": ones}).verdict is Verdict.FAIL


def test_longer_steps_are_not_tried_where_shorter_ones_tell_more(monkeypatch: pytest.MonkeyPatch):
    """They would go over more kinks: the same verdict and power for fewer passes."""
    network, x = layers(units=4000, size=200, outputs=30)
    found = check(network, x)
    monkeypatch.setattr(examine, "_BENT", -1.0)
    tried = check(network, x)
    assert (found.verdict, found.detection_power) == (tried.verdict, tried.detection_power)
    assert found.evaluations < 0.85 * tried.evaluations


def climbed(*ladders: tuple[float, float]) -> tuple[float, float]:
    """Value and bar after ladders of shorter and shorter steps, each of a value and a bar."""
    longest, found = 2.0**-4, None
    for value, bar in ladders:
        one = Derivative(torch.tensor([[value]], dtype=F64), torch.tensor([[bar]], dtype=F64))
        if found is not None:
            longest /= 64
            one = one.with_longer(found, lambda: torch.ones(1, 1, dtype=F64), longest, 1e-9, 1e-13)
        found = one
    assert found is not None
    return float(found.value), float(found.bar)


def test_two_ladders_outvote_a_third():
    assert climbed((1.0, 1e-6), (1.1, 1e-9)) == (1.1, pytest.approx(0.1, rel=1e-3))
    assert climbed((1.0, 1e-6), (1.1, 1e-9), (1.1 + 1e-7, 1e-6)) == (1.1, 1e-9)


@pytest.mark.parametrize(
    ("last", "value", "bar"),
    [((1.0, 1e-6), 1.0, 1e-6), ((1.05, 1e-6), 1.05, 1e-6), ((1.1, 0.2), 1.1, 0.1), ((1.2, 1e-6), 1.2, 1e-6)],
)
def test_others_do_not(last: tuple[float, float], value: float, bar: float):
    """Which agree with the third, with neither, with both, or say something else again: the narrow bar stays lost."""
    assert climbed((1.0, 1e-6), (1.1, 1e-9), last) == (value, pytest.approx(bar, rel=1e-3))


def test_a_contradiction_that_rounding_explains_is_not_settled():
    """Shorter steps see the same rounding."""
    assert climbed((1.0, 1e-12), (1.0 + 1e-11, 1e-13), (1.0 + 1e-11, 1e-12))[1] > 9e-12

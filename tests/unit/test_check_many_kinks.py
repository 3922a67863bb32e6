"""Functions with kinks everywhere, as layers of ReLU have: steps that are short enough see none, and are believed."""

from __future__ import annotations

import functools

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine import examine, search
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.finite_difference import EPSILON, LADDERS, central, steps
from gradoracle_server.engine.report import Mode, Verdict

SIZE, OUTPUTS = 200, 16


@functools.cache
def layers(units: int = 20_000, size: int = SIZE, outputs: int = OUTPUTS):
    """A network of two layers, of whose units some turn on or off in steps of 1e-5; and a point."""
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
    monkeypatch.setattr(search, "_TRIED", 1000)
    found = check(network, x)
    monkeypatch.setattr(examine, "_BENT", -1.0)
    tried = check(network, x)
    assert (found.verdict, found.detection_power) == (tried.verdict, tried.detection_power)
    assert found.evaluations < 0.85 * tried.evaluations


@functools.cache
def convolutions():
    """A network of three convolutions with ReLU between, and an image of 100 pixels: kinks near to each of them."""
    generator = torch.Generator().manual_seed(2)
    sizes = [(64, 1, 5), (64, 64, 3), (4, 64, 3)]
    kernels = [torch.randn(o, i, k, k, generator=generator, dtype=F64) / (i * k * k) ** 0.5 for o, i, k in sizes]

    def network(x):
        for place, kernel in enumerate(kernels):
            x = torch.nn.functional.conv2d(x if place == 0 else x.relu(), kernel, padding="same")
        return x

    return network, torch.randn(1, 1, 10, 10, generator=generator, dtype=F64)


def test_elements_are_not_all_moved_alone_where_that_tells_no_more():
    """A few of them show that kinks are near to each: the verdict is the same for 12 passes an element, not 57. A fault
    that the check says it would see is seen."""
    network, x = convolutions()
    found = check(network, x)
    assert found.verdict is Verdict.PASS
    leaf = x.clone().requires_grad_()
    output = network(leaf)
    (claimed,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    claimed *= 1 + 100 * found.detection_power
    cotangents = {"out0": torch.ones_like(output)}
    assert check(network, x, claimed={"x": claimed}, cotangents=cotangents).verdict is Verdict.FAIL
    assert found.evaluations < 20 * x.numel()


def test_in_float32_elements_are_held_against_the_reference(monkeypatch: pytest.MonkeyPatch):
    """What rounding makes of a claim is no reason to look at each of its elements, nor is a fault below its last
    place."""
    network, x = convolutions()
    seen = []
    suspects = search.suspects

    def noted(examiner, gradient, *rest):
        seen.append((examiner.fault, gradient))
        return suspects(examiner, gradient, *rest)

    monkeypatch.setattr(search, "suspects", noted)

    def function(x):
        return network(x.to(F64)).to(x.dtype)

    assert check(function, x.to(torch.float32)).verdict is Verdict.PASS
    assert check(network, x).verdict is Verdict.PASS
    assert [fault for fault, _ in seen] == [1e-7, 1e-8]
    assert not torch.equal(seen[0][1], seen[0][1].to(torch.float32).to(F64))


def test_elements_are_all_moved_alone_where_that_tells_more():
    """Along directions that move all, a fault in those that are 1000 times smaller than others would not show."""
    scale = torch.logspace(0, -3, 200, dtype=F64)
    shift = 1e6 * torch.ones(1, dtype=F64)

    def function(x):
        return ((x * scale).sin() * shift).cumsum(0) / shift

    x = torch.linspace(0.5, 1.5, 200, dtype=F64)
    for place in (20, 133, 199):

        def wrong(inputs, u, right, place=place):
            gradient = right[0].clone()
            gradient[place] *= 1 + 1e-8
            return (gradient,)

        report = check(planted(function, wrong), x)
        assert report.verdict is Verdict.FAIL
        assert [one.index for one in report.inputs[0].worst if one.error > one.error_bound] == [(place,)]


# ---- Gradients of gradients


class Rectified(torch.autograd.Function):
    """ReLU, whose gradient is right, and whose second derivative, 0 but at 0, is what `second` makes of the input."""

    @staticmethod
    def forward(ctx, x, second):
        ctx.save_for_backward(x)
        ctx.second = second
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        wrong = ctx.second * (x - x.detach())  # nothing, but for who differentiates it
        return g * ((x > 0).to(x.dtype) + wrong), None


def rectifiers(second: float = 0.0, top=lambda x: x):
    """A network of two hidden layers of 64 units; and a point."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((8, 64), (64, 64), (64, 4))
    weights = [torch.randn(i, o, generator=generator, dtype=F64) / i**0.5 for i, o in shapes]

    def network(x):
        for weight in weights[:-1]:
            x = Rectified.apply(x @ weight, second)
        return top(x @ weights[-1])

    return network, torch.randn(5, 8, generator=generator, dtype=F64)


TOPS = {"linear": lambda x: x, "curved": torch.tanh}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("top", TOPS)
def test_the_second_derivative_of_rectifiers(top: str, mode: Mode):
    """Their gradient jumps in long steps, and stays what it is in short ones; a second derivative that is not 0 there
    is wrong."""
    right, x = rectifiers(top=TOPS[top])
    assert check(right, x, order=2, mode=mode).verdict is Verdict.PASS
    wrong, _ = rectifiers(1e-3, TOPS[top])
    assert check(wrong, x, order=1).verdict is Verdict.PASS
    assert check(wrong, x, order=2, mode=mode).verdict is Verdict.FAIL


def test_the_second_derivative_of_a_choice():
    """The largest are others a long step away."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert check(lambda x: x.topk(10).values, x, order=2).verdict is Verdict.PASS


@pytest.mark.parametrize("flat", [True, False])
def test_values_with_a_grain_are_not_flat(flat: bool):
    """That the steps of two ladders do not move a value that longer ones move says that its slope is 0 where there is
    no grain; else it may be as fine as float16's."""

    def one(value: float) -> torch.Tensor:
        return torch.full((1, 1), value, dtype=F64)

    found = Derivative(one(1.0), one(0.01), still=one(0.0) != 0)
    for longest in LADDERS[1:3]:
        ladder = steps(longest)
        seen = central(torch.ones(1, 2, len(ladder), 1, dtype=F64), torch.ones(1, dtype=F64), ladder, EPSILON)
        found = seen.with_longer(found, lambda: one(1e-3), longest, 1e-9, 1e-13, flat=flat)
    assert float(found.value) == 0
    assert (float(found.bar) < 1e-6) is flat
    assert flat or float(found.bar) >= 1


# ---- Which ladder is believed


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

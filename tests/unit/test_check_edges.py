"""Near a kink, an edge of the domain or the end of a precision: what is not seen is not said."""

from __future__ import annotations

import math

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine import finite_difference
from gradoracle_server.engine.report import Diagnosis, Mode, Verdict


def t(*values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def one(report):
    (found,) = report.inputs
    return found


# ---- Kinks that are nearer than the shortest step


@pytest.mark.parametrize("distance", [1e-9, 3e-10, -3e-10, -1e-9, 1e-12])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x - 3).abs(),
        lambda x: torch.relu(x - 3),
        lambda x: x.clamp(max=3),
        lambda x: torch.maximum(x, t(3.0)),
        lambda x: torch.relu(x.sin() - math.sin(3)) * x,
    ],
    ids=["abs", "relu", "clamp", "maximum", "relu of sin"],
)
@pytest.mark.parametrize("beside", [(), (2.0,)], ids=["alone", "beside another"])
def test_a_right_gradient_beside_a_kink_is_no_fault(function, distance, beside):
    """All steps reach it, and longer ones agree on the mean of the slopes of its sides."""
    report = check(function, t(3 + distance, *beside))
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NON_DIFFERENTIABLE)
    assert one(report).claim_inside is not False


def test_a_jump_is_not_a_kink_that_is_near():
    """Nor is a kink, of whatever slopes, a jump."""
    ladder = finite_difference.steps(0.5)
    h = torch.tensor(ladder, dtype=F64)
    near = h[-1] / 2

    def limits(right, left, at=0.0):
        values = torch.stack([right(h), left(-h)])[:, :, None]
        return finite_difference.diverges(values, t(at), ladder, 1e-9, 1e-12).flatten().tolist()

    assert limits(lambda x: 1 + x, lambda x: x) == [math.inf, 0]
    assert limits(lambda x: x, lambda x: x - 1e-6) == [0, math.inf]
    assert limits(lambda x: 1 + 0 * x, lambda x: 0 * x - 1) == [math.inf, math.inf]
    kinked = limits(lambda x: (x - near).abs() - near, lambda x: (x - near).abs() - near)
    assert kinked == [0, 0]
    assert limits(torch.sqrt, lambda x: x * math.nan) == [math.inf, 0]
    assert limits(lambda x: x * x.log(), lambda x: x * (-x).log()) == [-math.inf, -math.inf]
    assert limits(lambda x: x**1.1, lambda x: torch.sin(x)) == [0, 0]
    assert limits(torch.sin, torch.exp) == [0, -math.inf]  # exp(0) is 1


# ---- Functions that no step is short enough for


def logistic(x):
    for _ in range(50):
        x = 3.9 * x * (1 - x)
    return x


@pytest.mark.parametrize("x", [0.1, 0.2, 0.35, 0.45, 0.7])
@pytest.mark.parametrize(
    "function",
    [
        logistic,
        lambda x: sum(0.5**k * torch.cos(7**k * math.pi * x) for k in range(12)),
        lambda x: torch.sin(1e9 * x),
    ],
    ids=["logistic map", "Weierstrass", "sin"],
)
def test_what_oscillates_faster_than_steps_is_not_known(function, x):
    """Slopes of 1e9 and more, which no difference sees; what differences agree on is an accident."""
    assert check(function, t(x)).verdict is Verdict.INCONCLUSIVE
    assert check(function, t(x, 0.25)).verdict is Verdict.INCONCLUSIVE


def test_what_is_rough_by_rounding_alone_is_known():
    """Short steps see nothing but that, and long ones the slope."""

    def rough(x):
        return (torch.sin(x) + 1e7) - 1e7

    assert check(planted(rough, lambda inputs, cotangent, right: (1.1 * right[0],)), t(0.3)).verdict is Verdict.FAIL
    assert check(rough, t(0.3)).verdict is not Verdict.FAIL


# ---- Elements that are tiny beside the others


@pytest.mark.parametrize("tiny", [1e-21, 1e-15])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "function",
    [torch.log, torch.sqrt, lambda x: x**0.3, lambda x: 1 / x],
    ids=["log", "sqrt", "power", "reciprocal"],
)
@pytest.mark.parametrize("size", [4, 100], ids=["few", "many"])
def test_probabilities_that_are_nearly_0(function, mode, tiny, size):
    """Steps of the others' size leave the domain there."""
    p = torch.linspace(0.1, 0.9, size, dtype=F64)
    p[2] = tiny
    assert check(function, p, mode=mode).verdict is Verdict.PASS

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found[2] *= 1 + 1e-6
        return (found,)

    if size == 4:
        assert check(planted(function, wrong), p, mode=mode).verdict is Verdict.FAIL


@pytest.mark.parametrize("tiny", [1e-21, 1e-15])
def test_what_moves_a_function_by_less_than_its_rounding_is_not_known(tiny):
    """The entropy's slope there is 47, but for moves that are as small as that."""

    def entropy(p):
        return -(p * p.log()).sum()

    report = check(entropy, t(0.1, 0.3, tiny, 0.6))
    assert report.verdict is Verdict.INCONCLUSIVE
    wrong = planted(entropy, lambda inputs, cotangent, right: (right[0] * t(1, 1 + 1e-8, 1, 1),))
    assert check(wrong, t(0.1, 0.3, tiny, 0.6)).verdict is Verdict.FAIL
    many = torch.linspace(0.1, 0.9, 100, dtype=F64)
    many[2] = tiny
    assert check(entropy, many).verdict is Verdict.PASS


def test_slopes_that_grow_without_end_are_infinite():
    """As slowly as a logarithm."""
    report = check(torch.special.entr, t(0.0))
    assert report.verdict is Verdict.NON_DIFFERENTIABLE
    assert one(report).kink == (math.inf, math.inf)
    assert one(report).claim_inside


# ---- Saturation in low precision


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (torch.tanh, t(10.0, dtype=torch.float32)),
        (torch.tanh, t(8.0, 9.0, 10.0, dtype=torch.float32)),
        (torch.tanh, t(4.0, dtype=torch.bfloat16)),
        (torch.tanh, t(5.0, dtype=torch.float16)),
        (torch.sigmoid, t(17.0, dtype=torch.float32)),
    ],
    ids=["tanh(10)", "tanh(8, 9, 10)", "bfloat16", "float16", "sigmoid"],
)
def test_what_is_left_of_a_saturated_function_is_rounding(function, x):
    """1 - tanh(x)^2 is made of a tanh that is rounded: no fault, but no proof either."""
    assert check(function, x).verdict is Verdict.INCONCLUSIVE
    ordinary = torch.linspace(-1, 1, 9).to(x.dtype)
    assert check(function, torch.cat([x, ordinary])).verdict is Verdict.PASS
    twice = planted(function, lambda inputs, cotangent, right: (2 * right[0],))
    assert check(twice, torch.cat([x, ordinary])).verdict is Verdict.FAIL


# ---- Backward formulas that write into their cotangents


class Writing(torch.autograd.Function):
    """x**3."""

    factor = 3

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @classmethod
    def backward(cls, ctx, u):
        (x,) = ctx.saved_tensors
        return u.mul_(3 * x**2)


@pytest.mark.parametrize("mode", Mode)
def test_a_backward_that_writes_into_its_cotangent(mode):
    """Its numbers are right; what it cannot do is answer a cotangent whose elements share memory, as sum()'s do."""
    cotangents = {"out0": t(1.0, 2.0, 3.0)}
    report = check(Writing.apply, t(1.0, 2.0, 3.0), mode=mode, cotangents=cotangents)
    assert cotangents["out0"].tolist() == [1, 2, 3]
    assert report.verdict is Verdict.FAIL
    assert [found.name for found in report.opinions if found.verdict is Verdict.FAIL] == ["linear_expanded"]
    assert "unsupported operation" in one(report).explanation
    assert one(report).explanation.endswith("performing the operation.")
    assert not one(report).worst

    def wrong(x):
        return Writing.apply(x) + x.detach() ** 2

    report = check(wrong, t(1.0, 2.0, 3.0), mode=mode, cotangents=cotangents)
    found = one(report).worst[0]
    of_cotangent = 3 if mode is Mode.PROBE else 1  # of the gradient, or of the Jacobian
    assert found.claimed == pytest.approx(27 * of_cotangent)
    assert found.numerical == pytest.approx(33 * of_cotangent, rel=1e-9)
    assert one(report).diagnosis is not Diagnosis.NAN


# ---- Steps that are longer than the periods of a function


@pytest.mark.parametrize("seed", range(4))
def test_elements_are_not_wrong_by_steps_of_whole_periods(seed):
    """An imaginary part of 0 moves by as much as the real part beside it, 1e4; the function repeats itself every 2 pi,
    and differences over many periods agree."""
    x = torch.full((5, 5, 5), 1e4, dtype=torch.complex128)

    def summed(x):
        return torch.logcumsumexp(x, 1)

    assert check(summed, x, seed=seed).verdict is not Verdict.FAIL
    wrong = planted(summed, lambda inputs, cotangent, right: (2 * right[0],))
    assert check(wrong, x, seed=seed).verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [1e30, 1e48, 1e100])
def test_kinks_of_large_outputs(size):
    """Numbers that no float32 holds are compared with like ones."""
    report = check(lambda x: (x.abs() * size).sum(), torch.tensor([0.0, 1.0], dtype=F64))
    assert report.verdict is Verdict.NON_DIFFERENTIABLE
    assert [found.kink for found in report.inputs] == [(pytest.approx(-size), pytest.approx(size))]


# ---- Where a function is 0


MINIMA = {
    "squares": lambda x: (x**2).sum(),
    "cosines": lambda x: (1 - x.cos()).sum(),
    "cubes": lambda x: (x**3).sum(),
    "each": lambda x: x**2,
    "squares of a difference": lambda x: torch.nn.functional.mse_loss(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", MINIMA)
@pytest.mark.parametrize("size", [1, 5, 300])
def test_a_gradient_of_nothing_where_the_function_is_nothing_is_right(name, size):
    """As at a minimum: how large the function is beside shows how little the gradient is."""
    assert check(MINIMA[name], torch.zeros(size, dtype=F64)).verdict is Verdict.PASS


def test_a_gradient_that_is_not_nothing_at_a_minimum_is_wrong():
    function = MINIMA["squares"]
    claimed = torch.zeros(5, dtype=F64)
    claimed[3] = 1e-9
    report = check(function, torch.zeros(5, dtype=F64), claimed={"x": claimed})
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].worst[0].index == (3,)


# ---- Gradients that are nothing beside the function


def _sloped(function, slope):
    """A function whose backward says that its slope is `slope` of x.

    It has no batches. Functions of `planted` have, which tell more: of x + 1e14, three times the slope is FAIL."""

    class Sloped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return function(x)

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * slope(*ctx.saved_tensors)

    return Sloped.apply


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
@pytest.mark.parametrize("offset", [1e14, 1e16])
def test_a_slope_below_the_rounding_of_the_value_is_not_known(offset, factor):
    """That of x + 1e16 is 1, but no value of it tells 1 from 3."""
    (found,) = check(_sloped(lambda x: x + offset, lambda x: factor + 0 * x), t(1.0)).inputs
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.explanation.startswith("The function changes by less than its own rounding when this input is moved")
    assert not found.detection_power


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_of_a_saturated_function_no_slope_is_known(factor):
    saturated = _sloped(torch.tanh, lambda x: factor * 4 * torch.exp(-2 * x))
    assert check(saturated, t(18.0, 19.0, 20.0)).verdict is Verdict.INCONCLUSIVE
    beside = check(_sloped(torch.tanh, lambda x: factor / torch.cosh(x) ** 2), t(18.0, 19.0, 0.5))
    assert beside.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: x.softmax(0).sum(), t(0.3, -1.0, 2.0)),
        (lambda x: torch.nn.functional.layer_norm(x, (1,)), t(3.1)[None]),
        (torch.tanh, t(30.0)),
        (lambda x: x.frac() - x + x.floor() + 7, t(2.3, 5.7)),
    ],
    ids=["softmax, summed up", "layer norm of one", "tanh", "a constant"],
)
def test_a_gradient_that_is_0_or_what_rounding_leaves_of_it_passes(function, x):
    assert check(function, x).verdict is Verdict.PASS


# ---- Gradients beyond the range of their dtype


@pytest.mark.parametrize(
    ("function", "x", "dtype"),
    [
        (torch.reciprocal, (1e-200, 2.0), F64),
        (torch.rsqrt, (1e-250, 2.0), F64),
        (torch.reciprocal, (1e-25, 2.0), torch.float32),
        (torch.reciprocal, (3e-3, 2.0), torch.float16),
    ],
)
def test_infinity_is_what_a_large_gradient_is_rounded_to(function, x, dtype):
    x = torch.tensor(x, dtype=dtype)
    assert check(function, x).verdict is Verdict.PASS
    wrong = planted(function, lambda inputs, cotangent, right: (-right[0],))
    assert check(wrong, x).verdict is Verdict.FAIL


@pytest.mark.parametrize("function", [torch.exp, torch.nn.functional.softplus])
def test_what_underflows_has_fewer_digits(function):
    """torch's exp(-740) and the numerical derivative differ in the last place, which is a tenth of it."""
    assert check(function, t(-740.0)).verdict is Verdict.INCONCLUSIVE
    assert check(function, t(-740.0, 1.0)).verdict is Verdict.PASS


def test_a_small_gradient_in_float16_is_not_lost():
    """Of 1e-4, of which float16 has ten bits, though its smallest normal number is 6e-5."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float16)
    assert check(lambda x: 1e-4 * x.sin(), x).verdict is Verdict.PASS
    wrong = planted(lambda x: 1e-4 * x.sin(), lambda inputs, cotangent, right: (1.25 * right[0],))
    assert check(wrong, x).verdict is Verdict.FAIL


# ---- Infinite slopes


@pytest.mark.parametrize(
    "function", [torch.sqrt, torch.asin, lambda x: x.clamp(min=0.0) ** 0.5], ids=["sqrt", "asin", "power"]
)
def test_infinite_slopes_of_both_signs_are_what_they_are(function):
    """Their sum is no number, and says nothing of a gradient that is right in each."""
    x = torch.ones(3, dtype=F64) if function is torch.asin else torch.zeros(3, dtype=F64)
    found = one(check(function, x, cotangents={"out0": t(1.0, -1.0, 2.0)}))
    assert (found.verdict, found.claim_inside) == (Verdict.NON_DIFFERENTIABLE, True)
    assert found.max_error == 0


def test_an_infinite_claim_of_the_wrong_sign_is_off_by_infinity():
    def root(x):
        return x.sqrt()

    cotangents = {"out0": t(1.0, -1.0)}
    right, wrong = t(math.inf, -math.inf), t(math.inf, math.inf)
    x = torch.zeros(2, dtype=F64)
    assert one(check(root, x, claimed={"x": right}, cotangents=cotangents)).claim_inside is True
    found = one(check(root, x, claimed={"x": wrong}, cotangents=cotangents))
    assert found.claim_inside is False
    assert found.max_error == math.inf
    assert found.explanation.endswith("the slopes at [1] are -inf and -inf, the gradient says inf.")


def test_beside_an_infinite_slope_ties_are_looked_at_together():
    """Of the largest of two, one may get all of it, and not both."""
    x = torch.zeros(3, dtype=F64)

    def function(x):
        return torch.maximum(x[0], x[1]) + torch.sqrt(x[2])

    assert one(check(function, x, claimed={"x": t(1.0, 0.0, math.inf)})).claim_inside is True
    found = one(check(function, x, claimed={"x": t(1.0, 1.0, math.inf)}))
    assert found.claim_inside is False
    assert found.explanation.endswith("Each is between its slopes, but their sum is not: tied elements move together.")

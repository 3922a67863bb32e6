"""Numerical derivatives: accurate, with bars that hold, and honest where there is no derivative."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradoracle_server.engine import finite_difference as fd
from gradoracle_server.engine import kinks, ladders
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.slopes import Question

F64 = torch.float64
CPU = torch.device("cpu")


def along(function, x, direction=None, wanted=1e-10):
    """The slopes of sum(function(x)) along directions, or along each axis."""
    x = torch.as_tensor(x, dtype=F64)
    space = Space.of(0, "x", x, "")
    passes = Passes(lambda inputs: (function(inputs[0]),), [x], [torch.ones_like(function(x))], device=CPU, seed=0)
    lengths = torch.ones(1, dtype=F64)
    if direction is None:
        direction, lengths = space.units(range(space.size))
    found = ladders.measure(passes, Question(space, direction, torch.full((len(direction),), wanted, dtype=F64)))
    return found, lengths, passes


SMOOTH = {
    "sin": (torch.sin, torch.cos),
    "exp": (torch.exp, torch.exp),
    "log": (torch.log, lambda x: 1 / x),
    "square": (torch.square, lambda x: 2 * x),
    "sqrt": (torch.sqrt, lambda x: 0.5 / x.sqrt()),
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "reciprocal": (torch.reciprocal, lambda x: -1 / x**2),
}


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(magnitude=st.floats(-6, 2))
def test_the_bar_holds_the_truth(name, magnitude):
    """Over eight orders of magnitude of the input, the true derivative lies inside the bar, and the bar is narrow."""
    function, derivative = SMOOTH[name]
    x = torch.tensor([10.0**magnitude], dtype=F64)
    found, lengths, _ = along(function, x, wanted=0.0)
    slope, bar = float(found.value / lengths), float(found.bar / lengths)
    true = float(derivative(x))
    # The true derivative is itself known to rounding, of its argument too.
    assert abs(slope - true) <= bar + 4e-16 * abs(true)
    assert bar <= 1e-9 * max(abs(true), float(function(x).abs() / x))


@pytest.mark.parametrize(
    ("function", "x"), [(torch.square, 1e9), (torch.sqrt, 1e-6), (torch.sin, 1e4), (torch.log, 1e-9)]
)
def test_steps_follow_the_inputs_scale(function, x):
    """Where a fixed step of 1e-6 fails, at 1e9 or 1e-6, relative steps give nine digits."""
    found, lengths, _ = along(function, [x])
    tensor = torch.tensor([x], dtype=F64, requires_grad=True)
    (true,) = torch.autograd.grad(function(tensor).sum(), tensor)
    assert float(abs(found.value / lengths - true)) <= 1e-9 * float(abs(true))


def test_every_output_chooses_its_own_step():
    """A fast and a slow output are differentiated together, both well."""
    x = torch.tensor([1.0], dtype=F64)
    found, lengths, _ = along(lambda x: torch.cat([torch.sin(200 * x), x**2]), x)
    true = torch.tensor([200 * math.cos(200.0), 2.0], dtype=F64) * lengths
    assert ((found.coordinates.value[0] - true).abs() <= found.coordinates.bar[0]).all()
    assert (found.coordinates.bar[0] <= 1e-9 * true.abs()).all()


@pytest.mark.parametrize(
    ("function", "x", "low", "high"),
    [
        (torch.relu, [0.0], 0.0, 1.0),
        (torch.abs, [0.0], -1.0, 1.0),
        (lambda x: x.clamp(-1, 1), [1.0], 0.0, 1.0),
        (lambda x: x.amax(), [2.0, 2.0], 0.0, 1.0),
        (torch.linalg.vector_norm, [0.0, 0.0], -1.0, 1.0),
        (torch.sqrt, [0.0], math.inf, math.inf),
        (torch.floor, [2.0], 0.0, math.inf),
    ],
)
def test_kinks_have_two_slopes(function, x, low, high):
    """At a kink, a jump or an edge the one-sided slopes are told, and that the function is not smooth there."""
    found, lengths, _ = along(function, x)
    assert bool(found.kinked[0])
    assert float(found.low[0] / lengths[0]) == pytest.approx(low, abs=1e-7)
    assert float(found.high[0] / lengths[0]) == pytest.approx(high, abs=1e-7)


def test_a_kink_nearby_is_no_kink_here():
    """A kink at a distance of 1e-5 is stepped around, not reported."""
    found, lengths, _ = along(torch.relu, [1e-5])
    assert not found.kinked.any()
    near, lengths, _ = along(lambda x: torch.relu(x - 1), [1 + 1e-5])
    assert not near.kinked.any()
    assert float(near.value / lengths) == pytest.approx(1, abs=1e-8)


def test_steps_over_whole_periods_deceive_nobody():
    """A sawtooth whose period divides the longest steps looks linear to them: the finest step contradicts, and wins."""
    y = torch.tensor(0.11544962790327751, dtype=F64)
    found, lengths, _ = along(lambda x: torch.remainder(x, y), [-6.263989834693187])
    assert abs(float(found.value / lengths) - 1) <= float(found.bar / lengths)


def test_what_longer_steps_do_not_move_may_still_have_a_slope():
    """A sawtooth whose period divides the first ladder's steps stands still for them; shorter ones see its slope."""
    x = torch.tensor([1 + 2.0**-11], dtype=F64)
    found, _, passes = along(lambda x: torch.remainder(x, 2.0**-10), x, torch.ones((1, 1), dtype=F64), wanted=0.0)
    assert abs(float(found.value) - 1) <= float(found.bar) <= 1e-9
    assert passes.count > 1 + 2 * fd.RUNGS * len(fd.LADDERS)


def test_what_no_step_moves_is_not_extrapolated_again(monkeypatch):
    """Where no step of any ladder moves a value, that is all there is to know."""
    central = fd.central
    ladders_seen = []
    monkeypatch.setattr(fd, "central", lambda *given: ladders_seen.append(given[2][0]) or central(*given))
    found, _, passes = along(lambda x: torch.zeros_like(x) + 2, [1.0, 3.0], wanted=0.0)
    assert ladders_seen == [fd.LADDERS[0]]
    assert passes.count == 1 + 2 * 2 * fd.RUNGS * len(fd.LADDERS)
    assert found.value.tolist() == [0, 0]
    assert not found.kinked.any()


def test_a_kink_is_looked_for_once_no_shorter_steps_follow(monkeypatch):
    """What looks like one may be a pole nearby; on the last ladder it is one."""
    looked_at = []
    kinks_found = kinks.found
    monkeypatch.setattr(kinks, "found", lambda *given: looked_at.append(given[1].ladder[0]) or kinks_found(*given))
    found, _, _ = along(torch.tan, [1.57])
    assert looked_at == []
    assert not found.kinked.any()
    found, _, _ = along(lambda x: torch.relu(x) * x.exp(), [0.0])
    assert looked_at[-1] == fd.LADDERS[-1]
    assert found.kinked.all()


def test_quanta_on_a_line_are_no_slope():
    """Rounding to decimals moves in steps; a few of them on a line must not give a slope with a narrow bar."""
    for x in torch.linspace(-5, 5, 101, dtype=F64):
        found, lengths, _ = along(lambda x: torch.round(x, decimals=3), x[None], wanted=0.0)
        assert abs(float(found.value / lengths)) <= float(found.bar / lengths)


def test_a_value_too_flat_to_move_is_zero_within_its_rounding():
    """A derivative of 1e-20 beside a value of 1 is not told from 0, and the bar admits it."""
    found, _, _ = along(lambda x: 1 + 1e-20 * x, [1.0])
    assert float(found.value) == 0
    assert 1e-20 <= float(found.bar) <= 1e-13


def test_nothing_is_known_where_the_value_is_not_finite():
    """A function that is NaN at the point has an infinite bar."""
    found, _, _ = along(lambda x: torch.log(x), [-1.0])
    assert found.bar.isinf().all()


def test_a_loop_and_a_batch_agree():
    """What vmap computes together has the slopes of what is computed one by one."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=F64)
    weight = torch.randn(3, 2, dtype=F64)
    space = Space.of(0, "x", x, "")
    directions = space.drawn(3, torch.Generator().manual_seed(1))
    results = []
    for batching in (True, False):
        passes = Passes(lambda inputs: (torch.tanh(inputs[0] @ weight),), [x], [torch.ones(4, 2, dtype=F64)],
                        device=CPU, seed=0)  # fmt: skip
        passes.batching = batching
        found = ladders.measure(passes, Question(space, directions, torch.full((3,), 1e-10, dtype=F64)))
        results.append((found, passes.count))
    (batched, first), (looped, second) = results
    assert first == second == 3 * 2 * fd.RUNGS + 1
    assert ((batched.value - looped.value).abs() <= batched.bar).all()


def test_operators_without_batching_rules_are_looped():
    """A map that vmap cannot batch is evaluated point by point, with the same result."""

    def stubborn(x):
        return x * float(x.sum())  # .item() has no batching rule

    found, _, passes = along(stubborn, [1.0, 2.0])
    assert not passes.batching
    assert not found.bar.isinf().any()


def test_moves_are_exact():
    """Base plus step times direction loses nothing, so that no error of the step enters the quotient."""
    torch.manual_seed(3)
    x = torch.randn(200, dtype=F64) * 10 ** torch.linspace(-8, 8, 200, dtype=F64)
    space = Space.of(0, "x", x, "")
    directions = space.drawn(1, torch.Generator().manual_seed(0))
    for step in fd.steps(fd.LADDERS[0]):
        moved = space.moved(directions, [step])[0]
        wanted = step * directions[0]
        lost = (moved - x - wanted).abs()
        assert (lost <= 2.0**-52 * torch.maximum(moved.abs(), x.abs())).all()  # where the sum has a larger exponent
        assert (lost == 0).double().mean() > 0.6


@pytest.mark.parametrize(("directions", "outputs"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_extrapolate(directions, outputs):
    """An output without elements, or no direction at all."""
    values = torch.zeros((directions, 2, fd.RUNGS, outputs), dtype=F64)
    ladder = fd.steps(fd.LADDERS[0])
    found = fd.central(values, torch.zeros(outputs, dtype=F64), ladder)
    assert found.value.shape == found.bar.shape == (directions, outputs)
    side = fd.one_sided(values[:, 0], torch.zeros(outputs, dtype=F64), ladder, torch.ones((1, 1), dtype=F64))
    assert side.value.shape == (directions, outputs)


@given(seed=st.integers(0, 1 << 32), live=st.floats(0, 1), epsilons=st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_what_stands_still_may_be_left_out(seed, live, epsilons):
    """Of values some of which move at all steps, at the longer ones only, are no numbers or infinite, the same is said
    whether those that no step moves are left out of the work or not."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, dtype=F64, generator=generator)

    directions, outputs = 3, 40
    ladder = fd.steps(fd.LADDERS[0])
    centre = 100 * draw(outputs) - 50
    steps = torch.tensor([ladder, [-h for h in ladder]], dtype=F64)[None, :, :, None]
    slope, bend = draw(directions, 1, 1, outputs), draw(directions, 1, 1, outputs)
    moves = slope * steps + bend * steps**2 + steps**3
    moves = torch.where(draw(directions, 1, 1, outputs) < live, moves, 0.0)
    moves[:, :, 3:, :5] = 0.0
    values = centre + moves
    values[0, 0, 0, 6], values[1, 1, :, 7] = math.nan, math.inf
    centre[8], centre[9] = math.inf, math.nan
    values[..., 8], values[..., 9] = math.inf, math.nan
    epsilon = torch.full((outputs,), fd.EPSILON, dtype=F64).mul_(1 + draw(outputs)) if epsilons else fd.EPSILON
    found = []
    for few in (0, 1 << 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fd, "_FEW", few)
            central = fd.central(values, centre, ladder, epsilon)
            side = fd.one_sided(values[:, 0], centre, ladder, torch.ones((1, 1), dtype=F64), epsilon)
        found.append((central.value, central.bar, side.value, side.bar))
        moved = (values - centre).flatten(1, 2).any(1)
        assert torch.equal(moved if central.still is None else ~central.still, moved)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12, equal_nan=True)


def test_a_contradiction_leaves_room_for_both() -> None:
    """What longer steps had for possible is inside the bar of shorter ones that see something else."""

    def one(value: float, bar: float) -> Derivative:
        return Derivative(torch.tensor([[value]], dtype=F64), torch.tensor([[bar]], dtype=F64))

    least = torch.full((1, 1), torch.inf, dtype=F64)
    for faint in (0.0, 1e9):
        found = one(6.497, 0.01).with_longer(one(6.195, 0.022), lambda: least, 1.0, 1.0, faint)
        assert float(found.value) == 6.497
        assert float(found.bar) == pytest.approx(6.497 - 6.195 + 0.022)
    agreed = one(6.2, 0.01).with_longer(one(6.195, 0.022), lambda: least, 1.0, 1.0, 0.0)
    assert float(agreed.bar) == 0.01

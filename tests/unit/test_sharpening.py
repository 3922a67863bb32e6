"""Slopes sharp enough for small faults: what no output of them depends on, longer steps, and repeated measurements."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine import ladders, refinement, sharpening
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.ladders import measure
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Diagnosis, Mode, Verdict
from gradoracle_server.engine.sharpening import Reach, Sharpened, sharpened
from gradoracle_server.engine.slopes import Question, Slopes

ALL = slice(None)


class Case:
    """A function of one input, whose elements are moved alone."""

    def __init__(self, function, x):
        self.space = Space.of(0, "x", x, "")
        ones = torch.ones_like(function(x))
        self.passes = Passes(lambda point: [function(point[0])], [x], [ones], device=x.device, seed=0)
        self.directions, self.lengths = self.space.axes(), self.space.lengths()

    def measured(self, directions):
        """Slopes of the usual ladder."""
        free = torch.full((len(directions),), math.inf, dtype=F64)
        return measure(self.passes, Question(self.space, directions, free))

    def sharpened(self, wanted, *, again=False):
        """Slopes with bars of `wanted` where that can be, and the usual ones."""
        usual = self.measured(self.directions)
        bars = torch.full_like(usual.bar, wanted)
        found = sharpened(self.passes, self.space, self.directions, usual, bars, again=again)
        return found, usual


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# ---- What is moved does not reach all outputs


def test_outputs_that_do_not_depend_on_what_is_moved_do_not_count(monkeypatch):
    """What rounding does to them is none of a slope's business, and would be most of its bar."""

    def beside_large(x):
        return torch.cat([torch.sin(x), torch.full((10,), 1e6, dtype=F64)])

    case = Case(beside_large, draw(10).abs() + 1)
    found, _ = case.sharpened(0.0)
    assert torch.equal(found.reach.touched[:, :10], torch.eye(10, dtype=torch.bool))
    truth = torch.cos(case.space.base) * case.lengths
    assert ((found.slopes.value - truth).abs() <= found.slopes.bar).all()
    monkeypatch.setattr(sharpening, "_untouched", lambda passes, space, directions: torch.zeros(10, 20).bool())
    without, _ = case.sharpened(0.0)
    assert (found.slopes.bar < without.slopes.bar / 20).all()


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("batches", [True, False])
def test_bars_are_of_outputs_that_are_reached(reached, batches):
    """Also of one in which rounding hides what is added to it."""
    large = torch.tensor([1e12], dtype=F64)

    def function(x):
        return torch.cat([x.sum()[None], large + (x.sum() * 1e-9 if reached else 0.0)])

    case = Case(function, draw(3).abs() + 1)
    case.passes.batching = batches
    usual = case.measured(case.directions)
    every = torch.ones(3, dtype=torch.bool)
    before = Sharpened(usual, Reach.usual(usual))
    found = sharpening.unmasked(case.passes, case.space, case.directions, before, every)
    assert torch.equal(found.slopes.value, usual.value)
    if reached:
        assert torch.equal(found.slopes.bar, usual.bar)
        assert found.reach.touched.all()
    else:
        assert (found.slopes.bar < 1e-6 * usual.bar).all()
        assert (found.slopes.coordinates.bar[:, 1] == 0).all()
        assert found.reach.touched.tolist() == [[True, False]] * 3
    assert sharpening.unmasked(case.passes, case.space, case.directions, before, ~every) is before


def test_a_single_measurement_keeps_the_bars_of_all_outputs():
    """How an output rounds inside, its own bar does not tell, and those of others, which do not move, happened to."""
    beside = torch.full((400,), 1e6, dtype=F64)
    case = Case(lambda x: torch.cat([(torch.sin(x) + 1e6) - 1e6, beside]), draw(4, seed=2))
    usual = case.measured(case.directions)
    found, _ = case.sharpened(float(usual.bar.max()))
    off = (found.slopes.value - torch.cos(case.space.base) * case.lengths).abs()
    assert (off <= found.slopes.bar).all()
    assert (found.slopes.bar > 10 * found.slopes.coordinates.bar[:, :4].diagonal()).all()


@pytest.mark.parametrize("exponent", [-3, -9, -16])
def test_outputs_that_depend_on_it_faintly_count(exponent):
    """Even where no usual step moves them: rounding may hide what their slopes are."""
    case = Case(
        lambda x: torch.stack([torch.sin(x[0]), 1e3 + 10.0**exponent * x[0], 1e3 + 0 * x[1]]), draw(2).abs() + 1
    )
    found, _ = case.sharpened(0.0)
    assert found.reach.touched[0].tolist() == [True, True, False]


def test_a_function_that_refuses_to_go_far_is_asked_no_more():
    """Then nothing is known of what depends on what, and batches stay."""

    def entropy(x):
        return torch.nn.functional.binary_cross_entropy(x, torch.full_like(x, 0.5), reduction="none")

    case = Case(entropy, torch.full((3,), 0.25, dtype=F64))
    assert case.passes.tried({0: torch.full((2, 3), 7.0, dtype=F64)}, 2) is None
    assert case.passes.batching
    found, usual = case.sharpened(1e-15)
    assert found.reach.touched.all()
    assert (found.slopes.bar <= usual.bar).all()


# ---- Longer steps


def slopes_of(values, bars):
    """Two directions, one output."""
    value, bar = (torch.tensor(one, dtype=F64) for one in (values, bars))
    derivative = Derivative(value[:, None], bar[:, None])
    return Slopes(value, bar, value, value, torch.zeros(2, dtype=torch.bool), derivative, smooth=True)


@pytest.mark.parametrize(
    ("longer", "other", "values", "bars"),
    [
        ([1.0 + 1e-8, 2.0], [1.0 + 2e-8, 2.0], [1.0 + 1e-8, 2.0], [1e-7, 1e-7]),
        ([1.0 + 1e-8, 2.0], [1.5, 2.0], [1.0, 2.0], [1e-6, 1e-7]),
        ([1.5, 2.0], [1.5, 2.0], [1.0, 2.0], [0.5, 1e-7]),
        ([1.5, 2.0], [1.4, 2.0], [1.0, 2.0], [1e-6, 1e-7]),
    ],
    ids=["they agree", "the two of a pair do not", "they contradict the usual ones", "neither"],
)
def test_what_longer_steps_are_believed(longer, other, values, bars, monkeypatch):
    """Two of them that agree; against the usual ones nothing is known but the distance."""
    space = Space.of(0, "x", torch.ones(2, dtype=F64), "")
    passes = Passes(lambda point: point, [space.base], [torch.ones(2, dtype=F64)], device=space.base.device, seed=0)

    def plainly(passes, space, directions):
        """Of any number of lengths, two directions each."""
        factors = [float(pair[0, 0]) for pair in directions.view(-1, 2, 2)]
        pairs = [(longer if factor in (8.0, 64.0) else other, factor) for factor in factors]
        found = Slopes.joined([slopes_of(found, [1e-7, 1e-7]).scaled(factor) for found, factor in pairs])
        return found, torch.zeros(len(directions), dtype=torch.bool)

    monkeypatch.setattr(ladders, "plainly", plainly)
    wanted = torch.tensor([1e-6, 1e-7], dtype=F64)  # met by what is not contradicted: nothing is measured again
    passes.centre, passes.strength = passes.centre[:1], passes.strength[:1]
    passes._looked_at = [True]
    usual = slopes_of([1.0, 2.0], [1e-6, 1e-6])
    passes.batching = False  # one output, of which nothing is known
    result = sharpened(passes, space, torch.eye(2, dtype=F64), usual, wanted, again=False)
    torch.testing.assert_close(result.slopes.value, torch.tensor(values, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.slopes.bar, torch.tensor(bars, dtype=F64), rtol=1e-9, atol=0)
    assert (result.reach.longer > 1).tolist() == [bar == 1e-7 for bar in bars]


@pytest.mark.parametrize("bent", [sharpening._BENT, math.inf])
def test_beside_a_pole_nothing_is_measured_again(bent, monkeypatch):
    """Where a function bends too much longer steps tell nothing, however often; of two elements, one is beside it."""
    seen, means = [], sharpening._by_means

    def noted(alone, found, rows, band):
        seen.append(rows.tolist())
        means(alone, found, rows, band)

    monkeypatch.setattr(sharpening, "_by_means", noted)
    monkeypatch.setattr(sharpening, "_BENT", bent)
    case = Case(lambda x: 1 / (x - 1), torch.tensor([1.001, 3.0], dtype=F64))
    nothing = torch.zeros(2, dtype=F64)
    usual = measure(case.passes, Question(case.space, case.directions, nothing))
    found = sharpened(case.passes, case.space, case.directions, usual, nothing, again=False)
    assert [beside for beside, _ in seen] == ([True] * 3 if bent == math.inf else [False] * len(seen))
    assert any(apart for _, apart in seen)
    # Nor would it have told more: but for the other element's rounding, the bar is the usual one.
    assert usual.coordinates.bar[0, 0] <= found.slopes.bar[0] <= usual.bar[0]
    assert found.slopes.bar[1] < usual.bar[1]


@pytest.mark.parametrize(
    ("function", "first"),
    [
        (lambda x: (x**3).sum()[None] + 1e6, (64.0, 512.0)),  # rounding hides it, the longer the step, the less
        (lambda x: torch.sin(x) + 1e3, (1.0, 8.0)),  # 64 times the usual step is whole periods
        (lambda x: torch.exp(x) + 1e6, (8.0, 64.0)),  # for some elements the one, for some the other
    ],
    ids=["cube", "sine", "exponential"],
)
def test_lengths_that_promise_most_come_first(function, first, monkeypatch):
    seen, means = [], sharpening._by_means

    def noted(alone, found, rows, band):
        seen.append(band)
        means(alone, found, rows, band)

    monkeypatch.setattr(sharpening, "_by_means", noted)
    Case(function, draw(10).abs() + 1).sharpened(0.0)
    assert seen[0] == first
    assert sorted(seen) == sorted(sharpening._BANDS)


@pytest.mark.parametrize(
    ("function", "asked"), [(lambda x: x.std()[None], 0), (lambda x: 3 * x + 1e6, 1)], ids=["one", "each its own"]
)
def test_what_is_not_touched_is_asked_only_where_an_output_stays(function, asked, monkeypatch):
    """It takes three passes a direction."""
    calls, untouched = [], sharpening._untouched
    monkeypatch.setattr(sharpening, "_untouched", lambda *given: calls.append(1) or untouched(*given))
    found, _ = Case(function, draw(10).abs() + 1).sharpened(0.0)
    assert len(calls) == asked
    assert found.reach.touched.all() == (asked == 0)


def test_where_a_function_bends_nothing_longer_is_measured(monkeypatch):
    """Its shortest steps were the best, and far from what rounding allows: beside a pole; not so where values are large
    beside what moves them, though the shortest may happen to be the best there, too."""
    measured, plainly = [], ladders.plainly

    def counted(passes, space, directions):
        measured.append(len(directions))
        return plainly(passes, space, directions)

    monkeypatch.setattr(ladders, "plainly", counted)
    bending = Case(lambda x: 1 / (x - 1), torch.tensor([1.04], dtype=F64))
    found, usual = bending.sharpened(0.0)
    assert not measured
    assert found.slopes is usual
    assert not found.reach.touched.logical_not().any()
    with monkeypatch.context() as patched:
        patched.setattr(sharpening, "_NOISE", math.inf)
        bending.sharpened(0.0)
    assert measured[0] == 4
    measured.clear()
    for seed in range(20):
        large = Case(lambda x: 1e4 + torch.sin(x).sum(), draw(1, seed=seed))
        found, usual = large.sharpened(0.0)
        assert found.slopes.bar < usual.bar
    assert measured.count(4) == 20


@pytest.mark.parametrize("x", [-3.973021984100342, -2.04, 0.03])
def test_steps_over_a_pole_contradict_nobody(x):
    """They agree with one another, within bars that are wider than those of steps that stay this side of it."""
    case = Case(torch.lgamma, torch.tensor([x, 4.0], dtype=F64))
    usual = measure(case.passes, Question(case.space, case.directions, torch.zeros(2, dtype=F64)))
    fine = torch.full((2,), 1e-15, dtype=F64)
    found = sharpened(case.passes, case.space, case.directions, usual, fine, again=False)
    assert (found.slopes.bar <= usual.bar).all()
    truth = torch.digamma(case.space.base) * case.lengths
    assert ((found.slopes.value - truth).abs() <= found.slopes.bar + 1e-12 * truth.abs()).all()


def test_longer_steps_that_reach_a_kink_tell_nothing(monkeypatch):
    """Steps that stay on this side of it are taken."""
    monkeypatch.setattr(sharpening._Alone, "is_worth_it", lambda alone, count: False)

    def kinked(x):
        return 1e4 + torch.sin(x) + torch.relu(x - 1.3)

    case = Case(kinked, torch.ones(1, dtype=F64))
    slopes, unsure = ladders.plainly(case.passes, case.space, case.directions.new_tensor([[8.0], [64.0]]))
    assert unsure.tolist() == [False, True]
    assert not slopes.kinked.any()
    found, usual = case.sharpened(0.0)
    assert found.reach.longer.tolist() == [8.0]
    assert found.slopes.bar < usual.bar
    assert (found.slopes.value - math.cos(1) * case.lengths).abs() <= found.slopes.bar


@pytest.mark.parametrize("kinks", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_usual_steps_and_longer_ones_together_see_what_they_see_by_themselves(kinks, scale, monkeypatch):
    """In every bit, and in fewer batches."""

    def function(x):
        return scale * torch.sin(x) + 1e4 + (torch.relu(x - 0.9) + x.abs().sqrt() if kinks else 0.0)

    x = draw(6, seed=4) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=F64)
    case, apart = Case(function, x), Case(function, x)
    batches = []
    at = Passes.at
    monkeypatch.setattr(Passes, "at", lambda passes, points, count: batches.append(count) or at(passes, points, count))
    fine = torch.full((6,), 1e-13, dtype=F64)
    free = torch.full_like(fine, math.inf)
    found = sharpening.measured(case.passes, Question(case.space, case.directions, free), fine)
    together, batches[:] = list(batches), []
    usual = apart.measured(apart.directions)
    by_itself = sharpened(apart.passes, apart.space, apart.directions, usual, fine, again=False)
    assert len(together) == len(batches) - 1
    assert sum(together) == sum(batches)
    for name in ("value", "bar", "low", "high", "kinked"):
        one, other = getattr(found.slopes, name), getattr(by_itself.slopes, name)
        assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0)), name
    assert torch.equal(found.reach.longer, by_itself.reach.longer)
    assert bool(found.slopes.kinked.any()) == kinks


def test_many_directions_are_not_measured_beside_others(monkeypatch):
    """Their values are worked on in pieces that memory holds."""
    case = Case(torch.sin, draw(6, seed=4))
    monkeypatch.setattr(ladders, "_VALUES", 1000)
    largest = []
    at = Passes.at
    monkeypatch.setattr(Passes, "at", lambda passes, points, count: largest.append(count) or at(passes, points, count))
    fine = torch.full((6,), 1e-16, dtype=F64)
    question = Question(case.space, case.directions, torch.full_like(fine, math.inf))
    found = sharpening.measured(case.passes, question, fine)
    assert max(largest) * 2 * 6 <= 1000
    assert ((found.slopes.value - torch.cos(case.space.base) * case.lengths).abs() <= found.slopes.bar).all()


# ---- Again and again


def summed(x):
    """Every output depends on every input, and is large beside what small elements do to it."""
    return 30 + torch.cumsum(torch.tanh(1e-3 * x).flip(0), 0).flip(0) + 1e-3 * x.sum() ** 2


@pytest.mark.parametrize(("times", "asked"), [(1 / 1.5, False), (1 / 1.7, True)])
def test_means_are_not_asked_for_where_longer_steps_show_the_fault(times, asked, monkeypatch):
    """Bars wanted are a quarter of it; 0.4 of it make a half with what is allowed for rounding, which is enough."""
    case, seen = Case(lambda x: torch.sin(x / 100), draw(1).abs() + 1), []
    by_longer, _ = case.sharpened(math.inf)
    monkeypatch.setattr(sharpening, "_by_means", lambda *_: seen.append(True))
    found, usual = case.sharpened(float(by_longer.slopes.bar) * times)
    assert found.slopes.bar < usual.bar
    assert bool(seen) is asked


@pytest.mark.parametrize("again", [False, True])
def test_means_are_sharper_and_hold(again):
    """Bars a tenth as wide as the best of single measurements, and the truth within them, of 500 slopes."""
    outside = widths = 0
    for seed in range(50):
        x = draw(10, seed=seed)
        case = Case(summed, x)
        truth = torch.autograd.functional.jacobian(lambda x: summed(x).sum(), x) * case.lengths
        found, usual = case.sharpened(0.0, again=again)
        outside += int(((found.slopes.value - truth).abs() > found.slopes.bar + 4e-16 * truth.abs()).sum())
        widths += float((found.slopes.bar / usual.bar).median()) / 50
    assert outside == 0
    assert widths < 0.02


ROUNDINGS = {
    "of values in float32": (lambda x: torch.sin(x.float()).double() + x.sum(), lambda x: torch.sin(x) + x.sum()),
    "of what moves to half precision": (lambda x: torch.sin(x.half().double()) + 100, torch.sin),
    "of what moves, relative to it": (lambda x: x.float().double() * torch.tanh(x), lambda x: x * torch.tanh(x)),
    "to a grain": (lambda x: torch.round(torch.sin(x) / 1e-9) * 1e-9, torch.sin),
    "of sums that cancel": (lambda x: torch.sin((x + 1e6) - 1e6), torch.sin),
}


@pytest.mark.parametrize(("function", "exact"), ROUNDINGS.values(), ids=list(ROUNDINGS))
def test_means_hold_whatever_the_rounding_is_of(function, exact):
    """Its size may fall with the step, or grow with it, or be that of the longest alone."""
    told = 0
    for seed in range(10):
        x = draw(20, seed=seed)
        case = Case(function, x)
        truth = torch.autograd.functional.jacobian(lambda x: exact(x).sum(), x) * case.lengths
        alone = sharpening._Alone(case.passes, case.space, case.directions, torch.zeros((20, 20), dtype=torch.bool))
        for band in sharpening._BANDS:
            found = alone.repeated(torch.ones(20, dtype=torch.bool), band)
            known = found.bar.isfinite()
            told += int(known.sum())
            assert ((found.value - truth).abs() <= found.bar + 1e-15)[known].all()
    assert told > 5


def test_the_noise_of_a_mean_is_its_own():
    """Not that of the single measurements that it is the mean of, whose outputs' bars it keeps."""
    single = slopes_of([1.0, 2.0], [1e-6, 1e-6])
    mean = dataclasses.replace(single, bar=torch.tensor([1e-9, 1e-6], dtype=F64))
    assert single.noise(weighed_with([1.0])).tolist() == [1e-6, 1e-6]
    assert mean.noise(weighed_with([1.0])).tolist() == [1e-9, 1e-6]


def weighed_with(weights):
    """Passes of outputs with these cotangents."""
    weight = torch.tensor(weights, dtype=F64)
    return Passes(lambda point: point, [torch.ones_like(weight)], [weight], device=weight.device, seed=0)


def test_what_is_not_known_of_an_output_without_weight_does_not_matter():
    """A mask of zeros for cotangents, where the outputs that it hides have no derivative."""
    bars = torch.tensor([[1e-6, math.inf], [1e-7, math.nan]], dtype=F64)
    one = torch.ones(2, dtype=F64)
    smooth = torch.zeros(2, dtype=torch.bool)
    found = Slopes(one, one, one, one, smooth, Derivative(torch.ones_like(bars), bars), smooth=True)
    assert found.noise(weighed_with([1.0, 0.0])).tolist() == [1e-6, 1e-7]
    assert weighed_with([2.0, 0.0]).summed(bars).tolist() == [2e-6, 2e-7]
    assert weighed_with([2.0, 1.0]).summed(bars[:1]).tolist() == [math.inf]


def test_scatter_is_not_believed_to_be_less_than_it_is(monkeypatch):
    """With a hundredth of the allowance for chance, truths lie outside: the test before this one can fail."""
    monkeypatch.setattr(sharpening, "_SCATTER", 0.12)
    with pytest.raises(AssertionError):
        test_means_are_sharper_and_hold(False)


def test_means_of_what_is_no_number_tell_nothing():
    """Of lengths that leave the domain."""
    case = Case(torch.log, torch.full((1,), 1e-3, dtype=F64))
    alone = sharpening._Alone(case.passes, case.space, case.directions, torch.zeros(1, 1, dtype=torch.bool))
    every = torch.ones(1, dtype=torch.bool)
    assert alone.repeated(every, (64.0, 512.0)).bar.isinf().all()
    assert alone.repeated(every, (1.0, 8.0)).bar.isfinite().all()


def test_what_would_take_long_is_not_measured_again(monkeypatch):
    """Then the bars are those of longer steps, and all outputs count as touched."""
    case = Case(lambda x: 1e3 + torch.sin(x), draw(10))
    sharper, usual = case.sharpened(0.0)
    assert (sharper.slopes.bar < usual.bar / 10).all()
    monkeypatch.setattr(sharpening, "_NUMBERS", 10 * 8 * 12 * 20 - 1)
    found, usual = case.sharpened(0.0)
    assert not (found.slopes.bar < usual.bar / 50).any()
    assert found.reach.touched.all()


@pytest.mark.parametrize("grain", [1e-4, 1e-7, 1e-10, 1e-13])
def test_stairs_are_no_means(grain):
    """Values that are rounded to a grain on the way: no bar that held the truth becomes one that does not."""
    for seed in range(20):
        x = draw(8, seed=seed)
        x[2] = math.pi / 2 - 1e-3  # a slope that is small beside the others'
        case = Case(lambda x: torch.round(torch.sin(x) / grain) * grain, x)
        found, usual = case.sharpened(0.0)
        truth = torch.cos(x) * case.lengths
        held = (usual.value - truth).abs() <= usual.bar
        assert held.sum() >= 4
        assert ((found.slopes.value - truth).abs() <= found.slopes.bar + 4e-16)[held].all()


def test_kinks_are_no_means():
    """Where slopes of each side differ, or where longer steps reach one, none is averaged."""
    x = torch.tensor([0.0, 0.3, 2.0], dtype=F64)
    case = Case(lambda x: torch.relu(x) + torch.relu(x - 0.35) + 1e3, x)
    found, _ = case.sharpened(0.0)
    truth = torch.tensor([0.5, 1.0, 2.0], dtype=F64) * case.lengths
    assert ((found.slopes.value - truth).abs() <= found.slopes.bar).all()
    assert found.slopes.kinked.tolist() == [True, False, False]


def test_outputs_that_hardly_move_keep_their_bars():
    """A slope that rounding hides from all steps alike has no scatter, and is not known for that."""
    case = Case(lambda x: torch.stack([torch.sin(x[0]), 1e6 + 1e-13 * torch.sin(x[0])]), torch.ones(1, dtype=F64))
    found, _ = case.sharpened(0.0)
    truth = float(torch.cos(torch.ones((), dtype=F64)) * case.lengths[0])
    assert float(found.slopes.bar[0]) >= 1e-13 * truth


@pytest.mark.parametrize("mode", Mode)
def test_small_elements_under_much_rounding_are_told(mode):
    """Attention's: an element of which one in 1e8 is less than the bar of any single measurement."""
    q, k, v = draw(4, 3, 5, seed=1), 3 * draw(4, 5, 5, seed=2), draw(4, 5, 5, seed=3)

    def attention(q):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    gradient = torch.autograd.grad(attention(q.requires_grad_()).sum(), q)[0].reshape(-1).abs()
    q = q.detach()
    place = int(torch.where(gradient >= 0.1 * gradient.max(), gradient, torch.inf).argmin())

    def wrong(factor):
        def backward(inputs, cotangent, right):
            found = right[0].clone()
            found.view(-1)[place] *= factor
            return (found,)

        return planted(attention, backward)

    assert check(wrong(1.0), q, mode=mode).verdict is Verdict.PASS
    report = check(wrong(1 + 1e-8), q, mode=mode)
    assert report.verdict is Verdict.FAIL
    (found,) = report.inputs
    assert found.diagnosis is Diagnosis.SINGLE_ELEMENTS
    assert {one.index for one in found.worst} == {(place // 15, place // 5 % 3, place % 5)}


@pytest.mark.parametrize("mode", Mode)
def test_elements_that_another_cotangent_would_have_for_larger_are_looked_at(mode, monkeypatch):
    """Down to a ten-thousandth of the largest."""
    weight = torch.linspace(0.5, 1.0, 40, dtype=F64)
    weight[7] = 3e-4

    def weighted(x):
        return 10 + (weight * torch.sin(x)).sum()

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found[7] *= 1 + 1e-8
        return (found,)

    x = 0.1 * draw(40)
    assert check(weighted, x, mode=mode).verdict is Verdict.PASS
    assert check(planted(weighted, wrong), x, mode=mode).verdict is Verdict.FAIL
    monkeypatch.setattr(refinement, "NEGLIGIBLE", 1e-3)
    assert check(planted(weighted, wrong), x, mode=mode).verdict is Verdict.PASS


@pytest.mark.parametrize("base", [50.0, 1e3, 1e4])
def test_what_no_single_measurement_can_tell_is_told(base):
    """A gradient 1e-6 of which is less than the usual bars, which would have no verdict, has one."""

    def small_beside_large(x):
        return base + 1e-4 * torch.sin(x)

    def wrong(inputs, cotangent, right):
        return (right[0] * torch.tensor([1.0, 1.0 + 1e-5, 1.0, 1.0, 1.0], dtype=F64),)

    x = torch.linspace(-0.9, 1.1, 5, dtype=F64)
    assert check(small_beside_large, x).verdict is Verdict.PASS
    assert check(planted(small_beside_large, wrong), x).verdict is Verdict.FAIL

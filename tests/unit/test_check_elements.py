"""Single elements: those of a gradient that probes must not miss, and those of a Jacobian in full mode."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine import curves, examine, ladders, shadow, trial
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Diagnosis, Mode, Verdict
from gradoracle_server.engine.sharpening import Reach


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def one(report):
    (found,) = report.inputs
    return found


def scaled(place, factor):
    """A wrong backward: one element of the right gradient times a factor."""

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found.view(-1)[place] *= factor
        return (found,)

    return wrong


# ---- Probe mode


@pytest.mark.parametrize("size", [65, 100, 257, 1000, 4000])
@pytest.mark.parametrize("seed", range(3))
def test_one_element_off_by_1e_8_is_named_among_many(size, seed):
    """However many there are beside it, an element of usual size that is off by 1e-8 of itself fails by name."""
    x = draw(size, seed=seed).abs() + 0.5
    place = (7919 * (seed + 1)) % size
    report = check(planted(torch.sin, scaled(place, 1 + 1e-8)), x, seed=seed)
    found = one(report)
    assert found.verdict is Verdict.FAIL
    assert found.worst[0].index == (place,)
    assert found.diagnosis is Diagnosis.SINGLE_ELEMENTS
    assert len(found.worst) == 1


@pytest.mark.parametrize("seed", range(5))
def test_gradients_that_copy_the_cotangent_do_not_cancel(seed):
    """Where an input is selected for several outputs its gradient is a sum of cotangents, which must not be 0."""
    x = draw(40, 3, seed=seed)
    found = check(lambda x: torch.cummin(x, 0)[0], x, seed=seed)
    assert found.verdict is Verdict.PASS
    cotangent = trial.drawn_like(x, torch.Generator().manual_seed(seed))
    sums = cotangent.flatten()[:, None] + cotangent.flatten()
    assert not (sums == 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_random_cotangents_are_exact(dtype):
    """They are the same numbers in every precision that a check works in."""
    drawn = trial.drawn_like(torch.zeros(100, dtype=dtype), torch.Generator().manual_seed(0))
    wide = torch.view_as_real(drawn.to(torch.complex128)) if dtype.is_complex else drawn.to(F64)
    assert ((wide.abs() >= 1) & (wide.abs() < 2)).all()
    assert len(wide.abs().unique()) > 40


@pytest.mark.parametrize("seed", range(5))
def test_only_elements_that_would_hide_a_fault_are_moved_alone(seed):
    """Not all that are there: a right gradient costs few passes, and the smallest element's fault is found all the
    same."""
    x = draw(125, seed=seed)
    assert check(torch.std, x, seed=seed).evaluations < 1400  # 8,106 with longer steps for each of them
    smallest = int((x - x.mean()).abs().argmin())
    found = one(check(planted(torch.std, scaled(smallest, 1 + 1e-7)), x, seed=seed))
    assert found.verdict is Verdict.FAIL
    assert found.worst[0].index == (smallest,)


@pytest.mark.parametrize("size", [8, 125])
def test_what_rounding_does_is_asked_for_where_something_differs(size, monkeypatch):
    """Elements that are moved alone and agree need no runs that round the inputs."""
    asked = []
    spread = shadow.spread
    monkeypatch.setattr(shadow, "spread", lambda *given, **named: asked.append(1) or spread(*given, **named))
    x = draw(size, seed=1)
    assert check(torch.std, x).verdict is Verdict.PASS
    assert asked == []
    assert check(planted(torch.std, scaled(0, 1 + 1e-7)), x).verdict is Verdict.FAIL
    assert asked


def test_elements_that_blocks_do_not_show_are_moved_among_the_directions(monkeypatch):
    """Once: what they say counts like that of any direction, also for how small a fault would have been seen."""
    x = draw(125, seed=3)
    again = []
    element_slopes = examine.Examiner.element_slopes
    monkeypatch.setattr(
        examine.Examiner, "element_slopes", lambda self, *given: again.append(1) or element_slopes(self, *given)
    )
    added = []
    add_alone = examine.Examiner._add_alone
    monkeypatch.setattr(
        examine.Examiner, "_add_alone", lambda self, gradient: added.append(add_alone(self, gradient)) or added[-1]
    )
    assert check(torch.std, x).verdict is Verdict.PASS
    assert added == [True]
    assert again == []
    monkeypatch.setattr(examine.Examiner, "_add_alone", lambda self, gradient: False)  # where they are too many
    assert check(torch.std, x).verdict is Verdict.PASS
    assert again


@pytest.mark.parametrize("function", [torch.var, torch.std, lambda x: (x * x * x).sum()], ids=["var", "std", "cubes"])
@pytest.mark.parametrize("mode", Mode)
def test_small_elements_beside_large_values(function, mode):
    """Rounding of the value, 30, hides 1e-8 of an element of 1e-4 at the usual steps, and not at longer ones."""
    x = 5 * draw(5, 5, 5, seed=3)
    gradient = torch.autograd.grad(function(x.requires_grad_()), x)[0].reshape(-1).abs()
    x = x.detach()
    place = int(torch.where(gradient >= 1.5e-3 * gradient.max(), gradient, torch.inf).argmin())
    assert check(planted(function, scaled(place, 1.0)), x, mode=mode).verdict is Verdict.PASS
    report = check(planted(function, scaled(place, 1 + 1e-8)), x, mode=mode)
    assert report.verdict is Verdict.FAIL
    assert all(named.error > named.error_bound for named in one(report).worst)
    assert [tuple(one_.index) for one_ in one(report).worst] == [
        tuple(int(i) for i in torch.unravel_index(torch.tensor(place), x.shape))
    ]


def missed(seeds):
    """Of so many gradients of var whose smallest element that counts is off by 1e-8, those not called wrong."""
    found = []
    for seed in range(seeds):
        x = 5 * draw(5, 5, 5, seed=seed)
        gradient = torch.autograd.grad(torch.var(x.requires_grad_()), x)[0].reshape(-1).abs()
        place = int(torch.where(gradient >= 1.5e-3 * gradient.max(), gradient, torch.inf).argmin())
        report = check(planted(torch.var, scaled(place, 1 + 1e-8)), x.detach(), seed=seed)
        if report.verdict is not Verdict.FAIL:
            found.append(seed)
    return found


def test_whether_a_small_fault_shows_is_no_luck(monkeypatch):
    """Elements that would show along none of the directions drawn are looked at alone; some are missed without that."""
    assert [] == missed(10)
    monkeypatch.setattr(Examiner, "overlooks", lambda examiner, gradient: False)
    assert [] != missed(10)


def test_a_negative_control_that_is_not_caught_is_told(monkeypatch):
    """A check that would not have seen ten times what it says it sees is no proof, and says so."""
    x = draw(100).abs() + 0.5
    assert "negative control" not in one(check(torch.sin, x)).explanation
    monkeypatch.setattr(Examiner, "notices", lambda examiner, gradient, coordinate, relative: False)
    assert one(check(torch.sin, x)).explanation.endswith(
        "The negative control was not caught: faults of that size would pass."
    )


def test_the_negative_control_is_no_formality():
    """It is caught where directions move the element it is planted in, and not where they leave it alone."""
    space = Space.of(0, "x", torch.ones(100, dtype=F64), "")
    passes = Passes(
        lambda point: [torch.sin(point[0])],
        [space.base],
        [torch.ones(100, dtype=F64)],
        device=space.base.device,
        seed=0,
    )
    gradient = torch.cos(space.base)
    examiner = Examiner(passes, space, torch.Generator(), probes=4, every=False, expected=gradient, spread=None)
    examiner.slopes = examiner.measured(examiner.directions)
    assert examiner.assess(gradient).verdict is Verdict.PASS
    assert examiner.notices(gradient, 7, 1e-6)
    assert not examiner.notices(gradient, 7, 1e-13)
    examiner.directions[:, 7] = 0.0
    assert not examiner.notices(gradient, 7, 1e-6)


def test_longer_steps_are_for_small_inputs():
    """In large ones they would cost what a check may not: 64 passes are all that a right gradient takes."""
    x, w = draw(20, 30), draw(30, 10, seed=1)
    report = check(lambda x, w: torch.softmax(x @ w, -1).log().sum(), x, w)
    assert report.verdict is Verdict.PASS
    assert report.evaluations <= 64


def test_longer_steps_raise_no_alarm_where_functions_turn():
    """What oscillates within the longer steps, or ends there, is judged by the usual ones."""
    x = draw(60, seed=4).abs() * 0.01 + 1e-3
    for function in (
        lambda x: (1e4 + torch.sin(40 * x)).sum(),
        lambda x: (1e4 + torch.log(x)).sum(),
        lambda x: (1e4 + x.sqrt()).sum(),
    ):
        for mode in Mode:
            assert check(function, x, mode=mode).verdict is not Verdict.FAIL


def test_what_is_right_to_nine_digits_only_passes():
    """torch's trigamma has nine and a half digits: noise in every element is no fault of a single one."""
    assert check(torch.digamma, draw(300).abs() + 1).verdict is Verdict.PASS


def beta_entropy(x):
    return torch.distributions.Beta(x.exp(), 1 + x.exp()).entropy().sum()


def dirichlet_entropy(x):
    return torch.distributions.Dirichlet(x.exp()).entropy()


@pytest.mark.parametrize("function", [beta_entropy, dirichlet_entropy, lambda x: torch.digamma(x * x + 1).sum()])
@pytest.mark.parametrize("order", [1, 2])
def test_what_is_right_to_nine_digits_only_passes_where_it_cancels(function, order):
    """What is left of trigammas that cancel is off by more than nine digits; a millionth is still a fault."""
    for seed in range(5):
        x = draw(6, seed=seed)
        assert check(function, x, order=order).verdict is Verdict.PASS, seed
    if order == 1:
        leaf = draw(6, seed=0).requires_grad_()
        (right,) = torch.autograd.grad(function(leaf), leaf)
        wrong = right.clone()
        wrong[2] *= 1 + 1e-6
        assert check(function, draw(6, seed=0), claimed={"x": wrong}).verdict is Verdict.FAIL


@pytest.mark.parametrize(("fault", "diagnosis"), [(0.0, Diagnosis.ZEROED), (-1.0, Diagnosis.SIGN_FLIPPED)])
@pytest.mark.parametrize(("size", "count"), [(300, 11), (1003, 31), (4099, 64)])
def test_a_tail_that_is_wrong_is_named_by_its_worst(size, count, fault, diagnosis):
    """More elements are wrong than are followed to the end: those that are named are wrong, and so is said."""

    def tail(inputs, cotangent, right):
        found = right[0].clone()
        found[-count:] *= fault
        return (found,)

    report = check(planted(torch.sin, tail), draw(size)).inputs[0]
    assert (report.verdict, report.diagnosis) == (Verdict.FAIL, diagnosis)
    assert len(report.worst) == 10
    for one in report.worst:
        assert one.index[0] >= size - count
        assert one.error > 100 * one.error_bound
    assert "more of them than were measured one by one" in report.explanation


@pytest.mark.parametrize("size", [100, 2000])
def test_the_power_that_is_reported_is_there(size):
    """A fault of ten times the reported power, in an element of usual size, fails."""
    x = draw(size).abs() + 0.5
    right = check(torch.exp, x)
    assert right.verdict is Verdict.PASS
    assert 1e-9 <= right.detection_power <= 1e-7
    terms = torch.exp(x) * x
    typical = int((terms - terms.median()).abs().argmin())
    assert check(planted(torch.exp, scaled(typical, 1 + 10 * right.detection_power)), x).verdict is Verdict.FAIL


# ---- Full mode


def mixing(x):
    """A function of which every output depends on every input."""
    weight = torch.arange(1, x.numel() ** 2 + 1, dtype=x.real.dtype).reshape(x.numel(), -1).sin()
    return torch.tanh(weight.to(x.dtype) @ x)


@pytest.mark.parametrize("function", [torch.sin, mixing])
@pytest.mark.parametrize("size", [5, 70])
def test_full_mode_names_output_and_input(function, size):
    """A wrong element of the Jacobian is reported with the output whose derivative it is."""

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found[3] += 1e-3 * cotangent[2 if function is mixing else 3]
        return (found,)

    found = one(check(planted(function, wrong), draw(size), mode=Mode.FULL))
    assert found.verdict is Verdict.FAIL
    assert found.explanation.endswith("1 element of its Jacobian is wrong.")
    (worst,) = found.worst
    assert (worst.index, worst.output, worst.output_index) == ((3,), "out0", (2 if function is mixing else 3,))
    assert worst.error == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("function", [torch.sin, mixing, lambda x: torch.cumsum(x, 0), lambda x: x.flip(0)[:-1] ** 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_full_mode_passes_what_is_right(function, dtype):
    """Dense and sparse Jacobians, real and complex, pass."""
    report = check(function, draw(70, dtype=dtype), mode=Mode.FULL)
    assert report.verdict is Verdict.PASS, one(report).explanation


def test_a_dependence_that_the_jacobian_lacks_is_seen():
    """A backward that claims an elementwise function, where outputs depend on their neighbours, too, fails."""

    def shifted(x):
        return x.sin() + 1e-3 * x.roll(1)

    wrong = planted(shifted, lambda inputs, cotangent, right: (cotangent * inputs[0].cos(),))
    found = one(check(wrong, draw(70), mode=Mode.FULL))
    assert found.verdict is Verdict.FAIL
    assert {tuple(mismatch.index) != mismatch.output_index for mismatch in found.worst} == {True}


def test_elementwise_jacobians_take_few_passes():
    """Columns that share no output are moved together."""
    report = check(torch.sin, draw(500), mode=Mode.FULL)
    assert report.verdict is Verdict.PASS
    assert report.evaluations < 100
    assert check(mixing, draw(100), mode=Mode.FULL).evaluations > 600


def test_operators_without_a_batching_rule_are_pulled_back_one_by_one():
    """A backward that vmap cannot batch is asked for each row of the Jacobian."""

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            found = 3 * x**2 * cotangent
            found[1] = found[1] * 1.01
            return found

    found = one(check(lambda x: Stubborn.apply(x), draw(3), mode=Mode.FULL))
    assert found.verdict is Verdict.FAIL
    assert [mismatch.index for mismatch in found.worst] == [(1,)]


def test_full_mode_of_second_gradients():
    """At order 2 the outputs are the first gradients, and named so."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, cotangent):
            return square(*ctx.saved_tensors) * cotangent

    square = planted(lambda x: 3 * x**2, scaled(1, 1.01))
    found = one(check(lambda x: Cube.apply(x), draw(3), mode=Mode.FULL, order=2))
    assert found.verdict is Verdict.FAIL
    (worst,) = found.worst
    assert (worst.index, worst.output, worst.output_index) == ((1,), "gradient of x", (1,))


def test_rounding_inside_a_backward_is_no_wrong_element():
    """1 - tanh^2 where it is nearly 0 is known to the rounding of 1."""
    assert check(torch.tanh, torch.tensor([8.4, 0.3], dtype=F64), mode=Mode.FULL).verdict is Verdict.PASS


@pytest.mark.parametrize("everywhere", [False, True], ids=["at the usual steps only", "at others too"])
def test_an_element_is_wrong_where_other_steps_say_so_too(everywhere, monkeypatch):
    """A bar that does not hold, as some of thousands may not, is no wrong element unless other steps agree with it."""
    measure = ladders.measure

    def off(passes, question):
        found = measure(passes, question)
        others = question.directions[0].abs().amax() != question.space.units([0])[0].abs().amax()
        if everywhere or not others:
            found.coordinates.value[0, 0] += 2 * found.coordinates.bar[0, 0] + 1e-9
        return found

    monkeypatch.setattr(ladders, "measure", off)
    found = one(check(mixing, torch.ones(5, dtype=F64), mode=Mode.FULL))
    assert found.verdict is (Verdict.FAIL if everywhere else Verdict.PASS)
    assert [mismatch.index for mismatch in found.worst] == ([(0,)] if everywhere else [])


def test_full_mode_has_a_limit():
    """Too many elements are refused, with the limit and what was asked for."""
    with pytest.raises(Fault) as caught:
        check(torch.sin, draw(9000), mode=Mode.FULL)
    assert caught.value.message == (
        "mode: full moves every element alone: expected at most 8192 in an input, "
        'but input "x0" has 9000 real numbers; choose probe mode, which has no such limit, or fewer elements'
    )
    assert caught.value.metadata == {"limit": "full mode", "allowed": "8192", "asked": "9000"}


# ---- Taylor's remainder


def test_taylors_remainder_tells_right_from_wrong():
    """The remainder falls with the square of the step, and of a wrong gradient with the step itself."""

    def taylor(report):
        (found,) = [opinion for opinion in report.opinions if opinion.name == "taylor"]
        return found

    right = taylor(check(torch.exp, draw(5)))
    assert right.verdict is Verdict.PASS
    assert abs(right.error) < 0.1
    wrong = taylor(check(planted(torch.exp, lambda i, u, r: (1.1 * r[0],)), draw(5)))
    assert wrong.verdict is Verdict.FAIL
    assert abs(wrong.error - 1) < 0.2
    assert wrong.bound == 0.5
    kinked = taylor(check(torch.relu, torch.zeros(3, dtype=F64)))
    assert kinked.verdict is Verdict.INCONCLUSIVE
    assert taylor(check(lambda x: 2 * x, draw(5))).verdict is Verdict.PASS
    assert curves._BETWEEN == 1.5


# ---- Second gradients are linear, too


@pytest.mark.parametrize("weighted", [True, False])
def test_second_gradients_that_ignore_what_they_are_weighted_with(weighted):
    """A double backward that ignores its weights, or the cotangent, is no linear map."""

    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, cotangent):
            ctx.save_for_backward(x, cotangent)
            return cotangent * x.cos()

        @staticmethod
        def backward(ctx, weight):
            x, cotangent = ctx.saved_tensors
            size = weight.abs() * weight.sign().detach() if weighted else cotangent.sign() * weight
            wrong = torch.ones_like(weight) if weighted else size
            return -x.sin() * wrong * (cotangent if weighted else 1), weight * x.cos()

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, cotangent):
            return First.apply(*ctx.saved_tensors, cotangent)

    report = check(lambda x: Sine.apply(x), draw(4), order=2)
    assert report.verdict is Verdict.FAIL
    failed = {opinion.name for opinion in report.opinions if opinion.verdict is Verdict.FAIL}
    assert ("linear_doubled" in failed) == weighted
    assert ("linear_cotangent" in failed) == (not weighted)


@pytest.mark.parametrize("dim", [0, 1])
def test_expanded_cotangents_of_a_softmax(dim):
    """For ones a softmax has the gradient 0, which hides what is wrong for strides of 0; other expansions do not."""

    def wrong(inputs, cotangent, right):
        return (2 * right[0] if 0 in cotangent.stride() else right[0],)

    report = check(planted(lambda x: torch.softmax(x, dim), wrong), draw(3, 4))
    assert report.verdict is Verdict.FAIL
    assert {"linear_expanded"} == {one.name for one in report.opinions if one.verdict is Verdict.FAIL}


# ---- Where differences end


@pytest.mark.parametrize(("seed", "place"), [(4, 15), (15, 6)])
def test_an_element_beside_a_kink_is_measured_by_shorter_steps(seed, place):
    """A claim that is off by a hundredth, where the usual steps reach beyond the kink, is wrong and not unclear."""
    x = 5 * draw(1, 1, 6, 6, seed=seed).to(torch.float32)

    def pooled(x):
        return torch.nn.functional.max_pool2d(x, 3, 1)

    u = torch.ones_like(pooled(x))
    (claim,) = torch.autograd.grad(pooled(x.requires_grad_()), x, u)
    x = x.detach()
    assert check(pooled, x, claimed={"x": claim}, cotangents={"out0": u}, seed=seed).verdict is Verdict.PASS
    claim.view(-1)[place] *= 1.01
    report = check(pooled, x, claimed={"x": claim}, cotangents={"out0": u}, seed=seed)
    assert report.verdict is Verdict.FAIL
    assert [(0, 0, place // 6, place % 6)] == [named.index for named in one(report).worst]


def test_a_kink_that_no_axis_has():
    """The least singular value of a matrix of zeros is 0 along every axis, and not along their sums: a kink, whatever
    the gradient says; but a wrong gradient of what is smooth along sums, too, is no kink."""
    x = torch.zeros(4, 4, dtype=F64)

    def least(x):
        return torch.linalg.matrix_norm(x, -2)

    report = check(least, x)
    assert report.verdict is Verdict.NON_DIFFERENTIABLE
    low, high = one(report).kink
    assert low < 0 < high
    outside = check(least, x, claimed={"x": 50 * torch.eye(4, dtype=F64) + 1})
    assert (Verdict.NON_DIFFERENTIABLE, False) == (outside.verdict, one(outside).claim_inside)
    several = planted(torch.sin, lambda inputs, u, right: (right[0] + 0.2 * torch.eye(4, dtype=F64),))
    assert check(several, x).verdict is Verdict.FAIL


def test_stairs_are_no_slope_and_no_fault():
    """Rounding to half precision inside a function leaves stairs: nothing can be said."""
    assert check(lambda x: x.half().double(), draw(3)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("function", [torch.relu, torch.nn.functional.hardshrink, lambda x: x.clamp(-0.5, 0.5)])
@pytest.mark.parametrize("size", [5, 300])
def test_flat_beside_a_kink_is_no_stairs(function, size):
    """Long steps reach the kink and short ones do not: the slope is 0, for sure."""
    assert check(function, draw(size)).verdict is Verdict.PASS


def test_many_that_change_places_under_long_steps():
    """Sorted, two thousand numbers are smooth for short steps only."""
    assert check(lambda x: x.sort(0)[0], torch.linspace(-2, 2, 2000, dtype=F64).roll(700)).verdict is Verdict.PASS


def test_points_that_an_operator_refuses_are_outside_of_the_domain():
    """binary_cross_entropy raises for targets above 1: the derivative at 1 is the one from below."""
    report = check(
        lambda x, t: torch.nn.functional.binary_cross_entropy(x, t),
        torch.tensor([0.3], dtype=F64),
        torch.tensor([1.0], dtype=F64),
    )
    assert [found.verdict for found in report.inputs] == [Verdict.PASS] * 2


@pytest.mark.parametrize(
    ("claim", "inside"), [([0.0, 0.5, 0.5], True), ([0.0, 1.0, 0.0], True), ([0.0, 1.0, 1.0], False)]
)
def test_ties_share_one_slope(claim, inside):
    """Each tie of a maximum may have the whole gradient, but not all of them."""
    x = torch.tensor([1.0, 3.0, 3.0], dtype=F64)
    found = one(check(lambda x: torch.amax(x), x, claimed={"x": torch.tensor(claim, dtype=F64)}))
    assert found.verdict is Verdict.NON_DIFFERENTIABLE
    assert found.claim_inside is inside


def test_claims_must_cover_what_is_asked_for():
    """A claim for one input says nothing of another."""
    with pytest.raises(Fault, match='wrt: no gradient is claimed for "y"; claimed: "x"'):
        check(lambda x, y: (x * y).sum(), draw(2), draw(2), claimed={"x": draw(2)}, wrt=["x", "y"])


def test_a_fault_that_only_the_jacobian_shows_has_no_detection_power():
    """What would have been caught is said of a gradient that passed."""
    x = torch.cat([torch.full((1,), -27.6, dtype=F64), torch.ones(5, dtype=F64)])

    def squared(backward):
        return lambda x: planted(torch.exp, backward)(x) ** 2

    right = check(squared(scaled(0, 1.0)), x, mode=Mode.FULL)
    assert right.verdict is Verdict.PASS
    assert one(right).detection_power > 0
    wrong = check(squared(scaled(0, 1.01)), x, mode=Mode.FULL)
    assert wrong.verdict is Verdict.FAIL
    assert one(wrong).detection_power == 0


def test_steps_of_an_elements_own_size_reach_no_further_than_the_usual_ones():
    """What is known of the reach of other directions is not theirs."""
    base = torch.ones(100, dtype=F64)
    base[3] = 1e-6
    space = Space.of(0, "x", base, "")
    ones = torch.ones(100, dtype=F64)
    passes = Passes(lambda point: [torch.sin(point[0])], [base], [ones], device=base.device, seed=0)
    gradient = torch.cos(base)
    examiner = Examiner(passes, space, torch.Generator(), probes=4, every=False, expected=gradient, spread=None)
    examiner.slopes = examiner.measured(examiner.directions)
    examiner._reach = Reach.usual(examiner.slopes)
    examiner.narrow(gradient)
    assert examiner.space.scale[3] < space.scale[3]
    assert examiner._reach is None
    assert examiner.assess(gradient).verdict is Verdict.PASS


# ---- Elements of very different size


MIXED = {
    "reciprocal": (torch.reciprocal, [1e-8, 1e-3, 1.0, 1e5]),
    "exp": (torch.exp, [-30.0, -10.0, 0.5, 0.0, 10.0, 20.0]),
    "square": (torch.square, [1.0, 1e8]),
    "cube": (lambda x: x**3, [1e-9, 1.0]),
}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("name", MIXED)
def test_the_rounding_of_outputs_that_an_element_does_not_reach_hides_no_fault_in_it(name, batches, monkeypatch):
    """Each is moved alone, and the largest output, which stays as it is, rounds by more than the smallest element."""
    function, values = MIXED[name]
    x = torch.tensor(values, dtype=F64)
    if not batches:
        monkeypatch.setattr(Passes, "_in_batches", lambda passes, points, count: None)
    assert check(planted(function, lambda inputs, cotangent, right: right), x).verdict is Verdict.PASS
    for place in range(len(values)):
        if x[place] ** 2 < 1e-17:  # its gradient is less than what rounding makes of nothing
            continue
        report = check(planted(function, scaled(place, 1 + 1e-6)), x)
        assert report.verdict is Verdict.FAIL, place
        assert one(report).diagnosis is Diagnosis.SINGLE_ELEMENTS
        assert [found.index for found in one(report).worst if found.error > found.error_bound] == [(place,)]


# ---- The backward of a backward


def cubed(by_cotangent):
    """x**3, whose second backward gives that many times the right derivative by the cotangent; None: it raises."""

    class Second(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, g):
            ctx.save_for_backward(x, g)
            return 3 * g * x**2

        @staticmethod
        def backward(ctx, h):
            x, g = ctx.saved_tensors
            if by_cotangent is None and ctx.needs_input_grad[1]:
                raise RuntimeError("there is no such derivative")
            return 6 * h * g * x, (by_cotangent or 0.0) * 3 * h * x**2

    class Cubed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return Second.apply(ctx.saved_tensors[0], g)

    return Cubed.apply


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16, torch.complex128])
def test_what_a_second_backward_gives_for_the_cotangent(dtype):
    """Second gradients by the inputs do not show it."""
    x = draw(6, seed=1).to(dtype)
    assert check(lambda x: x.tanh() * x, x, order=2).verdict is Verdict.PASS
    if not dtype.is_complex:
        assert check(cubed(1.0), x, order=2).verdict is Verdict.PASS
        for wrong in (2.0, 0.0, 1.001):
            report = check(cubed(wrong), x, order=2)
            assert report.verdict is Verdict.FAIL
            (found,) = [found for found in report.opinions if found.verdict is Verdict.FAIL]
            assert found.name == "second_by_cotangent"
            said = "the gradient's derivative by the cotangent must be J w"
            assert found.explanation == said
            assert one(report).explanation == f"It is not linear in its cotangent: {said}."


def test_a_second_backward_without_the_cotangents_derivative():
    """It has no verdict, and takes none from the others."""
    report = check(cubed(None), draw(6, seed=1), order=2)
    assert report.verdict is Verdict.PASS
    (found,) = [one for one in report.opinions if one.name == "second_by_cotangent"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "there is no such derivative" in found.explanation


# ---- Elements that move the function by less than its rounding


@pytest.mark.parametrize("x", [(1e-8, 1.0), (1e-8, 1e5), (1e-8, 1e-3, 1.0, 1e5), (0.0, 1e-12, 3.0)])
@pytest.mark.parametrize("mode", Mode)
def test_small_elements_are_moved_as_far_as_the_others_where_they_are_lost_beside_them(x, mode):
    x = torch.tensor(x, dtype=F64)
    for function in (lambda x: (x * x).sum(), torch.linalg.vector_norm):
        assert check(function, x, mode=mode).verdict is Verdict.PASS
    wrong = planted(
        lambda x: (x * x).sum(), lambda inputs, cotangent, right: (right[0] + 1e-5 * right[0].max() * (x == x.min()),)
    )
    assert check(wrong, x, mode=mode).verdict is Verdict.FAIL


def test_the_only_element_has_no_others():
    wrong = planted(lambda x: x * x, lambda inputs, cotangent, right: (right[0] + cotangent,))
    assert one(check(wrong, torch.zeros(1, dtype=F64))).explanation == "It is wrong in its only element."

"""Rounding is no fault, and no excuse: gradients that kernels round inside pass, and wrong ones beside them fail."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from check_cases import check, plan_of, planned, planted

from gradoracle_server.engine import shadow, trial
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.report import Mode, Verdict

F32, F64 = torch.float32, torch.float64


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def scaled(factor):
    """A planted backward: everything times a number."""
    return lambda inputs, u, right: tuple(factor * one for one in right)


def upsampled(x):
    """Resized with positions that the kernel keeps in the dtype of x."""
    return torch.ops.aten._upsample_bilinear2d_aa(x, [17, 18], False, 1.7, 0.9)


# ---- Kernels that round inside


@pytest.mark.parametrize("seed", range(3))
def test_values_that_rounding_moves_far_are_the_same_function(seed):
    """Beside its poles polygamma is hundreds of units in the last place off in float32, as rounding explains: it has
    its shadow, and a thousandth is a fault."""
    x = 9 * (2 * torch.rand(25, dtype=F32, generator=torch.Generator().manual_seed(seed)) - 1)
    x[0] = -7.9505868

    def trigamma(x):
        return torch.special.polygamma(1, x)

    assert check(trigamma, x, seed=seed).verdict is Verdict.PASS
    assert check(planted(trigamma, scaled(1.001)), x, seed=seed).verdict is Verdict.FAIL


def test_another_function_is_no_rounding():
    """Values that are as far off, where nothing that is rounded explains it, are no shadow."""
    x = torch.linspace(0.5, 2.0, 25, dtype=F32)

    def other_in_low_precision(x):
        return torch.sin(x) * (1 + 1e-4 * (x.dtype is F32))

    plan = plan_of(other_in_low_precision, {"x": x})
    subject = trial.Subject(plan, [x], [0], 0)
    _, _, distance = shadow.recorded(subject, subject.tape(), torch.finfo(F32).eps)
    assert not shadow.is_faithful(distance, torch.finfo(F32).eps)


def test_a_function_of_nothing():
    """A layer norm of a single element is 0 all around; the weight's gradient is what cancels inside of its kernel."""
    x = torch.tensor([-4.826984902407649], dtype=F64)

    def norm(x, weight):
        return torch.native_layer_norm(x, (1,), weight, None, 1e-5)[0]

    assert check(norm, x, x).verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert check(planted(norm, lambda inputs, u, right: (right[0], 1e-3 * u)), x, x).verdict is Verdict.FAIL


def test_a_kernel_that_rounds_positions_is_right():
    """Its outputs are several units in the last place off, and so is its gradient; 1e-3 more is a fault."""
    x = draw(2, 3, 10, 20, dtype=F32)
    assert check(upsampled, x).verdict is Verdict.PASS
    assert check(planted(upsampled, scaled(1.001)), x).verdict is Verdict.FAIL


@pytest.mark.parametrize("dim", [0, 1])
def test_a_cotangent_that_goes_through_a_logarithm(dim):
    """logcumsumexp's gradient at 1e4 keeps three digits in float32: that is not linear to the last place."""
    x = torch.full((5, 5), 1e4, dtype=F32)
    x[1::2] = 0.0
    assert check(lambda x: torch.logcumsumexp(x, dim), x).verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)


FLAT = {
    "tens of thousands": torch.tensor([10000.0, 9000.0, 10500.0, 9900.0], dtype=F64),
    "of both signs": torch.tensor([10000.0, 1.0, -9000.0], dtype=F64),
    "close together": 1e4 + 100 * torch.arange(5, dtype=F64),
}


@pytest.mark.parametrize("x", FLAT.values(), ids=list(FLAT))
def test_a_second_gradient_that_is_rounding_as_a_whole(x):
    """logcumsumexp's second gradient is 0 where one element outweighs all others, and torch's is what 1e4 rounds to;
    as much beside a function that does not round inside is a fault."""
    assert check(lambda x: torch.logcumsumexp(x, 0), x, order=2).verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    off = planted(lambda x: 1.0 * x, lambda inputs, u, right: (right[0] * (1 + 1e-12 * inputs[0]),))
    assert check(off, x, order=2).verdict is Verdict.FAIL


@pytest.mark.parametrize("dtype", [F64, F32, torch.bfloat16])
def test_rounding_that_an_operator_refuses(dtype):
    """A probability of 1 cannot be moved up: that is no error of the request, and a verdict is what it gets. (torch's
    gradient is wrong there: 0, and not -1.)"""
    x = torch.tensor([1.0, 0.5, 0.25], dtype=dtype)
    certain = torch.tensor([1.0, 0.3, 0.0])
    report = check(lambda x: F.binary_cross_entropy(x, certain.to(x.dtype)), x)
    assert (report.verdict, report.inputs[0].worst[0].index) == (Verdict.FAIL, (0,))
    spread_out = check(planted(lambda x: x.double().acos(), scaled(0.5)), torch.tensor([1.0, 0.5], dtype=dtype))
    assert spread_out.verdict is Verdict.FAIL


def test_a_function_that_cannot_be_run_in_float64():
    """Where an operator insists on its dtype there is no shadow, and still a verdict."""
    weight = draw(3, dtype=F32)
    assert check(lambda x: x @ weight, draw(5, 3, dtype=F32)).verdict is Verdict.PASS
    assert check(planted(lambda x: x @ weight, scaled(2)), draw(5, 3, dtype=F32)).verdict is Verdict.FAIL


def test_flags_among_the_numbers_are_not_moved():
    """multilabel_margin_loss hands a tensor of 0 and 1 to its backward, and takes nothing else there."""
    target = torch.tensor([1, 2, -1, 0, 3])

    def loss(x):
        return F.multilabel_margin_loss(x, target)

    assert check(loss, draw(5)).verdict is Verdict.PASS
    for mode in Mode:
        assert check(planted(loss, scaled(2)), draw(5), mode=mode).verdict is Verdict.FAIL


def test_a_backward_that_is_not_linear_fails_in_low_precision_too():
    """What rounding explains is measured; squares of the cotangent it does not explain."""
    square = planted(torch.sin, lambda i, u, r: (r[0] * u.abs(),))
    assert check(square, draw(20, dtype=F32)).verdict is Verdict.FAIL


def test_cells_that_rounding_chooses():
    """In bfloat16 a position just below 0 is taken for 0, the edge of another cell: no verdict of FAIL."""
    image, grid = draw(1, 1, 5, 5, dtype=torch.bfloat16), draw(1, 6, 6, 2, seed=1).tanh()
    grid[0, 2, 2] = -0.0003

    def sampled(g):
        return F.grid_sample(image.to(g.dtype), g, align_corners=False)

    for seed in range(8):  # other cotangents, and other moves by rounding
        report = check(sampled, grid.to(torch.bfloat16), seed=seed)
        assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NON_DIFFERENTIABLE)
        wrong = check(planted(sampled, scaled(2)), grid.to(torch.bfloat16), seed=seed)
        assert wrong.verdict is not Verdict.PASS


def test_a_result_that_overflows_is_no_verdict():
    """exp(12) is infinite in float16 and finite in its shadow, which so computes another function."""
    report = check(torch.exp, torch.tensor([1.0, 12.0], dtype=torch.float16))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.inputs[0].explanation == "An output is not finite at this point."


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_a_reference_that_is_off_by_less_than_low_precision_shows(dtype):
    """hardsigmoid takes 1/6 in float32, in float64 as well: wrong there, and right to the last place elsewhere."""
    x = draw(20, dtype=dtype)
    assert [check(F.hardsigmoid, one).verdict for one in (x, x.to(F64))] == [Verdict.PASS, Verdict.FAIL]
    assert check(planted(F.hardsigmoid, scaled(1.2)), x).verdict is Verdict.FAIL


def test_integer_outputs_do_not_tell_functions_apart():
    """embedding_bag's fourth output has another shape in half precision; its gradient is checked nevertheless."""
    indices, offsets = torch.tensor([0, 2, 1]), torch.tensor([0, 2])

    def bags(weight):
        return torch.ops.aten._embedding_bag(weight, indices, offsets)

    weight = draw(3, 4, dtype=torch.bfloat16)
    assert check(bags, weight).verdict is Verdict.PASS


# ---- Functions that round inside, in float64


def test_a_value_that_cancels_to_nothing_is_no_proof():
    """ndtr(-8.5) is (1 + erf(-6)) / 2 = 0 in float64: that its derivative is 1e-16 and not 0, no step can show."""
    x = torch.tensor(-8.5, dtype=F64)
    assert check(torch.special.ndtr, x).verdict is Verdict.INCONCLUSIVE
    assert check(planted(torch.special.ndtr, lambda i, u, r: (r[0] + 1e-3 * u,)), x).verdict is Verdict.FAIL


def test_what_breaks_ties_is_no_rounding():
    """A move in the last place gives one of two equal numbers the whole slope; a claim of both of them fails still."""
    x, both = torch.tensor([3.0, 3.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    (found,) = check(lambda x: torch.amax(x), x, claimed={"x": both}).inputs
    assert (found.verdict, found.claim_inside) == (Verdict.NON_DIFFERENTIABLE, False)


@pytest.mark.parametrize("epsilon", [torch.finfo(F64).eps, torch.finfo(F32).eps, torch.finfo(torch.bfloat16).eps])
def test_monte_carlo_arithmetic_moves_both_ways(epsilon):
    """By half a unit in the last place, up and down alike; in float64, where that is nothing, by one."""
    x = torch.ones(1000, dtype=F64)
    step = max(epsilon / 2, torch.finfo(F64).eps)
    for context in shadow.roundings(epsilon, seed=0):
        with context:
            moved = (x * 1.0) - 1
        assert 300 < int((moved > 0).sum()) < 700
        assert float(moved.abs().max()) <= 3.1 * step


def test_monte_carlo_arithmetic_keeps_conjugates():
    """conj() is a flag that arithmetic below autograd does not see."""
    z = draw(4, dtype=torch.complex128)
    for context in shadow.roundings(torch.finfo(F64).eps, seed=0):
        with context:
            found = (z.conj() * z).real
        torch.testing.assert_close(found, z.abs() ** 2, rtol=1e-14, atol=0)


# ---- Batches that are wrong


class Misbatched(torch.autograd.Function):
    """x**2, whose batching rule gives every point the last one's value."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return 2 * x * u

    @staticmethod
    def vmap(info, in_dims, x):
        return x[-1:].square().expand_as(x) + 1, 0


def test_a_batch_is_held_against_a_single_pass():
    """A batching rule that is wrong at the base point itself is not believed, and costs no verdict."""
    x = draw(6)

    def passes(function):
        return Passes(lambda point: [function(point[0])], [x], [torch.ones(6, dtype=F64)], device=x.device, seed=0)

    assert [passes(Misbatched.apply).batches_agree(0), passes(torch.square).batches_agree(0)] == [False, True]
    assert check(Misbatched.apply, x).verdict is Verdict.PASS


def looped_passes(monkeypatch):
    """How many passes each loop takes that is one, as a list to be filled."""
    counts, real = [], Passes._in_turn

    def counted(self, points, count):
        if count > 1:
            counts.append(count)
        return real(self, points, count)

    monkeypatch.setattr(Passes, "_in_turn", counted)
    return counts


class MisbatchedFar(Misbatched):
    """x**2, whose batching rule is wrong but at 1."""

    @staticmethod
    def vmap(info, in_dims, x):
        return torch.where(x == 1, x, 2 * x.square()), 0


def test_what_fails_is_held_against_one_ladder_of_single_passes(monkeypatch):
    """Four directions, however short the steps that measured them; all of them where batches are not believed."""
    spent = looped_passes(monkeypatch)

    def quick(x):
        return torch.sin(300 * x)

    assert check(planted(quick, scaled(1.1)), draw(6)).verdict is Verdict.FAIL
    assert sum(spent) == 4 * 12
    spent.clear()
    assert check(MisbatchedFar.apply, torch.ones(6, dtype=F64)).verdict is Verdict.PASS
    assert sum(spent) >= 4 * 12 + 6 * 12


def test_what_stays_unsure_is_not_doubted_twice(monkeypatch):
    """Elements are measured again with other steps, where that tells more; batches were believed by then."""
    spent = looped_passes(monkeypatch)

    def coarse(x):
        return 1e10 + torch.sin(x)

    assert check(coarse, draw(6)).verdict is Verdict.INCONCLUSIVE
    assert sum(spent) == 4 * 12


def test_directions_that_tell_nothing_cause_no_doubt(monkeypatch):
    """Such that move small elements, of which next to nothing is seen in large values."""
    spent = looped_passes(monkeypatch)
    weight = torch.cat([torch.ones(50), torch.full((50,), 2e-4)]).to(F64)
    assert check(lambda x: 1e6 + (weight * torch.sin(x)).sum(), draw(100)).verdict is Verdict.PASS
    assert not spent


def test_rows_of_a_jacobian_are_held_against_one_more_pull_back():
    """The batching rule of cdist's backward is wrong in torch 2.13; its gradient is right, in full mode as well."""
    x, y = draw(4, 3), draw(5, 3, seed=1)
    plan = plan_of(torch.cdist, {"x": x, "y": y})
    assert planned(plan, {"x": x, "y": y}, mode=Mode.FULL).verdict is Verdict.PASS


def test_rounding_that_all_short_steps_see_alike():
    """1 + 1e-12 x moves in jumps of 2.2e-16: steps that are shorter than a jump all agree on a slope without it."""

    def swallowed(x):
        return torch.cat([((1 + 1e-12 * x) - 1) + 1e-12 * torch.sin(x), torch.cos(x)])

    tiny = torch.cat([torch.ones(4), torch.zeros(4)]).to(F64)  # the cotangent: the large outputs do not count
    for seed in range(8):
        right = check(swallowed, draw(4), cotangents={"out0": tiny}, seed=seed)
        assert right.verdict is not Verdict.FAIL
        wrong = check(planted(swallowed, scaled(2)), draw(4), cotangents={"out0": tiny}, seed=seed)
        assert wrong.verdict is not Verdict.PASS


def test_small_beside_the_function_is_not_nothing():
    """A wrong gradient of low precision is called so where it is a hundred-thousandth of the function's size."""

    def offset(x):
        return 1000 + 1e-2 * x

    assert check(offset, draw(4, dtype=F32)).verdict is Verdict.PASS
    assert check(planted(offset, scaled(2)), draw(4, dtype=F32)).verdict is Verdict.FAIL


def test_what_chooses_as_its_shadow_does_can_fail():
    """Pooling in bfloat16 whose windows are the shadow's: all outputs are exact, and a wrong gradient is seen."""
    x = draw(1, 2, 8, 8).to(torch.bfloat16)

    def pooled(y):
        return F.max_pool2d(y, 2)

    assert check(planted(pooled, scaled(2)), x).verdict is Verdict.FAIL


def test_small_second_derivatives_beside_coarse_steps_are_no_faults():
    """logsumexp of thousands rounds inside where the shortest steps look; longer ones have the right slope."""
    x = torch.tensor([1231.834, 1078.753, 1466.406, 1414.379, 810.5, 810.5 - 18.7], dtype=F64)
    for seed in range(5):
        moved = x + 0.1 * draw(6, seed=seed)
        assert check(lambda x: torch.logsumexp(x, 0), moved, order=2, seed=seed).verdict is not Verdict.FAIL


def test_gradients_that_have_no_memory():
    """The zeros that autograd gives for sgn may not be written to; they are differentiated all the same."""
    x = torch.tensor(1.5, dtype=F64)
    assert check(torch.sgn, x, order=2).verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, Verdict.INCONCLUSIVE), (1 + 1e-6, Verdict.FAIL), (-1.0, Verdict.FAIL)]
)
def test_what_rounding_on_the_way_explains_is_no_failure(seed, factor, verdict):
    """A backward in which large numbers cancel has eight digits: by less than that it cannot be wrong."""

    def cancelling(inputs, cotangent, right):
        return ((factor * right[0] + 1e8) - 1e8,)

    x = torch.linspace(0.3, 1.2, 12, dtype=F64)
    assert check(planted(torch.exp, cancelling), x, seed=seed).verdict is verdict


@pytest.mark.parametrize("seed", range(6))
def test_nothing_but_rounding_is_no_fault(seed):
    """Two observations are correlated by 1 or -1, whatever they are: all that is left of derivatives is rounding."""
    x = torch.tensor([[-4.8270, -7.5824], [-0.6047, -1.5412], [-1.9719, -4.1460]], dtype=F64)
    assert check(torch.corrcoef, x, order=2, seed=seed).verdict is not Verdict.FAIL


# ---- Removable singularities, and zeros that are left of 1 - 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("function", [torch.sinc, lambda x: x.sin() / x], ids=["sinc", "sin x / x"])
def test_elements_of_any_size_may_be_off_by_rounding_inside(function, seed):
    """Of sin(x) / x by a trillionth at a thousandth, where all elements are about as large."""
    assert check(function, 0.005 * draw(16, 16, seed=seed)).verdict is Verdict.PASS
    wrong = planted(function, lambda inputs, u, right: (right[0] * (1 + 1e-8),))
    assert check(wrong, 0.005 * draw(16, 16, seed=seed)).verdict is Verdict.FAIL


@pytest.mark.parametrize("function", [F.gelu, torch.special.ndtr], ids=["gelu", "ndtr"])
def test_what_is_left_of_1_less_1_has_no_slope_that_counts(function):
    """Far below 0 the values are 0, and the derivative is not, by 22 orders of magnitude."""
    x = torch.tensor([-14.0, -12.0, 0.5, 1.0], dtype=F64)
    assert check(function, x, mode=Mode.FULL).verdict is Verdict.PASS
    wrong = planted(function, lambda inputs, u, right: (right[0] + 1e-10,))
    assert check(wrong, x, mode=Mode.FULL).verdict is Verdict.FAIL


def test_a_float64_gradient_that_went_through_float32_is_told():
    """Which is off by less than anything else that is wrong in so many elements."""
    x = 1.5 + 0.1 * draw(40, 10)
    kernel = planted(torch.exp, lambda inputs, u, right: (right[0].float().double(),))
    (found,) = check(kernel, x).inputs
    assert found.verdict is Verdict.FAIL
    assert found.explanation.endswith("All of its elements are numbers of float32: it was rounded to that on the way.")
    (found,) = check(planted(torch.exp, lambda inputs, u, right: (right[0].round(),)), x).inputs
    assert found.verdict is Verdict.FAIL
    assert "float32" not in found.explanation


def test_a_shadow_that_draws_other_numbers_is_none():
    """However much is rounded on the way, which alone would explain it."""
    x = draw(4, 4, dtype=torch.bfloat16)
    coarse = torch.finfo(torch.bfloat16).eps

    def is_faithful(function):
        subject = trial.Subject(plan_of(function, {"x": x}), [x], [0], 0)
        return shadow.is_faithful(shadow.recorded(subject, subject.tape(), coarse)[2], coarse)

    assert is_faithful(lambda x: (x * 0.5 + 100) - 100)
    assert not is_faithful(lambda x: (x * (torch.rand_like(x) < 0.5) + 100) - 100)

"""Verdicts: right gradients pass, wrong ones fail with their diagnosis, and what cannot be told is not guessed."""

from __future__ import annotations

import math

import pytest
import torch
from check_cases import F64, check, planted
from engine_cases import build, node, phases

from gradoracle_server.engine import check as checks
from gradoracle_server.engine import tolerances
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec
from gradoracle_server.engine.report import Diagnosis, Mode, Verdict


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def checked(plan, primals, claimed=None, cotangents=None, wrt=(), **options):
    return checks.check(
        plan, primals, phases(), claimed=claimed or {}, cotangents=cotangents or {}, wrt=wrt,
        options=checks.Options(**options),
    )  # fmt: skip


def mlp():
    nodes = [node("h", "addmm.default", "%b", "%x", "%w"), node("t", "tanh.default", "%h")]
    return build("x w b", nodes, "t")


def mlp_primals(dtype):
    return {"x": draw(5, 3, dtype=dtype), "w": draw(3, 4, dtype=dtype, seed=1), "b": draw(4, dtype=dtype, seed=2)}


def one(report):
    (found,) = report.inputs
    return found


# ---- Right gradients


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64],
    ids=str,
)
def test_right_gradients_pass_in_every_dtype(dtype, order):
    """Autograd's own gradients of a layer pass in every dtype, and those of its gradients too."""
    report = checked(mlp(), mlp_primals(dtype), order=order)
    assert [one.verdict for one in report.inputs] == [Verdict.PASS] * 3
    assert report.verdict is Verdict.PASS
    assert all(opinion.verdict is Verdict.PASS for opinion in report.opinions)


@pytest.mark.parametrize("mode", list(Mode))
def test_both_modes_pass_a_right_claim(mode):
    """A claim that is autograd's gradient passes in either mode; its cotangents are those given."""
    x, cotangent = draw(4, 3), draw(4, 3, seed=5)
    report = check(torch.sin, x, claimed={"x0": cotangent * x.cos()}, cotangents={"out0": cotangent}, mode=mode)
    assert report.verdict is Verdict.PASS
    assert 0 < report.detection_power < 1e-8


@pytest.mark.parametrize(("function", "x"), [(torch.square, 1e9), (torch.sqrt, 1e-6), (torch.exp, 300.0)])
def test_inputs_of_any_magnitude_pass(function, x):
    """Where a checker with a fixed step and an absolute tolerance fails right gradients, they pass."""
    assert check(function, torch.tensor(x, dtype=F64)).verdict is Verdict.PASS


def test_forward_mode_and_batches_are_on_trial_when_asked():
    """forward_mode and batched_gradients add an opinion each, and pass where torch is right."""
    report = checked(mlp(), mlp_primals(F64), forward_mode=True, batched_gradients=True)
    assert {"forward_mode", "batched"} <= {one.name for one in report.opinions}
    assert report.verdict is Verdict.PASS


def test_random_operators_are_one_function():
    """Every forward pass draws the same numbers, so dropout passes."""
    report = check(lambda x: torch.nn.functional.dropout(x, 0.5), draw(6, 5), seed=7)
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(3))
def test_what_draws_otherwise_in_batches_that_move_several_inputs(seed):
    """Numbers are drawn in the order of memory, which is another one where all inputs carry a batch. In a loop there is
    no kink."""

    def layer(w, b):
        x = draw(2, 3, 4, seed=seed)
        return torch.nn.functional.dropout(torch.nn.functional.linear(x, w, b).transpose(1, 2), 0.3)

    report = check(layer, draw(4, 4, seed=seed + 1), draw(4, seed=seed + 2))
    assert [found.verdict for found in report.inputs] == [Verdict.PASS] * 2


def test_structured_inputs_move_within_their_set():
    """The gradient of cholesky is right among symmetric matrices only: declared so it passes, else it fails."""
    matrix = draw(4, 4)
    matrix = matrix @ matrix.T + torch.eye(4, dtype=F64)
    assert check(torch.linalg.cholesky, matrix, structures={"x0": "symmetric"}).verdict is Verdict.PASS
    assert check(torch.linalg.cholesky, matrix).verdict is Verdict.FAIL


def test_an_input_without_influence_passes():
    """Where the output does not depend on an input, a gradient of None is right."""
    report = check(lambda x, y: x.sin() + 0 * y.detach(), draw(3), draw(3, seed=1))
    assert [one.verdict for one in report.inputs] == [Verdict.PASS] * 2


def test_integer_inputs_are_named_and_not_judged():
    """An index is reported as without a gradient, and does not spoil the verdict."""
    report = check(lambda x, i: x[i], draw(5), torch.tensor([0, 2, 2]))
    assert report.verdict is Verdict.PASS
    assert [found.verdict for found in report.inputs] == [Verdict.PASS, Verdict.NON_DIFFERENTIABLE]
    assert "int64" in report.inputs[1].explanation


def test_a_graph_without_gradients_is_no_pass():
    """Where no input has a gradient there is nothing that could pass."""
    report = check(lambda i: i + 1, torch.tensor([1, 2]))
    assert report.verdict is Verdict.NON_DIFFERENTIABLE


def test_batches_are_not_taken_on_trust():
    """torch 2.13 has a wrong batching rule for index_fill; what a batch says is measured again before it counts."""
    index = torch.tensor([0, 2])
    report = check(lambda x, value: x.index_fill(0, index, value), draw(4), torch.tensor(2.5, dtype=F64))
    assert report.verdict is Verdict.PASS


# ---- Wrong gradients, each with its diagnosis


def _changed(place, change):
    def wrong(inputs, cotangent, right):
        found = right[0].clone(memory_format=torch.contiguous_format)
        found.view(-1)[place] = change(found.view(-1)[place])
        return (found,)

    return wrong


ELEMENT = 4
FAULTS = {
    "sign": (lambda i, u, r: (-r[0],), Diagnosis.SIGN_FLIPPED),
    "factor": (lambda i, u, r: (1.001 * r[0],), Diagnosis.SCALED),
    "tiny factor": (lambda i, u, r: ((1 + 1e-8) * r[0],), Diagnosis.SCALED),
    "half": (lambda i, u, r: (0.5 * r[0],), Diagnosis.SCALED),
    "zero": (lambda i, u, r: (0 * r[0],), Diagnosis.ZEROED),
    "zeroed element": (_changed(ELEMENT, lambda g: 0 * g), Diagnosis.ZEROED),
    "one element": (_changed(ELEMENT, lambda g: 1.5 * g), Diagnosis.SINGLE_ELEMENTS),
    "one element by 1e-8": (_changed(ELEMENT, lambda g: (1 + 1e-8) * g), Diagnosis.SINGLE_ELEMENTS),
    "one sign": (_changed(ELEMENT, lambda g: -g), Diagnosis.SIGN_FLIPPED),
    "NaN": (_changed(ELEMENT, lambda g: math.nan * g), Diagnosis.NAN),
    "infinite": (_changed(ELEMENT, lambda g: math.inf * g), Diagnosis.SINGLE_ELEMENTS),
    "cotangent ignored": (lambda i, u, r: (i[0].cos(),), Diagnosis.IGNORES_COTANGENT),
    "cotangent squared": (lambda i, u, r: (u * r[0],), None),
    "another function": (lambda i, u, r: (u * (1 - i[0].square() / 2),), None),
}


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_fail_with_their_diagnosis(name, mode):
    """Each kind of wrong backward of sin fails and is named, with the wrong element first among the worst."""
    wrong, diagnosis = FAULTS[name]
    report = check(planted(torch.sin, wrong), draw(4, 5), mode=mode)
    found = one(report)
    assert report.verdict is found.verdict is Verdict.FAIL
    if diagnosis is not None:
        assert found.diagnosis is diagnosis, found.explanation
    if "element" in name:
        assert found.worst[0].index == (0, ELEMENT)
        assert found.worst[0].error > found.worst[0].error_bound


def test_a_factor_is_told():
    """SCALED comes with its factor."""
    assert one(check(planted(torch.sin, FAULTS["factor"][0]), draw(4, 5))).factor == pytest.approx(1.001, rel=1e-9)


def test_a_transposed_gradient():
    """A square matrix' gradient laid out along the wrong axes is TRANSPOSED."""
    found = one(check(planted(lambda a: a @ a @ a, lambda i, u, r: (r[0].T,)), draw(4, 4)))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.TRANSPOSED)


def test_a_conjugated_gradient():
    """The other convention for complex gradients is told apart."""
    found = one(check(planted(lambda z: z * z, lambda i, u, r: (r[0].conj(),)), draw(5, dtype=torch.complex128)))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.CONJUGATED)
    assert isinstance(found.worst[0].claimed, complex)


def test_a_broadcast_axis_that_is_not_summed():
    """One contribution of a broadcast input in place of their sum is NOT_REDUCED."""
    made = build("a b", [node("c", "mul.Tensor", "%a", "%b")], "c")
    a, b, u = draw(5, 4), draw(4, seed=1), draw(5, 4, seed=2)
    found = one(checked(made, {"a": a, "b": b}, {"b": (u * a)[0].clone()}, {"c": u}))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.NOT_REDUCED)


def test_contributions_of_repeated_indices():
    """Overwriting where indices repeat, in place of adding, is DUPLICATES_LOST."""
    made = build([InputSpec("x"), InputSpec("i", False)], [node("y", "index_select.default", "%x", 0, "%i")], "y")
    index, u = torch.tensor([0, 2, 2, 5]), draw(4)
    lost = torch.zeros(6, dtype=F64)
    lost[index] = u
    found = one(checked(made, {"x": draw(6), "i": index}, {"x": lost}, {"y": u}))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.DUPLICATES_LOST)


def test_a_row_that_is_left_out_is_no_lost_contribution():
    """As by padding_idx, though its index is repeated."""
    made = build([InputSpec("x"), InputSpec("i", False)], [node("y", "index_select.default", "%x", 0, "%i")], "y")
    index, u = torch.tensor([0, 2, 2, 5]), draw(4)
    kept = torch.zeros(6, dtype=F64).index_add(0, index, u)
    kept[2] = 0
    found = one(checked(made, {"x": draw(6), "i": index}, {"x": kept}, {"y": u}))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.ZEROED)


def test_a_backward_that_misreads_strides():
    """Right for contiguous cotangents and wrong for others: only the second opinion sees it, and fails."""

    def misreads(inputs, cotangent, right):
        flat = torch.as_strided(cotangent, (cotangent.numel(),), (1,))
        return (flat.view(cotangent.shape) * inputs[0].cos(),)

    report = check(planted(torch.sin, misreads), draw(3, 4))
    assert report.verdict is Verdict.FAIL
    assert any(one.name == "linear_strided" and one.verdict is Verdict.FAIL for one in report.opinions)


def test_a_wrong_second_derivative():
    """A backward that is right, and detached from the input, fails at order 2 alone."""

    class Sine(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0].detach())

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return cotangent * x.cos()

    x = draw(4)
    assert check(Sine.apply, x).verdict is Verdict.PASS
    assert check(Sine.apply, x, order=2).verdict is Verdict.FAIL


@pytest.mark.parametrize("function", [torch.lgamma, torch.frac, lambda x: 1 / (x + 4)], ids=["lgamma", "frac", "1/x"])
@pytest.mark.parametrize("factor", [1.0, 1.01, 2.0])
@pytest.mark.parametrize("mode", Mode)
def test_a_low_precision_claim_beside_a_pole_or_a_jump(function, factor, mode):
    """A wrong one is wrong there, too, however far longer steps would reach; a right one passes."""
    x = torch.tensor([-3.973022, 2.5, 1.25, 7.3], dtype=torch.float32)
    claim = torch.autograd.grad(function(x.requires_grad_()).sum(), x)[0].clone()
    claim[0] *= factor
    ones = {"out0": torch.ones(4)}
    report = one(check(lambda x: function(x), x.detach(), claimed={"x": claim}, cotangents=ones, mode=mode))
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL), report
    assert [mismatch.index for mismatch in report.worst] == ([] if factor == 1 else [(0,)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_claims(dtype):
    """A claim in low precision passes with torch's own rounding, and fails with one element off by ten tolerances."""
    made = build("x", [node("y", "_softmax.default", "%x", -1, False)], "y")
    x, u = draw(8, 16, dtype=dtype), draw(8, 16, dtype=dtype, seed=1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.softmax(leaf, -1), leaf, u)
    passed = checked(made, {"x": x}, {"x": gradient}, {"y": u})
    assert passed.verdict is Verdict.PASS
    wrong = gradient.clone()
    wrong[3, 5] *= 1 + 10 * passed.detection_power
    failed = one(checked(made, {"x": x}, {"x": wrong}, {"y": u}))
    assert failed.verdict is Verdict.FAIL
    assert failed.worst[0].index == (3, 5)


def test_a_silent_overflow_is_a_fault():
    """float16's square of 300 overflows: its gradient of 600 is right, but the zero of a hidden overflow is not."""
    made = build("x", [node("q", "mul.Tensor", "%x", "%x"), node("y", "sum.default", "%q")], "y")
    x = torch.tensor([3.0, 2.0], dtype=torch.float16)
    assert checked(made, {"x": x}, {"x": 2 * x}).verdict is Verdict.PASS
    found = one(checked(made, {"x": x}, {"x": torch.tensor([0.0, 4.0], dtype=torch.float16)}))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.ZEROED)


# ---- Neither right nor wrong


@pytest.mark.parametrize(
    ("function", "x", "claim", "kink", "inside"),
    [
        (torch.relu, 0.0, 0.0, (0, 1), True),
        (torch.relu, 0.0, 0.5, (0, 1), True),
        (torch.relu, 0.0, 1.5, (0, 1), False),
        (torch.abs, 0.0, 0.0, (-1, 1), True),
        (torch.abs, 0.0, -5.0, (-1, 1), False),
        (torch.sqrt, 0.0, math.inf, (math.inf, math.inf), True),
        (torch.sqrt, 0.0, 1.0, (math.inf, math.inf), False),
    ],
)
def test_kinks_are_no_faults(function, x, claim, kink, inside):
    """At a kink the verdict is NON_DIFFERENTIABLE, with the slopes and whether the claim lies between them."""
    x = torch.tensor(x, dtype=F64)
    found = one(check(function, x, claimed={"x0": torch.tensor(claim, dtype=F64)}))
    assert found.verdict is Verdict.NON_DIFFERENTIABLE
    assert found.kink == pytest.approx(kink, abs=1e-7)
    assert found.claim_inside is inside


def test_a_fault_beside_a_kink_is_found():
    """A kink in one element does not hide a wrong gradient in another."""
    x = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0], dtype=F64)
    right = torch.tensor([0.0, 1, 1, 0, 1], dtype=F64)
    wrong = torch.tensor([0.0, 1, 2, 0, 1], dtype=F64)
    assert one(check(lambda x: torch.relu(x).sum(), x, claimed={"x": right})).verdict is Verdict.NON_DIFFERENTIABLE
    found = one(check(lambda x: torch.relu(x).sum(), x, claimed={"x": wrong}))
    assert found.verdict is Verdict.FAIL
    assert found.worst[0].index == (2,)


def test_nan_fails_even_at_a_kink():
    """The norm at 0 has subgradients, and NaN is none of them."""
    found = one(check(lambda x: x.norm(), draw(3) * 0, claimed={"x": torch.full((3,), math.nan, dtype=F64)}))
    assert (found.verdict, found.diagnosis) == (Verdict.FAIL, Diagnosis.NAN)


def test_what_is_not_finite_is_inconclusive():
    """Nothing can be said of the logarithm of a negative number."""
    assert check(torch.log, torch.tensor([-1.0, 2.0], dtype=F64)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cotangent_that_is_not_finite_is_inconclusive(value):
    """It is no sum of what the function gives, and nothing to hold a gradient against."""
    x = draw(3)
    report = check(torch.exp, x, cotangents={"out0": torch.tensor([1.0, value, 1.0], dtype=F64)})
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "cotangent" in one(report).explanation


def test_what_shorter_steps_contradict_is_no_fault():
    """Rounding to decimals at a point of its grid looks linear to long steps; its gradient of 0 is not failed."""
    report = check(lambda x: torch.round(x, decimals=3), torch.linspace(-5, 5, 21, dtype=F64))
    assert report.verdict is not Verdict.FAIL


def test_noise_is_inconclusive():
    """A function that is noisy beyond rounding, but the same in every run, has bars too wide to tell."""

    def noisy(x):
        return x.sin() + 1e-4 * torch.sin(1e14 * x)

    assert check(noisy, draw(5)).verdict in (Verdict.INCONCLUSIVE, Verdict.FAIL)


def test_what_differs_between_runs_is_non_deterministic():
    """A function with a memory is told from one with a wrong gradient."""
    calls = []

    def drifting(x):
        calls.append(0)
        return x * (1 + 1e-3 * len(calls))

    report = check(drifting, draw(3))
    assert report.verdict is Verdict.NON_DETERMINISTIC
    said = "Two runs on the same tensors, with the same seed, gave different outputs or gradients."
    assert [one.explanation for one in report.inputs] == [said]


# ---- Cost, and the checker's own check


def test_a_million_inputs_pass_within_64_forward_passes():
    """Passing costs a fixed number of passes, whatever the size."""
    report = check(lambda x: torch.tanh(x).sum(), draw(1_000_000))
    assert report.verdict is Verdict.PASS
    assert report.evaluations <= 64


@pytest.mark.timeout(600)  # of work, not of waiting: ten seconds where nothing else runs
@pytest.mark.parametrize("own", [True, False])
def test_one_wrong_element_in_a_million_is_named_within_400(own):
    """A wrong backward is bisected, a wrong claim is told by the reference and confirmed on its own axis."""
    x, place = draw(1 << 20), 777_777
    if own:
        report = check(planted(lambda x: torch.tanh(x).sum(), _changed(place, lambda g: 2 * g)), x)
    else:
        claim = 1 - torch.tanh(x) ** 2
        claim[place] *= 2
        report = check(lambda x: torch.tanh(x).sum(), x, claimed={"x": claim})
    found = one(report)
    assert found.verdict is Verdict.FAIL
    assert [mismatch.index for mismatch in found.worst] == [(place,)]
    assert report.evaluations <= 400


def test_the_detection_power_is_true():
    """A fault of ten times the stated power, in any element of at least typical size, is caught."""
    x, u = draw(30), draw(30, seed=3)
    right = u * x.cos()
    power = check(torch.sin, x, claimed={"x0": right}, cotangents={"out0": u}).detection_power
    for place in (right.abs() >= right.abs().median()).nonzero().flatten().tolist():
        wrong = right.clone()
        wrong[place] *= 1 + 10 * power
        assert check(torch.sin, x, claimed={"x0": wrong}, cotangents={"out0": u}).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("error", "bar", "scale", "verdict"),
    [
        (1e-9, 1e-8, 1.0, Verdict.PASS),
        (1e-7, 1e-8, 1.0, Verdict.FAIL),
        (math.nan, 1e-8, 1.0, Verdict.FAIL),
        (math.inf, 1e-8, 1.0, Verdict.FAIL),
        (1e-9, 1e-5, 1.0, Verdict.INCONCLUSIVE),
        (0.0, math.inf, 1.0, Verdict.INCONCLUSIVE),
        (0.0, 0.0, 0.0, Verdict.PASS),
    ],
)
def test_the_one_rule(error, bar, scale, verdict):
    """FAIL unless within the bound; PASS where the bound is narrow enough; NaN fails."""
    figures = [torch.tensor([one], dtype=torch.float64) for one in (error, bar, 0.0, scale)]
    assert tolerances.judge(*figures).verdict is verdict


# ---- Bad input


@pytest.mark.parametrize(
    ("claimed", "reason", "message"),
    [
        ({"z": torch.zeros(3)}, "INVALID_SELECTION", 'claimed: the graph has no input "z"; inputs: "x", "k"'),
        (
            {"x": torch.zeros(2, dtype=F64)},
            "INVALID_TENSOR",
            'claimed: the gradient of input "x" has shape [3], got a tensor of shape [2]',
        ),
        (
            {"x": torch.zeros(3, dtype=torch.int64)},
            "INVALID_TENSOR",
            'claimed: the gradient of input "x" is float64, got int64',
        ),
        (
            {"k": torch.zeros(3, dtype=F64)},
            "INVALID_SELECTION",
            'claimed: input "k" was declared with requires_grad=False and has no gradient to claim',
        ),
    ],
)
def test_bad_claims_are_refused(claimed, reason, message):
    """A claim for what has no gradient, or of another shape or dtype, is no verdict but a fault of the request."""
    nodes = [node("p", "mul.Tensor", "%x", "%k"), node("y", "sum.default", "%p")]
    made = build([InputSpec("x"), InputSpec("k", False)], nodes, "y")
    with pytest.raises(Fault) as caught:
        checked(made, {"x": draw(3), "k": draw(3)}, claimed)
    assert (caught.value.reason, caught.value.message) == (reason, message)


def test_claims_need_cotangents_where_outputs_are_no_scalars():
    """Without a cotangent a claim for a vector's gradient has no meaning; the message is torch's own."""
    with pytest.raises(Fault, match="grad can be implicitly created only for scalar outputs"):
        check(torch.sin, draw(3), claimed={"x0": draw(3)})


def test_an_output_without_elements():
    """There is nothing to differentiate, and nothing wrong."""
    assert check(lambda x: x[:0], draw(3)).verdict is Verdict.PASS
    assert check(lambda x: (x[:0], x.sin()), draw(3)).verdict is Verdict.PASS


@pytest.mark.parametrize("claim", [0.0, 3.0, float("nan")])
def test_a_claim_for_an_output_that_has_no_gradient_is_not_passed(claim):
    """Of comparisons and indices, which are no floating numbers."""
    for function in (lambda x: x > 0, lambda x: x.argmax()):
        report = check(function, draw(3), claimed={"x": torch.full((3,), claim, dtype=F64)})
        assert report.verdict is Verdict.NON_DIFFERENTIABLE
        assert report.inputs[0].explanation.startswith("No output is a floating or complex tensor: ")


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e9])
def test_figures_are_of_the_gradient_whatever_the_size_of_the_input(size):
    """Of an element that is moved alone, and not of a step that is relative to it."""
    (found,) = check(lambda x: x**2, torch.tensor([size], dtype=F64)).inputs
    assert 1e-10 * 2 * size < found.error_bound < 1e-8 * 2 * size
    assert found.max_error <= found.error_bound
    (found,) = check(lambda x: 1e12 * size + x, torch.tensor([size], dtype=F64)).inputs
    assert found.verdict is Verdict.INCONCLUSIVE
    assert 1e-6 < found.error_bound < 1
    assert f"known to {found.error_bound:.2g} only" in found.explanation

"""Gradients while other inputs are frozen, and of single outputs, the others having no cotangent."""

from __future__ import annotations

import math

import pytest
import torch
import torch.utils.checkpoint
from check_cases import F64, check

import gradoracle as go
from gradoracle_server.engine.report import Mode, Verdict

A, B = torch.tensor([0.3, -0.7, 1.1], dtype=F64), torch.tensor([0.9, 0.4, -1.3], dtype=F64)


def product(gradients):
    """a * b, whose backward is `gradients` of which of the two are wanted, a, b, and the cotangent."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, cotangent):
            return gradients(ctx.needs_input_grad, *ctx.saved_tensors, cotangent)

    return Product.apply


def masked(wanted, a, b, g):
    return g * b if wanted[0] else None, g * a if wanted[1] else None


def nested(wanted, a, b, g):
    """Without the first, the second is forgotten."""
    return (g * b, g * a if wanted[1] else None) if wanted[0] else (None, None)


def shifted(wanted, a, b, g):
    """What is wanted comes first, wherever it belongs."""
    found = [one for one, yes in zip((g * b, g * a), wanted, strict=True) if yes]
    return (*found, *[g for _ in range(2 - len(found))])


def asking(wanted, a, b, g):
    """What it has saved says whether a is frozen."""
    return g * b, g * a if a.requires_grad else None


def raising(wanted, a, b, g):
    if not all(wanted):
        raise IndexError("one gradient is missing")
    return g * b, g * a


def named(report):
    return {one.name: one for one in report.opinions}


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.complex128])
def test_a_backward_that_leaves_out_what_is_not_wanted_passes(dtype):
    def conjugated(wanted, a, b, g):
        return masked(wanted, a.conj(), b.conj(), g)

    report = check(product(conjugated), A.to(dtype), B.to(dtype))
    assert report.verdict is Verdict.PASS
    assert named(report)["frozen"].verdict is Verdict.PASS


@pytest.mark.parametrize(("gradients", "wrong"), [(nested, ["x1"]), (shifted, ["x1"]), (raising, ["x0", "x1"])])
def test_a_backward_that_is_wrong_where_an_input_is_frozen(gradients, wrong):
    """It is right while all are on trial, as gradcheck asks it."""
    inputs = [one.clone().requires_grad_() for one in (A, B)]
    assert torch.autograd.gradcheck(product(gradients), inputs)
    report = check(product(gradients), A, B)
    assert [one.name for one in report.inputs if one.verdict is Verdict.FAIL] == wrong
    assert {one.name for one in report.opinions if one.verdict is Verdict.FAIL} == {"frozen"}
    text = "It depends on what else is wanted: where other inputs are frozen, the gradient must be the same"
    assert report.inputs[1].explanation.startswith(text)
    assert report.inputs[1].max_error > 0.1
    told = '; by "x0" alone it raised: one gradient is missing.' if gradients is raising else "."
    assert report.inputs[1].explanation == text + told


def test_it_is_asked_of_what_runs_in_the_callers_process_and_by_gradcheck():
    """In the caller's own tensors, which are as before."""
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    report = go.check(product(nested), a, b)
    assert {one.name for one in report.opinions if one.verdict is go.Verdict.FAIL} == {"frozen"}
    assert go.check(product(masked), a, b).verdict is go.Verdict.PASS
    with pytest.raises(go.GradcheckError, match=r"FAIL {2}frozen: where other inputs are frozen"):
        go.gradcheck(product(nested), (a, b))
    assert go.gradcheck(product(masked), (a, b)) is True
    assert a.requires_grad
    assert b.requires_grad


def test_inputs_that_are_many_are_frozen_in_groups():
    """A backward that is wrong unless the last two of twenty are wanted, of which each is in another group."""

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return torch.stack(inputs).sum(0)

        @staticmethod
        def backward(ctx, cotangent):
            wanted = ctx.needs_input_grad
            return tuple(cotangent * (1.0 if wanted[-1] and wanted[-2] else 0.5) for _ in wanted)

    before = check(Sum.apply, *[A * k for k in range(1, 9)])
    report = check(Sum.apply, *[A * k for k in range(1, 21)])
    for one in (before, report):
        assert all(one.verdict is Verdict.FAIL for one in one.inputs)
        assert named(one)["frozen"].verdict is Verdict.FAIL


def test_one_input_alone_is_not_asked():
    assert "frozen" not in named(check(torch.sin, A))


def test_a_function_that_differentiates_itself():
    """It cannot be asked where it raises for what requires no grad."""

    def slope(a, b):
        found = torch.autograd.grad((a**3 * b).sum(), (a, b), create_graph=True)
        return product(masked)(*found)

    report = go.check(slope, A.clone().requires_grad_(), B.clone().requires_grad_())
    assert report.verdict is go.Verdict.PASS
    opinion = named(report)["frozen"]
    assert opinion.verdict is go.Verdict.INCONCLUSIVE
    assert "which cannot be asked: " in opinion.explanation
    assert "does not require grad" in opinion.explanation


def test_a_function_that_is_another_one_where_an_input_is_frozen():
    def both(a, b):
        return product(masked)(a, b) if a.requires_grad and b.requires_grad else product(masked)(a, b) + 1

    report = go.check(both, A.clone().requires_grad_(), B.clone().requires_grad_())
    assert named(report)["frozen"].explanation.endswith("its outputs are others then, if only in their last places")
    assert report.verdict is go.Verdict.PASS


def test_all_inputs_but_one_are_asked_for_in_full_mode():
    """A backward that is wrong only while the last of three is frozen, and the others are not."""

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b, c):
            return a + b + c

        @staticmethod
        def backward(ctx, cotangent):
            off = 2.0 if ctx.needs_input_grad == (True, True, False) else 1.0
            return off * cotangent, cotangent, cotangent

    full = check(Sum.apply, A, B, A * B, mode=Mode.FULL)
    assert [one.verdict for one in full.inputs] == [Verdict.FAIL, Verdict.PASS, Verdict.PASS]
    assert check(Sum.apply, A, B, A * B).verdict is Verdict.PASS


def leaves():
    return A.clone().requires_grad_(), B.clone().requires_grad_()


def test_a_checkpoint_is_run_again_with_the_same_inputs_frozen():
    """Its backward compares what it makes with what it made."""

    def checkpointed(a, b):
        return torch.utils.checkpoint.checkpoint(lambda p, q: (p.sin() * q.cos()).exp() * q, a, b, use_reentrant=False)

    assert go.gradcheck(checkpointed, leaves()) is True
    assert go.check(checkpointed, *leaves()).verdict is go.Verdict.PASS


@pytest.mark.parametrize("mode", ["float32", "cast", "no leaf", "saved"])
def test_gradcheck_finds_it_in_whatever_it_is_given(mode):
    wrong = product(asking if mode == "saved" else nested)
    a, b = leaves()
    function = wrong
    if mode in ("float32", "cast"):
        a, b = (one.detach().float().requires_grad_() for one in (a, b))
        function = (lambda a, b: wrong(a.float(), b.float())) if mode == "cast" else wrong
    given = (a * 1, b * 1) if mode == "no leaf" else (a, b)
    with pytest.raises(go.GradcheckError, match="frozen: where other inputs are frozen"):
        go.gradcheck(function, given)
    assert given[0].requires_grad
    assert given[0].is_leaf is (mode != "no leaf")


def test_no_tolerance_forgives_it():
    """That of a gradient which is off by a little is none for one that is forgotten."""

    def both(wanted, a, b, g):
        first, second = nested(wanted, a, b, g)
        return first, None if second is None else second * 1.0001

    with pytest.raises(go.GradcheckError, match="frozen"):
        go.gradcheck(product(both), leaves(), atol=1e-2)


def test_a_function_that_returns_less_where_an_input_is_frozen():
    def penalized(a, b):
        value = product(masked)(a, b)
        return value, a.sum() if a.requires_grad else None

    report = go.check(penalized, *leaves())
    assert report.verdict is go.Verdict.PASS
    opinion = named(report)["frozen"]
    assert opinion.verdict is go.Verdict.INCONCLUSIVE
    assert opinion.explanation.endswith("which cannot be asked: it has 1 outputs then, not 2")


def test_what_a_function_raises_while_an_input_is_frozen_is_told():
    def stern(a, b):
        if not (a.requires_grad and b.requires_grad):
            raise ValueError("both must require grad.")
        return product(masked)(a, b)

    opinion = named(go.check(stern, *leaves()))["frozen"]
    assert opinion.verdict is go.Verdict.INCONCLUSIVE
    assert opinion.explanation.endswith("which cannot be asked: both must require grad")


def test_what_is_written_into_a_frozen_leaf():
    """As torch forbids for one that is not; the caller's is a leaf afterwards, with its numbers."""

    def written(a, b):
        return a * b if a.requires_grad else a.mul_(b)

    a, b = leaves()
    go.gradcheck(written, (a, b))
    assert a.is_leaf
    assert a.requires_grad
    assert torch.equal(a.detach(), A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_another_kernel_for_frozen_inputs_is_no_fault(dtype, seed):
    """torch's attention has one where the mask requires no grad."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = ((4 * torch.randn(1, 2, 5, 4, generator=generator)).to(dtype) for _ in range(3))
    mask = torch.randn(5, 5, generator=generator).to(dtype)
    attention = torch.nn.functional.scaled_dot_product_attention
    report = check(lambda q, k, v, mask: attention(q, k, v, attn_mask=mask), q, k, v, mask)
    assert named(report)["frozen"].verdict is not Verdict.FAIL


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.PASS), (1.01, Verdict.INCONCLUSIVE), (0, Verdict.FAIL)])
def test_what_casts_on_its_way_may_be_rounded_otherwise_then(factor, verdict):
    """There is nothing that rounds alike to ask. Nothing at all is no rounding."""

    def rounded(wanted, a, b, g):
        return g * b, g * a * (1.0 if wanted[0] else factor)

    times = product(rounded)
    report = check(lambda a, b: times(a.bfloat16(), b.bfloat16()), A.float(), B.float())
    opinion = named(report)["frozen"]
    assert opinion.verdict is verdict
    told = ", which cannot be asked: in this precision another gradient may be rounding of another kernel"
    assert opinion.explanation.endswith(told) is (verdict is Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("seed", range(12))
def test_nor_where_a_function_casts_on_its_way(seed):
    """It has no float64 shadow that is itself."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [(4 * torch.randn(1, 2, 5, 4, generator=generator)).requires_grad_() for _ in range(3)]
    inputs.append(torch.randn(5, 5, generator=generator).requires_grad_())
    attention, same = torch.nn.functional.scaled_dot_product_attention, product(masked)

    def function(q, k, v, mask):
        q, k, v, mask = (one.bfloat16() for one in (q, k, v, mask))
        found = attention(q, k, v, attn_mask=mask)
        return same(found, torch.ones_like(found))

    report = go.check(function, *inputs)
    assert named(report)["frozen"].verdict is not go.Verdict.FAIL


# ---- Outputs


def pair(gradient):
    """x**2 and sin(x), whose backward is `gradient` of x and the two cotangents, None where there is none."""

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x)
            return x * x, x.sin()

        @staticmethod
        def backward(ctx, g, h):
            return gradient(*ctx.saved_tensors, g, h)

    return Pair.apply


def careful(x, g, h):
    terms = [one * slope for one, slope in ((g, 2 * x), (h, x.cos())) if one is not None]
    return sum(terms)


def hurried(x, g, h):
    """What is there is passed on as it is."""
    return h if g is None else g if h is None else careful(x, g, h)


def careless(x, g, h):
    return 2 * x * g + x.cos() * h


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
def test_a_backward_that_takes_single_cotangents_passes(dtype):
    report = check(pair(careful), A.to(dtype))
    assert report.verdict is Verdict.PASS
    assert named(report)["linear_outputs"].verdict is Verdict.PASS


@pytest.mark.parametrize(("gradient", "error"), [(hurried, 0.1), (careless, math.inf)])
def test_a_backward_that_is_wrong_for_single_cotangents(gradient, error):
    report = check(pair(gradient), A)
    assert {one.name for one in report.opinions if one.verdict is Verdict.FAIL} == {"linear_outputs"}
    text = "It is not linear in its cotangent: what some outputs give, the others having no cotangent, must be what"
    assert report.inputs[0].explanation.startswith(text)
    assert report.inputs[0].max_error >= error
    assert ("without one it raised: unsupported operand" in report.inputs[0].explanation) == (gradient is careless)


def shortened(x, g, h):
    """Wrong where the second is 0, which zeros for no cotangent are, too."""
    return 3 * x * g if h is None or not bool(h.any()) else careful(x, g, h)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_parts_that_do_not_add_up_are_wrong_whatever_zeros_give(dtype):
    function = pair(shortened)
    report = check(function, A.to(dtype))
    assert report.verdict is Verdict.FAIL
    (found,) = [one for one in report.opinions if one.verdict is Verdict.FAIL]
    assert found.name == "linear_outputs"
    text = "what single outputs give, the others having no cotangent, must add up to what all give together"
    assert found.explanation == text


def test_outputs_that_have_no_gradient_by_themselves():
    """As singular vectors of complex matrices, whose phases only both together are free of: it raises for zeros, too,
    so that undefined cotangents are not the reason."""

    def both(x, g, h):
        if g is None or h is None or not bool(g.any()) or not bool(h.any()):
            raise RuntimeError("this depends on the phase")
        return careful(x, g, h)

    report = check(pair(both), A)
    opinion = named(report)["linear_outputs"]
    assert opinion.verdict is Verdict.INCONCLUSIVE
    assert opinion.explanation.endswith(", which cannot be asked: this depends on the phase")


@pytest.mark.parametrize("seed", range(5))
def test_rounding_that_cancels_in_the_sum_of_outputs_is_no_fault(seed):
    """Each of them has a large multiple of a function that is 1."""

    def function(x):
        one = x.softmax(0).sum()
        return x.sin().sum() + 1000 * one, x.cos().sum() - 999 * one

    x = torch.randn(7, generator=torch.Generator().manual_seed(seed))
    assert named(check(function, x))["linear_outputs"].verdict is Verdict.PASS


def test_what_cannot_be_asked_with_zeros_is_not_said_to_be_wrong():
    """Other numbers for none, and an error for zeros."""

    def strict(x, g, h):
        if any(one is not None and not bool(one.any()) for one in (g, h)):
            raise RuntimeError("a cotangent is zero.")
        return careful(x, g, h) * (1 + 1e-5 * (g is None))

    opinion = named(check(pair(strict), A))["linear_outputs"]
    assert opinion.verdict is Verdict.INCONCLUSIVE
    assert opinion.explanation.endswith(", which cannot be asked: a cotangent is zero")


def test_one_output_alone_is_not_asked():
    report = check(pair(hurried), A, cotangents={"out1": torch.ones(3, dtype=F64)})
    assert "linear_outputs" not in named(report)

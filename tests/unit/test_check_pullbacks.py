"""Pull-backs beside the first: a second one of the same run, and cotangents that lie otherwise in memory."""

from __future__ import annotations

import math

import pytest
import torch
from check_cases import F64, check, planted

from gradoracle_server.engine.report import Mode, Verdict

X = torch.tensor([[0.3, -0.7, 1.1, 0.2], [0.9, 0.4, -1.3, 0.6], [-0.2, 0.8, 0.5, -0.9]], dtype=F64)


class Exponential(torch.autograd.Function):
    """Keeps its value for the backward pass, of which `once` says what it makes of it."""

    @staticmethod
    def forward(ctx, x, once):
        ctx.kept, ctx.once = x.exp(), once
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return ctx.once(ctx, cotangent), None


def scaled(ctx, cotangent):
    """As fused losses do, which save memory so."""
    ctx.kept.mul_(cotangent)
    return ctx.kept.clone()


def scaled_and_given(ctx, cotangent):
    ctx.kept.mul_(cotangent)
    return ctx.kept


def counted(ctx, cotangent):
    factor, ctx.before = (2.0 if hasattr(ctx, "before") else 1.0), True
    return factor * cotangent * ctx.kept


@pytest.mark.parametrize("mode", [Mode.PROBE, Mode.FULL])
@pytest.mark.parametrize("once", [scaled, scaled_and_given, counted])
def test_a_backward_that_spoils_its_run_is_not_deterministic(once, mode):
    """Its first gradient is right, and any later one of the same run is not."""
    report = check(lambda x: Exponential.apply(x, once), X, mode=mode)
    assert report.verdict is Verdict.NON_DETERMINISTIC
    text = "A second pull-back of the same run, as retain_graph=True allows, gave other gradients."
    assert report.inputs[0].explanation == text


def test_what_a_second_pull_back_raises_is_told():
    def freed(ctx, cotangent):
        kept = ctx.kept
        ctx.kept = None
        return cotangent * kept

    report = check(lambda x: Exponential.apply(x, freed), X)
    assert report.verdict is Verdict.NON_DETERMINISTIC
    start = "A second pull-back of the same run, as retain_graph=True allows, raised: "
    assert report.inputs[0].explanation.startswith(start)


def test_a_backward_that_keeps_its_run_passes():
    report = check(lambda x: Exponential.apply(x, lambda ctx, cotangent: cotangent * ctx.kept), X)
    assert report.verdict is Verdict.PASS


def in_memorys_order(cotangent):
    """What a kernel reads that takes a tensor without gaps for one in the usual order."""
    if cotangent.is_contiguous() or cotangent.untyped_storage().nbytes() != cotangent.nbytes:
        return cotangent
    return cotangent.as_strided(cotangent.shape, torch.empty(cotangent.shape, device="meta").stride())


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2)])
@pytest.mark.parametrize("read", [in_memorys_order, lambda cotangent: cotangent])
def test_a_transposed_cotangent_that_is_misread(read, shape):
    kernel = planted(torch.sin, lambda inputs, cotangent, right: (read(cotangent) * inputs[0].cos(),))
    report = check(kernel, X.reshape(shape))
    failed = {one.name for one in report.opinions if one.verdict is Verdict.FAIL}
    if read is in_memorys_order:
        assert report.verdict is Verdict.FAIL
        assert failed == {"linear_transposed"}
    else:
        assert report.verdict is Verdict.PASS
        assert "linear_transposed" in {one.name for one in report.opinions}


class Counting(torch.autograd.Function):
    """x^3, whose pull-backs of one run are numbered; `wrong` says which of them are half too large."""

    @staticmethod
    def forward(ctx, x, wrong):
        ctx.save_for_backward(x)
        ctx.pulled, ctx.wrong = 0, wrong
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        ctx.pulled += 1
        return 3 * cotangent * x * x * (1.5 if ctx.wrong(ctx.pulled) else 1.0), None


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "wrong",
    [lambda number: number == 2, lambda number: number % 2 == 0, lambda number: number % 3 == 2],
    ids=["the second", "every other", "a ring of three buffers"],
)
def test_a_pull_back_that_was_wrong_is_not_asked_again_until_it_is_right(wrong, mode):
    report = check(lambda x: Counting.apply(x, wrong), X, mode=mode)
    assert report.verdict is Verdict.NON_DETERMINISTIC
    text = "A second pull-back of the same run, as retain_graph=True allows, gave other gradients."
    assert [one.explanation for one in report.inputs] == [text]
    assert check(lambda x: Counting.apply(x, lambda number: False), X, mode=mode).verdict is Verdict.PASS


# ---- Cotangents of another size


def clipped(inputs, u, right):
    """As training code clips gradients, in the wrong place."""
    return tuple(one.clamp(-100, 100) for one in right)


def halved(inputs, u, right):
    """A backward that goes through half precision, and has no room for a loss scale."""
    return tuple(torch.where(one.abs() > 65504, torch.inf, one) for one in right)


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_the_size_of_the_cotangent_does_not_matter(dtype, shape):
    x = X.reshape(shape).to(dtype)
    report = check(planted(torch.exp, clipped), x)
    assert report.verdict is Verdict.FAIL
    assert {one.name for one in report.opinions if one.verdict is Verdict.FAIL} == {"linear_scaled"}
    (found,) = report.inputs
    said = "It is not linear in its cotangent: the size of the cotangent must not matter but as a factor."
    assert found.explanation == said
    passing = check(torch.exp, x)
    assert passing.verdict is Verdict.PASS
    assert {one.name: one.verdict for one in passing.opinions}["linear_scaled"] is Verdict.PASS


def test_what_leaves_the_range_of_numbers_by_size_alone_is_no_fault():
    """Of float32 times 1,024; and what goes through half precision keeps its range."""
    x = torch.tensor([80.0, 81.0], dtype=torch.float32)
    assert check(torch.exp, x).verdict is Verdict.PASS
    report = check(planted(torch.exp, halved), X)
    assert report.verdict is Verdict.PASS


def refused(inputs, u, right):
    """A guard against exploding gradients, inside of a formula."""
    if bool((u.abs() > 100).any()):
        raise RuntimeError("the gradient explodes")
    return right


def test_a_backward_that_raises_for_large_cotangents_alone():
    report = check(planted(torch.exp, refused), X)
    assert report.verdict is Verdict.FAIL
    (scaled,) = [one for one in report.opinions if one.name == "linear_scaled"]
    start = "the size of the cotangent must not matter but as a factor; it raised: "
    assert scaled.explanation.startswith(start)
    assert scaled.explanation.endswith("the gradient explodes")


def test_multiples_beyond_the_range_of_numbers_cannot_be_asked():
    """Of a gradient of 1e35 times 1,024 in float32."""
    x = torch.tensor([83.0, 84.0], dtype=torch.float32)
    report = check(torch.exp, x)
    assert report.verdict is Verdict.PASS
    (scaled,) = [one for one in report.opinions if one.name == "linear_scaled"]
    assert scaled.verdict is Verdict.INCONCLUSIVE
    assert scaled.explanation.endswith(", which cannot be asked: its multiples leave the range of numbers")


def test_float16_has_no_room_for_other_sizes():
    report = check(torch.exp, X.half())
    assert report.verdict is Verdict.PASS
    assert "linear_scaled" not in {one.name for one in report.opinions}


# ---- Layouts in which cotangents come back


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 4), lambda g: g.t().is_contiguous()),
        ((2, 3, 4), lambda g: g.transpose(1, 2).is_contiguous()),
        ((2, 3, 4, 5), lambda g: g.is_contiguous(memory_format=torch.channels_last)),
        ((2, 3, 2, 4, 5), lambda g: g.is_contiguous(memory_format=torch.channels_last_3d)),
        ((2, 3, 2, 2, 2, 2), lambda g: g.permute(5, 4, 3, 2, 1, 0).is_contiguous()),
    ],
    ids=["a matrix transposed", "heads", "channels last", "channels last in 3d", "six axes reversed"],
)
def test_a_kernel_that_is_wrong_for_one_layout_alone(shape, layout):
    """A fast path for memory as it often comes."""

    def fast(inputs, u, right):
        return (right[0] * (1.1 if layout(u) and not u.is_contiguous() else 1.0),)

    x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
    report = check(planted(torch.exp, fast), x)
    assert report.verdict is Verdict.FAIL
    assert {one.name for one in report.opinions if one.verdict is Verdict.FAIL} == {"linear_transposed"}
    assert check(torch.exp, x).verdict is Verdict.PASS


@pytest.mark.parametrize("shape", [(8, 5, 1), (8, 3, 1, 1), (8, 1, 4, 4), (4, 1, 2, 2, 2)])
def test_axes_of_one_element_are_in_no_order(shape):
    """Channels last is the usual order there."""
    x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
    kernel = planted(torch.sin, lambda inputs, cotangent, right: (in_memorys_order(cotangent) * inputs[0].cos(),))
    report = check(kernel, x)
    assert {one.name for one in report.opinions if one.verdict is Verdict.FAIL} == {"linear_transposed"}


class Keeping(torch.autograd.Function):
    """Writes each gradient into the same memory, which it hands out."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.memory = torch.empty_like(x)
        return x.sin()

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return ctx.memory.copy_(cotangent * x.cos())


def test_gradients_that_share_their_memory_are_right_when_they_are_given():
    assert check(Keeping.apply, X).verdict is Verdict.PASS

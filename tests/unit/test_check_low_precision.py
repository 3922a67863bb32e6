"""Gradients in low precision: what rounding allows hides no gross fault, however many elements there are."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64, check, planted

import gradoracle as go
from gradoracle_server.engine.products import Products
from gradoracle_server.engine.report import Diagnosis, Verdict

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
LOW = pytest.mark.parametrize("dtype", [F32, BF16, F16])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# ---- Many elements


@pytest.mark.parametrize(
    ("dtype", "size", "factor"),
    [(BF16, 100_000, -1.0), (BF16, 10_000, 2.0), (BF16, 400, 1.3), (F16, 50_000, 1.1), (F32, 50_000, 1 + 1e-5)],
)
def test_a_factor_is_seen_however_many_elements_there_are(dtype, size, factor):
    """The bound of a direction grew as the number of elements, and what is off along it as the root of that."""
    x = draw(size, dtype=dtype)
    assert check(planted(torch.tanh, lambda inputs, cotangent, right: right), x).verdict is Verdict.PASS
    wrong = planted(torch.tanh, lambda inputs, cotangent, right: factor * right[0])
    for seed in range(3):
        assert check(wrong, x, seed=seed).verdict is Verdict.FAIL


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_a_part_of_zeros_is_seen_among_hundreds(dtype):
    """A ninth of the elements, of a backward that leaves out a row."""

    def one_less(inputs, cotangent, right):
        found = right[0].clone()
        found[-1] = 0
        return found

    x = draw(9, 48, dtype=dtype)
    for seed in range(8):
        assert check(planted(torch.sin, one_less), x, seed=seed).verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_what_products_come_to_at_the_most(size):
    """Of independent signs; of one element it is what it was."""
    generator = torch.Generator().manual_seed(size)
    gradient = torch.rand(size, dtype=F64, generator=generator)
    signs = torch.randint(0, 2, (20_000, size), generator=generator, dtype=torch.int8).to(F64) * 2 - 1
    found = Products.of(gradient, signs)
    assert (found.sum.abs() <= found.most).all()
    assert (found.most <= found.total).all()
    assert bool((found.most < found.total / 3).all()) == (size == 1000)
    assert torch.equal(Products.alone(gradient, gradient).most, gradient * gradient)


# ---- Backwards that cast what they get


def casting(forward, derivative, factor=1.0):
    """x -> forward(x), whose backward computes in float32."""

    class Casting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return (cotangent * factor * derivative(x.float())).to(x.dtype)

    return Casting.apply


def matmul(factor=1.0):
    class Matmul(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            return (factor * (g.float() @ b.float().mT)).to(a.dtype), (a.float().mT @ g.float()).to(b.dtype)

    return Matmul.apply


CASTS = {
    "tanh": (torch.tanh, lambda x: 1 - x.tanh() ** 2),
    "gaussian": (lambda x: torch.exp(-x * x), lambda x: -2 * x * torch.exp(-x * x)),
    "log": (lambda x: x.abs().log(), lambda x: 1 / x),
}


@LOW
@pytest.mark.parametrize("name", CASTS)
def test_a_backward_that_casts_is_right(name, dtype):
    """Its float64 shadow rounds to float32 all the same, by more than slopes allow."""
    forward, derivative = CASTS[name]
    for seed in range(4):
        report = check(casting(forward, derivative), draw(12, seed=seed, dtype=dtype))
        assert report.verdict is Verdict.PASS, (seed, report.inputs[0].explanation)


@LOW
def test_a_kernel_that_casts_is_right_in_the_callers_process(dtype):
    a, b = draw(4, 8, dtype=dtype).requires_grad_(), draw(8, 3, seed=1, dtype=dtype).requires_grad_()
    assert go.check(matmul(), a, b).passed
    assert go.check(matmul(1 + 64 * torch.finfo(dtype).eps), a, b).verdict is go.Verdict.FAIL


@LOW
def test_a_backward_that_casts_can_be_wrong(dtype):
    forward, derivative = CASTS["tanh"]
    wrong = casting(forward, derivative, 1 + 64 * torch.finfo(dtype).eps)
    report = check(wrong, draw(12, dtype=dtype))
    assert report.verdict is Verdict.FAIL


def test_a_backward_that_casts_is_wrong_in_float64():
    """There it loses digits that were asked for."""
    forward, derivative = CASTS["tanh"]
    assert check(casting(forward, derivative), draw(12, dtype=F64)).verdict is Verdict.FAIL


# ---- Claims, all of whose elements are off by a little


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.bfloat16, 1.1), (torch.float16, 1.02), (torch.float32, 1 + 1e-5), (torch.bfloat16, 1)]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_claim_that_is_a_little_too_large_everywhere(dtype, factor, seed):
    """Each element is within what rounding may do to one, and not all of them are."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 4, generator=generator, dtype=F64).to(dtype) for _ in range(2))

    def function(a, b):
        return (a @ b).sin().sum()

    tracked = a.clone().requires_grad_()
    (right,) = torch.autograd.grad(function(tracked, b), tracked)
    report = check(function, a, b, claimed={"a": right * factor})
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)


# ---- Single elements of many


@pytest.mark.parametrize(("rows", "fault"), [(20, 1e-4), (40, 1e-3), (100, 3e-3)])
def test_one_element_of_many_is_not_what_rounding_does_to_all(rows, fault):
    """What rounding may do to every element along a direction is hundreds of times what it may do to one."""
    place = rows // 2, rows // 3

    def off(inputs, u, right):
        (found,) = right
        found = found.clone()
        found[place] *= 1 + fault
        return (found,)

    x = draw(rows, rows)
    softmax = planted(lambda x: x.softmax(-1), off)
    report = check(softmax, x, cotangents={"out0": draw(rows, rows, seed=1)})
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].worst[0].index == place
    right = planted(lambda x: x.softmax(-1), lambda inputs, u, right: right)
    assert check(right, x, cotangents={"out0": draw(rows, rows, seed=1)}).verdict is Verdict.PASS


# ---- Functions that cancel at the point


@LOW
@pytest.mark.parametrize("size", [1.0, 3.0])
@pytest.mark.parametrize(
    "function",
    [lambda x: 1 - x.cos(), lambda x: (1 + x * x).sqrt() - 1, lambda x: x.cosh().log()],
    ids=["1 - cos", "pseudo-Huber", "log cosh"],
)
def test_a_value_that_is_all_rounding_is_no_other_function(function, size, dtype):
    """Its gradient is right to the last places, though nothing is left of the value itself."""
    x = draw(8, dtype=dtype) * {F32: 1e-4, BF16: 1e-2, F16: 1e-2}[dtype] * size
    assert check(function, x).verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    wrong = planted(function, lambda inputs, u, right: (-right[0],))
    assert check(wrong, x).verdict is Verdict.FAIL


# ---- What answers to other cotangents, and to tangents, may be off by


def test_several_cotangents_at_once_may_be_off_by_what_one_may():
    x = draw(20, 30, seed=1)
    report = check(lambda x: torch.linalg.matrix_exp(0.1 * (x @ x.T)), x, batched_gradients=True)
    assert {one.name: one.verdict for one in report.opinions}["batched"] is Verdict.PASS


@pytest.mark.parametrize("seed", range(3))
@LOW
def test_forward_mode_may_be_off_by_what_rounding_does_to_the_gradient(dtype, seed):
    """Of a softmax of large numbers more than a few last places."""
    report = check(lambda x: torch.softmax(x / 0.01, -1), draw(4, 8, dtype=dtype, seed=seed), forward_mode=True)
    assert {one.name: one.verdict for one in report.opinions}["forward_mode"] is Verdict.PASS


def test_a_gradient_that_is_nothing_beside_the_function_has_a_verdict():
    """It is judged along the axes, of which the directions before know nothing."""
    report = check(lambda x: torch.softmax(x / 0.01, -1), 4 * draw(7, 30, seed=2))
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)


# ---- What is wrong in many elements


@pytest.mark.parametrize("dtype", [F32, BF16, torch.complex128, torch.complex64])
@pytest.mark.parametrize(
    ("factor", "diagnosis"), [(2.0, Diagnosis.SCALED), (0.5, Diagnosis.SCALED), (-1.0, Diagnosis.SIGN_FLIPPED)]
)
def test_a_factor_has_its_name_whatever_the_precision(factor, diagnosis, dtype):
    """Slopes along a few directions tell, where elements are too many to be moved alone."""
    parts = torch.complex128 if dtype.is_complex else F64
    x = torch.randn(20, 30, dtype=parts, generator=torch.Generator().manual_seed(0)).to(dtype)
    (found,) = check(planted(lambda x: x**3, lambda inputs, u, right: (factor * right[0],)), x).inputs
    assert found.diagnosis is diagnosis
    assert factor == -1.0 or abs(found.factor - factor) < 1e-2


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_a_conjugate_has_its_name_among_many_elements(dtype):
    x = torch.randn(20, 30, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).to(dtype)
    (found,) = check(planted(lambda x: x**3, lambda inputs, u, right: (right[0].conj().resolve_conj(),)), x).inputs
    assert found.diagnosis is Diagnosis.CONJUGATED


# ---- float16 inside, and beyond its range


@pytest.mark.parametrize("seed", range(3))
def test_half_precision_inside_may_lose_small_cotangents(seed):
    """As autocast does, for which training scales its losses up."""
    target = draw(256, 4, seed=seed)

    def loss(x, first, second):
        with torch.autocast("cpu", dtype=F16):
            y = torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(x, first)), second)
        return torch.nn.functional.mse_loss(y.float(), target)

    report = check(loss, draw(256, 16, seed=10 + seed), draw(32, 16, seed=1) / 10, draw(4, 32, seed=2) / 10)
    assert {one.name: one.verdict for one in report.opinions}["linear_scaled"] is Verdict.PASS


def test_a_backward_that_is_wrong_where_twice_as_much_overflows():
    x = draw(3, 4, dtype=F16)
    ones = {"out0": torch.ones(3, 4, dtype=F16)}

    def misread(inputs, u, right):
        return (right[0] if u.is_contiguous() else right[0].flip(0) * 0.5,)

    assert check(planted(lambda x: x * 40000, misread), x / 8, cotangents=ones).verdict is Verdict.FAIL
    assert check(lambda x: x * 40000, x / 8, cotangents=ones).verdict is not Verdict.FAIL


def test_points_nearby_that_a_function_refuses_tell_forward_mode_nothing():
    """A probability of 1 has no neighbour above."""

    class Entropy(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return torch.nn.functional.binary_cross_entropy(x, torch.ones_like(x), reduction="none")

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, cotangent):
            return -cotangent / ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx, tangent):
            return -2 * tangent / ctx.saved_tensors[0]

    x = torch.tensor([0.5, 1.0, 0.25], dtype=F32)
    report = check(Entropy.apply, x, forward_mode=True)
    assert {one.name: one.verdict for one in report.opinions}["forward_mode"] is Verdict.FAIL


@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("factor", [0.0, 3.0, 1.001])
def test_forward_mode_is_held_to_more_than_what_is_left_of_nothing(factor, size):
    class Pushed(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.exp()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(output)
            ctx.save_for_forward(output)

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx, tangent):
            return factor * tangent * ctx.saved_tensors[0]

    report = check(Pushed.apply, size * draw(8), forward_mode=True)
    assert {one.name: one.verdict for one in report.opinions}["forward_mode"] is Verdict.FAIL

"""gradcheck and gradgradcheck beside torch's own, over the uses that test-suites make of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradcheck_cases import MISSED, RIGHT, RIGHT_TWICE, leaf, wrong
from torch.autograd.gradcheck import GradcheckError as TorchGradcheckError

import gradoracle as go

pytestmark = pytest.mark.usefixtures("one_thread")


def torchs(check: Callable[..., bool], *args: Any, **options: Any) -> bool:
    """What torch's own says, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check(*args, **options)


@pytest.mark.parametrize(("name", "func", "inputs", "options"), RIGHT, ids=[one[0] for one in RIGHT])
def test_right_gradients(name: str, func: Callable[..., Any], inputs: Any, options: dict[str, Any]) -> None:
    """What torch's gradcheck passes, and is right, passes without a warning; the inputs stay as they are."""
    tensors = [one for one in (inputs if isinstance(inputs, tuple | list) else [inputs]) if hasattr(one, "detach")]
    before = [one.detach().clone() for one in tensors]
    assert torchs(torch.autograd.gradcheck, func, inputs, **options) is True
    assert go.gradcheck(func, inputs, **options) is True
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(before, tensors, strict=True))
    assert all(one.grad is None for one in tensors if one.is_leaf)


@pytest.mark.parametrize(("name", "func", "inputs", "options"), RIGHT_TWICE, ids=[one[0] for one in RIGHT_TWICE])
def test_right_second_gradients(name: str, func: Callable[..., Any], inputs: Any, options: dict[str, Any]) -> None:
    """What torch's gradgradcheck passes, and is right, passes without a warning."""
    assert torchs(torch.autograd.gradgradcheck, func, inputs, **options) is True
    assert go.gradgradcheck(func, inputs, **options) is True


@pytest.mark.parametrize(("name", "func", "inputs", "options"), MISSED, ids=[one[0] for one in MISSED])
def test_wrong_gradients_that_torch_passes(
    name: str, func: Callable[..., Any], inputs: Any, options: dict[str, Any]
) -> None:
    """A planted fault that torch's gradcheck passes raises, or gives False where no exception is wanted."""
    assert torchs(torch.autograd.gradcheck, func, inputs, **options) is True
    with pytest.raises(TorchGradcheckError, match="is wrong") as caught:
        go.gradcheck(func, inputs, **options)
    assert isinstance(caught.value, go.GradcheckError)
    assert caught.value.report is not None
    assert caught.value.report.verdict is go.Verdict.FAIL
    assert go.gradcheck(func, inputs, raise_exception=False, **options) is False


def second_order_off(by_input: float, by_cotangent: float) -> Callable[..., torch.Tensor]:
    """x**3 with a right gradient, whose own gradients are off by factors."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(g, x)
            return g * 3 * x**2

        @staticmethod
        def backward(ctx: Any, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            g, x = ctx.saved_tensors
            return h * 3 * x**2 * by_cotangent, h * g * 6 * x * by_input

    return wrong(lambda g, x: Gradient.apply(g, x))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("factors", "name"), [((1.0001, 1.0), "x"), ((1.0, 1.0001), "grad_outputs.0")])
def test_wrong_second_gradients_that_torch_passes(factors: tuple[float, float], name: str) -> None:
    """gradgradcheck looks at the gradients by the inputs and by the cotangents, and names the one that is wrong."""
    x = leaf(3)
    func = second_order_off(*factors)
    assert go.gradcheck(func, x) is True
    assert torchs(torch.autograd.gradgradcheck, func, x) is True
    with pytest.raises(go.GradcheckError, match=f'the gradient of "{name}" is wrong') as caught:
        go.gradgradcheck(func, x)
    assert caught.value.report is not None
    assert caught.value.report.inputs[name].diagnosis is go.Diagnosis.SCALED
    assert go.gradgradcheck(func, x, raise_exception=False) is False
    assert go.gradgradcheck(second_order_off(1.0, 1.0), x) is True


def test_nothing_is_said_of_cotangents_that_nobody_can_give() -> None:
    """Not of gradcheck, which takes none, and not where gradgradcheck was given some; the report itself knows."""
    for check, func, more in (
        (go.gradcheck, wrong(lambda g, x: 3.001 * g * x**2), ()),
        (go.gradgradcheck, second_order_off(1.0001, 1.0), (leaf(3),)),
    ):
        with pytest.raises(go.GradcheckError, match="Worst elements of") as caught:
            check(func, leaf(3), *more)
        assert "No cotangents were given" not in str(caught.value)
        assert caught.value.report is not None
        assert caught.value.report.random_cotangents


RIGHT_WHERE_TORCH_FAILS = [
    ("float32", torch.tanh, leaf(5, dtype=torch.float32)),
    ("bfloat16", torch.tanh, leaf(5, dtype=torch.bfloat16)),
    ("complex64", torch.exp, leaf(3, dtype=torch.complex64)),
    ("float32, numpy inside", lambda x: x.detach().double().mean().float() * 0 + x.sin(), leaf(4, dtype=torch.float32)),
    ("far from 1", lambda x: x**2, torch.tensor([1e9, -3e9], dtype=torch.float64, requires_grad=True)),
    ("near an edge", torch.sqrt, torch.tensor([1e-6, 2e-9], dtype=torch.float64, requires_grad=True)),
    ("dropout", lambda x: torch.nn.functional.dropout(x, 0.5), leaf(6)),
    ("the same tensor twice", lambda x, y: x * y**2, (leaf(3),) * 2),
    ("mkldnn", lambda a, x: a.to_dense() * x, (torch.ones(3).to_mkldnn().requires_grad_(), leaf(3))),
]


@pytest.mark.parametrize(
    ("name", "func", "inputs"), RIGHT_WHERE_TORCH_FAILS, ids=[one[0] for one in RIGHT_WHERE_TORCH_FAILS]
)
def test_right_gradients_that_torch_fails(name: str, func: Callable[..., Any], inputs: Any) -> None:
    """Precision, magnitude, an edge of the domain and random numbers are no faults of a gradient."""
    assert go.gradcheck(func, inputs) is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_wrong_gradients_in_low_precision(dtype: torch.dtype) -> None:
    """In low precision a gradient fails that is off by more than its rounding: by 5 %."""
    with pytest.raises(go.GradcheckError, match='the gradient of "x" is wrong'):
        go.gradcheck(wrong(lambda g, x: g * 3 * (x**2).conj() * 1.05), leaf(4, dtype=dtype))

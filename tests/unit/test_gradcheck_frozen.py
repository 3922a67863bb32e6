"""gradcheck and gradgradcheck of functions that hand on their arguments, and of gradients while inputs are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradcheck_cases import leaf

import gradoracle as go

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("one_thread")


def two() -> tuple[torch.Tensor, torch.Tensor]:
    return leaf(3), torch.tensor([0.4, -1.2, 0.9], dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a,
        lambda a, b: a.view(3),
        lambda a, b: a.expand(2, 3),
        lambda a, b: (a, a * b),
        lambda a, b: torch.broadcast_tensors(a, b)[0],
        lambda a, b: (b, a),
        lambda a, b: 2 * a + b,
        lambda a, b: a.sign() * b,
        lambda a, b: (a * b).relu(),
        lambda a, b: (a.sin() * b, b**2),
    ],
    ids=["argument", "view", "expanded", "two", "broadcast", "exchanged", "linear", "sign", "relu", "sin"],
)
@pytest.mark.parametrize("check", [go.gradcheck, go.gradgradcheck])
def test_what_an_argument_is_handed_on_as(check: Callable[..., bool], function: Callable[..., Any]) -> None:
    """An argument that is an output requires no grad while it is frozen, and does again later."""
    a, b = two()
    assert check(function, (a, b)) is True
    assert a.requires_grad
    assert b.requires_grad


class Detached(torch.autograd.Function):
    """x**2 w, whose gradient by w is detached, so that its own gradient is lost."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x * x * w

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        return 2 * g * x * w, (g * x * x).detach()


def test_a_gradient_that_is_detached_depends_on_nothing() -> None:
    """torch leaves it out, and passes."""
    a, b = two()
    assert torch.autograd.gradgradcheck(Detached.apply, (a, b)) is True
    text = r'the gradient of "x" is wrong; the gradient of "grad_outputs\.0" is wrong'
    with pytest.raises(go.GradcheckError, match=text):
        go.gradgradcheck(Detached.apply, (a, b))
    ones = torch.ones(3, dtype=F64)
    assert go.gradgradcheck(lambda a, b: 2 * a + b.abs() * b, (a, b), ones) is True  # that by a is a constant
    infinite = torch.tensor([1.0, torch.inf, 2.0], dtype=F64, requires_grad=True)
    assert go.gradgradcheck(lambda a, b: 2 * a + b.clamp(max=1.0) * 3, (infinite, b), ones) is True


class SecondBackward(torch.autograd.Function):
    """The gradients of x**2 w**2 by both; that by w twice is doubled where x is frozen."""

    right = False

    @staticmethod
    def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> Any:
        ctx.save_for_backward(g, x, w)
        return 2 * g * x * w * w, 2 * g * x * x * w

    @staticmethod
    def backward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> Any:
        g, x, w = ctx.saved_tensors
        by_g = 2 * x * w * (a * w + b * x)
        by_x, by_w = g * (2 * a * w * w + 4 * b * x * w), g * (4 * a * x * w + 2 * b * x * x)
        return by_g, by_x, by_w if ctx.needs_input_grad[1] or SecondBackward.right else 2 * by_w


class Squares(torch.autograd.Function):
    """x**2 w**2."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x * x * w * w

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return SecondBackward.apply(g, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("right", [True, False])
def test_second_gradients_while_an_input_is_frozen(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecondBackward, "right", right)
    a, b = two()
    assert torch.autograd.gradgradcheck(Squares.apply, (a, b)) is True
    assert go.gradgradcheck(Squares.apply, (a, b), raise_exception=False) is right
    report = go.check(Squares.apply, a, b, order=2)
    assert report.verdict is (go.Verdict.PASS if right else go.Verdict.FAIL)
    if right:
        return
    text = 'gradient of the gradient of "w" must be the same while the other inputs require no grad, and is off by'
    with pytest.raises(go.GradcheckError, match=text):
        go.gradgradcheck(Squares.apply, (a, b))
    (found,) = [one for one in report.opinions if one.verdict is go.Verdict.FAIL]
    assert found.name == "frozen"
    assert found.explanation == "where other inputs are frozen, the second gradient must be the same"


def test_elements_that_share_memory() -> None:
    windows = torch.randn(9, dtype=F64).unfold(0, 4, 2).requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"input 0, of strides \(2, 1\), has elements that share their memory.*contiguous"
    ):
        go.gradcheck(torch.sin, (windows,))
    assert go.gradcheck(torch.sin, (windows.detach().contiguous().requires_grad_(),)) is True
    apart = torch.randn(9, dtype=F64).as_strided((3, 2), (2, 3)).requires_grad_()  # none does, though strides cross
    assert go.gradcheck(torch.sin, (apart,)) is True


@pytest.mark.parametrize("raises", ["second backward", "function"])
def test_what_raises_while_an_input_is_frozen(raises: str) -> None:
    """A second backward that raises is wrong; a function that does is another one, and is not asked."""

    class Second(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> Any:
            ctx.save_for_backward(g, x, w)
            return g * w, g * x

        @staticmethod
        def backward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> Any:
            if raises == "second backward" and not all(ctx.needs_input_grad):
                raise IndexError("a gradient is missing")
            g, x, w = ctx.saved_tensors
            return a * w + b * x, g * b, g * a

    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            return Second.apply(g.clone().requires_grad_(), *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if raises == "function" and x.requires_grad != w.requires_grad:
            raise IndexError("both must require grad")
        found: torch.Tensor = Times.apply(x, w)  # type: ignore[no-untyped-call]
        return found

    (found,) = [one for one in go.check(function, *two(), order=2).opinions if one.name == "frozen"]
    text = "where other inputs are frozen, the second gradient must be the same"
    if raises == "function":
        assert found.verdict is go.Verdict.INCONCLUSIVE
        assert found.explanation == f"{text}, which cannot be asked: both must require grad"
    else:
        assert found.verdict is go.Verdict.FAIL
        assert found.explanation.startswith(f"{text}; by ")
        assert found.explanation.endswith(" alone it raised: a gradient is missing")

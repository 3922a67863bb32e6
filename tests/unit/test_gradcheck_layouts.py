"""gradcheck of low-precision functions, which are judged as graphs: what they make of other cotangents' layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradcheck_cases import leaf

import gradoracle as go
from gradoracle.graph import Graph
from gradoracle.tracing import judged, trace
from gradoracle.tracing.joint import with_contiguous_cotangents
from gradoracle.tracing.replay import Replay

pytestmark = pytest.mark.usefixtures("one_thread")


Taken = Callable[[torch.Tensor], torch.Tensor]


def product(take: Taken = lambda g: g, factor: float = 1.0) -> Callable[..., torch.Tensor]:
    """A batch of matrix products in float32, as kernels for low precision are written; `take` is what the backward
    does to the cotangent first."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(a, b)
            return (a.float() @ b.float()).to(a.dtype)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a, b = ctx.saved_tensors
            g = take(g)
            return (g.float() @ b.float().mT * factor).to(a.dtype), (a.float().mT @ g.float()).to(b.dtype)

    return Product.apply  # type: ignore[no-any-return]


def operands(dtype: torch.dtype, *batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return leaf(*batch, 4, 3, dtype=dtype, low=-1), leaf(*batch, 3, 5, dtype=dtype, low=-1, seed=1)


RIGHT: dict[str, Taken] = {
    "as it comes": lambda g: g,
    "contiguous": lambda g: g.contiguous().view(-1).view(g.shape),
    "reshaped": lambda g: g.reshape(-1).reshape(g.shape),
    "contiguous strides": lambda g: g.contiguous().as_strided(g.shape, g.contiguous().stride()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("take", RIGHT)
def test_right_in_any_layout(take: str, dtype: torch.dtype) -> None:
    """What torch makes of a contiguous cotangent alone, a view for a reshape, is no fault of the function's."""
    for batch in ((2,), (2, 3)):
        assert go.gradcheck(product(RIGHT[take]), operands(dtype, *batch)) is True


def test_faults_are_found_as_finely() -> None:
    """The judgement is in float64 still: 0.01 % is found."""
    with pytest.raises(go.GradcheckError, match='the gradient of "a" is wrong') as caught:
        go.gradcheck(product(factor=1.0001), operands(torch.float32, 2, 3))
    assert caught.value.report is not None
    assert caught.value.report.inputs["a"].diagnosis is go.Diagnosis.SCALED


def flattened(g: torch.Tensor) -> torch.Tensor:
    return g.view(-1).view(g.shape)


def misread(g: torch.Tensor) -> torch.Tensor:
    return g.as_strided(g.shape, g.new_empty(g.shape).stride()) if 0 not in g.stride() else g


def shortcut(g: torch.Tensor) -> torch.Tensor:
    return g if g.is_contiguous() else g * 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("take", [flattened, misread, shortcut])
def test_wrong_in_another_layout(take: Taken, dtype: torch.dtype) -> None:
    """A backward that views a cotangent, misreads it, or goes another way where it is not contiguous is wrong."""
    for batch in ((), (2, 3)):
        with pytest.raises(go.GradcheckError, match=r"(?s)not linear in its cotangent: an? (non-contiguous|expanded)"):
            go.gradcheck(product(take), operands(dtype, *batch))


def test_torchs_own_gradients_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch's own operators nothing depends on the layout of cotangents: no second judgement is needed."""
    asked: list[Any] = []
    in_process = judged._in_process
    monkeypatch.setattr(judged, "_in_process", lambda *args, **more: asked.append(args) or in_process(*args, **more))
    a, b = operands(torch.float32, 2)
    assert go.gradcheck(lambda a, b: (a.half().float() + b.half().float().sum()).float(), (a, b.detach())) is True
    assert not asked


def test_cotangents_made_contiguous() -> None:
    """The graph then takes cotangents in any layout, and gives the function's own gradients."""
    a, b = operands(torch.float32, 2, 3)
    fn = product()
    graph = trace(fn, a, b)
    assert graph.message.functions
    changed = Graph.from_message(with_contiguous_cotangents(graph.message))
    strided = torch.rand(5, 4, 3, 2, generator=torch.Generator().manual_seed(2)).permute(3, 2, 1, 0)
    expected = torch.autograd.grad(fn(a, b), (a, b), strided)
    for one, takes in ((graph, False), (changed, True)):
        (out,) = Replay(one.message, torch.device("cpu"))([a, b])
        if not takes:
            with pytest.raises(RuntimeError, match="view size is not compatible"):
                torch.autograd.grad(out, (a, b), strided)
            continue
        found = torch.autograd.grad(out, (a, b), strided)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))

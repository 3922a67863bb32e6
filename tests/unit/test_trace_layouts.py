"""Functions judged in this process get tensors that lie in memory as the caller's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gradoracle as go
from gradoracle.tracing.layouts import Layout

F64 = torch.float64
ALL = slice(None)
CUTS = {
    "[::2, ::2]": (slice(None, None, 2), slice(None, None, 2)),
    "[::2]": slice(None, None, 2),
    "[:, ::2]": (ALL, slice(None, None, 2)),
    "[:, :4]": (ALL, slice(4)),
    "[2:6, 1:5]": (slice(2, 6), slice(1, 5)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def sine(read: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The sine, with a backward that reads its argument by `read`."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return g * read(x).cos()

    def run(x: torch.Tensor) -> torch.Tensor:
        return Sine.apply(x)  # type: ignore[no-untyped-call, no-any-return]

    return run


def by_own_strides(x: torch.Tensor) -> torch.Tensor:
    return x.as_strided(x.shape, x.stride(), x.storage_offset())


def as_if_row_major(x: torch.Tensor) -> torch.Tensor:
    return x.as_strided(x.shape, (x.shape[1], 1), x.storage_offset())


def from_the_first_element(x: torch.Tensor) -> torch.Tensor:
    return x.as_strided(x.shape, x.stride(), 0)


def whole(dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(12, 8, dtype=F64, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_a_backward_that_misreads_slices(cut: str, dtype: torch.dtype) -> None:
    """One that takes a slice for row-major fails, one that reads it by its strides passes, in any precision."""
    x = whole(dtype)[CUTS[cut]].requires_grad_()
    assert go.check(sine(as_if_row_major), x).verdict is go.Verdict.FAIL
    assert go.check(sine(by_own_strides), x).verdict is not go.Verdict.FAIL
    if dtype is not torch.bfloat16:
        assert go.check(sine(by_own_strides), x).passed
    assert go.check(sine(as_if_row_major), x.detach().contiguous()).verdict is not go.Verdict.FAIL


def test_a_backward_that_forgets_where_its_argument_starts() -> None:
    """Strides are right, and the start is not that of the memory; a slice without gaps, too."""
    for cut in (whole()[2:, ::2], whole()[2:], whole().t()[1:]):
        assert go.check(sine(from_the_first_element), cut).verdict is go.Verdict.FAIL
        assert go.check(sine(by_own_strides), cut).passed


def test_the_other_checks_of_slices() -> None:
    """Forward mode, batched gradients and second derivatives work on them."""
    x = whole()[1::3, ::2]

    def branching(x: torch.Tensor) -> torch.Tensor:
        return x.sin() if x.sum().item() > -1e9 else x

    assert go.check(branching, x, forward_mode=True).passed
    assert go.check(branching, x, order=2).passed
    assert go.check(sine(by_own_strides), x, batched_gradients=True).passed


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    "like",
    [whole()[2:6, 1:5], whole().t()[1:, 2::3], whole().t(), whole()[3], whole(torch.complex128).conj()[::2], whole()],
)
def test_a_layout(like: torch.Tensor, dtype: torch.dtype) -> None:
    """A copy has the strides, the start and, in the gaps, the neighbours; it is no view, and its memory its own."""
    dtype = torch.complex128 if like.is_complex() else dtype
    value = torch.rand(like.shape).to(dtype).requires_grad_()
    copy = Layout(like).copy(value)
    assert torch.equal(copy, value)
    assert copy.dtype == dtype
    assert (copy.stride(), copy.storage_offset()) == (like.stride(), like.storage_offset())
    assert not copy._is_view()
    assert copy.untyped_storage().data_ptr() != like.untyped_storage().data_ptr()
    (slope,) = torch.autograd.grad(copy, value, torch.ones_like(value))
    assert torch.equal(slope, torch.ones_like(value))


def test_a_layout_is_of_the_point_alone() -> None:
    """What lies around a small part of much memory is left out; elements that share memory get memory each."""
    copy = Layout(torch.zeros(1 << 20)[5000:5100:2]).copy(torch.ones(50))
    assert (copy.stride(), copy.storage_offset(), copy.untyped_storage().nbytes()) == ((2,), 0, 99 * 4)
    for shared in (torch.zeros(1, 3).expand(4, 3), torch.zeros(9).as_strided((4, 3), (2, 1))):
        copy = Layout(shared).copy(shared)
        copy[0] = 1
        assert copy.sum() == 3

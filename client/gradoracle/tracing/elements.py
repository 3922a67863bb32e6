"""The elements of an argument, as a dense tensor: what moves when the gradient by it is on trial.

Those of most arguments are exchanged in place. Of a sparse tensor torch's gradcheck knows two sets of elements: its
values, where gradients count only there (masked=True), or all of them, those too that it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradoracle.tracing.arguments import COMPRESSED, parts_of, sparse_like
from gradoracle.tracing.layouts import shares_memory

_MKLDNN: torch.layout = torch._mkldnn  # type: ignore[attr-defined]  # it has no public name


class Elements:
    """Those of a dense tensor."""

    suffix = ""
    """What their name has after the argument's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.base = self._of(tensor.detach()).clone()
        """What they are, to be put back after each run."""
        self._own = tensor.data

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        return plain(tensor)

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        """The argument with other elements: the tensor itself, if that can be, behind autograd's back."""
        if value.dtype == self.tensor.dtype:
            self.tensor.data.copy_(value.detach())
        else:
            self.tensor.data = value.detach().clone()
        return self.tensor

    def put_back(self) -> torch.Tensor:
        """The argument as it was."""
        if self.tensor.dtype != self._own.dtype:
            self.tensor.data = self._own
        self.tensor.data.copy_(self.base)
        return self.tensor

    def gradient(self, found: torch.Tensor) -> torch.Tensor:
        """The gradient by the elements, of that by the argument."""
        return plain(found)

    def alike(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor with these elements, of the same subclass."""
        kind = type(self.tensor.detach())
        return value if kind is torch.Tensor else value.as_subclass(kind)


class _Values(Elements):
    """The values of a sparse tensor."""

    suffix = ".values"

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        own = tensor.detach()
        if own.layout is torch.sparse_coo:
            self._places = tuple(own._indices())
        else:
            numbers = torch.arange(1, self.base.numel() + 1, dtype=torch.float64, device=own.device)
            numbered = sparse_like(own, numbers.reshape(self.base.shape)).to_dense()
            at = numbered.nonzero(as_tuple=True)
            order = numbered[at].argsort()
            self._places = tuple(one[order] for one in at)

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        return parts_of(tensor)["values"]

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        # Also of another dtype, to which the tensor cannot change.
        self._of(self.tensor.detach()).data.copy_(value.detach())
        return self.tensor

    def put_back(self) -> torch.Tensor:
        return self.hold(self.base)

    def gradient(self, found: torch.Tensor) -> torch.Tensor:
        return found.to_dense()[self._places].reshape(self.base.shape)


class _Whole(Elements):
    """All elements of a tensor that has no strides. The argument is exchanged for another one where they move."""

    def __init__(self, tensor: torch.Tensor, build: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(tensor)
        self._build = build

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to_dense()

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        if not torch.equal(value, self.base.to(value.dtype)):
            return self._build(value.clone()).requires_grad_()
        # Not one that leaves nothing out: it is the argument's own gradient that is on trial.
        same = value.dtype == self.tensor.dtype
        return self.tensor if same else self.tensor.detach().to(value.dtype).requires_grad_()

    def put_back(self) -> torch.Tensor:
        return self.tensor

    def gradient(self, found: torch.Tensor) -> torch.Tensor:
        return found.to_dense()


def elements(tensor: torch.Tensor, *, masked: bool) -> Elements:
    """The elements of an argument that moves; `masked`: of a sparse one its values."""
    if tensor.layout is torch.strided:
        return Elements(tensor)
    if tensor.layout is _MKLDNN:
        return _Whole(tensor, torch.Tensor.to_mkldnn)
    if masked:
        return _Values(tensor)
    own = tensor.detach()
    return _Whole(tensor, lambda whole: _specified(whole, own))


def moves(tensor: torch.Tensor) -> bool:
    """Whether an argument is one whose elements are exchanged; others are passed as they are."""
    return is_plain(tensor) or tensor.requires_grad


def check_inputs(given: Sequence[Any], *, forward: bool) -> None:
    """Raises where no argument requires grad, or one whose elements cannot be moved, or not by forward mode."""
    tracked = [(place, one) for place, one in enumerate(given) if isinstance(one, torch.Tensor) and one.requires_grad]
    if not tracked:
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, "
            f"got {len(given)} input{'s' if len(given) != 1 else ''}, none with requires_grad=True"
        )
    for place, one in tracked:
        if kind := _obstacle(one):
            raise ValueError(
                f"input {place} is {kind}, whose elements cannot be moved one by one; "
                "take its values as the input and make the tensor of them in the function"
            )
        if one.layout is not torch.strided:
            if forward:
                raise ValueError(f"input {place} is a tensor of {layout_of(one)}, by which torch has no forward mode")
            continue
        if any(stride == 0 and size > 1 for stride, size in zip(one.stride(), one.shape, strict=True)):
            raise RuntimeError(
                f"input {place} has a dimension with stride 0, whose elements share their memory and cannot be moved "
                "one by one; call .contiguous() on it before it is passed"
            )
        if shares_memory(one):
            raise RuntimeError(
                f"input {place}, of strides {tuple(one.stride())}, has elements that share their memory and cannot be "
                "moved one by one; call .contiguous() on it before it is passed"
            )


def _obstacle(tensor: torch.Tensor) -> str:
    """What an argument is, where gradients by it cannot be judged; "" where they can."""
    if _dispatches(tensor):
        return f"a {type(tensor).__name__}, a subclass of Tensor with a __torch_dispatch__ of its own"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout in COMPRESSED and tensor.dim() > 2 + tensor.dense_dim():
        return f"a batch of tensors of {layout_of(tensor)}"
    return ""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements lie in memory of its own, by strides."""
    return not (tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or _dispatches(tensor))


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether it may leave elements out."""
    return tensor.layout is torch.sparse_coo or tensor.layout in COMPRESSED


def layout_of(tensor: torch.Tensor) -> str:
    """ "layout sparse_coo", for messages."""
    return f"layout {str(tensor.layout).removeprefix('torch.')}"


def edge_of(tensor: torch.Tensor) -> GradientEdge | None:
    """Where gradients by a tensor arrive; None where it requires none."""
    if not tensor.requires_grad:
        return None
    if tensor.grad_fn is None and tensor.layout is not torch.strided:
        behind: Any = tensor.clone().grad_fn  # get_gradient_edge would take a view
        return GradientEdge(*behind.next_functions[0])
    # Without what subclasses make of results, which would be a node between.
    with torch._C.DisableTorchFunctionSubclass():
        return get_gradient_edge(tensor)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor as no subclass."""
    return tensor if type(tensor) is torch.Tensor else tensor.as_subclass(torch.Tensor)


def _dispatches(tensor: torch.Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _specified(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A sparse tensor that leaves nothing out."""
    along = like.sparse_dim()
    places = torch.ones(whole.shape[:along], dtype=torch.bool, device=whole.device).nonzero().t()
    values = whole.reshape(-1, *whole.shape[along:])
    found = torch.sparse_coo_tensor(places, values, whole.shape, is_coalesced=True, check_invariants=False)
    if like.layout is torch.sparse_coo:
        return found
    blocks = like.values().shape[1:3] if like.layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    return found.to_sparse(layout=like.layout, blocksize=blocks)

"""Compares tensors."""

from __future__ import annotations

import itertools

import torch

_LOOSE = 256  # units in the last place of the largest element, for what torch itself does not reproduce


def same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Equal in dtype, shape and every bit, where any NaN equals any other."""
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape or one.layout != other.layout:
        return False
    if one.layout is not torch.strided:
        return all(same_bits(left, right) for left, right in zip(_parts(one), _parts(other), strict=True))
    one, other = _real(one), _real(other)
    if not one.dtype.is_floating_point:
        return torch.equal(one, other)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    bits, others = one.contiguous().view(kind), other.contiguous().view(kind)
    if torch.equal(bits, others):
        return True
    return bool(((bits == others) | (one.isnan() & other.isnan())).all())


def _parts(sparse: torch.Tensor) -> list[torch.Tensor]:
    if sparse.layout is torch.sparse_coo:
        return [sparse._indices(), sparse._values()]
    by_row = sparse.layout in (torch.sparse_csr, torch.sparse_bsr)
    compressed = (
        [sparse.crow_indices(), sparse.col_indices()] if by_row else [sparse.ccol_indices(), sparse.row_indices()]
    )
    return [*compressed, sparse.values()]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    resolved = tensor.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(resolved.contiguous()) if resolved.dtype.is_complex else resolved


def close(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Within what another order of summation may make of it."""
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = _real(one), _real(other)
    if not one.dtype.is_floating_point:
        return torch.equal(one, other)
    epsilon = torch.finfo(one.dtype).eps
    one, other = one.double(), other.double()
    finite = one[one.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    return torch.allclose(one, other, rtol=_LOOSE * epsilon, atol=_LOOSE * epsilon * scale, equal_nan=True)


def summary(one: torch.Tensor | None, other: torch.Tensor | None) -> str:
    """The first element that differs, or what else does."""
    if one is None or other is None:
        return (
            f"{'none' if one is None else 'one'} from the function, {'none' if other is None else 'one'} from the graph"
        )
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{_or_none(one)} from the function, {_or_none(other)} from the graph"
    for index in itertools.product(*(range(size) for size in one.shape)):
        left, right = one[index], other[index]
        if not same_bits(left, right):
            return f"{left.item()!r} from the function, {right.item()!r} from the graph, at {list(index)}"
    return "their layouts differ"


def _or_none(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

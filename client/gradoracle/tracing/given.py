"""What a caller gives, as torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from gradoracle import claims

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool, np.bool_),
    int: (int, np.integer),
    float: (float, np.floating),
    complex: (complex, np.complexfloating),
}
_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 or complex128; others as they are."""
    return tensor.to(_WIDE.get(tensor.dtype, tensor.dtype))


def tensors_of(inputs: Sequence[Any]) -> list[Any]:
    """What a function gets for its arguments: torch tensors for arrays, else the values themselves.

    Numbers, lists of whole numbers and tuples are arrays where nothing else is one: beside others they may be
    dimensions.
    """
    beside = any(_is_array(one) for one in inputs) or any(_has_dtype(one) for one in pytree.tree_leaves(list(inputs)))
    return [_tensor_of(one, place, beside=beside) for place, one in enumerate(inputs)]


def _tensor_of(value: Any, place: int, *, beside: bool) -> Any:
    alone = not beside and bool(_kinds(value) - {bool})
    if isinstance(value, torch.Tensor) or not (alone or _is_array(value)):
        return value
    found = of_numpy(claims.host_array(value, f"inputs[{place}]"))
    return found.requires_grad_(found.dtype.is_floating_point or found.dtype.is_complex)


def of_numpy(array: Any) -> torch.Tensor:
    """A tensor of its own memory; ml_dtypes' bfloat16 and float8 too."""
    array = np.array(array, order="C")  # a copy, of native byte order
    if array.dtype.kind != "V":
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    bits = np.int16 if array.itemsize == 2 else np.uint8
    return torch.from_numpy(array.view(bits)).view(getattr(torch, array.dtype.name))


def _is_array(value: Any) -> bool:
    return _has_dtype(value) or (isinstance(value, list) and bool(_kinds(value) & {float, complex}))


def _has_dtype(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray | np.generic) or hasattr(value, "__dlpack__")


def _kinds(value: Any) -> set[type]:
    """Of which kinds a number, or those in nested lists, are; none where anything else is among them."""
    if isinstance(value, list | tuple):
        inside = [_kinds(one) for one in value]
        return set().union(*inside) if all(inside) else set()
    return next(({kind} for kind, types in _KINDS.items() if isinstance(value, types)), set())

"""Copies of tensors that lie in memory as the caller's own do.

A backward may read what it was given with the wrong strides, or forget where in its memory it starts. That shows only
where strides and start are the caller's: `clone()` keeps strides that leave no gaps, and makes slices contiguous.
"""

from __future__ import annotations

import torch

_ROOM = 1 << 16  # elements of the caller's memory that are copied with a tensor, where they are more than
_TIMES = 4  # times its own


class Layout:
    """How one of the caller's tensors lies in its memory."""

    def __init__(self, like: torch.Tensor) -> None:
        self._memory: torch.Tensor | None = None
        """The caller's memory as far as it is copied, only to be read; None where clone() will do."""
        if like.layout is not torch.strided or not like.numel() or _overlaps(like):
            return
        starts = like.storage_offset() == 0
        if starts and like.is_contiguous():
            return
        self._size, self._strides = like.shape, like.stride()
        self._memory, self._start = _memory_of(like)
        self._dense = starts and torch.empty_like(like).stride() == self._strides

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        """A differentiable copy of a tensor of that shape, of any dtype. Gaps hold what the caller's do."""
        if self._memory is None or (self._dense and value.stride() == self._strides):
            return value.clone()
        with torch._C.DisableTorchFunction():  # the engine may have a mode that raises all that it sees
            memory = self._memory.to(value.dtype, copy=True)
            # By .data it is no view, which functions that change their argument in place would notice.
            own = memory.as_strided(self._size, self._strides, self._start).data
            return own.copy_(value)


def shares_memory(tensor: torch.Tensor) -> bool:
    """Whether two elements of a strided tensor do."""
    if not tensor.numel() or not _overlaps(tensor):
        return False
    places = torch.zeros(tensor.shape, dtype=torch.int64)
    for axis, (stride, size) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        shape = [size if k == axis else 1 for k in range(tensor.dim())]
        places += stride * torch.arange(size).view(shape)
    return bool((places.flatten().sort().values.diff() == 0).any())


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements may share memory: a copy in which one is written would change another."""
    span = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1:
            if stride < span:
                return True
            span += stride * (length - 1)
    return False


def _memory_of(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The memory around a tensor, flat, and where in it the tensor starts. Of memory that holds much else, what lies
    between its first and its last element."""
    storage, at = tensor.untyped_storage(), int(tensor.storage_offset())
    start, length = 0, storage.nbytes() // tensor.itemsize
    if length > max(_ROOM, _TIMES * tensor.numel()):
        start = at
        length = 1 + sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return flat.set_(storage, start, (length,), (1,)), at - start

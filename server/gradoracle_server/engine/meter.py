"""Counts the memory of the tensors that live while something runs, on meta tensors as on real ones."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Place = TypeVar("Place")


class Meter(TorchDispatchMode, Generic[Place]):
    """A context. Every operator that runs in it is seen, those inside of composite ones and of the pull-back too."""

    def __init__(self, at: Place, *outside: torch.Tensor) -> None:
        """The memory of `outside` does not count. `at` is where the work is, and may be moved on."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.at = at
        self.live = 0  # bytes
        self.peak = 0  # the most there were
        self.peak_at = at  # where the work was then
        self._outside = {one.untyped_storage()._cdata for one in outside}
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self._count(one)
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, self.at
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's memory, once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages and key not in self._outside:
            self.live += size
            self._storages[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size

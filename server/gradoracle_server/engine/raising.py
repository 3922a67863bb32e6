"""Runs in float64 what holds, or makes, low-precision tensors of its own: weights that a function closes over, ones.

Such a float64 shadow would mix dtypes, which most operators refuse. Here whatever a function of torch's gets, and
whatever it gives, is raised, so that a closed-over tensor counts as it does in a graph, where it is a constant: with
its values, in float64. Code that torch does not see, as numpy's, rounds as ever, and who looks for that finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

RAISED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
"""What the tensors of a graph are raised to."""

_CASTS: dict[Callable[..., Any], torch.dtype] = {
    torch.Tensor.float: torch.float32,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
    torch.Tensor.cfloat: torch.complex64,  # type: ignore[attr-defined]
    torch.Tensor.chalf: torch.complex32,
}
"""Methods that lower a tensor without an argument that says so."""


def raised(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 or complex128, exactly; others as they are."""
    wide = RAISED.get(tensor.dtype)
    return tensor if wide is None else tensor.to(wide)


class Raising(TorchFunctionMode):
    """While it holds, torch computes with nothing lower than float64. What makes numbers out of nothing makes them as
    ever, and they are raised then: random ones would be others.

    What is written into a low-precision tensor that was there before is lost, as it went into a copy: outputs that
    depend on it are others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: set[torch.dtype] = set()
        """The dtypes that something was raised from."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = (tuple(args), dict(kwargs or {}))
        if getattr(func, "__name__", "") == "__set__":  # of an attribute, which a copy would get instead
            return func(*given[0], **given[1])
        if func in _CASTS:
            self.met.add(_CASTS[func])
            return self._lifted(args[0])
        if any(isinstance(one, torch.Tensor) for one in pytree.tree_leaves(given)):
            given = pytree.tree_map(self._lifted, given)
        return pytree.tree_map(self._lifted, func(*given[0], **given[1]))

    def _lifted(self, one: Any) -> Any:
        kind = one.dtype if isinstance(one, torch.Tensor) else one
        if not isinstance(kind, torch.dtype) or kind not in RAISED:
            return one
        self.met.add(kind)
        return raised(one) if isinstance(one, torch.Tensor) else RAISED[kind]

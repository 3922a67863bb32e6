"""Operators that recording yields and servers do not serve, or not on every device, as others that mean the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclasses.dataclass(slots=True)
class Operation:
    """A call of an overload."""

    target: torch._ops.OpOverload
    args: list[Any]
    kwargs: dict[str, Any]
    into: fx.Node | None = None
    """A tensor that the result is then copied into."""


def rewritten(node: fx.Node, device: torch.device) -> Operation | None:
    """What to export for a node; None where nothing needs to run.

    Devices equal to the one that was traced on are left out, so that the graph runs on any.
    """
    target: Any = node.target
    operation = Operation(target, list(node.args), dict(node.kwargs))
    if target in _NOTHING and not node.users:
        return None
    for name in ("generator", "pin_memory", "non_blocking"):
        if operation.kwargs.get(name, True) in (None, False):
            del operation.kwargs[name]
    if _same(operation.kwargs.get("device"), device):
        del operation.kwargs["device"]
    if target in _RULES:
        _RULES[target](node, operation, device)
    elif isinstance(operation.kwargs.get("out"), fx.Node) and (functional := _without_out(target)) is not None:
        operation.target, operation.into = functional, operation.kwargs.pop("out")
    return operation


_NOTHING = frozenset(
    {
        aten.item.default,
        aten._local_scalar_dense.default,
        aten.equal.default,
        aten.allclose.default,
        aten.is_nonzero.default,
        aten._assert_async.default,
        aten._assert_async.msg,
    }
)
"""Looks at values, or refuses bad ones. What was read was allowed when it was recorded."""


@functools.cache
def _without_out(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The overload that returns what this one writes into its argument `out`."""
    wanted = [(one.name, str(one.type)) for one in target._schema.arguments if not one.is_out]
    packet = target.overloadpacket
    for name in packet.overloads():
        other: torch._ops.OpOverload = getattr(packet, name)
        schema = other._schema
        if [(one.name, str(one.type)) for one in schema.arguments] == wanted and not schema.is_mutable:
            return other
    return None


def _same(asked: object, device: torch.device) -> bool:
    return isinstance(asked, torch.device) and asked.type == device.type and asked.index in (None, device.index)


def _renamed(to: torch._ops.OpOverload, *dropped: str) -> Callable[..., None]:
    def rewrite(node: fx.Node, operation: Operation, device: torch.device) -> None:
        operation.target = to
        for name in dropped:
            operation.kwargs.pop(name, None)

    return rewrite


def _zeros(node: fx.Node, operation: Operation, device: torch.device) -> None:
    """Memory of which the function must overwrite every element before it may look at it."""
    if operation.kwargs.get("memory_format") not in (None, torch.contiguous_format, torch.preserve_format):
        return  # stays what it is, and is refused with its reason
    operation.target = aten.zeros.default
    operation.kwargs.pop("memory_format", None)


def _zeros_strided(node: fx.Node, operation: Operation, device: torch.device) -> None:
    size, stride = operation.args[-2:]
    expected = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if step != expected and length > 1:
            return
        expected *= length
    operation.target = aten.new_zeros.default if operation.target is aten.new_empty_strided.default else _ZEROS
    operation.args.pop()


_ZEROS = aten.zeros.default


def _to_device(node: fx.Node, operation: Operation, device: torch.device) -> None:
    """x.to(device, dtype) on the device that it is on."""
    if _same(operation.args[1], device):
        operation.target = aten.to.dtype
        del operation.args[1]


_RULES: Mapping[torch._ops.OpOverload, Callable[[fx.Node, Operation, torch.device], None]] = {
    aten.empty.memory_format: _zeros,
    aten.empty_like.default: _renamed(aten.zeros_like.default),
    aten.new_empty.default: _renamed(aten.new_zeros.default),
    aten.empty_strided.default: _zeros_strided,
    aten.new_empty_strided.default: _zeros_strided,
    aten._unsafe_view.default: _renamed(aten.view.default),
    aten.unsafe_split.Tensor: _renamed(aten.split.Tensor),
    aten.unsafe_split_with_sizes.default: _renamed(aten.split_with_sizes.default),
    aten.unsafe_chunk.default: _renamed(aten.chunk.default),
    aten.lift_fresh.default: _renamed(aten.alias.default),
    aten.lift.default: _renamed(aten.alias.default),
    aten.to.device: _to_device,
}

"""Looks through the graph that autograd recorded, for what a graph of operators cannot say by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch


@dataclasses.dataclass(slots=True)
class Findings:
    """What was found behind some outputs."""

    functions: list[type[torch.autograd.Function]]
    """Custom autograd.Functions."""
    hooked: list[str]
    """Operators whose node has hooks."""
    variables: list[torch.Tensor]
    """The leaves that gradients flow into."""


def look(outputs: Iterable[torch.Tensor]) -> Findings:
    """Walks from the outputs to the leaves."""
    found = Findings([], [], [])
    stack: list[Any] = [one.grad_fn if one.grad_fn is not None else None for one in outputs]
    found.variables += [one for one in outputs if one.requires_grad and one.grad_fn is None]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(following for following, _ in node.next_functions)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.variables.append(variable)
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            cls: Any = getattr(node, "_forward_cls", type(node))
            if cls not in found.functions:
                found.functions.append(cls)
        elif _has_hooks(node):
            found.hooked.append(node.name())
    return found


def _has_hooks(node: Any) -> bool:
    """Whether anyone registered a hook on a node. Asked by registering one and counting, since nothing else tells."""
    for register in (node.register_hook, node.register_prehook):
        handle = register(lambda *_: None)
        known = handle.hooks_dict_ref()
        count = len(known)
        handle.remove()
        if count > 1:
            return True
    return False


def gradients(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    *,
    create_graph: bool = False,
) -> list[torch.Tensor | None]:
    """Gradients of sum of <cotangent, output> by each leaf; None where there is no dependence or no tracking."""
    pairs = [(one, cotangent) for one, cotangent in zip(outputs, cotangents, strict=True) if one.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not pairs or not wanted:
        return [None] * len(leaves)
    found = iter(
        torch.autograd.grad(
            [one for one, _ in pairs],
            wanted,
            [cotangent for _, cotangent in pairs],
            allow_unused=True,
            create_graph=create_graph,
        )
    )
    return [next(found) if leaf.requires_grad else None for leaf in leaves]

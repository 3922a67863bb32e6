"""Operators that bring their own gradient: a graph for the values, a graph for the pull-back, autograd in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradoracle_server.engine.graph import FunctionSpec

Program = Callable[[Sequence[torch.Tensor]], tuple[Any, ...]]


def operator(spec: FunctionSpec, forward: Program, backward: Program) -> Callable[..., Any]:
    """What a node calls: tensors in, a tensor out, or a tuple of them where `forward` has several outputs.

    Autograd treats it as it treats a `torch.autograd.Function`: it does not look inside `forward`, pulls back by
    `backward`, and differentiates `backward` itself where a gradient of the gradient is wanted.
    """
    names = [one.name for one in spec.forward.inputs]
    given = [name for name, _ in spec.backward.outputs]
    place = {name: at for at, name in enumerate(given)}

    class Given(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: torch.Tensor) -> Any:
            values = forward(inputs)
            return values[0] if len(values) == 1 else values

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs)
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.mark_non_differentiable(
                *(one for one in outputs if not (one.dtype.is_floating_point or one.dtype.is_complex))
            )

        @staticmethod
        def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
            gradients = backward((*ctx.saved_tensors, *cotangents))
            return tuple(gradients[place[name]] if name in place else None for name in names)

    def call(*tensors: torch.Tensor) -> Any:
        return Given.apply(*tensors)  # type: ignore[no-untyped-call]

    call.__name__ = f"function_{spec.name}"
    return call

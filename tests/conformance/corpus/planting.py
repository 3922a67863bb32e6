"""Functions with a wrong backward, or with a right one whose own backward is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from conformance.corpus.subjects import pulled

Forward = Callable[..., torch.Tensor]
Wrong = Callable[[Sequence[torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
"""(inputs, which require grad where they do for the caller, cotangent, right gradients) -> gradients."""


def right(inputs: Sequence[torch.Tensor], cotangent: torch.Tensor, found: Any) -> Any:
    """The fault that is none."""
    return found


def planted(forward: Forward, wrong: Wrong) -> Forward:
    """`forward` with another backward."""

    class Planted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            return _own(forward(*inputs), inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
            pairs = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
            inputs = [one.detach().requires_grad_(wanted) for one, wanted in pairs]
            return wrong(inputs, cotangent, pulled(forward, inputs, cotangent))

    return Planted.apply


def _own(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """A Function must not return an input that it saves, as atleast_1d would."""
    return output.view_as(output) if any(output is one for one in inputs) else output


def planted_second(forward: Forward, wrong: Wrong) -> Forward:
    """`forward` with its own gradient, whose gradient by the inputs is another; `wrong` gets the cotangent of that of
    the first input."""

    class Slope(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(cotangent: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return pulled(forward, [one.detach().requires_grad_() for one in inputs], cotangent)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, *weights: torch.Tensor) -> Any:
            cotangent, *inputs = (one.detach().requires_grad_() for one in ctx.saved_tensors)
            with torch.enable_grad():
                slopes = pulled(forward, inputs, cotangent, create_graph=True)
                live = [(one, w) for one, w in zip(slopes, weights, strict=True) if one.requires_grad]
                targets = [cotangent, *inputs]
                found: Sequence[torch.Tensor | None] = [None] * len(targets)
                if live:
                    found = torch.autograd.grad(
                        [one for one, _ in live], targets, [w for _, w in live], allow_unused=True
                    )
            full = [torch.zeros_like(a) if b is None else b for a, b in zip(targets, found, strict=True)]
            return full[0], *wrong(inputs, weights[0], tuple(full[1:]))

    class Planted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            return _own(forward(*inputs), inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
            return Slope.apply(cotangent, *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    return Planted.apply

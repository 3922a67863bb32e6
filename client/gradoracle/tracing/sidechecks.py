"""What torch's gradcheck asks of a backward beside its numbers: undefined cotangents, dtypes, batches of tangents."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._vmap_internals import _vmap

from gradoracle.tracing.originals import Originals


class _Undefined(torch.autograd.Function):
    """The identity, which hands on no gradient at all."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> None:
        return None


def undefined_cotangents(run: Originals) -> str:
    """What is wrong with the gradients where no cotangent arrives at some or all of the outputs; "" where nothing is.

    A backward gets None there, or zeros, and must give none or zeros.
    """
    outputs = _differentiable(run)
    cases = [set(range(len(outputs)))]
    if len(outputs) > 1:
        cases += [{place} for place in range(len(outputs))]
    for undefined in cases:
        outputs = _differentiable(run)
        cut: list[torch.Tensor] = [
            _Undefined.apply(one) if place in undefined else one  # type: ignore[no-untyped-call]
            for place, one in enumerate(outputs)
        ]
        which = "every output is" if len(undefined) == len(outputs) else f"output {min(undefined)} is"
        try:
            found = torch.autograd.grad(cut, _tracked(run), [torch.zeros_like(one) for one in cut], allow_unused=True)
        except Exception as error:
            return f"backward must take undefined gradients: where that of {which} undefined, it raised {error!r}"
        for name, gradient in zip(_names(run), found, strict=True):
            if gradient is not None and not bool((gradient.to_dense() == 0).all()):
                return (
                    f"where the gradient of {which} undefined and those of the others are zero, "
                    f'the gradient of "{name}" must be undefined or zero, and is not'
                )
    return ""


def gradient_dtypes(run: Originals) -> str:
    """What is wrong with the dtypes of the gradients; "" where nothing is."""
    outputs = _differentiable(run)
    tensors = _tracked(run)
    found = torch.autograd.grad(outputs, tensors, [torch.ones_like(one) for one in outputs], allow_unused=True)
    for name, gradient, tensor in zip(_names(run), found, tensors, strict=True):
        if gradient is not None and gradient.dtype != tensor.dtype:
            return f'the gradient of "{name}" has dtype {gradient.dtype}, expected {tensor.dtype}'
    return ""


def batched_tangents(run: Originals) -> str:
    """What is wrong with tangents that are pushed forward in a batch by vmap; "" where nothing is."""
    run.results()  # which finds the outputs that count, as copies would not
    generator = torch.Generator().manual_seed(0xF0)
    for place, (name, tensor) in enumerate(zip(run.names, run.tensors, strict=True)):
        if not tensor.requires_grad:
            continue
        real = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        tangents = torch.stack(real).to(tensor.device, tensor.dtype)

        def push(tangent: torch.Tensor, place: int = place) -> tuple[torch.Tensor, ...]:
            return tuple(run.pushed(run.base, {place: tangent}))

        failure = _batched(push, tangents)
        if failure:
            return f'tangents of "{name}" in a batch: {failure}'
    return ""


def _batched(push: Callable[..., tuple[torch.Tensor, ...]], tangents: torch.Tensor) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "performance drop because we have not yet implemented the batching rule"
        expected = [torch.stack(several) for several in zip(*(push(one) for one in tangents), strict=True)]
        try:
            # Not torch.func.vmap, which refuses autograd.Functions that have no setup_context.
            found = _vmap(push)(tangents)
        except Exception as error:
            return f"vmap cannot run the function: {error}"
    for place, (got, want) in enumerate(zip(found, expected, strict=True)):
        if not torch.allclose(got, want, equal_nan=True):
            return f"output {place} differs from one at a time by {float((got - want).abs().max()):.2g}"
    return ""


def _differentiable(run: Originals) -> list[torch.Tensor]:
    return [one for one in run.results() if one.requires_grad]


def _tracked(run: Originals) -> list[torch.Tensor]:
    return [one for one in run.tensors if one.requires_grad]


def _names(run: Originals) -> list[str]:
    return [name for name, one in zip(run.names, run.tensors, strict=True) if one.requires_grad]

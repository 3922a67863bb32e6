"""What torch's gradcheck asks of a backward beside its numbers: undefined cotangents, dtypes, batches of tangents."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._vmap_internals import _vmap

from gradoracle.tracing.originals import Originals

_RELATIVE = 1e-9  # of the largest element of a gradient: more is no rounding


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


def frozen(run: Originals, cotangents: Sequence[Any]) -> str:
    """What is wrong with the gradients of each tensor's own gradient while the others require no grad; "" where nothing
    is, or the function is another one then. Only of double precision, where nothing else explains what differs."""
    tracked = [place for place, one in enumerate(run.tensors) if one.requires_grad]
    if len(tracked) < 2:
        return ""
    for place in tracked:
        if torch.finfo(run.tensors[place].dtype).eps > torch.finfo(torch.float64).eps:
            continue
        off = 0.0
        with contextlib.suppress(Exception):  # it may ask what requires grad
            off = _off_while_frozen(run, cotangents, place)
        if off:
            which = f'the gradient of the gradient of "{run.names[place]}"'
            return f"{which} must be the same while the other inputs require no grad, and is off by {off:.2g}"
    return ""


def _off_while_frozen(run: Originals, cotangents: Sequence[Any], place: int) -> float:
    """By how much, at the most; 0 where it is rounding, or nothing to be compared."""
    expected = _second(run, cotangents, place, None)
    found = _second(run, cotangents, place, [other == place for other in range(len(run.tensors))])
    if expected is None or found is None or not torch.equal(expected[0], found[0]):
        return 0.0
    for want, got in zip(expected[1:], found[1:], strict=True):
        off = float((want - got).abs().nan_to_num().max()) if want.numel() else 0.0
        if off > _RELATIVE * float(want.abs().nan_to_num().max()):
            return off
    return 0.0


def _second(
    run: Originals, cotangents: Sequence[Any], place: int, wanted: Sequence[bool] | None
) -> list[torch.Tensor] | None:
    """The gradient by one tensor, and that of a weighted sum of it by the tensor and the cotangents; None where it does
    not depend on them."""
    with run.placed(run.base), run.frozen(wanted):
        own = run.arguments[run.places[place]]
        pairs = [
            (one, u) for one, u in zip(run.results(), cotangents, strict=True) if u is not None and one.requires_grad
        ]
        roots, weights = [one for one, _ in pairs], [u for _, u in pairs]
        if own.layout is not torch.strided or not pairs:
            return None
        (slope,) = torch.autograd.grad(roots, [own], weights, create_graph=True, allow_unused=True)
        by = [own, *(u for u in cotangents if u is not None and u.requires_grad)]
        if slope is None or not slope.requires_grad:
            return None
        generator = torch.Generator().manual_seed(0xF2)
        drawn = torch.rand(slope.shape, generator=generator, dtype=torch.float64) + 0.5
        second = torch.autograd.grad(slope, by, drawn.to(slope.device, slope.dtype), allow_unused=True)
        zeros = [torch.zeros_like(one) if g is None else g for one, g in zip(by, second, strict=True)]
        return [slope.detach(), *(one.detach() for one in zeros)]


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

"""Other points near a given one, at which a graph has to agree with its function too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from gradoracle.tracing.arguments import Leaf

_SEED = 20_250_101


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """Values for the leaves, and in words how they differ from the caller's."""

    description: str
    values: list[torch.Tensor]


def given(leaves: Sequence[Leaf]) -> Point:
    """The caller's own values."""
    return Point("the given point", [leaf.tensor.detach() for leaf in leaves])


def nearby(leaves: Sequence[Leaf]) -> Iterator[Point]:
    """Floating and complex values moved by a few percent; by less and less, for functions with a narrow domain."""
    for step in (0.03, 0.003, 1e-4, 1e-6):
        yield Point(f"values moved by {step:g}", _moved(leaves, step))
    # Functions on a set, such as orthogonal matrices or probabilities, may still take the same values again.
    yield Point("the rows of the given values reversed", [_reversed(leaf) for leaf in leaves])


def elsewhere(leaves: Sequence[Leaf]) -> Iterator[Point]:
    """Signs and sizes changed too, whole numbers and truth values shuffled: other branches, other sizes."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    moved = _moved(leaves, 0.3)
    flipped = [one * _signs(one, generator) if leaf.moves else one for leaf, one in zip(leaves, moved, strict=True)]

    def shuffled(others: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [_shuffled(one, generator) if leaf.shuffles else one for leaf, one in zip(leaves, others, strict=True)]

    if any(leaf.shuffles for leaf in leaves):
        yield Point("signs changed and whole numbers shuffled", shuffled(flipped))
        yield Point("values moved and whole numbers shuffled", shuffled(moved))
    yield Point("signs changed", flipped)


def _moved(leaves: Sequence[Leaf], step: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    found = []
    for leaf in leaves:
        value = leaf.tensor.detach()
        if not leaf.moves:
            found.append(value)
            continue
        noise = torch.rand((2, *value.shape), generator=generator, dtype=torch.float64) * 2 - 1
        factor, shift = noise.to(value.device)
        wide = value.to(torch.complex128 if value.dtype.is_complex else torch.float64)
        found.append((wide * (1 + step * factor) + step * 0.1 * shift).to(value.dtype))
    return found


def _reversed(leaf: Leaf) -> torch.Tensor:
    value = leaf.tensor.detach()
    return value.flip(0) if leaf.moves and value.dim() else value


def _signs(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every third element or so negated."""
    drawn = torch.rand(tensor.shape, generator=generator) < 0.35
    return torch.where(drawn, -1, 1).to(device=tensor.device, dtype=tensor.dtype)


def _shuffled(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same whole numbers in another order; where they are truth values, some of them the other way round."""
    if tensor.dtype is torch.bool:
        return tensor ^ (torch.rand(tensor.shape, generator=generator) < 0.35).to(tensor.device)
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]  # all can be indexed
    flat = tensor.detach().contiguous().reshape(-1).view(signed)
    return flat[order].view(tensor.dtype).reshape(tensor.shape)

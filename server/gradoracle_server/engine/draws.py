"""The random numbers of a check: of either sign, so that faults cannot hide behind each other's sum; never small."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def signed(shape: Sequence[int], bits: int, generator: torch.Generator) -> torch.Tensor:
    """Random numbers of either sign and of magnitudes between 1 and 2, of so many bits after the point; in float64."""
    half = 1 << (bits - 1)
    offset = torch.empty(shape, dtype=torch.float64).random_(-half, half, generator=generator).add_(0.5)
    return torch.add(offset.sign(), offset, alpha=1 / half)

"""Directions in which an input is moved.

A direction is a vector of real coordinates, a complex number being two. Each coordinate moves by its own scale, a power
of two near its magnitude, so that steps are relative; signs are random, so that faults of either sign cannot hide
behind each other's sum; and magnitudes are jittered, so that two faults of the same size, as in a transposed matrix,
cannot cancel either. All of it is short in binary, so that base + step * direction is exact, or nearly, in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch

from gradoracle_server.engine import draws, structure
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.passes import real_coordinates

_BITS = 12  # after the point, of magnitudes before they are scaled
_ODD = 1621 / 2048  # magnitude along single axes: halving it does not stay on any grid that inputs lie on
_POWER = -1 << 52  # the bits of a positive float64 that are its largest power of two
_SMALLEST = 2.0**-4  # the scale of a coordinate, at least, relative to the median magnitude of its tensor


@dataclasses.dataclass(slots=True)
class Space:
    """The real coordinates of one input, in float64."""

    place: int  # among the graph's inputs
    name: str
    base: torch.Tensor  # the input, float64 or complex128
    kind: str  # its structure
    scale: torch.Tensor  # (C,)

    @classmethod
    def of(cls, place: int, name: str, base: torch.Tensor, kind: str) -> Space:
        return cls(place, name, base, kind, _scale(base, _SMALLEST))

    def relative(self) -> Space:
        """The same with steps that are relative to each coordinate alone, however small it is."""
        return self.scaled(_scale(self.base, 0.0))

    def typical(self) -> float:
        """The scale of a coordinate as large as all of them are in the root of the mean of their squares."""
        known = self.base.abs().to(torch.float64)
        size = norm(known) / math.sqrt(max(1, known.numel()))
        return 2.0 ** math.floor(math.log2(size)) if 2.0**-960 < size < math.inf else 1.0

    def scaled(self, scale: torch.Tensor) -> Space:
        """The same with other scales, (C,)."""
        return dataclasses.replace(self, scale=scale)

    @property
    def size(self) -> int:
        """The number of real coordinates."""
        return self.scale.numel()

    def natural(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(P, C) real coordinates as (P, *shape) tensors of the input's dtype."""
        if self.base.dtype.is_complex:
            pairs = coordinates.reshape(-1, *self.base.shape, 2)
            return torch.view_as_complex(pairs)
        return coordinates.reshape(-1, *self.base.shape)

    def along(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Directions projected onto the set in which the input may move; (P, C) both."""
        if not self.kind:
            return coordinates
        return real_coordinates(structure.project(self.natural(coordinates), self.kind))

    def flat(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient of the input's shape as (C,)."""
        if gradient.dtype is torch.float64:
            return gradient.reshape(-1)
        return real_coordinates(gradient[None])[0]

    def unflat(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(C,) as a tensor of the input's shape."""
        return self.natural(coordinates[None])[0]

    def drawn(self, count: int, generator: torch.Generator, among: torch.Tensor | None = None) -> torch.Tensor:
        """Random directions, (count, C); where `among`, (C,) of bool, is given, only those coordinates move."""
        directions = draws.signed((count, self.size), _BITS, generator).to(self.scale.device) * (self.scale / 2)
        if among is not None:
            directions = directions * among
        return self.along(directions)

    def units(self, coordinates: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One direction a coordinate, (P, C), and the scale by which each is longer than the unit vector, (P,)."""
        rows = torch.arange(len(coordinates), device=self.scale.device)
        columns = torch.as_tensor(list(coordinates), dtype=torch.int64, device=self.scale.device)
        directions = torch.zeros((len(coordinates), self.size), dtype=torch.float64, device=self.scale.device)
        lengths = self.scale[columns] * _ODD
        directions[rows, columns] = lengths
        return self.along(directions), lengths

    def lengths(self) -> torch.Tensor:
        """(C,): those of `units` of all coordinates."""
        return self.scale * _ODD

    def axes(self) -> torch.Tensor:
        """(C, C): the directions of `units` of all coordinates."""
        return self.along(self.lengths().diag())

    def moved(self, directions: torch.Tensor, lengths: Sequence[float]) -> torch.Tensor:
        """The base moved along each direction by each length: (P * L, *shape), lengths innermost."""
        factors = _column(tuple(lengths), directions.device)
        moves = (directions[:, None, :] * factors).reshape(-1, self.size)
        return self.natural(moves).add_(self.base)  # in place: of many points, fetching memory is most of the time


@functools.lru_cache(maxsize=16)
def _column(lengths: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(L, 1); ladders are always the same few."""
    return torch.tensor(lengths, dtype=torch.float64, device=device)[:, None]


def _scale(base: torch.Tensor, smallest: float) -> torch.Tensor:
    """(C,) powers of two: each coordinate's magnitude, but not less than `smallest` times the median magnitude.

    Both parts of a complex number share its magnitude. Where that is 0 the median stands for it, and where that is 0
    too, or not finite, 1.
    """
    known = base.abs().to(torch.float64).reshape(-1)
    least, most = (float(one) for one in known.aminmax()) if known.numel() else (0.0, 0.0)
    if not 0 < least <= most < math.inf:
        known = torch.where((known > 0) & (known < math.inf), known, math.nan)
    typical = float(known.nanmedian()) if known.numel() else math.nan
    if math.isnan(typical):
        typical = 1.0
    # Subnormal magnitudes would make steps that vanish.
    magnitude = known.clamp_(min=max(smallest * typical, 2.0**-960)).nan_to_num_(typical)
    scale = magnitude.view(torch.int64).bitwise_and_(_POWER).view(torch.float64)
    return scale.repeat_interleave(2) if base.dtype.is_complex else scale

"""What a gradient says of directions, and how far that is from the slopes along them."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

from gradoracle_server.engine import tolerances
from gradoracle_server.engine.norms import norm, norms
from gradoracle_server.engine.report import Verdict
from gradoracle_server.engine.slopes import Slopes

_NORMS = 8.0


@dataclasses.dataclass
class Products:
    """A gradient, (C,), times directions, (P, C): what the terms of each product come to, all of shape (P,)."""

    sum: torch.Tensor
    total: torch.Tensor  # of their magnitudes
    size: torch.Tensor  # their norm
    directions: torch.Tensor  # (P, C), or (C,) where each moves one element
    magnitudes: torch.Tensor  # of the terms, likewise

    @classmethod
    def of(cls, gradient: torch.Tensor, directions: torch.Tensor) -> Products:
        """The products with any directions."""
        terms = directions * gradient
        size, magnitudes = norms(terms), terms.abs()
        return cls(terms.sum(1), magnitudes.sum(1), size, directions, magnitudes)

    @classmethod
    def alone(cls, gradient: torch.Tensor, lengths: torch.Tensor) -> Products:
        """The products with directions along every axis, of those lengths, (C,)."""
        terms = gradient * lengths
        size = terms.abs()
        return cls(terms, size, size, lengths, size)

    @property
    def length(self) -> torch.Tensor:
        """The longest component of each direction."""
        return self.directions if self.directions.dim() == 1 else self.directions.abs().amax(1)

    def smallest_fault(self, bound: torch.Tensor) -> torch.Tensor:
        """(C,): the smallest relative fault in each element that is sure to be beyond the bound, (P,), of one of the
        directions: what is measured may be off by as much in its favour."""
        if self.directions.dim() == 1:
            relative = (bound / self.total).nan_to_num_(nan=math.inf)
        else:
            relative = (bound[:, None] / self.magnitudes).nan_to_num_(nan=math.inf).amin(0)
        return relative.mul_(2)

    @functools.cached_property
    def most(self) -> torch.Tensor:
        """What the products come to at the most, where the signs of the directions are random, or each moves one
        element (W. Hoeffding, "Probability inequalities for sums of bounded random variables", 1963: beyond so many
        norms once in 10^13 times, and in 10^6 where symmetric elements move together)."""
        return torch.minimum(self.total, _NORMS * self.size)

    @functools.cached_property
    def allowance(self) -> torch.Tensor:
        """What rounding may do to each."""
        return tolerances.rounding(self.total, self.size)


@dataclasses.dataclass(slots=True)
class Assessment:
    """What slopes along P directions say of a gradient."""

    verdict: Verdict  # on all directions together
    judgements: tolerances.Judgements  # one a direction
    kinked: bool
    noise: torch.Tensor | None
    """(P,): how far a gradient that is right to the last bit would be off; None where every element is moved alone."""
    directions: torch.Tensor  # (P, C), or (C,) where each moves one element
    faint: torch.Tensor | None = None
    """(P,) of bool: where the bound is a proof beside the size of the function, and not beside the gradient's; None
    unless it is so along all directions that the gradient is not 0 along."""

    def figures(self, row: int | None = None) -> tuple[float, float]:
        """The error and its bound along the direction of a row, or the one that is furthest beyond its bound or nearest
        to it: in the gradient's own units where that moves one element."""
        judged = self.judgements
        row = int(judged.excess.argmax()) if row is None else row
        mover = self.directions[row].abs()
        alone = not mover.dim() or int(mover.count_nonzero()) == 1
        length = float(mover.max()) if alone else 1.0
        return float(judged.error[row]) / length, float(judged.bound[row]) / length

    @property
    def suspicious(self) -> torch.Tensor:
        """(P,) of bool: within the tolerance, and yet further off than the noise."""
        if self.noise is None:
            return torch.zeros_like(self.judgements.within)
        return (self.judgements.error > self.noise) & self.judgements.within & self.judgements.narrow


def root_mean_square(gradient: torch.Tensor) -> float:
    """Of its elements."""
    return norm(gradient) / math.sqrt(max(1, gradient.numel()))


def distance(claimed: torch.Tensor, found: Slopes) -> torch.Tensor:
    """How far each claim is outside its interval of slopes; NaN where it is NaN."""
    if found.smooth:
        return (claimed - found.value).abs()
    outside = torch.maximum(found.low - claimed, claimed - found.high)
    outside = torch.where((claimed == found.low) | (claimed == found.high), 0.0, outside)  # infinities that agree
    unknown = torch.isinf(found.bar) & ~claimed.isnan()
    return torch.where(unknown & outside.isnan(), 0.0, outside.clamp(min=0.0))

"""What a check works on: the gradients on trial, and what they are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import shadow
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.tolerances import ASKED_LOW
from gradoracle_server.engine.trial import Subject, Tape, second_order

_COARSEST = 16.0


@dataclasses.dataclass(slots=True)
class Case:
    """The gradients on trial, and what they are held against. Lists are by wanted input."""

    subject: Subject
    twin: Subject  # the float64 shadow; the subject itself where it is float64
    faithful: bool  # whether the shadow computes the same function
    epsilon: float  # of the precision on trial
    distance: float  # of the outputs from the shadow's, in units in the last place
    own: bool  # whether the gradients are autograd's, and not claims
    cotangents: list[torch.Tensor | None]
    twin_cotangents: list[torch.Tensor | None]
    claimed: list[torch.Tensor]  # natural shapes, in float64
    torchs: list[torch.Tensor]  # autograd's at the precision on trial, in float64
    reference: list[torch.Tensor]  # autograd's in the shadow
    weights: list[torch.Tensor | None] | None = None  # order 2: what the first gradients are weighted with
    jitters: list[torch.Tensor] | None = None
    inexact: list[torch.Tensor] | None = None
    spreads: dict[tuple[bool, bool, float], list[torch.Tensor]] = dataclasses.field(default_factory=dict)

    @torch.inference_mode(False)
    def spread(
        self, place: int, *, inside: bool = False, around: bool = False, epsilon: float | None = None
    ) -> torch.Tensor:
        """What rounding of inputs and cotangents does to the gradient of an input; with `inside`, rounding anywhere;
        with `around`, of inputs by as much as their typical element is. Rounding to the precision on trial, where no
        other epsilon is named."""
        key = inside, around, self.epsilon if epsilon is None else epsilon
        if key not in self.spreads:
            self.spreads[key] = shadow.spread(
                self.twin, self.twin_cotangents, self.reference, key[2], self._pulled, inside=inside, around=around
            )
        return self.spreads[key][place]

    @property
    def resolution(self) -> float:
        """The machine epsilon of what is differentiated numerically: the shadow's, where there is one."""
        return torch.finfo(torch.float64).eps if self.faithful else self.epsilon

    @property
    def coarseness(self) -> float:
        """How many units in the last place stand for one, since the outputs themselves are off by that."""
        return min(max(1.0, self.distance), _COARSEST)

    @torch.inference_mode(False)
    def inexactness(self, place: int) -> torch.Tensor:
        """What operators that torch does not compute to the last digits may do to the gradient of an input."""
        if self.inexact is None:
            self.inexact = shadow.inexactness(self.twin, self.twin_cotangents, self.reference, self._pulled)
        return self.inexact[place]

    @torch.inference_mode(False)
    def jitter(self, place: int) -> torch.Tensor:
        """How far the low-precision gradient moves by rounding inside of kernels."""
        if self.jitters is None:
            self.jitters = shadow.jitter(self.subject, self.twin, self.cotangents, self._pulled)
        return self.jitters[place]

    def inside(self, place: int) -> torch.Tensor | None:
        """What rounding anywhere does to the gradient; None where that is not to be believed: where operators compare
        numbers for equality, as amax does, moving them breaks more than rounding would."""
        found = self.spread(place, inside=True)
        return found if norm(found) <= ASKED_LOW * norm(self.reference[place]) else None

    def rounding(self, place: int) -> float:
        """The most that rounding does to an element of the gradient."""
        moved = [one for one in (self.jitter(place), self.inside(place)) if one is not None and one.numel()]
        return max([float(one.max()) for one in moved], default=0.0)

    def _pulled(self, tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        if self.weights is None:
            return tape.pull(cotangents)
        return second_order(tape, cotangents, self.weights)

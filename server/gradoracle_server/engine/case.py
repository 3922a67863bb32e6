"""What a check works on: the gradients on trial, and what they are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import shadow
from gradoracle_server.engine.trial import Subject, Tape, second_order


@dataclasses.dataclass(slots=True)
class Case:
    """The gradients on trial, and what they are held against. Lists are by wanted input."""

    subject: Subject
    twin: Subject  # the float64 shadow; the subject itself where it is float64
    faithful: bool  # whether the shadow computes the same function
    epsilon: float  # of the precision on trial
    own: bool  # whether the gradients are autograd's, and not claims
    cotangents: list[torch.Tensor | None]
    twin_cotangents: list[torch.Tensor | None]
    claimed: list[torch.Tensor]  # natural shapes, in float64
    torchs: list[torch.Tensor]  # autograd's at the precision on trial, in float64
    reference: list[torch.Tensor]  # autograd's in the shadow
    weights: list[torch.Tensor | None] | None = None  # order 2: what the first gradients are weighted with
    jitters: list[torch.Tensor] | None = None
    spreads: dict[bool, list[torch.Tensor]] = dataclasses.field(default_factory=dict)

    def spread(self, place: int, *, inside: bool = False) -> torch.Tensor:
        """What rounding of inputs and cotangents does to the gradient of an input; with `inside`, rounding anywhere."""
        if inside not in self.spreads:
            self.spreads[inside] = shadow.spread(
                self.twin, self.twin_cotangents, self.reference, self.epsilon, self._pulled, inside=inside
            )
        return self.spreads[inside][place]

    def jitter(self, place: int) -> torch.Tensor:
        """How far the low-precision gradient itself moves with its inputs' last place."""
        if self.jitters is None:
            self.jitters = shadow.jitter(self.subject, self.cotangents, self._pulled)
        return self.jitters[place]

    def _pulled(self, tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        if self.weights is None:
            return tape.pull(cotangents)
        return second_order(tape, cotangents, self.weights)

"""The gradients of one input, on trial and for reference, and what rounding allows between them."""

from __future__ import annotations

import dataclasses

import torch

from gradoracle_server.engine import tolerances
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.probes import Space


@dataclasses.dataclass(slots=True)
class Gradients:
    """One input's gradients in real coordinates, (C,)."""

    claimed: torch.Tensor
    reference: torch.Tensor
    allowance: torch.Tensor  # of each element of the claim, beside the reference

    @property
    def apart(self) -> torch.Tensor:
        """Coordinates whose claim is not the reference's value within the allowance."""
        if self.claimed is self.reference:
            return self.reference.isnan()
        same = self.claimed == self.reference  # infinities too
        return ~(((self.claimed - self.reference).abs() <= self.allowance) | same)


def gradients_of(case: Case, place: int, space: Space) -> Gradients:
    """Those of the input at that place among the wanted ones."""
    reference = space.flat(case.reference[place])
    claimed = reference if case.claimed[place] is case.reference[place] else space.flat(case.claimed[place])
    if case.epsilon <= torch.finfo(torch.float64).eps:
        return Gradients(claimed, reference, tolerances.elementwise(reference, case.epsilon, None))
    moved = spread(case, place, space)
    # What underflows is rounded, too.
    tiny = torch.finfo(case.subject.inputs[case.subject.places[place]].dtype).tiny
    least = torch.full_like(reference, tiny)
    if not case.own:  # a claim need not be better than torch
        least = torch.maximum(2 * (space.flat(case.torchs[place]) - reference).abs().nan_to_num(0.0, 0.0), least)
    found = Gradients(claimed, reference, torch.maximum(tolerances.elementwise(reference, case.epsilon, moved), least))
    if found.apart.any():
        inside = spread(case, place, space, inside=True)
        # Where operators compare numbers for equality, as amax does, moving them breaks more than rounding would.
        if inside.norm() <= tolerances.ASKED_LOW * reference.norm():
            moved = torch.maximum(moved, inside)
        moved = torch.maximum(moved, _parts(space, case.jitter(place)))
        found.allowance = torch.maximum(tolerances.elementwise(reference, case.epsilon, moved), least)
    return found


def spread(case: Case, place: int, space: Space, *, inside: bool = False) -> torch.Tensor:
    """(C,): what rounding does to each coordinate; both parts of a complex number share theirs."""
    return _parts(space, case.spread(place, inside=inside))


def _parts(space: Space, found: torch.Tensor) -> torch.Tensor:
    found = found.reshape(-1)
    return found.repeat_interleave(2) if space.base.dtype.is_complex else found

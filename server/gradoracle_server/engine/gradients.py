"""The gradients of one input, on trial and for reference, and what rounding allows between them."""

from __future__ import annotations

import dataclasses
import math

import torch

from gradoracle_server.engine import shadow, tolerances
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

_SLIGHT = 1e-12
_WHOLE = 1 / 4  # of what each element may be off by, that all together may be
_ILL = 1e-6
_UNDERFLOW = 8.0  # units in the last place of what underflows
_UNSEEN = 1e-6  # of the cotangent
_INEXACT = 2.0  # times what a few runs show
_NOTHING_LOW = 1e-3  # units in the last place of the function
_LEFT = 64.0  # units in the last place of the function, over the input, that rounding inside may leave of a gradient
_NOTHING = 16 * torch.finfo(torch.float64).eps  # what is left of numbers near 1 that cancel


@dataclasses.dataclass(slots=True)
class Gradients:
    """One input's gradients in real coordinates, (C,)."""

    claimed: torch.Tensor
    reference: torch.Tensor
    allowance: torch.Tensor  # of each element of the claim, beside the reference
    epsilon: float = torch.finfo(torch.float64).eps  # of the claim
    autograd: torch.Tensor | None = None  # autograd's, where that is not the reference

    @property
    def alone(self) -> Gradients:
        """The same where the reference is not to be believed: the claim itself stands for it."""
        allowance = torch.maximum(self.allowance, tolerances.elementwise(self.claimed, self.epsilon, None))
        return dataclasses.replace(self, reference=self.claimed, allowance=allowance, autograd=self.reference)

    @property
    def apart(self) -> torch.Tensor:
        """Coordinates whose claim is not the reference's value within the allowance."""
        if self.claimed is self.reference:
            return self.reference.isnan()
        same = self.claimed == self.reference  # infinities too
        return ~(((self.claimed - self.reference).abs() <= self.allowance) | same)


def gradients_of(case: Case, place: int, space: Space, magnitude: float) -> Gradients:
    """Those of the input at that place among the wanted ones; `magnitude` is the size of the function."""
    reference = space.flat(case.reference[place])
    claimed = reference if case.claimed[place] is case.reference[place] else space.flat(case.claimed[place])
    if case.epsilon <= torch.finfo(torch.float64).eps:
        return Gradients(claimed, reference, tolerances.elementwise(reference, case.epsilon, None))
    moved = spread(case, place, space)
    units = case.epsilon * case.coarseness
    precision = torch.finfo(case.subject.inputs[case.subject.places[place]].dtype)
    # What underflows is rounded, too: to float16's last place there, which is not that far from 1, or to 0 elsewhere.
    nothing = _UNDERFLOW * precision.smallest_normal * precision.eps
    least = torch.full_like(reference, nothing if precision.bits == 16 and precision.max < 1e5 else precision.tiny)
    overflown = claimed.isinf() & (reference.abs() > precision.max) & (claimed.sign() == reference.sign())
    if bool(overflown.any()):
        claimed = torch.where(overflown, reference, claimed)  # which is rounded to infinity
    if not case.own:  # a claim need not be better than torch, where torch is not wrong itself
        off = (space.flat(case.torchs[place]) - reference).abs().nan_to_num(0.0, 0.0)
        if norm(off) <= tolerances.ASKED_LOW * norm(reference):
            least = torch.maximum(2 * off, least)
    allowance = torch.maximum(tolerances.elementwise(reference, units, moved), least)
    found = Gradients(claimed, reference, allowance, units)
    if found.apart.any():
        if (inside := case.inside(place)) is not None:
            moved = torch.maximum(moved, _parts(space, inside))
        else:  # of a saturated tanh, whose gradient is what is left of 1 less 1; what breaks ties moves it by more
            inside = _parts(space, case.spread(place, inside=True))
            moved = torch.maximum(moved, torch.where(inside <= _LEFT * units * magnitude / space.scale, inside, 0.0))
        moved = torch.maximum(moved, _parts(space, case.jitter(place)))
        if case.coarseness > 1:
            moved = torch.maximum(moved, _parts(space, case.spread(place, around=True, epsilon=units)))
        found.allowance = torch.maximum(tolerances.elementwise(reference, units, moved), least)
        # A gradient that is as nothing as this beside the function is what rounding inside of one operator leaves of it
        # and may be the same at all points nearby: of a softmax whose probabilities are 1 and 1e-13.
        believed = _NOTHING_LOW * case.epsilon * magnitude
        if norm(reference * space.scale) <= believed:
            found.allowance = torch.maximum(found.allowance, believed / space.scale)
    if not case.own and not bool(found.apart.any()):
        found.allowance = _together(found, units, torch.maximum(least, 2 * _WHOLE * tolerances.SPREADS * moved))
    return found


def _together(found: Gradients, units: float, moved: torch.Tensor) -> torch.Tensor:
    """The allowance of a claim whose elements are each within theirs, (C,). Rounding leaves few of them as far off as
    any may be, so that all together are held to a part of that; `moved` is what is not to be divided."""
    part = torch.maximum(tolerances.elementwise(found.reference, _WHOLE * units, None), moved)
    off = (found.claimed - found.reference).nan_to_num(0.0, 0.0, 0.0)
    narrower = torch.minimum(part, found.allowance)
    return narrower if norm(off) > norm(narrower) else found.allowance


def spread(case: Case, place: int, space: Space, *, inside: bool = False, epsilon: float | None = None) -> torch.Tensor:
    """(C,): what rounding does to each coordinate; both parts of a complex number share theirs."""
    return _parts(space, case.spread(place, inside=inside, epsilon=epsilon))


def rounding(case: Case, passes: Passes, place: int, space: Space, *, inside: bool = False) -> torch.Tensor:
    """(C,): what rounding does to the gradient that is held against slopes, in the precision of those.

    In float64 a trillionth of what the function's size lets expect is the most that is believed: what breaks ties, as a
    move of one of two equal numbers does, is no rounding. A gradient that is nothing beside that size may be rounding
    as a whole: so is logcumsumexp's second one of ten thousands.
    """
    found = spread(case, place, space, inside=inside, epsilon=case.resolution)
    if case.faithful:
        whole = norm(space.flat(case.reference[place]) * space.scale)
        size = _size(case, passes)
        believed = _ILL if whole <= _ILL * size else _SLIGHT
        found = torch.minimum(found, believed * size / space.scale)
    return found


def roundings(case: Case, passes: Passes, place: int, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """What rounding inside of the function, and of its gradient, may do to the gradient, (C,), and to each output,
    (M,)."""
    contexts = shadow.roundings(case.resolution, case.subject.seed)
    gradient = tolerances.SPREADS * rounding(case, passes, place, space, inside=True)
    gradient = gradient + _INEXACT * _parts(space, case.inexactness(place))
    return gradient, tolerances.SPREADS * passes.unrest(contexts)


def instability(case: Case, passes: Passes, place: int, space: Space) -> torch.Tensor:
    """(C,): what rounding anywhere does to the gradient that is held against slopes, up to a millionth of all of it, or
    of what the function's size lets expect; what moves further breaks ties, and counts as nothing."""
    found = spread(case, place, space, inside=True, epsilon=case.resolution)
    whole = norm(space.flat(case.reference[place]) * space.scale)
    size = max(_size(case, passes), whole if math.isfinite(whole) else 0.0)
    return torch.where(found <= _ILL * size / space.scale, found, 0.0)


def _size(case: Case, passes: Passes) -> float:
    """The size of the function. Where it is 0, or what rounding leaves of 0, nothing tells how large the numbers are
    that cancel in it."""
    cotangents = float(passes.strength.sum())
    if passes.magnitude > _NOTHING * cotangents:
        return passes.magnitude
    shaken = passes.strength @ passes.unrest(shadow.roundings(case.resolution, case.subject.seed))
    return passes.magnitude if passes.magnitude > float(shaken) else _UNSEEN * cotangents


def largest_rounding(case: Case, passes: Passes, place: int) -> float:
    """The most that rounding does to an element of a gradient at the precision on trial; in float64 a millionth of what
    is expected is the most that is believed."""
    if case.epsilon > torch.finfo(torch.float64).eps:
        return case.rounding(place)
    found = case.spread(place, inside=True)
    base = case.twin.inputs[case.twin.places[place]]
    if not found.numel():
        return 0.0
    typical = norm(base) / math.sqrt(base.numel())
    most = max(_ILL * passes.magnitude, _NOTHING) / (typical or 1.0)
    return min(float(found.max()), most)


def _parts(space: Space, found: torch.Tensor) -> torch.Tensor:
    found = found.reshape(-1)
    return found.repeat_interleave(2) if space.base.dtype.is_complex else found

"""Forward mode on trial: its tangents against the pull-back, whose transpose they are.

Two identities, neither of which needs a step size. <u, J v> = <J^T u, v> holds the sum; and J v is the pull-back of the
pull-back (J. Townsend, "A new trick for calculating Jacobian vector products", 2017), which holds the tangent of each
element of each output, where a small fault of one would be lost in the sum of many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from gradoracle_server.engine import autodiff, shadow, structure
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import seed_everything
from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.opinions import Cotangents, add, inner, slack
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.program import is_refusal
from gradoracle_server.engine.raising import raised
from gradoracle_server.engine.report import Opinion, Verdict
from gradoracle_server.engine.tolerances import RELATIVE
from gradoracle_server.engine.trial import Subject, Tape, drawn_like

_EPSILON = torch.finfo(torch.float64).eps
_UNITS = 64.0  # in the last place, of the largest of what is summed up
_AGREED = RELATIVE / 100  # between the pull-back and its own: only then is the latter believed, element by element
_ROUNDED = 16.0  # times what a few runs of Monte Carlo arithmetic show
_NEARBY = 4  # points, in low precision, at which rounding is another
_ILL = 1e-6  # of the largest tangent, that rounding is believed to make at the most

Tangents = Sequence[torch.Tensor | None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Push:
    """A tangent of one input, pushed forward."""

    subject: Subject
    tape: Tape
    place: int  # of the input, among those wanted
    tangent: torch.Tensor
    cotangents: Cotangents
    phases: Phases

    def tangents(self) -> list[torch.Tensor | None]:
        """What forward mode makes of it; as `_moved`."""
        return _moved(self.subject, self.subject.places[self.place], self.tangent, self.phases)

    def weighted(self, tangents: Tangents) -> list[torch.Tensor]:
        """The terms of <u, J v>, a tensor an output."""
        return _weighted(self.cotangents, tangents)

    def nothing(self, epsilon: float = _EPSILON) -> list[torch.Tensor]:
        """What is left of a tangent that is nothing beside the values, element by element: numbers as large as these
        cancel in it, or where they are 0 themselves, numbers near 1."""
        base, pushed = (float(raised(one).abs().square().mean().sqrt()) for one in (self._base, self.tangent))
        sizes = [raised(one.detach()).abs() for one in self.tape.outputs]
        return [_UNITS * epsilon * pushed / (base or 1.0) * torch.where(one > 0, one, 1.0) for one in sizes]

    def summed(self, off: Sequence[torch.Tensor]) -> float:
        """What tangents that are off by so much, element by element, make of <u, J v>."""
        pairs = zip(self.cotangents, off, strict=True)
        return sum(float((raised(u).abs() * one).sum()) for u, one in pairs if u is not None)

    @property
    def _base(self) -> torch.Tensor:
        return self.tape.targets[self.place].detach()

    def scatter(self, here: float, epsilon: float) -> float:
        """How far the difference of the two modes, which is so much here, moves when the input does by a unit in the
        last place: rounding inside differs then, and a fault stays as it is. Points that the function refuses, or where
        a slope is infinite, tell nothing."""
        generator = torch.Generator().manual_seed(self.subject.seed ^ 0xF1)
        widest = 0.0
        for _ in range(_NEARBY):
            inputs = list(self.subject.inputs)
            where = self.subject.places[self.place]
            inputs[where] = _nearby(inputs[where], epsilon, generator)
            there = dataclasses.replace(self.subject, inputs=inputs)
            try:
                forward = self.weighted(_moved(there, where, self.tangent, self.phases))
                reverse = inner(there.tape().pull(self.cotangents)[self.place], self.tangent)
            except Exception as error:
                if not is_refusal(error):
                    raise
                continue
            apart = sum(float(one.sum()) for one in forward) - float(reverse.sum())
            if math.isfinite(apart):
                widest = max(widest, abs(apart - here))
        return widest

    def rounding(self, moved: Tangents) -> list[torch.Tensor]:
        """What rounding anywhere in the function, and in its forward formulas, may do to each element of tangents."""
        widest = self.nothing()
        for context in shadow.roundings(_EPSILON, self.subject.seed):
            with context:
                again = self.tangents()
            for row, (one, other) in enumerate(zip(moved, again, strict=True)):
                if one is not None and other is not None and one.numel():
                    apart = (raised(one) - raised(other)).abs().nan_to_num(0.0, 0.0)
                    apart = apart.clamp(max=_ILL * float(raised(one).abs().max()))
                    widest[row] = torch.maximum(widest[row], _ROUNDED * apart)
        return widest


@torch.no_grad()
def _nearby(base: torch.Tensor, epsilon: float, generator: torch.Generator) -> torch.Tensor:
    """A tensor, each of whose elements is the next one, or the one before, in its precision."""
    signs = torch.randint(0, 2, base.shape, generator=generator).to(base.device) * 2 - 1
    return (raised(base) * (1 + signs * epsilon)).to(base.dtype)


def forward_mode(
    subject: Subject,
    tape: Tape,
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    phases: Phases,
) -> Opinion:
    """J v by forward mode, for a random v of each input in turn, against reverse mode: `gradients` of the run `tape`.

    Nothing is found where an operator has no forward formula, or both are no number: at an edge slopes may be infinite.
    """
    generator = torch.Generator().manual_seed(subject.seed ^ 0xF0)
    found = Opinion("forward_mode", [], 0.0, 0.0, "forward mode must agree with reverse mode")
    for place, (gradient, kind) in enumerate(zip(gradients, subject.kinds, strict=True)):
        tangent = structure.project(drawn_like(gradient, generator), kind)
        push = _Push(subject, tape, place, tangent, cotangents, phases)
        try:
            moved = push.tangents()
        except Exception as error:
            if not is_refusal(error):
                raise
            return _unanswered(found, error, len(gradients))
        judged = _judged(push, moved, inner(gradient, tangent), torch.finfo(gradient.dtype).eps)
        if judged is None:
            found.verdicts.append(Verdict.INCONCLUSIVE)
        else:
            add(found, *judged)
    return found


def _judged(push: _Push, moved: Tangents, reverse: torch.Tensor, epsilon: float) -> tuple[float, float] | None:
    """How far forward mode is off, and what it may be off by; None where nothing can be said. `reverse` are the terms
    of <J^T u, v>."""
    terms, backward = push.weighted(moved), float(reverse.sum())
    forward = sum(float(one.sum()) for one in terms)
    if forward == backward and not math.isfinite(forward):
        return 0.0, 0.0
    if not math.isfinite(forward) and not math.isfinite(backward):
        return None
    off, bound = abs(forward - backward), _bound([*terms, reverse], epsilon)
    if epsilon > _EPSILON:
        if off > bound and math.isfinite(off):
            bound = max(bound, _ROUNDED * push.scatter(forward - backward, epsilon))
            nothing = push.summed(push.nothing(epsilon))
            if max(sum(float(one.abs().sum()) for one in terms), float(reverse.abs().sum())) <= nothing:
                bound = max(bound, nothing)
        return off, bound
    if off > bound and math.isfinite(off):
        bound += push.summed(push.rounding(moved))
    if off > bound or not math.isfinite(off):
        return off, bound
    return _by_elements(push, moved, backward) or (off, bound)


def _bound(terms: Sequence[torch.Tensor], epsilon: float) -> float:
    """What sums of such terms may differ by. In float64 faults are independent of each other, so that the norm counts;
    in lower precision the order of additions is what differs."""
    total = sum(float(one.abs().sum()) for one in terms)
    if not math.isfinite(total):
        return 0.0
    if epsilon > _EPSILON:
        return slack(epsilon) * total
    size = sum(norm(one) for one in terms)
    return RELATIVE * size + _UNITS * _EPSILON * total


def _by_elements(push: _Push, moved: Tangents, backward: float) -> tuple[float, float] | None:
    """The element of an output whose tangent is furthest off, as far as the pull-back of the pull-back tells; None
    where none is, or that tells nothing, having a fault of its own: it has to give `backward`, <J^T u, v>, as well."""
    target = push.tape.targets[push.place]
    try:
        with push.tape.around:
            twice = autodiff.pull_back_the_pull_back(push.tape.outputs, [target], [push.tangent])
    except Fault:
        return None
    terms = push.weighted(twice)
    whole = sum(norm(one) for one in terms)
    if not abs(sum(float(one.sum()) for one in terms) - backward) <= _AGREED * whole:
        return None
    shaken: list[torch.Tensor] | None = None
    worst: tuple[float, float] | None = None
    for row, (one, other, u) in enumerate(zip(moved, twice, push.cotangents, strict=True)):
        if u is None or (one is None and other is None) or not u.numel():
            continue
        by, known = (raised(torch.zeros_like(u) if t is None else t.detach()) for t in (one, other))
        error, size = (by - known).abs().reshape(-1), known.abs().reshape(-1)
        bound = RELATIVE * size + _UNITS * _EPSILON * size.max()
        if not bool((error > bound).any()):
            continue
        shaken = push.rounding(moved) if shaken is None else shaken
        bound = bound + shaken[row].reshape(-1)
        element = int((error - bound).argmax())
        off, most = float(error[element]), float(bound[element])
        if off > most and (worst is None or off - most > worst[0] - worst[1]):
            worst = off, most
    return worst


def _unanswered(found: Opinion, error: Exception, count: int) -> Opinion:
    """Of so many inputs, where forward mode raised: it is wrong, unless there is none."""
    reason = (error.message if isinstance(error, Fault) else str(error)).rstrip(".")
    if autodiff.lacks_forward_formula(error):
        text = f"{found.explanation}, which cannot be asked: {reason}"
        return Opinion(found.name, [Verdict.INCONCLUSIVE] * count, 0.0, 0.0, text)
    return Opinion(found.name, [Verdict.FAIL] * count, math.inf, 0.0, f"{found.explanation}; it raised: {reason}")


def _moved(subject: Subject, place: int, tangent: torch.Tensor, phases: Phases) -> list[torch.Tensor | None]:
    """What forward mode makes of a tangent of one input: that of each output, None where it does not move. Raises Fault
    or RuntimeError where an operator has no forward formula, or refuses."""
    tangents: list[torch.Tensor | None] = [None] * len(subject.inputs)
    tangents[place] = tangent.to(subject.inputs[place].dtype)
    seed_everything(subject.seed, subject.plan.device)
    return autodiff.forward_mode(subject.plan, subject.inputs, tangents, phases)[1]


def _weighted(cotangents: Cotangents, moved: Tangents) -> list[torch.Tensor]:
    """The terms of <u, J v>, a tensor an output."""
    pairs = zip(cotangents, moved, strict=True)
    return [inner(u, one) for u, one in pairs if u is not None and one is not None]


@torch.inference_mode(False)
def forward_slopes(
    subject: Subject, cotangents: Cotangents, place: int, directions: torch.Tensor, phases: Phases
) -> torch.Tensor | None:
    """<u, J d> by forward mode for each of some directions of the input at that place among the wanted ones, (P,
    *shape) in and (P,) out; None where an operator has no forward formula, or refuses."""
    found = []
    for direction in directions:
        try:
            moved = _moved(subject, subject.places[place], direction, phases)
        except Exception:
            return None
        found.append(sum(float(one.sum()) for one in _weighted(cotangents, moved)))
    return torch.tensor(found, dtype=torch.float64, device=directions.device)

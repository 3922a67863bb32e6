"""What breaks a tie between a claim and autograd, where the numerical derivative is too coarse to do so."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradoracle_server.engine import forward, mismatches
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import Gradients
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.report import Mismatch

SENTENCE = (
    "The numerical derivative is too coarse to tell, but autograd's forward and reverse modes agree with each other, "
    "and not with it."
)


def by_forward_mode(
    case: Case,
    place: int,
    examiner: Examiner,
    gradients: Gradients,
    elements: Sequence[int],
    inside: torch.Tensor,
) -> list[Mismatch]:
    """The claimed elements that both of autograd's modes contradict, which have formulas of their own; in float64.

    None where rounding inside of the function, `inside`, (C,), explains the distance, since both modes share the values
    on the way, or where an operator has no forward formula.
    """
    if case.epsilon > torch.finfo(torch.float64).eps:
        return []
    directions, lengths = examiner.space.units(mismatches.coordinates(examiner, elements))
    natural = examiner.space.natural(directions)
    found = forward.forward_slopes(case.twin, case.twin_cotangents, place, natural, Phases(natural.device))
    if found is None:
        return []
    rows = mismatches.beside(examiner, gradients, elements, found / lengths, inside)
    return [
        one for one in rows if one.error > one.error_bound and abs(one.reference - one.numerical) <= one.error_bound
    ]

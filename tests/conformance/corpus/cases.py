"""The cases of one operator: right gradients, wrong backwards, wrong claims, wrong second derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from conformance.corpus import checkers, wrongs
from conformance.corpus.checkers import FAIL, PASS, Case
from conformance.corpus.planting import planted, planted_second, right
from conformance.corpus.subjects import Subject, cotangent_of, subjects

SMOOTH = "gradcheck slow"
"""The checker that says where a right gradient is the derivative, and so where the point is smooth."""

CLAIMS = (
    "element * (1 + 1e-8)",
    "smallest element * (1 + 1e-8)",
    "element * 2",
    "element zeroed",
    "element's sign",
    "element NaN",
    "sign",
    "factor 1 + 1e-8",
    "factor 0.5",
    "zero",
    "conjugated",
    "transposed",
    "rows reversed",
    "inputs swapped",
    "duplicates lost",
    "broadcast not reduced: one row",
    "broadcast not reduced: mean",
)
"""The faults that a claim can have, which is a gradient for one cotangent."""


def chosen(name: str, dtype: torch.dtype) -> tuple[Subject | None, Subject | None]:
    """The operator's sample for all faults, and one in which an input is broadcast.

    The first that is smooth, and where the check of the right gradient does not say that it is not: a kink, say. Where
    it fails the right gradient it is taken as well, since that is a false alarm.
    """
    first = doubted = broadcast = None
    for subject in subjects(name, dtype):
        if first is not None and broadcast is not None:
            break
        wide = broadcast is None and bool(dict(wrongs.unreduced(subject)))
        if first is not None and not wide:
            continue
        if wrongs.target(subject) is None:
            continue
        case = right_case(subject)
        if checkers.asked(case, {SMOOTH: checkers.PEERS[SMOOTH]})["verdicts"][SMOOTH] != PASS:
            continue
        verdict = checkers.asked(case, {"probe": checkers.OURS["probe"]})["verdicts"]["probe"]
        if verdict == PASS:
            first = first or subject
            broadcast = broadcast or (subject if wide else None)
        elif verdict in (FAIL, "INCONCLUSIVE", checkers.CRASHED):
            doubted = doubted or subject
    return first or doubted, broadcast


def right_case(subject: Subject) -> Case:
    """The other class."""
    return Case("right", planted(subject.function, right), subject.inputs, subject, right)


def backwards(subject: Subject) -> Iterator[Case]:
    """Wrong backwards of a subject."""
    for fault, wrong in wrongs.faults(subject).items():
        asked = None if fault == wrongs.FROZEN else wrong  # nothing is frozen in jax
        yield Case(fault, planted(subject.function, wrong), subject.inputs, subject, asked)


def claims(subject: Subject) -> Iterator[Case]:
    """The right gradients as a claim, and wrong ones, for a random cotangent."""
    found = wrongs.target(subject)
    assert found is not None
    place, sizes = found
    cotangent = cotangent_of(subject.output, 5)
    gradients = subject.gradients(cotangent)
    inputs = [one.detach().clone().requires_grad_() for one in subject.inputs]
    given = {"out0": cotangent}
    yield Case("claim: right", subject.function, subject.inputs, subject, claimed=_named(gradients), cotangents=given)
    for fault, wrong in wrongs.faults(subject).items():
        if fault not in CLAIMS:
            continue
        changed = wrong(inputs, cotangent, gradients)
        if _visible(changed[place], gradients[place], sizes) or any(
            _visible(a, b, b.abs()) for at, (a, b) in enumerate(zip(changed, gradients, strict=True)) if at != place
        ):
            named = _named(changed)
            yield Case(f"claim: {fault}", subject.function, subject.inputs, subject, claimed=named, cotangents=given)


def _visible(changed: torch.Tensor, true: torch.Tensor, sizes: torch.Tensor) -> bool:
    """Whether a claim differs by 5e-9 or more in an element that matters for this cotangent, too."""
    if not true.numel():
        return False
    matters = (true.abs() >= wrongs.NEGLIGIBLE * true.abs().max()) | (changed - true).isnan()
    return bool((matters & ~((changed - true).abs() <= 5e-9 * true.abs())).any()) and bool(sizes.any())


def _named(gradients: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    return {f"x{place}": one.contiguous() for place, one in enumerate(gradients)}


def seconds(subject: Subject) -> Iterator[Case]:
    """Right and wrong second derivatives, where there is one that torch's own gradgradcheck accepts."""
    found = wrongs.second(subject)
    if not found:
        return
    case = Case("second derivative: right", planted_second(subject.function, right), subject.inputs, subject, order=2)
    if checkers.asked(case, {SMOOTH: checkers.PEERS[SMOOTH]})["verdicts"][SMOOTH] != PASS:
        return
    yield case
    for fault, wrong in found.items():
        yield Case(fault, planted_second(subject.function, wrong), subject.inputs, subject, order=2)

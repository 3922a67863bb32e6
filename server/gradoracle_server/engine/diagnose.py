"""What kind of fault turns the right gradient into the wrong one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch

from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.report import Diagnosis
from gradoracle_server.engine.tolerances import RELATIVE

_CLOSE = 1e-6  # relative distance at which a hypothesis explains a gradient in float64
IGNORES_COTANGENT = "It is the same whatever the cotangent: the chain rule is not applied."

OTHERS = {True: "right in the others", False: "not seen to be wrong in the others"}
"""What is said of elements that are not known to be wrong."""

_MORE = ", more of them than were measured one by one"
_APART = 0.1  # of what a factor makes of an element: what is less does not have the factor
_MOST = 1e9  # of a factor: more is of what rounding leaves of 0
_FEW = 10  # wrong elements that still count as single ones


@dataclasses.dataclass(slots=True)
class Evidence:
    """A wrong gradient, the right one, and what hypotheses need to know of the graph.

    `claimed` and `true` have the input's shape, in float64 or complex128; `tolerance` is relative.
    """

    claimed: torch.Tensor
    true: torch.Tensor
    tolerance: float = _CLOSE
    sharp: bool = True  # whether what is not known to be wrong is known to be right; not where rounding hides it
    for_ones: torch.Tensor | None = None  # the right gradient for cotangents of 1, where those on trial are not 1
    unreduced: Callable[[], Sequence[tuple[int, Sequence[torch.Tensor]]]] = tuple
    indices: Iterable[torch.Tensor] = ()  # integer tensors of the request: inputs and constants


@dataclasses.dataclass(slots=True)
class Finding:
    """The likeliest kind of fault, the factor where it is one, and a sentence."""

    diagnosis: Diagnosis
    sentence: str
    factor: float | None = None


def diagnose(evidence: Evidence) -> Finding:
    """The first hypothesis that explains the claim, the most particular first."""
    for hypothesis in (
        _nan,
        _ignores_cotangent,
        _zeroed_whole,
        _sign_flipped,
        _conjugated,
        _transposed,
        _not_reduced,
        _scaled,
        _duplicates_lost,
        _zeroed,
        _part_flipped,
        _single_elements,
    ):
        finding = hypothesis(evidence)
        if finding is not None:
            return finding
    return Finding(Diagnosis.UNKNOWN, "It differs from the right gradient in no way that has a name.")


def by_slopes(
    claimed: torch.Tensor,
    numerical: torch.Tensor,
    bar: torch.Tensor,
    wrong: Sequence[tuple[complex, complex]] = (),
    *,
    conjugate: torch.Tensor | None = None,
    rounding: torch.Tensor | None = None,
) -> Finding:
    """The same from slopes along a few directions alone, each of shape (P,): for gradients wrong in many elements.
    `wrong`: some of these, claimed and numerical. `conjugate`: what the claim's conjugate says of the directions, where
    there is one. `rounding`: what rounding may do to what the claim says of them, (P,)."""
    if bool(claimed.isnan().any()):
        return Finding(Diagnosis.NAN, "It has elements that are NaN.")
    if bool((claimed == 0).all()):
        return Finding(Diagnosis.ZEROED, "It is zero along every direction that was tried.")
    power = numerical.square().sum()
    factor = float((claimed * numerical).sum() / power) if bool(power > 0) else 0.0
    slack = _CLOSE * claimed.abs() if rounding is None else rounding
    left = claimed - factor * numerical
    explained = bool((left.abs() <= abs(factor) * bar + slack).all()) and bool(
        norm(left) <= _APART * norm(claimed - numerical)
    )
    if claimed.numel() > 1 and explained:
        unsure = float((numerical.abs() * (bar + slack)).sum() / power)
        if abs(factor + 1) <= max(_CLOSE, unsure):
            return Finding(Diagnosis.SIGN_FLIPPED, "It is the negative of the right gradient.")
        return Finding(Diagnosis.SCALED, f"It is {factor:.9g} times the right gradient.", factor)
    if conjugate is not None and bool(((conjugate - numerical).abs() <= bar + slack).all()):
        return Finding(Diagnosis.CONJUGATED, "It is the complex conjugate of the right gradient.")
    if wrong and all(mine == 0 != true for mine, true in wrong):
        return Finding(Diagnosis.ZEROED, f"It is zero in elements where the right gradient is not{_MORE}.")
    if wrong and all(abs(mine + true) <= _CLOSE * abs(true) for mine, true in wrong):
        return Finding(Diagnosis.SIGN_FLIPPED, f"It has the wrong sign in elements{_MORE}.")
    return Finding(Diagnosis.UNKNOWN, "It is wrong in more elements than were measured one by one.")


def _same(left: torch.Tensor, right: torch.Tensor, tolerance: float) -> bool:
    if left.shape != right.shape or not bool(left.isfinite().all()):
        return False
    scale = right.abs().max() if right.numel() else right.abs().sum()
    return bool(((left - right).abs() <= tolerance * scale).all())


def _wrong(evidence: Evidence) -> torch.Tensor:
    """Which elements are wrong, of the input's shape."""
    true = evidence.true
    scale = torch.maximum(true.abs(), 1e-3 * evidence.tolerance * true.abs().max())
    return ~((evidence.claimed - true).abs() <= evidence.tolerance * scale)


def _share(wrong: torch.Tensor) -> str:
    return f"{int(wrong.sum())} of {wrong.numel()} element{'s' if wrong.numel() != 1 else ''}"


def _nan(evidence: Evidence) -> Finding | None:
    bad = evidence.claimed.isnan() & evidence.true.isfinite()
    if not bad.any():
        return None
    return Finding(Diagnosis.NAN, f"It is NaN where the right gradient is finite, in {_share(bad)}.")


def _ignores_cotangent(evidence: Evidence) -> Finding | None:
    if evidence.for_ones is None or not _same(evidence.claimed, evidence.for_ones, evidence.tolerance):
        return None
    return Finding(Diagnosis.IGNORES_COTANGENT, IGNORES_COTANGENT)


def _zeroed_whole(evidence: Evidence) -> Finding | None:
    if bool((evidence.claimed == 0).all()) and bool((evidence.true != 0).any()):
        return Finding(Diagnosis.ZEROED, "It is zero everywhere, and the right gradient is not.")
    return None


def _sign_flipped(evidence: Evidence) -> Finding | None:
    if _same(evidence.claimed, -evidence.true, evidence.tolerance):
        return Finding(Diagnosis.SIGN_FLIPPED, "It is the negative of the right gradient.")
    return None


def _conjugated(evidence: Evidence) -> Finding | None:
    if evidence.true.is_complex() and _same(evidence.claimed, evidence.true.conj(), evidence.tolerance):
        return Finding(Diagnosis.CONJUGATED, "It is the complex conjugate of the right gradient.")
    return None


def _transposed(evidence: Evidence) -> Finding | None:
    true = evidence.true
    for first in range(true.dim()):
        for second in range(first + 1, true.dim()):
            turned = true.transpose(first, second)
            if turned.shape[first] == 1 or turned.shape[second] == 1:
                continue
            if _same(evidence.claimed, turned.reshape(true.shape), evidence.tolerance):
                laid_out = "" if turned.shape == true.shape else ", laid out in the input's shape"
                sentence = f"It is the right gradient with axes {first} and {second} exchanged{laid_out}."
                return Finding(Diagnosis.TRANSPOSED, sentence)
    return None


def _not_reduced(evidence: Evidence) -> Finding | None:
    for extra, contributions in evidence.unreduced():
        if any(_same(evidence.claimed, one, evidence.tolerance) for one in contributions):
            sentence = f"It is one of the {extra} contributions of a broadcast axis, which should have been summed."
            return Finding(Diagnosis.NOT_REDUCED, sentence)
    return None


def _scaled(evidence: Evidence) -> Finding | None:
    claimed, true = evidence.claimed, evidence.true
    power = true.abs().square().sum()
    if not claimed.isfinite().all() or not power > 0:
        return None
    factor = float((true.conj() * claimed).sum().real / power)
    off = abs(factor - 1)
    close = evidence.tolerance * max(1e-3, min(1.0, off)) if evidence.sharp else min(evidence.tolerance, off / 4)
    if not 0 < abs(factor) < _MOST or not _same(claimed, factor * true, close):
        return None
    left = float((claimed - factor * true).abs().max())
    right = (claimed - true).abs() <= _APART * off * true.abs()
    if off < RELATIVE or left > off * float(true.abs().max()) or bool((right & (true != 0)).any()):
        return None  # the large elements alone are wrong by it, or the small ones by something else
    return Finding(Diagnosis.SCALED, f"It is {factor:.12g} times the right gradient.", factor)


def _duplicates_lost(evidence: Evidence) -> Finding | None:
    """Only what repeated indices address is wrong."""
    wrong = _wrong(evidence)
    if not wrong.any() or wrong.dim() == 0:
        return None
    if bool((evidence.claimed[wrong] == 0).all()):  # where some are lost, one is left
        return None
    places = wrong.nonzero()
    flat = wrong.flatten().nonzero().flatten()
    for tensor in evidence.indices:
        values, counts = torch.unique(tensor.to(torch.int64), return_counts=True)
        repeated = values[counts > 1]
        if not repeated.numel():
            continue
        addressed = [(places[:, axis], wrong.shape[axis]) for axis in range(wrong.dim())] + [(flat, wrong.numel())]
        for found, size in addressed:
            alone = size > 1 and bool(torch.isin(found, torch.where(repeated < 0, repeated + size, repeated)).all())
            if alone:
                sentence = f"Only what repeated indices address is wrong ({_share(wrong)}): their contributions add up."
                return Finding(Diagnosis.DUPLICATES_LOST, sentence)
    return None


def _zeroed(evidence: Evidence) -> Finding | None:
    wrong = _wrong(evidence)
    if wrong.any() and bool((evidence.claimed[wrong] == 0).all()):
        return Finding(Diagnosis.ZEROED, f"It is zero in {_share(wrong)} where the right gradient is not.")
    return None


def _part_flipped(evidence: Evidence) -> Finding | None:
    wrong = _wrong(evidence)
    if wrong.any() and _same(evidence.claimed[wrong], -evidence.true[wrong], evidence.tolerance):
        sentence = f"It has the wrong sign in {_share(wrong)}, and is right in the others."
        return Finding(Diagnosis.SIGN_FLIPPED, sentence)
    return None


def _single_elements(evidence: Evidence) -> Finding | None:
    wrong = _wrong(evidence)
    count = int(wrong.sum())
    if 0 < count <= min(_FEW, max(1, wrong.numel() // 2)):
        said = f"{_share(wrong)}, and {OTHERS[evidence.sharp]}" if wrong.numel() > 1 else "its only element"
        return Finding(Diagnosis.SINGLE_ELEMENTS, f"It is wrong in {said}.")
    return None

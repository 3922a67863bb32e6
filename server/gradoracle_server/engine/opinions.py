"""Second opinions that need no step size: identities that every right gradient obeys.

The gradient is linear in its cotangent, so cotangents of 0, -u and 2u, and u in another memory layout, have answers
that follow from u's, nearly to the last bit. They catch what differences cannot see, because it shows only for another
cotangent: a backward that ignores it, or misreads its strides. Forward mode's identities are in `forward`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gradoracle_server.engine import autodiff, trial
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.raising import raised
from gradoracle_server.engine.report import Opinion, Verdict
from gradoracle_server.engine.tolerances import RELATIVE
from gradoracle_server.engine.trial import Tape

_FAINT = 1e-3  # of the usual gradient: an answer that is less shows little
_ULPS_LOW = 16.0
"""Units in the last place within which low-precision answers agree that differ only in the order of additions; in
float64 it is `tolerances.RELATIVE`, because logcumsumexp's backward goes through the logarithm of its cotangent."""

_LARGER = 2.0**10
"""What cotangents are multiplied by, to see whether their size matters: what is cast to float16 on the way stays in its
range, mostly. They are not divided by it: what goes through that would lose digits, as it does in training."""

_GROSS = 1e-3  # of the largest element: what cotangents that are large make of that is no loss of digits
_SCALED, _SCALE = "linear_scaled", "the size of the cotangent must not matter but as a factor"
_ROUNDED = 16.0  # times what rounding was seen to do to the gradient; doubled cotangents double it

_ORDERS = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
"""Of so many axes, those of the memory, the slowest first; of others in reverse."""

Rounding = Callable[[int], float]
Cotangents = Sequence[torch.Tensor | None]


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with other strides: every second element along each axis, and the axes laid out in reverse."""
    strides, room = [], 1
    for size in tensor.shape:
        strides.append(2 * room)
        room *= 2 * size
    return tensor.new_zeros(max(room, 2)).as_strided(tensor.shape, strides).copy_(tensor)


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values without gaps, the axes laid out in another order, as they come back through a transposition: of
    images, with the channels last; of three axes, the last two exchanged, as attention has its heads."""
    if tensor.dim() < 2:
        return tensor
    reverse = tuple(range(tensor.dim() - 1, -1, -1))
    found = _laid_out(tensor, _ORDERS.get(tensor.dim(), reverse))
    return _laid_out(tensor, reverse) if found.is_contiguous() else found  # axes of 1 are in no order


def _laid_out(tensor: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    back = sorted(range(tensor.dim()), key=axes.__getitem__)
    return tensor.permute(axes).contiguous().permute(back)


class _Change(NamedTuple):
    """What is made of a cotangent, and what that makes of the gradient."""

    name: str
    sentence: str
    of: Callable[[torch.Tensor], torch.Tensor]
    factor: float


_ZERO = _Change("linear_zero", "the cotangent 0 must give 0", torch.zeros_like, 0.0)
_TOGETHER = (
    _Change("linear_negative", "the negated cotangent must give the negative", torch.neg, -1.0),
    _Change("linear_doubled", "twice the cotangent must give twice the gradient", lambda u: 2 * u, 2.0),
    _Change("linear_strided", "a non-contiguous cotangent must give the same", _strided, 1.0),
)
"""Asked for in one, as -2 times the cotangent, not contiguous; and one by one, where that is not right."""

_TRANSPOSED = _Change(
    "linear_transposed", "a cotangent whose axes lie in another order must give the same", _transposed, 1.0
)


class Again(NamedTuple):
    """What another run gives, which is pulled back a few times: a later answer tells if an earlier one spoiled it."""

    ones: list[torch.Tensor]  # for cotangents of ones
    doubled: list[torch.Tensor]  # for -2 times the cotangents, not contiguous
    large: list[torch.Tensor] | None
    """For `factor` times them, axes laid out in another order; divided by that. None where it raises for these."""
    factor: float  # 1 in float16, which has no room for more


def asked_again(tape: Tape, cotangents: Cotangents) -> Again | None:
    """The answers of a run that has given none. None where it raises."""
    factor = 1.0 if any(u is not None and u.dtype is torch.float16 for u in cotangents) else _LARGER
    try:  # of what a kernel keeps, and may write to in its next pull-back, only copies last
        ones = [g.clone() for g in tape.pull(_changed(cotangents, torch.ones_like))]
        doubled = [g.clone() for g in tape.pull(_changed(cotangents, lambda u: _strided(-2 * u)))]
    except Fault:
        return None
    try:
        large = [g / factor for g in tape.pull(_changed(cotangents, lambda u: _transposed(u * factor)))]
    except Fault:
        return Again(ones, doubled, None, factor)
    return Again(ones, doubled, large, factor)


def linearity(
    tape: Tape,
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    *,
    again: Again | None = None,
    rounding: Rounding | None = None,
) -> list[Opinion]:
    """Answers to other cotangents, against those that follow from `gradients`, the answer to `cotangents`; `again` are
    those that another run has given. `rounding` tells what rounding inside of kernels does to the gradient of an input,
    where a few units in the last place are not all."""
    ask = functools.partial(_asked, tape, cotangents, gradients, rounding)
    found = [ask(_ZERO)]
    together = compared("", "", again.doubled, [-2 * g for g in gradients], gradients, rounding) if again else None
    large = None
    if again and again.large is not None:
        large = compared(*_TRANSPOSED[:2], again.large, gradients, gradients, rounding)
    if together is None or together.verdict is Verdict.FAIL:
        together = ask(_Change("", "", lambda u: _strided(-2 * u), -2.0))
    if together.verdict is Verdict.PASS:  # then each alone is right, too
        said = [(one.name, together.explanation or one.sentence) for one in _TOGETHER]
        found += [dataclasses.replace(together, name=name, explanation=text) for name, text in said]
    else:
        found += [ask(one) for one in _TOGETHER]
    found.append(large if large is not None and large.verdict is Verdict.PASS else ask(_TRANSPOSED))
    found.append(_expanded(tape, cotangents, gradients, rounding, again.ones if again else None))
    if again and again.factor > 1:
        found.append(
            dataclasses.replace(large, name=_SCALED, explanation=_SCALE)
            if large is not None and large.verdict is Verdict.PASS
            else _scaled(tape, cotangents, gradients)
        )
    return found


def _scaled(tape: Tape, cotangents: Cotangents, gradients: Sequence[torch.Tensor]) -> Opinion:
    """Whether cotangents may be large, which another run says they may not. Where they leave the range of numbers that
    is no fault of theirs, nor is it if some digits are lost, as by matrix_exp, whose backward takes an exponential of
    the cotangent, too."""
    try:
        answers = tape.pull(_changed(cotangents, lambda u: _LARGER * u))
    except Fault as fault:
        text = f"{_SCALE}; it raised: {fault.message.rstrip('.')}"
        return Opinion(_SCALED, [Verdict.FAIL] * len(gradients), math.inf, 0.0, text)
    found = Opinion(_SCALED, [], 0.0, 0.0, _SCALE)
    for answer, gradient in zip(answers, gradients, strict=True):
        if not gradient.numel():
            add(found, 0.0, 0.0)
            continue
        known = gradient.isfinite()
        error = float(torch.where(known, (answer / _LARGER - gradient).abs(), 0.0).max())
        size = float(torch.where(known, gradient.abs(), 0.0).max())
        if math.isfinite(error):
            add(found, error, max(_GROSS, slack(torch.finfo(gradient.dtype).eps)) * size)
        else:
            found.verdicts.append(Verdict.INCONCLUSIVE)
            found.explanation = f"{_SCALE}, which cannot be asked: its multiples leave the range of numbers"
    return found


def _asked(
    tape: Tape,
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    rounding: Rounding | None,
    change: _Change,
) -> Opinion:
    """The answers to changed cotangents; to a quarter of them where twice as much overflows."""
    changed = _changed(cotangents, change.of)
    expected = [change.factor * g for g in gradients]
    size = max(1.0, abs(change.factor) / 2)  # twice as much is as good as once
    usual = [size * g for g in gradients]
    moved = None if rounding is None else lambda place: size * rounding(place)
    found = _answered(change.name, change.sentence, tape, changed, expected, usual, moved)
    if abs(change.factor) == 2 and not math.isfinite(found.error):
        changed = [None if u is None else u / 4 for u in changed]
        expected = [g / 4 for g in expected]
        sentence = "half the cotangent must give half the gradient; twice as much overflows"
        found = _answered(change.name, sentence, tape, changed, expected, gradients, rounding)
    return found


def _changed(cotangents: Cotangents, change: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor | None]:
    return [None if u is None else change(u) for u in cotangents]


def _ones(tensor: torch.Tensor) -> torch.Tensor:
    """Ones in its place, with strides of 0."""
    return tensor.new_ones(()).expand(tensor.shape)


def _alike(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The first values along an axis in place of all, with a stride of 0."""
    if not tensor.dim() or not tensor.numel():
        return tensor
    return tensor.select(axis, 0).unsqueeze(axis).expand(tensor.shape)


def _expanded(
    tape: Tape,
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    rounding: Rounding | None,
    ones: Sequence[torch.Tensor] | None,
) -> Opinion:
    """The answers to cotangents with strides of 0 against those to the same values without; `ones` are those to ones,
    where another run has given them."""
    sentence = "an expanded cotangent, of stride 0, must give the same as a contiguous one"
    # Ones say nothing of a softmax, whose gradient for them is 0: then values that are alike along one axis only.
    for change in (_ones, functools.partial(_alike, axis=0), functools.partial(_alike, axis=-1)):
        expanded = _changed(cotangents, change)
        given = ones if change is _ones else None
        expected = given or [g.clone() for g in tape.pull([None if u is None else u.contiguous() for u in expanded])]
        found = _answered("linear_expanded", sentence, tape, expanded, expected, gradients, rounding)
        sizes = [
            (float(torch.linalg.vector_norm(one, math.inf)), float(torch.linalg.vector_norm(g, math.inf)))
            for one, g in zip(expected, gradients, strict=True)
            if one.numel()
        ]
        found.faint = any(size <= _FAINT * usual and usual > 0 for size, usual in sizes)
        if found.verdict is not Verdict.PASS or not found.faint:
            break
    return found


def second_linearity(
    tape: Tape,
    cotangents: Cotangents,
    weights: Cotangents | None,
    gradients: Sequence[torch.Tensor],
    rounding: Rounding | None = None,
) -> list[Opinion]:
    """The same of second gradients, which are linear in what the first gradients are weighted with, and in the
    cotangents that those were for."""
    weights = (
        []
        if weights is None
        else [None if w is None else w.to(one.dtype) for w, one in zip(weights, tape.targets, strict=True)]
    )
    lowered = [g.to(one.dtype) for g, one in zip(gradients, tape.targets, strict=True)]
    found = linearity(trial.gradient_tape(tape, cotangents), weights, lowered, rounding=rounding)
    try:
        answers = trial.second_order(tape, [None if u is None else _strided(-2 * u) for u in cotangents], weights)
    except Fault:
        return found  # it raised for the cotangents on trial, too
    sentence = "-2 times the cotangent, not contiguous, must give -2 times the second gradient"
    expected = [-2 * one for one in lowered]
    found.append(compared("linear_cotangent", sentence, answers, expected, lowered, rounding))
    return found


def by_cotangent(tape: Tape, cotangents: Cotangents, weights: Cotangents, rounding: Rounding | None = None) -> Opinion:
    """<v, u> against <w, J^T u>, where v is the derivative of that by the cotangent u, in which it is linear. Second
    gradients by the inputs do not show what a backward's own backward makes of its cotangent. All is in float64, for
    what is rounded to less is not linear."""
    found = Opinion("second_by_cotangent", [], 0.0, 0.0, "the gradient's derivative by the cotangent must be J w")
    tracked = [None if u is None else u.detach().requires_grad_() for u in cotangents]
    leaves = [u for u in tracked if u is not None]
    try:
        slopes = trial.gradient_tape(tape, tracked).outputs
        moved = [
            None if w is None else autodiff.pull_back([one], [w.to(one.dtype)], leaves, retain_graph=True)
            for one, w in zip(slopes, weights, strict=True)
        ]
    except Fault as fault:
        text = f"{found.explanation}, which cannot be asked: {fault.message.rstrip('.')}"
        return Opinion(found.name, [Verdict.INCONCLUSIVE] * len(tape.targets), 0.0, 0.0, text)
    for place, (slope, weight, rows) in enumerate(zip(slopes, weights, moved, strict=True)):
        if weight is None or rows is None:
            add(found, 0.0, 0.0)
            continue
        weighted = inner(weight, slope)
        terms = [inner(v, u) for v, u in zip(rows, leaves, strict=True) if v is not None]
        error = abs(sum(float(one.sum()) for one in terms) - float(weighted.sum()))
        scale = sum(float(one.abs().sum()) for one in terms) + float(weighted.abs().sum())
        if not math.isfinite(scale):
            found.verdicts.append(Verdict.INCONCLUSIVE)
            continue
        bound = scale * RELATIVE
        if error > bound and rounding is not None:
            bound = max(bound, _ROUNDED * rounding(place) * float(raised(weight).abs().sum()))
        add(found, error, bound)
    return found


def _answered(
    name: str,
    sentence: str,
    tape: Tape,
    cotangents: Cotangents,
    expected: Sequence[torch.Tensor],
    typical: Sequence[torch.Tensor],
    rounding: Rounding | None,
) -> Opinion:
    """The answers to cotangents against what is expected; a backward that raises for these alone is wrong."""
    try:
        answers = tape.pull(cotangents)
    except Fault as fault:
        raised = f"{sentence}; it raised: {fault.message.rstrip('.')}"
        return Opinion(name, [Verdict.FAIL] * len(expected), math.inf, 0.0, raised)
    return compared(name, sentence, answers, expected, typical, rounding)


def ignores_cotangent(opinions: Sequence[Opinion], place: int) -> bool:
    """Whether an input's gradient did not change with the cotangent: neither for 0 nor for twice as much."""
    failed = {one.name for one in opinions if one.verdicts[place] is Verdict.FAIL}
    return {"linear_zero", "linear_doubled"} <= failed


def batched(
    tape: Tape, cotangents: Cotangents, gradients: Sequence[torch.Tensor], rounding: Rounding | None = None
) -> Opinion:
    """Pull-backs of u and -2u in one batch against those of each alone."""
    sentence = "several cotangents at once must give what each gives alone"
    stacked = [None if u is None else torch.stack([u, -2 * u]) for u in cotangents]

    def attempt() -> list[torch.Tensor | None]:
        return autodiff.pull_back(tape.outputs, stacked, tape.targets, retain_graph=True, batched=True)

    answers = autodiff.without_batching_rules(attempt)
    if answers is None:
        text = f"{sentence}; an operator has no batching rule"
        return Opinion("batched", [Verdict.INCONCLUSIVE] * len(gradients), 0.0, 0.0, text)
    full = [
        torch.zeros_like(g).expand(2, *g.shape) if a is None else a for a, g in zip(answers, gradients, strict=True)
    ]
    pairs = [tape.projected([one[k] for one in full]) for k in range(2)]
    both = [torch.stack(rows) for rows in zip(*pairs, strict=True)]
    expected = [torch.stack([one, -2 * one]) for one in gradients]
    return compared("batched", sentence, both, expected, expected, rounding)


def inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Terms of the real inner product, in float64."""
    product = raised(left.detach()).conj() * raised(right.detach())
    return product.real if product.is_complex() else product


def slack(epsilon: float) -> float:
    return RELATIVE if epsilon <= torch.finfo(torch.float64).eps else _ULPS_LOW * epsilon


def compared(
    name: str,
    sentence: str,
    answers: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    typical: Sequence[torch.Tensor],
    rounding: Rounding | None = None,
) -> Opinion:
    """An opinion on answers, one an input, against what is `expected`, within rounding of the `typical` gradients."""
    found = Opinion(name, [], 0.0, 0.0, sentence)
    for place, (answer, want, size) in enumerate(zip(answers, expected, typical, strict=True)):
        if torch.equal(answer, want):  # as nearly always, doubling and negating being exact
            add(found, 0.0, 0.0)
            continue
        known = size.isfinite()
        precision = torch.finfo(size.dtype)
        bound = float(slack(precision.eps) * torch.where(known, size.abs(), 0.0).max()) + precision.tiny
        error = float(torch.where(known, (answer - want).abs(), 0.0).max())
        if error > bound and rounding is not None:
            bound = max(bound, _ROUNDED * rounding(place))
        add(found, error, bound)
    return found


def add(opinion: Opinion, error: float, bound: float) -> None:
    """The finding on one more input; the opinion's figures are those of the worst."""
    opinion.verdicts.append(Verdict.PASS if error <= bound else Verdict.FAIL)
    if math.isnan(error) or error - bound > opinion.error - opinion.bound or len(opinion.verdicts) == 1:
        opinion.error, opinion.bound = error, bound

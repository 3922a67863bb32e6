"""Second opinions on parts of what is differentiated: each input by itself, and each output by itself.

A backward may look at what is wanted of it: formulas of operators have masks for that, hand-written ones ask
needs_input_grad, and skip, or shift, what they return. And it may be given the cotangents of some outputs alone, the
others undefined, for which torch passes zeros or, where a function wants it so, None. Neither happens while every input
is on trial and every output has a cotangent, and both do in training: with a frozen layer, or an output that the loss
leaves out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch

from gradoracle_server.engine import trial
from gradoracle_server.engine.errors import Fault, listed
from gradoracle_server.engine.opinions import Cotangents, Rounding, compared, slack
from gradoracle_server.engine.raising import raised
from gradoracle_server.engine.report import Opinion, Verdict
from gradoracle_server.engine.trial import Subject, Tape

FROZEN = "frozen"
"""The name of the opinion on inputs."""

_SINGLE = "linear_outputs"

_GROSS = 1e-3  # of the largest element of the parts of a sum
_GROUPS = 8  # that inputs, or outputs, are asked for in, at the most

_INPUTS = "where other inputs are frozen, the gradient must be the same"
_SECOND = "where other inputs are frozen, the second gradient must be the same"
_SUM = "what single outputs give, the others having no cotangent, must add up to what all give together"
_OUTPUTS = "what some outputs give, the others having no cotangent, must be what they give while theirs are 0"


def inputs(
    subject: Subject,
    outputs: Sequence[torch.Tensor],
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    rounding: Rounding | None,
    *,
    thorough: bool = False,
) -> tuple[Opinion | None, int]:
    """Gradients of runs in which only some of the inputs require grad, against `outputs` and `gradients`, those of a
    run in which all do; and how many such runs there were. None where there is one input only.

    Each input is asked for by itself, or, where there are more than eight, every eighth together; if `thorough`, all
    but those, too.
    """
    if len(subject.places) < 2:
        return None, 0
    every = range(len(subject.places))
    groups = _groups(every)
    if thorough and len(every) > 2:
        groups += [[k for k in every if k not in group] for group in groups]
    opinion, unasked = Opinion(FROZEN, [Verdict.PASS] * len(every), 0.0, 0.0, _INPUTS), ""
    for group in groups:
        run = _frozen(subject, outputs, group)
        if isinstance(run, str):
            unasked = unasked or run
            continue
        answers, why = _answers(subject, group, gradients, functools.partial(run.pull, cotangents), _INPUTS)
        found = compared(FROZEN, why or _INPUTS, answers, gradients, gradients, rounding)
        if found.verdict is Verdict.FAIL and not why and _may_be_rounding(found, answers, gradients, group):
            unasked = unasked or "in this precision another gradient may be rounding of another kernel"
            continue
        _take(opinion, found)
    return _or_unasked(opinion, unasked), len(groups)


def second_inputs(
    subject: Subject, tape: Tape, cotangents: Cotangents, weights: Cotangents, rounding: Rounding | None
) -> tuple[Opinion | None, int]:
    """The same of second gradients: of an input's own first gradient, weighted, by that input, while the others are
    frozen, against what the run gives in which none is. In groups, where inputs are many."""
    if len(subject.places) < 2:
        return None, 0
    opinion, unasked = Opinion(FROZEN, [Verdict.PASS] * len(subject.places), 0.0, 0.0, _SECOND), ""
    groups = _groups(range(len(subject.places)))
    for group in groups:
        own = [one if place in group else None for place, one in enumerate(weights)]
        run = _frozen(subject, tape.outputs, group)
        if isinstance(run, str):
            unasked = unasked or run
            continue
        try:
            expected = trial.second_order(tape, cotangents, own)
        except Fault as fault:
            unasked = unasked or fault.message.rstrip(".")
            continue
        pull = functools.partial(trial.second_order, run, cotangents, own)
        answers, why = _answers(subject, group, expected, pull, _SECOND)
        _take(opinion, compared(FROZEN, why or _SECOND, answers, expected, expected, rounding))
    return _or_unasked(opinion, unasked), len(groups)


def _or_unasked(opinion: Opinion, unasked: str) -> Opinion:
    """The opinion, or none where nothing is wrong and something could not be asked, for the reason given."""
    if unasked and opinion.verdict is Verdict.PASS:
        opinion.verdicts = [Verdict.INCONCLUSIVE] * len(opinion.verdicts)
        opinion.explanation = f"{opinion.explanation}, which cannot be asked: {unasked}"
    return opinion


def _answers(
    subject: Subject,
    group: Sequence[int],
    expected: Sequence[torch.Tensor],
    pull: Callable[[], list[torch.Tensor]],
    sentence: str,
) -> tuple[list[torch.Tensor], str]:
    """The gradients expected, but for those by inputs of the group, which are `pull`'s; infinite, with what is said
    after the sentence, where it raises."""
    answers, why = list(expected), ""
    try:
        found = pull()
    except Fault as fault:
        why = f"{sentence}; by {listed([subject.names[k] for k in group])} alone it raised: {fault.message}"
        found = [torch.full_like(one, math.inf) for one in expected]
    for k in group:
        answers[k] = found[k]
    return answers, why.rstrip(".")


def _take(opinion: Opinion, found: Opinion) -> None:
    """Adds what one run says to the opinion; its figures and words are those of the first that fails."""
    if opinion.verdict is Verdict.PASS and (found.verdict is Verdict.FAIL or found.error > opinion.error):
        opinion.error, opinion.bound, opinion.explanation = found.error, found.bound, found.explanation
    pairs = zip(opinion.verdicts, found.verdicts, strict=True)
    opinion.verdicts = [Verdict.FAIL if Verdict.FAIL in pair else pair[0] for pair in pairs]


def _may_be_rounding(
    found: Opinion, answers: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], group: Sequence[int]
) -> bool:
    """Whether what differs may be nothing else: in low precision another kernel may run where an input is frozen, as
    `scaled_dot_product_attention` has one, and of a saturated function's gradient it leaves other digits, or none that
    are the same. A gradient that is missing altogether is not rounded."""
    wrong = [k for k in group if found.verdicts[k] is Verdict.FAIL]
    low = all(torch.finfo(gradients[k].dtype).eps > torch.finfo(torch.float64).eps for k in wrong)
    return low and all(bool(answers[k].any()) for k in wrong)


def _frozen(subject: Subject, outputs: Sequence[torch.Tensor], group: Sequence[int]) -> Tape | str:
    """A run in which only inputs of a group require grad; why there is none, as of a function that calls autograd
    itself, or asks what requires grad and so computes something else, or in another way: only the same bits say that it
    is the same function."""
    other = "its outputs are others then, if only in their last places"
    try:
        run = subject.tape(only=[subject.places[k] for k in group])
        if len(run.outputs) != len(outputs):
            return f"it has {len(run.outputs)} outputs then, not {len(outputs)}"
        pairs = zip(run.outputs, outputs, strict=True)
        return run if all(_is_same(one.detach(), two.detach()) for one, two in pairs) else other
    except Exception as error:  # a function of the caller's own raises what it likes
        return str(error).rstrip(".") or type(error).__name__


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if torch.equal(one, other):
        return True
    wide, like = raised(one), raised(other)
    return wide.shape == like.shape and bool(((wide == like) | (wide.isnan() & like.isnan())).all())


def outputs(
    tape: Tape, cotangents: Cotangents, gradients: Sequence[torch.Tensor], rounding: Rounding | None
) -> Opinion | None:
    """Pull-backs of the cotangents of single outputs, the others having none: their sum against `gradients`, which all
    give together, and where that is another one by no more than rounding may be, against that for cotangents of 0 in
    place of none, because what cancels in the sum may round in its parts. None where one output alone has a cotangent.

    Each output is asked for by itself, or, where there are more than eight, every eighth together.
    """
    pairs = enumerate(zip(tape.outputs, cotangents, strict=True))
    live = [place for place, (output, one) in pairs if one is not None and output.requires_grad]
    if len(live) < 2:
        return None
    parts = [[one if place in group else None for place, one in enumerate(cotangents)] for group in _groups(live)]
    sums, sizes = [torch.zeros_like(g) for g in gradients], [torch.zeros_like(g) for g in gradients]
    for part in parts:
        try:
            answers = tape.pull(part)
        except Fault as fault:
            return _raised(tape, cotangents, part, fault)
        sums = [one + answer for one, answer in zip(sums, answers, strict=True)]
        sizes = [one + answer.abs() for one, answer in zip(sizes, answers, strict=True)]
    found = compared(_SINGLE, _OUTPUTS, sums, gradients, sizes, rounding)
    if found.verdict is not Verdict.FAIL:
        return found
    with_zeros = _with_zeros(tape, cotangents, parts, sums, gradients, sizes, rounding)
    if with_zeros.verdict is not Verdict.FAIL and _is_gross(found, sums, gradients, sizes):
        return dataclasses.replace(found, explanation=_SUM)
    return with_zeros


def _with_zeros(
    tape: Tape,
    cotangents: Cotangents,
    parts: Sequence[Cotangents],
    sums: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    sizes: Sequence[torch.Tensor],
    rounding: Rounding | None,
) -> Opinion:
    """What is said of sums of parts beside sums for cotangents of 0 in place of none."""
    zeros = [torch.zeros_like(g) for g in gradients]
    for part in parts:
        try:
            zeros = [one + more for one, more in zip(zeros, tape.pull(_zeroed(cotangents, part)), strict=True)]
        except Fault as fault:
            return _unaskable(tape, fault)
    return compared(_SINGLE, _OUTPUTS, sums, zeros, sizes, rounding)


def _is_gross(
    found: Opinion, sums: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor]
) -> bool:
    """Whether a sum is off by more than what cancels in it can have been rounded by."""
    return any(
        verdict is Verdict.FAIL
        and float((one - gradient).abs().max())
        > max(_GROSS, 8 * slack(torch.finfo(size.dtype).eps)) * float(size.max())
        for verdict, one, gradient, size in zip(found.verdicts, sums, gradients, sizes, strict=True)
    )


def _zeroed(cotangents: Cotangents, part: Cotangents) -> list[torch.Tensor | None]:
    return [
        torch.zeros_like(whole) if one is None and whole is not None else one
        for one, whole in zip(part, cotangents, strict=True)
    ]


def _raised(tape: Tape, cotangents: Cotangents, part: Cotangents, fault: Fault) -> Opinion:
    """What is said where single outputs make the backward raise: nothing where it raises for zeros in place of no
    cotangents as well, as that of singular vectors does, of which one without the other has no gradient."""
    try:
        tape.pull(_zeroed(cotangents, part))
    except Fault:
        return _unaskable(tape, fault)
    text = f"{_OUTPUTS}; without one it raised: {fault.message.rstrip('.')}"
    return Opinion(_SINGLE, [Verdict.FAIL] * len(tape.targets), math.inf, 0.0, text)


def _unaskable(tape: Tape, fault: Fault) -> Opinion:
    text = f"{_OUTPUTS}, which cannot be asked: {fault.message.rstrip('.')}"
    return Opinion(_SINGLE, [Verdict.INCONCLUSIVE] * len(tape.targets), 0.0, 0.0, text)


def _groups(places: Sequence[int]) -> list[Sequence[int]]:
    """Each by itself, or every eighth together where there are more than that."""
    return [places[k::_GROUPS] for k in range(min(_GROUPS, len(places)))]

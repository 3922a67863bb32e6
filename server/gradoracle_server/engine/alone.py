"""Second opinions on parts of what is differentiated: each input by itself, and each output by itself.

A backward may look at what is wanted of it: formulas of operators have masks for that, hand-written ones ask
needs_input_grad, and skip, or shift, what they return. And it may be given the cotangents of some outputs alone, the
others undefined, for which torch passes zeros or, where a function wants it so, None. Neither happens while every input
is on trial and every output has a cotangent, and both do in training: with a frozen layer, or an output that the loss
leaves out.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import torch

from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.opinions import Cotangents, Rounding, compared
from gradoracle_server.engine.raising import raised
from gradoracle_server.engine.report import Opinion, Verdict
from gradoracle_server.engine.trial import Subject, Tape

FROZEN = "frozen"
"""The name of the opinion on inputs."""

_GROUPS = 8  # that inputs, or outputs, are asked for in, at the most

_SAME = 1e-2, 1e-5  # relative and absolute, within which outputs are those of the same function, in float16, too

_INPUTS = "where the other inputs are frozen, the gradient must be the same"
_OUTPUTS = "what single outputs give, the others having no cotangent, must add up to what all give"


def inputs(
    subject: Subject,
    outputs: Sequence[torch.Tensor],
    cotangents: Cotangents,
    gradients: Sequence[torch.Tensor],
    rounding: Rounding | None,
) -> tuple[Opinion | None, int]:
    """Gradients of runs in which only one of the inputs requires grad, against `outputs` and `gradients`, those of a
    run in which all do; and how many such runs there were. None where there is one input only."""
    if len(subject.places) < 2:
        return None, 0
    answers, unasked, why = list(gradients), "", ""
    groups = _groups(range(len(subject.places)))
    for group in groups:
        run = _frozen(subject, outputs, group)
        if isinstance(run, str):
            unasked = unasked or run
            continue
        try:
            found = run.pull(cotangents)
        except Fault as fault:
            why = why or f"{_INPUTS}; it raised: {fault.message.rstrip('.')}"
            found = [torch.full_like(one, math.nan) for one in gradients]
        for k in group:
            answers[k] = found[k].clone()  # of what a kernel keeps, and may write to in its next run
    opinion = compared(FROZEN, _INPUTS, answers, gradients, gradients, rounding)
    if opinion.verdict is Verdict.FAIL:
        if why:
            opinion.explanation, opinion.error, opinion.bound = why, math.inf, 0.0
    elif unasked:
        opinion.verdicts = [Verdict.INCONCLUSIVE] * len(gradients)
        opinion.explanation = f"{_INPUTS}, which cannot be asked: {unasked}"
    return opinion, len(groups)


def _frozen(subject: Subject, outputs: Sequence[torch.Tensor], group: Sequence[int]) -> Tape | str:
    """A run in which only inputs of a group require grad; why there is none, as of a function that calls autograd
    itself, or asks what requires grad and so is another one."""
    try:
        run = subject.tape(only=[subject.places[k] for k in group])
    except Exception as error:  # a function of the caller's own raises what it likes
        return str(error).rstrip(".") or type(error).__name__
    for one, other in zip(run.outputs, outputs, strict=True):
        if torch.equal(one, other):  # as nearly always
            continue
        wide, like = raised(one.detach()), raised(other.detach())
        if wide.shape != like.shape or not torch.allclose(wide, like, *_SAME, equal_nan=True):
            return "its outputs are others then"
    return run


def outputs(
    tape: Tape, cotangents: Cotangents, gradients: Sequence[torch.Tensor], rounding: Rounding | None
) -> Opinion | None:
    """The sum of what the cotangents of single outputs give, against `gradients`, which all of them give together. None
    where one output alone has one."""
    name = "linear_outputs"
    pairs = enumerate(zip(tape.outputs, cotangents, strict=True))
    live = [place for place, (output, one) in pairs if one is not None and output.requires_grad]
    if len(live) < 2:
        return None
    parts = []
    for group in _groups(live):
        part = [one if place in group else None for place, one in enumerate(cotangents)]
        try:
            # Of what a kernel keeps, and may write to in its next pull-back, only copies last.
            parts.append([one.clone() for one in tape.pull(part)])
        except Fault as fault:
            return Opinion(name, *_raised(tape, cotangents, part, fault))
    sums, sizes = (
        [functools.reduce(operator.add, of_input) for of_input in zip(*terms, strict=True)]
        for terms in (parts, [[one.abs() for one in part] for part in parts])
    )
    return compared(name, _OUTPUTS, sums, gradients, sizes, rounding)


def _raised(
    tape: Tape, cotangents: Cotangents, part: Cotangents, fault: Fault
) -> tuple[list[Verdict], float, float, str]:
    """What is said where single outputs make the backward raise: nothing where it raises for zeros in place of no
    cotangents as well, as that of singular vectors does, of which one without the other has no gradient."""
    zeros = [
        torch.zeros_like(whole) if one is None and whole is not None else one
        for one, whole in zip(part, cotangents, strict=True)
    ]
    try:
        tape.pull(zeros)
    except Fault:
        text = f"{_OUTPUTS}, which cannot be asked: {fault.message.rstrip('.')}"
        return [Verdict.INCONCLUSIVE] * len(tape.targets), 0.0, 0.0, text
    text = f"{_OUTPUTS}; without one it raised: {fault.message.rstrip('.')}"
    return [Verdict.FAIL] * len(tape.targets), math.inf, 0.0, text


def _groups(places: Sequence[int]) -> list[Sequence[int]]:
    """Each by itself, or every eighth together where there are more than that."""
    return [places[k::_GROUPS] for k in range(min(_GROUPS, len(places)))]

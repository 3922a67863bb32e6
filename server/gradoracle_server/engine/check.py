"""Gradient checks: the one place that sees both autograd's gradients and numerical ones, and compares them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch

from gradoracle_server.engine import (
    alone,
    balance,
    forward,
    gradients,
    opinions,
    raising,
    shadow,
    tolerances,
    trial,
    verdicts,
)
from gradoracle_server.engine.autodiff import pull_back
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import bind, has_gradient
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import NOTHING_AROUND, Plan
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import InputReport, Mode, Opinion, Report, Rung, Verdict, worst_verdict
from gradoracle_server.engine.selection import dtype_name
from gradoracle_server.engine.trial import Subject, Tape

_PROBES = 4  # directions for the only input; several inputs share them
_REORDERED = 64  # units in the last place of the largest element: more is not the order of additions

_RUNS = "Two runs on the same tensors, with the same seed, gave different outputs or gradients."
_UNWEIGHABLE = "A cotangent is not finite: there is no sum of cotangents times outputs to differentiate."
_NO_ARITHMETIC = (
    "An input, or an output, is of float8, in which torch has no arithmetic; take float32, and round in the graph."
)
_PULLS = "A second pull-back of the same run, as retain_graph=True allows"

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(slots=True)
class Options:
    """What a caller may choose of a check."""

    mode: Mode = Mode.PROBE
    order: int = 1
    seed: int = 0
    forward_mode: bool = False
    batched_gradients: bool = False


def check(
    plan: Plan,
    primals: Tensors,
    phases: Phases,
    *,
    claimed: Tensors,
    cotangents: Tensors,
    wrt: Sequence[str] = (),
    options: Options,
) -> Report:
    """Judges autograd's gradients, or those claimed, of the sum of <cotangent, output>. Raises Fault for bad input;
    nothing about numerics is an error."""
    inputs = bind(plan, primals)
    claims = trial.claims(plan, inputs, claimed, wrt)
    places, without = trial.wanted_places(plan, inputs, wrt or list(claims))
    skipped = [_without_gradient(plan, place, inputs[place]) for place in without]
    subject = Subject(plan, inputs, places, options.seed)
    tape = subject.tape()
    chosen, drawn = trial.cotangents(plan, tape.outputs, cotangents, claimed=bool(claims), seed=options.seed)
    if not places or all(one is None for one in chosen):
        return _nothing(subject, skipped, claimed=bool(claims))
    looked_at = [*tape.targets, *(one for one, u in zip(tape.outputs, chosen, strict=True) if u is not None)]
    if any(torch.finfo(one.dtype).bits < 16 for one in looked_at):
        return _inconclusive(subject, skipped, _NO_ARITHMETIC)
    free = not cotangents and not claims
    if not free and not all(bool(one.isfinite().all()) for one in chosen if one is not None):
        return _inconclusive(subject, skipped, _UNWEIGHABLE)
    if free:
        chosen = balance.between_outputs(subject, tape.outputs, chosen)
    first = _first(subject, tape, chosen)
    if free and (smaller := balance.in_range(subject, chosen, first)) is not chosen:
        chosen, tape = smaller, subject.tape()
        first = _first(subject, tape, chosen)
    again = subject.tape()
    alike = _repeatable(tape.outputs, again.outputs)
    answers = opinions.asked_again(again, chosen) if alike and not claims and options.order == 1 else None
    steady = (
        answers is not None
        and _repeatable([-2 * one for one in first], answers.doubled)
        and answers.large is not None
        and _repeatable(first, answers.large)
    )
    if not steady and (why := _unsteady(subject, chosen, first) if alike else _RUNS):
        return _non_deterministic(subject, skipped, why)
    case = _case(subject, tape, chosen, first, claims, options)
    report = _judgement(case, tape, first, skipped, phases, options, again=answers)
    if report.verdict is Verdict.FAIL and (raised := _unrounded(case, tape)) is not None:
        spent = report.evaluations
        other = _judgement(raised, tape, first, skipped, phases, options, again=answers)
        report = other if other.verdict is not Verdict.FAIL else report
        report.evaluations = spent + other.evaluations
    report.random_cotangents = drawn
    return report


def _judgement(
    case: Case,
    tape: Tape,
    first: list[torch.Tensor],
    skipped: list[InputReport],
    phases: Phases,
    options: Options,
    *,
    again: opinions.Again | None,
) -> Report:
    """The report on a case; `first` are the gradients of its run, and `again` what another run gives."""
    subject, chosen = case.subject, case.cotangents
    passes = _passes(case, options)
    rounding = functools.partial(gradients.largest_rounding, case, passes)
    heard: list[Opinion] = []
    runs = 0
    if case.own and case.weights is None:
        heard = opinions.linearity(tape, chosen, first, again=again, rounding=rounding)
        frozen, runs = _while_frozen(case, tape, first, rounding, thorough=options.mode is Mode.FULL)
        heard += [one for one in (frozen, alone.outputs(tape, chosen, first, rounding)) if one is not None]
        doubted = again is not None and any(one.verdict is Verdict.FAIL for one in heard)
        if doubted and (why := _unsteady(subject, chosen, first)):
            return _non_deterministic(subject, skipped, why)
    elif case.own and case.weights is not None:
        heard = opinions.second_linearity(tape, chosen, case.weights, case.torchs, rounding)
        if case.faithful:
            run, moved = (tape, rounding) if case.twin is subject else (case.twin.tape(), _moved(case))
            heard.append(opinions.by_cotangent(run, case.twin_cotangents, case.weights, moved))
            if case.twin.plan.around is NOTHING_AROUND:
                frozen, runs = alone.second_inputs(case.twin, run, case.twin_cotangents, case.weights, moved)
                heard += [] if frozen is None else [frozen]
    if options.batched_gradients:
        heard.append(opinions.batched(tape, chosen, first, rounding))
    reports, ladder, remainder = _judged(case, passes, heard, options)
    heard.append(remainder)
    if options.forward_mode:  # not a fault of the gradients' own: it decides the whole, and no input
        heard.append(forward.forward_mode(subject, tape, chosen, first, phases))
    power = max([one.detection_power for one in reports], default=0.0)
    failed = [Verdict.FAIL for one in heard if one.verdict is Verdict.FAIL]
    verdict = worst_verdict([*(one.verdict for one in reports), *failed])
    return Report(verdict, _in_order(subject, [*reports, *skipped]), power, passes.count + 2 + runs, ladder, heard)


def _while_frozen(
    case: Case, tape: Tape, first: list[torch.Tensor], rounding: opinions.Rounding, *, thorough: bool
) -> tuple[Opinion | None, int]:
    """What is said of frozen inputs, and the runs for it. In low precision it is asked of the float64 shadow, where
    there is one: what a backward leaves out, it leaves out there, too, and where another kernel runs for frozen inputs,
    as torch's attention has one, those round alike. Not of one that torch raises on the way."""
    if case.twin is case.subject or not case.faithful or case.twin.plan.around is not NOTHING_AROUND:
        return alone.inputs(case.subject, tape.outputs, case.cotangents, first, rounding, thorough=thorough)
    run, moved = case.twin.tape(), _moved(case)
    found, runs = alone.inputs(case.twin, run.outputs, case.twin_cotangents, case.reference, moved, thorough=thorough)
    return found, runs + 1


def _moved(case: Case) -> opinions.Rounding:
    """The most that rounding does to an element of the float64 shadow's gradient by an input."""

    def moved(place: int) -> float:
        return float(case.spread(place, inside=True, epsilon=torch.finfo(torch.float64).eps).max())

    return moved


def _unrounded(case: Case, tape: Tape) -> Case | None:
    """The case with another shadow, in which whatever operators get and make is raised: a backward may cast what it
    gets, to float32 for one, where the function does not. None where that makes no difference."""
    if case.twin is case.subject or not case.faithful:
        return None
    if (found := shadow.unrounded(case.subject, case.twin, tape, case.epsilon)) is None:
        return None
    twin, run, distance = found
    reference = _pulled(run, case.twin_cotangents, case.weights)
    if all(torch.equal(one, other) for one, other in zip(reference, case.reference, strict=True)):
        return None
    wide = [raising.raised(one.detach()) for one in reference]
    return dataclasses.replace(
        case, twin=twin, distance=distance, reference=wide, jitters=None, inexact=None, spreads={}
    )


def _pulled(
    tape: Tape, cotangents: Sequence[torch.Tensor | None], weights: list[torch.Tensor | None] | None
) -> list[torch.Tensor]:
    """The gradients of a run: the first ones, or where there are weights for these the second."""
    return tape.pull(cotangents) if weights is None else trial.second_order(tape, cotangents, weights)


def _first(subject: Subject, tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """The first pull-back; a backward formula that writes into its cotangents gets copies ever after."""
    given = trial.copies(cotangents)
    found = tape.pull(given)
    pairs = zip(given, cotangents, strict=True)
    if not all(a is None or b is None or torch.equal(a, b) for a, b in pairs):
        subject.guards = tape.guards = True
    return [one.clone() for one in found]  # of what a kernel keeps, and may write to in its next pull-back


def _in_order(subject: Subject, reports: list[InputReport]) -> list[InputReport]:
    """As the graph has its inputs."""
    names = [one.name for one in subject.plan.spec.inputs]
    return sorted(reports, key=lambda one: names.index(one.name))


def _without_gradient(plan: Plan, place: int, tensor: torch.Tensor) -> InputReport:
    """An integer or bool input: named, and no part of the overall verdict."""
    name, kind = plan.spec.inputs[place].name, dtype_name(tensor.dtype)
    text = f"{kind} tensors have no gradient; nothing was checked."
    return InputReport(name, Verdict.NON_DIFFERENTIABLE, text, counts=False)


def _unfounded(name: str, *, claimed: bool) -> InputReport:
    """An input of outputs that have no gradient."""
    text = "there is no gradient, and nothing to hold a claim against" if claimed else "there is no gradient to check"
    return InputReport(name, Verdict.NON_DIFFERENTIABLE, f"No output is a floating or complex tensor: {text}.")


def _non_deterministic(subject: Subject, skipped: list[InputReport], why: str) -> Report:
    """What differs between runs, or pull-backs, cannot be judged."""
    found = [InputReport(name, Verdict.NON_DETERMINISTIC, why) for name in subject.names]
    return Report(Verdict.NON_DETERMINISTIC, [*found, *skipped], 0.0, 2, [])


def _inconclusive(subject: Subject, skipped: list[InputReport], text: str) -> Report:
    """There is nothing to hold a gradient against."""
    found = [InputReport(name, Verdict.INCONCLUSIVE, text) for name in subject.names]
    return Report(Verdict.INCONCLUSIVE, [*found, *skipped], 0.0, 1, [])


def _nothing(subject: Subject, skipped: list[InputReport], *, claimed: bool) -> Report:
    """No input is on trial, or no output has a gradient: nothing is proven."""
    found = [_unfounded(name, claimed=claimed) for name in subject.names]
    return Report(Verdict.NON_DIFFERENTIABLE, [*found, *skipped], 0.0, 1, [])


def _unsteady(subject: Subject, cotangents: Sequence[torch.Tensor | None], gradients: Sequence[torch.Tensor]) -> str:
    """How a run, or pull-backs of it after others, differ from the gradients of another; nothing where they do not."""
    tape = subject.tape()
    if not _repeatable(gradients, tape.pull(cotangents)):
        return _RUNS
    try:
        second = [one.clone() for one in tape.pull(cotangents)]
        tape.pull([None if one is None else -2 * one for one in cotangents])
        alike = _repeatable(gradients, second) and _repeatable(gradients, tape.pull(cotangents))
        return "" if alike else f"{_PULLS}, gave other gradients."
    except Fault as fault:
        return f"{_PULLS}, raised: {fault.message.rstrip('.')}."


def _repeatable(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Whether two runs agree, up to the order of additions: some kernels choose it by where their memory lies."""
    return all(_alike(a.detach(), b.detach()) for a, b in zip(left, right, strict=True))


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape:
        return False
    wide, other = raising.raised(left), raising.raised(right)
    if torch.equal(wide, other):
        return True
    if not has_gradient(left):
        return False
    same = (wide == other) | (wide.isnan() & other.isnan())
    known = wide.abs().isfinite()
    size = torch.where(known, wide.abs(), 0.0).max()
    return bool((same | ((wide - other).abs() <= _REORDERED * torch.finfo(left.dtype).eps * size)).all())


def _case(
    subject: Subject,
    tape: Tape,
    chosen: list[torch.Tensor | None],
    first: list[torch.Tensor],
    claims: Tensors,
    options: Options,
) -> Case:
    coarse = shadow.epsilon(subject.plan, subject.inputs)
    twin, twin_tape, distance = shadow.recorded(subject, tape, coarse)
    faithful = shadow.is_faithful(distance, coarse)
    if not faithful:
        twin, twin_tape = subject, tape
    raised = [None if one is None else raising.raised(one) for one in chosen]
    used = raised if twin is not subject else chosen
    weights: list[torch.Tensor | None] | None = None
    if options.order == 2:
        generator = torch.Generator().manual_seed(options.seed ^ 0x2D)
        weights = [trial.drawn_like(one, generator) for one in first]

    torchs = first if weights is None else _pulled(tape, chosen, weights)
    reference = torchs if twin is subject else _pulled(twin_tape, used, weights)
    lifted = [raising.raised(one.detach()) for one in torchs]
    return Case(
        subject=subject,
        twin=twin,
        faithful=faithful,
        epsilon=coarse,
        distance=distance,
        own=not claims,
        cotangents=chosen,
        twin_cotangents=used,
        claimed=[raising.raised(claims[name].detach()) for name in subject.names] if claims else lifted,
        torchs=lifted,
        reference=lifted if reference is torchs else [raising.raised(one.detach()) for one in reference],
        weights=weights,
    )


def _passes(case: Case, options: Options) -> Passes:
    twin = case.twin
    base = [raising.raised(one) for one in twin.inputs]
    dtypes = [one.dtype for one in twin.inputs]
    as_is = dtypes == [one.dtype for one in base]  # in a batch, to ask a tensor for its own dtype takes 10 us
    program = twin.plan.program()

    def lowered(point: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return point if as_is else [one.to(dtype) for one, dtype in zip(point, dtypes, strict=True)]

    def function(point: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return program(lowered(point))

    def gradients(point: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return twin.tape(lowered(point)).pull(case.twin_cotangents)

    def many_gradients(
        point: Sequence[torch.Tensor], carried: Sequence[bool], count: int
    ) -> Sequence[torch.Tensor | None]:
        return _gradients_of_many(twin, point, carried, count, case.twin_cotangents)

    weights = case.twin_cotangents if case.weights is None else case.weights
    return Passes(
        function if case.weights is None else gradients,
        base,
        [None if one is None else raising.raised(one) for one in weights],
        device=twin.plan.device,
        seed=options.seed,
        batched=None if case.weights is None else many_gradients,
        epsilon=case.resolution,
        flat=case.weights is not None and case.faithful,
    )


def _gradients_of_many(
    subject: Subject,
    point: Sequence[torch.Tensor],
    carried: Sequence[bool],
    count: int,
    cotangents: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """First gradients at many points: points do not mix, so one pull-back through a batched run gives each its own."""
    inputs = [one if yes else one.expand(count, *one.shape) for one, yes in zip(point, carried, strict=True)]
    tracked = [one.detach().requires_grad_(place in subject.places) for place, one in enumerate(inputs)]
    program = subject.plan.program()
    with torch.enable_grad():
        outputs = torch.func.vmap(lambda *one: program(one), randomness="same")(*tracked)
    roots = [None if u is None else u.expand(count, *u.shape) for u in cotangents]
    targets = [tracked[place] for place in subject.places]
    found = pull_back(outputs, roots, targets)
    full = [torch.zeros_like(one) if g is None else g for g, one in zip(found, targets, strict=True)]
    return list(Tape([], targets, subject.kinds).projected(full))


def _judged(
    case: Case, passes: Passes, heard: list[Opinion], options: Options
) -> tuple[list[InputReport], list[Rung], Opinion]:
    generator = torch.Generator().manual_seed(options.seed ^ 0x9E3779B9)
    probes = max(1, _PROBES // len(case.subject.places))
    asked = tolerances.ASKED if case.faithful else tolerances.ASKED_COARSE
    judge = verdicts.Judge(case, passes, generator, probes, asked, every=options.mode is Mode.FULL)
    # What is measured is looked at without autograd, and inference mode, which leaves out all that it would keep, takes
    # a quarter less time for small tensors. Where the function itself runs, or its gradient, that is left again.
    with torch.inference_mode():
        spaces = [
            Space.of(where, name, passes.base[where], kind)
            for where, name, kind in zip(case.subject.places, case.subject.names, case.subject.kinds, strict=True)
        ]
        return judge.inputs(spaces, heard)

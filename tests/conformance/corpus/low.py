"""float32: claims that are off by four times what the check allows for an element, and coarser ones.

A traced graph is on trial, since float32 is judged beside the same graph in float64, and a graph of Python functions
has no such shadow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

import gradoracle as go
from conformance.corpus import checkers, wrongs
from conformance.corpus.checkers import PASS, Case, Checker
from conformance.corpus.graphs import checked, plan_of
from conformance.corpus.planting import Wrong, planted, right
from conformance.corpus.subjects import Subject, cotangent_of, subjects
from gradoracle.tracing import trace
from gradoracle_server.engine.check import Options
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.report import Mode, Report

TIMES = 4.0
"""How many tolerances the finest fault is."""

FINEST = "element off by 4 tolerances"
_COARSE = {
    "element * 1.01": lambda g: g * 1.01,
    "element * 2": lambda g: g * 2,
    "element zeroed": lambda g: g * 0,
    "element's sign": torch.neg,
    "element NaN": wrongs.ELEMENTS["element NaN"],
}
_WHOLE = ("sign", "factor 1.001", "factor 0.5", "zero", "transposed", "rows reversed", "inputs swapped",
          "duplicates lost", "broadcast not reduced: one row", "broadcast not reduced: mean")  # fmt: skip


class Trial:
    """A subject traced in float32, its gradients for one cotangent, and checks of claims about them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.plan: Plan = plan_of(trace(subject.function, *subject.inputs))
        self.names = [one.name for one in self.plan.spec.inputs]
        ((self.output, _),) = self.plan.spec.outputs
        # Exact in float32, of magnitude 1 to 2: no element of the gradient is small for the cotangent's sake.
        drawn = cotangent_of(subject.output, 5)
        self.cotangent = (1 + (drawn.abs() * 64).round().clamp(max=64) / 64) * drawn.sign()
        self.gradients = subject.gradients(self.cotangent)

    def repeats(self) -> bool:
        """Whether the gradients are the same a second time: those of dropout are not the ones that a check draws."""
        again = self.subject.gradients(self.cotangent)
        return all(torch.allclose(a, b, equal_nan=True) for a, b in zip(self.gradients, again, strict=True))

    def check(self, claimed: tuple[torch.Tensor, ...], mode: Mode) -> Report:
        """The check of a claim."""
        return checked(
            self.plan,
            dict(zip(self.names, self.subject.inputs, strict=True)),
            claimed={name: one.contiguous() for name, one in zip(self.names, claimed, strict=True)},
            cotangents={self.output: self.cotangent},
            options=Options(mode=mode),
        )

    def claim(self, wrong: Wrong) -> tuple[torch.Tensor, ...]:
        """The gradients with a fault."""
        inputs = [one.detach().clone().requires_grad_() for one in self.subject.inputs]
        return wrong(inputs, self.cotangent, self.gradients)


def chosen(name: str) -> Trial | None:
    """The operator's first sample whose right gradient passes; else one whose right gradient fails."""
    doubted = None
    for subject in subjects(name, torch.float32, seeded=False):
        if wrongs.target(subject) is None:
            continue
        try:
            trial = Trial(subject)
            verdict = trial.check(trial.gradients, Mode.PROBE).verdict.name
        except go.TraceError:
            continue
        if not trial.repeats():
            continue
        if verdict == PASS:
            return trial
        if verdict == checkers.FAIL:
            doubted = doubted or trial
    return doubted


def records(name: str, asked: Mapping[str, Checker]) -> Iterator[dict[str, Any]]:
    """Of each case: operator, sample, fault, and what each checker said."""
    trial = chosen(name)
    if trial is None:
        return
    subject = trial.subject
    found = wrongs.target(subject)
    assert found is not None
    place, _ = found
    gradient = trial.gradients[place]
    element, _, _ = wrongs.elements(name, gradient.abs())
    faults: dict[str, Wrong] = {"right": right}
    bound = tolerance(trial, place, element)
    if bound is not None and bound > 0:
        step = TIMES * bound / float(gradient.reshape(-1)[element])
        faults[FINEST] = wrongs.at_element(place, gradient, element, lambda g: g * (1 + step))
    if gradient.numel() > 1:
        for fault, change in _COARSE.items():
            faults[fault] = wrongs.at_element(place, gradient, element, change)
    faults |= {fault: one for fault, one in wrongs.faults(subject).items() if fault in _WHOLE}
    peers = {peer: checker for peer, checker in asked.items() if peer not in checkers.OURS}
    for fault, wrong in faults.items():
        record = {"operator": name, "sample": subject.index, **_judged(trial, fault, wrong, peers)}
        if fault == FINEST and bound is not None:
            record["tolerance"] = bound / float(gradient.reshape(-1)[element].abs()) / torch.finfo(torch.float32).eps
        yield record


def _judged(trial: Trial, fault: str, wrong: Wrong, peers: Mapping[str, Checker]) -> dict[str, Any]:
    claimed = trial.claim(wrong)
    mine = {name: (lambda _, mode=mode: trial.check(claimed, mode).verdict.name)
            for name, mode in (("probe", Mode.PROBE), ("full", Mode.FULL))}  # fmt: skip
    subject = trial.subject
    case = Case(fault, planted(subject.function, wrong), subject.inputs, subject, wrong)
    return checkers.asked(case, {**mine, **peers})


def tolerance(trial: Trial, place: int, element: int) -> float | None:
    """What the check allows for that element, as its report on a coarse fault there says; None where it does not."""
    gradient = trial.gradients[place]
    far = float(gradient.abs().max())
    report = trial.check(trial.claim(wrongs.at_element(place, gradient, element, lambda g: g + far)), Mode.PROBE)
    (mine,) = (one for one in report.inputs if one.name == trial.names[place])
    index = tuple(int(one) for one in torch.unravel_index(torch.tensor(element), gradient.shape))
    return next((one.error_bound for one in mine.worst if one.index == index), None)

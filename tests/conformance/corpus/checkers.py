"""Who judges the cases: this project's two modes, torch's gradcheck in its two, and jax's check_grads."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from conformance.corpus import graphs, jax_peer
from conformance.corpus.graphs import plan_of_function
from conformance.corpus.planting import Forward, Wrong
from conformance.corpus.subjects import Subject
from gradoracle_server.engine.check import Options
from gradoracle_server.engine.report import Mode, Report

PATIENCE: int | None = 60
"""Seconds for one judgement; None for no limit."""

PASS, FAIL, CRASHED, TIMEOUT = "PASS", "FAIL", "CRASHED", "TIMEOUT"


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One function with one backward, or one claim."""

    fault: str  # "right" for the other class
    function: Forward
    inputs: tuple[torch.Tensor, ...]
    subject: Subject | None = None
    wrong: Wrong | None = None
    order: int = 1
    operator: str = ""
    claimed: Mapping[str, torch.Tensor] | None = None
    cotangents: Mapping[str, torch.Tensor] | None = None


Checker = Callable[[Case], str | None]
"""Gives PASS, FAIL or another verdict's name; None for a case that it cannot be asked about."""


def checked(case: Case, mode: Mode) -> Report:
    """The check of a case."""
    made = plan_of_function(case.function, len(case.inputs))
    return graphs.checked(
        made,
        {f"x{place}": one for place, one in enumerate(case.inputs)},
        claimed=case.claimed,
        cotangents=case.cotangents,
        options=Options(mode=mode, order=case.order),
    )


def ours(mode: Mode) -> Checker:
    """This project's check."""
    return lambda case: checked(case, mode).verdict.name


def gradchecks(fast: bool) -> Checker:
    """torch.autograd.gradcheck, or gradgradcheck, with its defaults; it cannot be asked about a claim."""

    def judge(case: Case) -> str | None:
        if case.claimed is not None:
            return None
        tracked = [one.detach().clone().requires_grad_() for one in case.inputs]
        ask = torch.autograd.gradcheck if case.order == 1 else torch.autograd.gradgradcheck
        return PASS if ask(case.function, tracked, raise_exception=False, fast_mode=fast) else FAIL

    return judge


def jaxs(case: Case) -> str | None:
    """jax's check_grads of the same operator, with the same backward, at the same point."""
    if case.subject is None or case.wrong is None or case.order != 1 or case.claimed is not None:
        return None
    return jax_peer.judge(case.subject, case.wrong)


OURS: dict[str, Checker] = {"probe": ours(Mode.PROBE), "full": ours(Mode.FULL)}
PEERS: dict[str, Checker] = {
    "gradcheck fast": gradchecks(True),
    "gradcheck slow": gradchecks(False),
    "jax": jaxs,
}


class OutOfPatienceError(BaseException):
    """Of its own kind, so that nobody on the way takes it for a fault of the function."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raises OutOfPatienceError inside the block after PATIENCE seconds."""
    if PATIENCE is None:
        yield
        return

    def late(*_: Any) -> None:
        raise OutOfPatienceError(f"no answer in {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def asked(case: Case, checkers: Mapping[str, Checker]) -> dict[str, Any]:
    """What each checker says of the case, the seconds that it took, and what it raised."""
    found: dict[str, Any] = {"fault": case.fault, "verdicts": {}, "seconds": {}, "raised": {}}
    for name, checker in checkers.items():
        start = time.perf_counter()
        try:
            with patience():
                verdict = checker(case)
        except OutOfPatienceError:
            verdict = TIMEOUT
        except Exception as error:
            verdict = CRASHED
            found["raised"][name] = f"{type(error).__name__}: {error}"[:300]
        if verdict is not None:
            found["verdicts"][name] = verdict
            found["seconds"][name] = round(time.perf_counter() - start, 4)
    return found

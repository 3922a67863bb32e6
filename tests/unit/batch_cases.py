"""What the tests of batches share: cases, records, and a client that answers without a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradoracle.batch.case_files import CaseFile
from gradoracle.batch.records import Fault, Record
from gradoracle.batch.results import ResultsFile
from gradoracle.batch.runner import Run, Settings
from gradoracle.batch.shards import Plan
from gradoracle.checks import CheckReport, Diagnosis, InputReport, Mismatch, Opinion, Rung, Verdict
from gradoracle.results import Timing, VjpResult

TIMING = Timing(queue=0.5, decode=0.1, check=0.25)


def case(name: str, **fields: Any) -> dict[str, Any]:
    """A case that asks for the gradient of x**2 at 3."""
    return {"id": name, "method": "vjp", "expression": "x**2", "inputs": {"x": 3.0}, **fields}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    """A file of cases; texts are lines as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def input_report(name: str = "x", verdict: str = "PASS", **fields: Any) -> InputReport:
    """The findings for an input."""
    usual: dict[str, Any] = {
        "worst": [],
        "diagnosis": None,
        "factor": None,
        "max_error": 1e-12,
        "error_bound": 1e-9,
        "kink": None,
        "claim_inside": None,
        "explanation": "It agrees.",
        "detection_power": 1e-7,
        "errors": None,
    }
    return InputReport(name=name, verdict=Verdict(verdict), **{**usual, **fields})


def report(*inputs: InputReport) -> CheckReport:
    """The outcome of a check of these inputs, the first of which decides."""
    return CheckReport(
        verdict=inputs[0].verdict,
        inputs={one.name: one for one in inputs},
        detection_power=1e-7,
        evaluations=51,
        ladder=[Rung(0.5, 1e-3, float("inf")), Rung(0.25, 2e-4, 3e-4)],
        opinions=[Opinion("linear_zero", Verdict("PASS"), 0.0, 1e-9, "0 must give 0")],
        timing=TIMING,
    )


def wrong() -> InputReport:
    """An input whose gradient is wrong, with everything that may be said of it."""
    return input_report(
        verdict="FAIL",
        worst=[Mismatch((1, 2), 1 + 2j, float("nan"), 3.0, float("inf"), 1e-9)],
        diagnosis=Diagnosis("SCALED"),
        factor=1.5,
        max_error=float("nan"),
        kink=(-1.0, float("inf")),
        claim_inside=False,
        errors=np.array([[1.0, np.nan], [0.0, 2.0]]),
    )


def passing(name: str, **fields: Any) -> Record:
    """A record of a check that passed."""
    return Record(id=name, line=1, method="check", report=report(input_report()), timing=TIMING, **fields)


def failing(name: str, **fields: Any) -> Record:
    """A record of a check that failed."""
    return Record(id=name, line=1, method="check", report=report(wrong()), timing=TIMING, **fields)


def erring(name: str, kind: str = "ComputationError") -> Record:
    """A record of a case that has no result."""
    return Record(id=name, line=1, method="vjp", error=Fault(kind, "COMPUTATION_FAILED", "mm: no", line=1))


class FakeClient:
    """Answers each request with what `answer` says; raises it where it is to end the stream."""

    def __init__(self, answer: Callable[[Any], Any] = lambda _: vjp_result()) -> None:
        self.answer = answer
        self.sent: list[Any] = []
        self.streams = 0

    def server_info(self) -> None:
        """It is there."""

    def close(self) -> None:
        """It holds nothing."""

    def map(self, requests: Iterator[Any], **_: Any) -> Iterator[Any]:
        self.streams += 1
        for request in requests:
            self.sent.append(request)
            result = self.answer(request)
            if isinstance(result, Lost):
                raise result.error
            result.tag = request.tag
            yield result


class Lost:
    """The stream breaks with this error."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def vjp_result(gradient: float = 6.0) -> VjpResult:
    """The answer to a case."""
    return VjpResult(outputs={"out": np.array(9.0)}, gradients={"x": np.array(gradient)}, timing=TIMING)


def run(client: Any, cases: Path, out: Path, *, plan: Plan | None = None, resume: bool = False, **settings: Any) -> Run:
    """Runs a file of cases, each in a request of its own unless told otherwise."""
    results = ResultsFile(out, resume=resume)
    job = Run(CaseFile(str(cases)), plan or Plan(), results, Settings(**{"pack": 1, "patience": 0.0, **settings}))
    try:
        job.run(client)
    finally:
        results.finish()
    return job

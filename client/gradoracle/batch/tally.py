"""How a run stands: results by outcome, and what it amounts to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gradoracle.batch.records import Record
from gradoracle.checks import is_wrong

OUTCOMES = ("PASS", "OK", "FAIL", "NON_DETERMINISTIC", "INCONCLUSIVE", "NON_DIFFERENTIABLE", "ERROR")
"""In the order in which they are told."""

SERVICE_FAULTS = frozenset(
    {
        "GradOracleError",
        "OverloadedError",
        "DeadlineExceededError",
        "ServerUnavailableError",
        "WorkerCrashedError",
    }
)
"""Errors that are the service's, not the case's."""

GOOD, WRONG, BAD_INPUT, SERVICE_FAILED, NO_VERDICT = 0, 1, 2, 3, 4


_ORDER = (WRONG, SERVICE_FAILED, BAD_INPUT, NO_VERDICT, GOOD)


def worst(*codes: int) -> int:
    """The exit code where there are several: 1, then 3, 2, 4."""
    return min(codes, key=_ORDER.index)


class Tally:
    """Counts of outcomes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.service_faults = 0
        self.outside = 0  # without the verdict FAIL, but with a gradient outside the slopes of a kink

    def add(self, record: Record) -> None:
        """Counts a record."""
        self.counts[record.outcome] += 1
        self.service_faults += record.error is not None and record.error.type in SERVICE_FAULTS
        self.outside += record.outcome != "FAIL" and record.is_wrong

    def add_line(self, document: Mapping[str, Any]) -> None:
        """Counts a line of a results file, read as JSON."""
        error: Mapping[str, Any] = document.get("error") or {}
        outcome = "ERROR" if error else str(document.get("verdict", "OK"))
        self.counts[outcome] += 1
        self.service_faults += error.get("type") in SERVICE_FAULTS
        if outcome not in ("PASS", "OK", "FAIL", "ERROR"):
            inputs: Mapping[str, Any] = document.get("inputs", {})
            self.outside += any(is_wrong(one["verdict"], one.get("claim_inside")) for one in inputs.values())

    def __add__(self, other: Tally) -> Tally:
        both = Tally()
        both.counts = self.counts + other.counts
        both.service_faults = self.service_faults + other.service_faults
        both.outside = self.outside + other.outside
        return both

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()

    def exit_code(self, *, allow_inconclusive: bool = False) -> int:
        """What the worst of the results amounts to: 1 a gradient is wrong, 3 the service failed, 2 a case is bad, 4 no
        verdict, 0 all good, in this order. A gradient that differs from run to run has no verdict. Nor has one outside
        the slopes of a kink; but where no verdict is allowed, that is wrong."""
        counts = self.counts
        if counts["FAIL"] or (allow_inconclusive and self.outside):
            return WRONG
        if self.service_faults:
            return SERVICE_FAILED
        if counts["ERROR"]:
            return BAD_INPUT
        undecided = counts["INCONCLUSIVE"] + counts["NON_DIFFERENTIABLE"] + counts["NON_DETERMINISTIC"]
        return NO_VERDICT if undecided and not allow_inconclusive else GOOD

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[one]} {one}" for one in OUTCOMES if self.counts[one]) or "no results"

"""How a run stands: results by outcome, and what it amounts to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gradoracle.batch.records import Record

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


class Tally:
    """Counts of outcomes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.service_faults = 0

    def add(self, record: Record) -> None:
        """Counts a record."""
        self.counts[record.outcome] += 1
        self.service_faults += record.error is not None and record.error.type in SERVICE_FAULTS

    def add_line(self, document: Mapping[str, Any]) -> None:
        """Counts a line of a results file, read as JSON."""
        error: Mapping[str, Any] = document.get("error") or {}
        self.counts["ERROR" if error else str(document.get("verdict", "OK"))] += 1
        self.service_faults += error.get("type") in SERVICE_FAULTS

    def __add__(self, other: Tally) -> Tally:
        both = Tally()
        both.counts = self.counts + other.counts
        both.service_faults = self.service_faults + other.service_faults
        return both

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()

    def exit_code(self, *, allow_inconclusive: bool = False) -> int:
        """What the worst of the results amounts to: 1 a gradient is wrong, 3 the service failed, 2 a case is bad, 4 no
        verdict, 0 all good, in this order. A gradient that differs from run to run has no verdict."""
        counts = self.counts
        if counts["FAIL"]:
            return WRONG
        if self.service_faults:
            return SERVICE_FAILED
        if counts["ERROR"]:
            return BAD_INPUT
        undecided = counts["INCONCLUSIVE"] + counts["NON_DIFFERENTIABLE"] + counts["NON_DETERMINISTIC"]
        return NO_VERDICT if undecided and not allow_inconclusive else GOOD

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[one]} {one}" for one in OUTCOMES if self.counts[one]) or "no results"

"""A whole run in figures: counts, the worst and the slowest cases, time, and the exit code. Memory does not grow with
the number of cases but for eight bytes a case, which the quantiles need.
"""

from __future__ import annotations

import array
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradoracle.batch import report_text
from gradoracle.batch.records import Record
from gradoracle.batch.report_text import Results
from gradoracle.results import PHASES

OUTCOMES = ("FAIL", "ERROR", "NON_DETERMINISTIC", "INCONCLUSIVE", "NON_DIFFERENTIABLE", "PASS", "OK")
"""What a case can come to, the worst first; "OK" is a result of another method than check."""

SHOWN = 10
"""Of the worst and of the slowest cases."""

GROUPS = 2000
"""Of operators and of diagnoses, that are counted by name; labels are the caller's, and may be as many as the cases."""

OTHERS = "(others)"
"""The name under which the rest is counted."""

_GOOD, _WRONG, _BAD_INPUT, _SERVICE, _NO_VERDICT = range(5)  # exit codes

_THE_SERVICES = {
    "DeadlineExceededError",
    "GradOracleError",
    "OverloadedError",
    "ServerUnavailableError",
    "WorkerCrashedError",
}
"""Faults that are not the case's own, by type: asking again may help."""


class Summary:
    """Takes in records, one after another."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.diagnoses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.operators: dict[str, Counter[str]] = {}
        self.phases = dict.fromkeys(PHASES, 0.0)
        self._service_failed = False
        self._outside = False  # a gradient outside the slopes of a kink, which is wrong without the verdict FAIL
        self._seconds = array.array("d")
        self._slowest: list[tuple[float, int, Record]] = []  # heaps, the least first
        self._worst: list[tuple[float, int, Record]] = []
        self._count = 0
        self._labelled = 0  # with the label "operator"

    def add(self, record: Record) -> None:
        """Counts one record."""
        self._count += 1
        outcome = record.outcome
        self.outcomes[outcome] += 1
        self._operator(report_text.operator(record))[outcome] += 1
        if record.error is not None:
            _count(self.reasons, record.error.reason)
            self._service_failed |= record.error.type in _THE_SERVICES
        if record.timing is not None:
            total = record.timing.total
            self._seconds.append(total)
            for phase in PHASES:
                self.phases[phase] += record.timing[phase]
            _keep(self._slowest, total, self._count, record)
        self._labelled += "operator" in record.labels
        self._outside |= record.is_wrong and outcome != "FAIL"
        if record.report is not None and not record.report.passed:
            self._add_worst(record)

    def _add_worst(self, record: Record) -> None:
        assert record.report is not None  # noqa: S101  # the caller looked
        one = report_text.worst_input(record.report)
        if record.outcome == "FAIL":
            diagnosis = "UNKNOWN" if one is None or one.diagnosis is None else str(one.diagnosis)
            self.diagnoses[diagnosis] += 1
            how_far = math.inf if one is None else report_text.ratio(one.max_error, one.error_bound)
            _keep(self._worst, how_far, self._count, record)

    def _operator(self, name: str) -> Counter[str]:
        if name not in self.operators and len(self.operators) >= GROUPS:
            name = OTHERS
        return self.operators.setdefault(name, Counter())

    @property
    def listed(self) -> str:
        """What `operators` holds: operators; methods, of cases that are not labelled; or both."""
        if not self._labelled:
            return "method"
        return "operator" if self._labelled == self._count else "operator or method"

    def exit_code(self, *, allow_inconclusive: bool = False) -> int:
        """0 all good; else the first that holds of: 1 a gradient is wrong, 3 the service failed, 2 a case is at fault,
        4 no verdict, which `allow_inconclusive` lets pass, unless it is a gradient outside the slopes of a kink: 1."""
        if self.outcomes["FAIL"] or (allow_inconclusive and self._outside):
            return _WRONG
        if self.outcomes["ERROR"]:
            return _SERVICE if self._service_failed else _BAD_INPUT
        undecided = self._count - self.outcomes["PASS"] - self.outcomes["OK"]
        return _NO_VERDICT if undecided and not allow_inconclusive else _GOOD

    def document(self, *, allow_inconclusive: bool = False) -> dict[str, Any]:
        """Everything, as what the json module writes."""
        return {
            "cases": self._count,
            "exit_code": self.exit_code(allow_inconclusive=allow_inconclusive),
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "diagnoses": dict(self.diagnoses.most_common()),
            "errors": dict(self.reasons.most_common()),
            "worst": [_worst(record, how_far) for how_far, _, record in _from_the_top(self._worst)],
            "slowest": [
                {"id": record.id, "line": record.line, "seconds": seconds}
                for seconds, _, record in _from_the_top(self._slowest)
            ],
            "seconds": self._times(),
            "operators": {
                name: {"cases": counts.total(), **{one: counts[one] for one in OUTCOMES if counts[one]}}
                for name, counts in sorted(self.operators.items())
            },
        }

    def _times(self) -> dict[str, Any]:
        """Seconds of the server: of all, of the median case, of the slowest; and by phase."""
        ordered = sorted(self._seconds)
        times = {"total": math.fsum(ordered)}
        if ordered:
            for name, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99)):
                times[name] = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
            times["max"] = ordered[-1]
        return {**times, "phases": self.phases}


def summarise(results: Results, *, allow_inconclusive: bool = False) -> dict[str, Any]:
    """A run in figures.

    `cases`; `exit_code` as the command line has it; `outcomes`, `diagnoses` and `errors` (by reason): counts by name;
    `worst`: failing cases, those farthest above their bounds first; `slowest`; `seconds` of the server: total, median,
    p95, p99, max, and by phase; `operators`: counts by the label "operator", or by method.
    """
    return _of(report_text.read(results)).document(allow_inconclusive=allow_inconclusive)


def write_summary(results: Results, path: str | Path, *, allow_inconclusive: bool = False) -> dict[str, Any]:
    """Writes `summarise` as a JSON file, and gives it back. Raises OSError where the file cannot be written."""
    document = summarise(results, allow_inconclusive=allow_inconclusive)
    with report_text.replacing(path) as file:
        json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return document


def _of(found: Iterable[Record]) -> Summary:
    summary = Summary()
    for record in found:
        summary.add(record)
    return summary


def _count(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < GROUPS else OTHERS] += 1


def _keep(heap: list[tuple[float, int, Record]], size: float, count: int, record: Record) -> None:
    """Keeps the largest; of equals, the first."""
    push = heapq.heappush if len(heap) < SHOWN else heapq.heappushpop
    push(heap, (size, -count, record))


def _from_the_top(heap: list[tuple[float, int, Record]]) -> list[tuple[float, int, Record]]:
    return sorted(heap, key=lambda one: one[:2], reverse=True)


def _worst(record: Record, how_far: float) -> dict[str, Any]:
    assert record.report is not None  # noqa: S101  # only failing checks come here
    one = report_text.worst_input(record.report)
    found = {
        "id": record.id,
        "line": record.line,
        "operator": report_text.operator(record),
        "times_bound": report_text.finite(how_far),
        "message": report_text.headline(record),
    }
    if one is not None:
        found["input"] = one.name
        found["diagnosis"] = str(one.diagnosis or "UNKNOWN")
        found["error"] = report_text.finite(one.max_error)
        found["error_bound"] = report_text.finite(one.error_bound)
    return found

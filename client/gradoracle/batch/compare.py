"""What changed between two results files: verdicts, errors, latency."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradoracle import check_text
from gradoracle.batch.records import Record, read_results

RANKS = {
    "PASS": 0,
    "OK": 0,
    "NON_DIFFERENTIABLE": 1,
    "INCONCLUSIVE": 1,
    "NON_DETERMINISTIC": 2,
    "ERROR": 3,
    "FAIL": 3,
}
"""How bad an outcome is. From one to a worse one is a regression, as is FAIL after ERROR and ERROR after FAIL."""

SLOWER = 1.5
"""How much slower the median case of a method must be to be told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Brief:
    """What is compared of a record."""

    outcome: str
    error: float | None
    """The largest error of a check over its bound: up to 1 is good."""
    seconds: float | None
    """Of the server, without the queue."""
    method: str | None
    text: str
    """The diagnosis, the place of a gradient at a kink, or the error's reason."""
    wrong: bool = False
    """Whether a gradient is wrong, by the verdict or at a kink."""

    @classmethod
    def of(cls, record: Record) -> Brief:
        """The brief of a record."""
        inputs = list(record.report.inputs.values()) if record.report else []
        ratios = [one.max_error / one.error_bound for one in inputs if one.error_bound > 0]
        told = [check_text.diagnosis(one) if one.diagnosis is None else str(one.diagnosis) for one in inputs]
        return cls(
            outcome=record.outcome,
            error=max(ratios, default=None),
            seconds=record.timing.total - record.timing.queue if record.timing else None,
            method=record.method,
            text=record.error.reason if record.error else ", ".join(dict.fromkeys(filter(None, told))),
            wrong=record.is_wrong,
        )

    @property
    def rank(self) -> int:
        """How bad it is, as `RANKS` has it; a gradient outside the slopes of a kink is as bad as any wrong one."""
        return RANKS["FAIL"] if self.wrong else RANKS[self.outcome]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A case whose outcome, diagnosis or reason is another."""

    id: str
    before: Brief
    after: Brief

    @property
    def is_regression(self) -> bool:
        """Whether it became worse."""
        old, new = self.before.rank, self.after.rank
        return new > old or (new == old == 3 and self.before.outcome != self.after.outcome)

    @property
    def is_improvement(self) -> bool:
        """Whether it became better."""
        return self.after.rank < self.before.rank


@dataclasses.dataclass(slots=True)
class Comparison:
    """Everything that changed."""

    same: int
    """Cases with the same outcome, diagnosis and reason."""
    changes: list[Change]
    """In the order of the new file."""
    added: dict[str, Brief]
    """Cases of the new file alone."""
    missing: list[str]
    """Cases of the old file alone."""
    errors: list[Change]
    """Passing checks whose error, over its bound, grew more than tenfold, and above a tenth of the bound."""
    latency: dict[str, tuple[float, float, float]]
    """By method: the median seconds before and after, and the median of the cases' own ratios."""

    @property
    def regressions(self) -> list[Change]:
        """The changes for the worse."""
        return [one for one in self.changes if one.is_regression]

    def is_good(self, *, allow_missing: bool = False) -> bool:
        """Whether nothing became worse: no regression, no new case that fails, and no case gone."""
        bad_new = any(one.rank >= 2 for one in self.added.values())
        return not self.regressions and not bad_new and (allow_missing or not self.missing)


def compare(old: Path, new: Path) -> Comparison:
    """Compares two results files by the ids of their cases. Raises ValueError where one is no results file.

    Memory grows with the number of cases, by some hundred bytes each.
    """
    before = {record.id: Brief.of(record) for record in read_results(old)}
    found = Comparison(same=0, changes=[], added={}, missing=[], errors=[], latency={})
    seconds: dict[str, list[tuple[float, float]]] = {}
    for name, after in _briefs(new):
        earlier = before.pop(name, None)
        if earlier is None:
            found.added[name] = after
            continue
        change = Change(name, earlier, after)
        if (earlier.outcome, earlier.text) != (after.outcome, after.text):
            found.changes.append(change)
        else:
            found.same += 1
            if _error_grew(change):
                found.errors.append(change)
        if earlier.seconds and after.seconds and after.method:
            seconds.setdefault(after.method, []).append((earlier.seconds, after.seconds))
    found.missing = list(before)
    found.latency = {method: _latency(pairs) for method, pairs in sorted(seconds.items())}
    return found


def _briefs(path: Path) -> Iterator[tuple[str, Brief]]:
    for record in read_results(path):
        yield record.id, Brief.of(record)


def _error_grew(change: Change) -> bool:
    old, new = change.before.error, change.after.error
    if change.after.outcome != "PASS" or old is None or new is None:
        return False
    return new > 0.1 and new > 10 * old


def _latency(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    return (
        statistics.median(old for old, _ in pairs),
        statistics.median(new for _, new in pairs),
        statistics.median(new / old for old, new in pairs),
    )


def document(found: Comparison, *, allow_missing: bool = False) -> dict[str, Any]:
    """The comparison for programs."""

    def told(one: Change) -> dict[str, Any]:
        return {"id": one.id, "before": _plain(one.before), "after": _plain(one.after)}

    return {
        "good": found.is_good(allow_missing=allow_missing),
        "same": found.same,
        "regressions": [told(one) for one in found.regressions],
        "improvements": [told(one) for one in found.changes if one.is_improvement],
        "other_changes": [told(one) for one in found.changes if not one.is_regression and not one.is_improvement],
        "larger_errors": [told(one) for one in found.errors],
        "added": {name: _plain(one) for name, one in found.added.items()},
        "missing": found.missing,
        "latency": {
            method: {"before": before, "after": after, "ratio": ratio}
            for method, (before, after, ratio) in found.latency.items()
        },
    }


def _plain(one: Brief) -> dict[str, Any]:
    return {"outcome": one.outcome, "text": one.text, "error_over_bound": one.error, "seconds": one.seconds}

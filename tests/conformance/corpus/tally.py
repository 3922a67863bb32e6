"""From records to the tables of faults.md."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conformance.corpus.checkers import OURS
from conformance.corpus.wrongs import TINY

Record = Mapping[str, Any]


def is_right(fault: str) -> bool:
    """Whether a class is the other one."""
    return fault == "right" or fault.endswith(": right")


def is_kink(fault: str) -> bool:
    """Whether a class is of points where no gradient is right."""
    return fault.startswith("kink: ")


@dataclasses.dataclass(slots=True)
class Tally:
    """Counts by class of fault and checker."""

    checkers: Sequence[str]
    known: Mapping[str, str] = dataclasses.field(default_factory=dict)  # operators whose right gradient is wrong: why
    operators: set[str] = dataclasses.field(default_factory=set)
    cases: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    asked: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    rejected: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    seconds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tolerances: list[float] = dataclasses.field(default_factory=list)
    said: dict[str, dict[str, collections.Counter[str]]] = dataclasses.field(default_factory=dict)
    missed: list[str] = dataclasses.field(default_factory=list)
    alarms: list[str] = dataclasses.field(default_factory=list)
    undecided: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)

    def add(self, records: Iterable[Record]) -> Tally:
        """Counts records; returns itself."""
        for record in records:
            if "broken" in record:
                self.broken.append(f"{record['operator']}: {record['broken']}")
            else:
                self._count(record)
        return self

    def _count(self, record: Record) -> None:
        operator, fault = record["operator"], record["fault"]
        for name, seconds in record["seconds"].items():
            self.seconds[name] += seconds
        if is_kink(fault):
            for name, words in record["said"].items():
                self.said.setdefault(fault, {}).setdefault(words, collections.Counter())[name] += 1
            return
        if is_right(fault) and operator in self.known:
            fault = "right by torch, which is wrong"
        self.operators.add(operator)
        self.cases[fault] += 1
        if "tolerance" in record:
            self.tolerances.append(record["tolerance"])
        for name, verdict in record["verdicts"].items():
            self.asked.setdefault(name, collections.Counter())[fault] += 1
            # A peer that raises has noticed something; a check that crashes has told nobody anything.
            rejects = verdict == "FAIL" or (verdict == "CRASHED" and name not in OURS)
            self.rejected.setdefault(name, collections.Counter())[fault] += rejects
            if name in OURS:
                self._judge(f"{name}: {operator}[{record['sample']}]: {fault}", fault, verdict, record["raised"])

    def _judge(self, where: str, fault: str, verdict: str, raised: Mapping[str, str]) -> None:
        if verdict in ("CRASHED", "TIMEOUT"):
            self.broken.append(f"{where}: {verdict.lower()}: {', '.join(raised.values())}")
        if fault == "right by torch, which is wrong":
            return
        if not is_right(fault):
            if verdict != "FAIL" and fault != TINY:
                self.missed.append(f"{where}: {verdict}")
        elif verdict == "FAIL":
            self.alarms.append(where)
        elif verdict != "PASS":
            self.undecided.append(f"{where}: {verdict}")

    def rows(self) -> list[list[str]]:
        """Head and lines of the main table: rejected cases, "of" the cases asked where those are fewer."""
        rows = [["fault", "cases", *self.checkers]]
        order = sorted(self.cases, key=lambda fault: (_section(fault), not is_right(fault)))
        for fault in order:
            count = self.cases[fault]
            rows.append([fault, str(count), *(self._cell(name, fault, count) for name in self.checkers)])
        rows.append(["seconds", "", *(f"{self.seconds[name]:.0f}" for name in self.checkers)])
        return rows

    def _cell(self, name: str, fault: str, count: int) -> str:
        asked = self.asked.get(name, collections.Counter())[fault]
        if not asked:
            return ""
        found = str(self.rejected[name][fault])
        return found if asked == count else f"{found} of {asked}"

    def kinks(self) -> list[list[str]]:
        """Head and lines of the table of what is said at kinks."""
        rows = [["gradient at the kink", "said", *OURS]]
        for fault, words in self.said.items():
            for one, counts in sorted(words.items()):
                rows.append([fault.removeprefix("kink: "), one, *(str(counts[name]) for name in OURS)])
        return rows if len(rows) > 1 else []

    def figures(self) -> dict[str, Any]:
        """For the JSON."""
        found: dict[str, Any] = {
            "operators": len(self.operators),
            "cases": dict(self.cases),
            "rejected": {name: dict(counts) for name, counts in self.rejected.items()},
            "asked": {name: dict(counts) for name, counts in self.asked.items()},
            "seconds": {name: round(seconds) for name, seconds in self.seconds.items()},
            "missed": sorted(self.missed),
            "false alarms": sorted(self.alarms),
            "right, no verdict": sorted(self.undecided),
            "broken": sorted(self.broken),
        }
        if self.tolerances:
            found["float32 tolerance, ulp of the element"] = quantiles(self.tolerances)
        if self.said:
            found["kinks"] = {fault: {one: dict(c) for one, c in words.items()} for fault, words in self.said.items()}
        return found


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "95th percentile": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
    }


def _section(fault: str) -> int:
    """Backwards first, then claims, then second derivatives."""
    return 1 if fault.startswith("claim: ") else 2 if fault.startswith("second derivative: ") else 0


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- " * len(rows[0]) + "|")
    return "\n".join(lines)


def page(dtype: str, tally: Tally, command: str, note: str) -> str:
    """One dtype's section of faults.md."""
    parts = [
        f"## {dtype}\n",
        f"`{command}`: {note}. {len(tally.operators)} operators, {sum(tally.cases.values())} cases.\n",
        markdown(tally.rows()) + "\n",
    ]
    if tally.tolerances:
        found = quantiles(tally.tolerances)
        parts.append(
            f"The tolerance whose fourfold is the finest fault: {found['median']} units in the last place of the "
            f"element in the median, {found['95th percentile']} at the 95th percentile.\n"
        )
    if kinks := tally.kinks():
        parts.append("At kinks:\n\n" + markdown(kinks) + "\n")
    for title, lines in (
        ("Faults of ours that were missed", tally.missed),
        ("False alarms of ours", tally.alarms),
        ("Right gradients on which ours had no verdict", tally.undecided),
        ("Crashes, and answers that took too long", tally.broken),
        (f"{WRONG_IN_TORCH}", [f"{name}: {why}" for name, why in tally.known.items() if name in tally.operators]),
    ):
        listed = "".join(f"- {line}\n" for line in sorted(lines)) or "None.\n"
        parts.append(f"{title}:{' ' if not lines else chr(10) * 2}{listed}")
    return "\n".join(parts)


WRONG_IN_TORCH = "Operators whose own gradient is wrong in torch 2.13, in a line of their own"

"""The table of figures that `run.py` prints, writes as JSON, and keeps in RESULTS.md."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MET, MISSED, UNJUDGED, UNMEASURED = "met", "missed", "", "not measured"
"""Verdicts; a row without a wanted value is written down and not judged."""

HEADINGS = ("row", "measured", "wanted", "goal", "verdict", "measured against")


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """What a figure should be: at most, or at least, a value."""

    value: float
    least: bool = False

    def holds(self, figure: float) -> bool:
        """Whether a figure is within the bound; NaN never is."""
        return figure >= self.value if self.least else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {number(self.value)}"

    def plain(self) -> dict[str, float]:
        """The bound as JSON: {"at_most": 1.5}, {"at_least": 3.0}."""
        return {"at_least" if self.least else "at_most": self.value}


def at_most(value: float) -> Bound:
    """A figure that should be small."""
    return Bound(value)


def at_least(value: float) -> Bound:
    """A figure that should be large."""
    return Bound(value, least=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One figure, and what it was measured against."""

    name: str
    value: float | None
    """None where it could not be measured here; `note` says why."""
    unit: str
    """"x" for a ratio."""
    wanted: Bound | None
    goal: Bound | None
    beside: str
    """What ran in turn with it: the denominator of a ratio."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """MET or MISSED by the wanted value; UNJUDGED without one; UNMEASURED without a figure."""
        if self.value is None:
            return UNMEASURED
        if self.wanted is None:
            return UNJUDGED
        return MET if self.wanted.holds(self.value) else MISSED

    @property
    def reaches_goal(self) -> bool:
        """Whether there is a goal beyond what is wanted, and it is reached."""
        return self.value is not None and self.goal is not None and self.goal.holds(self.value)

    def cells(self) -> tuple[str, ...]:
        """The row's texts, under HEADINGS."""
        measured = "-" if self.value is None else f"{number(self.value)} {self.unit}".strip()
        goal = "-" if self.goal is None else f"{self.goal}{' (reached)' if self.reaches_goal else ''}"
        beside = "; ".join(one for one in (self.beside, self.note) if one)
        return (
            self.name,
            measured,
            "-" if self.wanted is None else str(self.wanted),
            goal,
            self.verdict or "-",
            beside,
        )

    def plain(self) -> dict[str, Any]:
        """The row as JSON. A value that is no finite number becomes a string, which every reader takes."""
        finite = self.value is None or math.isfinite(self.value)
        return {
            "name": self.name,
            "value": self.value if finite else str(self.value),
            "unit": self.unit,
            "wanted": None if self.wanted is None else self.wanted.plain(),
            "goal": None if self.goal is None else self.goal.plain(),
            "verdict": self.verdict,
            "beside": self.beside,
            "note": self.note,
        }


def read(plain: Mapping[str, Any]) -> Row:
    """A row from its JSON."""
    value = plain["value"]
    wanted, goal = (None if plain[key] is None else _bound(plain[key]) for key in ("wanted", "goal"))
    figure = None if value is None else float(value)
    return Row(plain["name"], figure, plain["unit"], wanted, goal, plain["beside"], plain["note"])


def _bound(plain: Mapping[str, float]) -> Bound:
    return at_least(plain["at_least"]) if "at_least" in plain else at_most(plain["at_most"])


def number(value: float) -> str:
    """Three digits, or all those before the point: 0.0123, 1.46, 12.3, 4,810."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal, the columns aligned."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for RESULTS.md."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def document(rows: Iterable[Row], machine: Mapping[str, object]) -> dict[str, Any]:
    """What is written as JSON: where and with what it was measured, and the rows."""
    return {"machine": dict(machine), "rows": [row.plain() for row in rows]}


def summary(rows: Sequence[Row]) -> str:
    """How many rows are met, and which are missed."""
    judged = [row for row in rows if row.verdict in (MET, MISSED)]
    missed = [row.name for row in judged if row.verdict == MISSED]
    said = f"{len(judged) - len(missed)} of {len(judged)} met"
    return f"{said}; missed: {'; '.join(missed)}" if missed else said


def page(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    """RESULTS.md: one table of the documents of all subjects, and when and where each was measured."""
    rows = [read(one) for found in subjects.values() for one in found["rows"]]
    runs: dict[str, list[str]] = {}
    for subject, found in subjects.items():
        about = ", ".join(f"{name} {value}" for name, value in found["machine"].items() if name not in ("date", "load"))
        load = f" (load {found['machine']['load']})" if "load" in found["machine"] else ""
        runs.setdefault(about, []).append(f"{subject} {found['machine']['date']}{load}")
    measured = "\n".join(f"- {about}: {', '.join(when)}" for about, when in runs.items())
    return (
        "# Speed, measured\n\n"
        "Written by `python tests/bench/run.py --update`. The other side of a ratio ran in turn with it. What was\n"
        f"changed, what was expected of it, and what it brought, is in notes.md.\n\n{markdown(rows)}\n\n"
        f"{summary(rows)}.\n\n{measured}\n"
    )

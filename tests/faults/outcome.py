"""What an experiment found, and the table of all of them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

SHOWN = 20
"""Of the things that did not hold, how many are told."""


@dataclasses.dataclass
class Outcome:
    """One experiment's: what it did, its figures in the order in which they are read, and what did not hold."""

    name: str
    did: str
    wanted: str
    figures: dict[str, str | int | float] = dataclasses.field(default_factory=dict)
    broken: list[str] = dataclasses.field(default_factory=list)

    def require(self, holds: bool, otherwise: str) -> None:
        """Notes what did not hold."""
        if not holds:
            self.broken.append(otherwise)

    @property
    def line(self) -> str:
        """The figures in one line."""
        figures = ", ".join(f"{name} {_plain(value)}" for name, value in self.figures.items())
        return f"{self.name}: {figures}; {self.verdict}"

    @property
    def verdict(self) -> str:
        """Whether all of it held."""
        return "holds" if not self.broken else f"{len(self.broken)} did not hold"


def _plain(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percentile(values: Iterable[float], part: float) -> float:
    """The value below which so large a part of the values lies, from 0 to 1; NaN where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def machine() -> str:
    """What the figures were taken on."""
    return f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"


def keep(name: str, found: Outcome, path: Path) -> dict[str, Outcome]:
    """Puts an experiment's outcome among those that a file keeps; gives all of them, by the experiment's name."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[name] = dataclasses.asdict(found) | {"broken": found.broken[: SHOWN + 1]}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return {key: Outcome(**one) for key, one in kept.items()}


def text(outcomes: Mapping[str, Outcome]) -> str:
    """The table as Markdown, with what did not hold below it."""
    lines = [
        "# What was injected, and what came of it",
        "",
        f"`python tests/faults/run.py` makes this table ({machine()}; servers and clients share the cores).",
        "",
        "| experiment | what was done | figures | wanted | held |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in outcomes.values():
        figures = "; ".join(f"{name} {_plain(value)}" for name, value in one.figures.items())
        cells = [one.name, one.did, figures, one.wanted, "yes" if not one.broken else "**no**"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    for one in outcomes.values():
        if one.broken:
            lines += ["", f"## {one.name}: what did not hold", ""]
            lines += [f"- {each}" for each in one.broken[:SHOWN]]
            if len(one.broken) > SHOWN:
                lines.append("- and more")
    return "\n".join(lines) + "\n"


def write(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Writes the table."""
    path.write_text(text(outcomes), encoding="utf-8")

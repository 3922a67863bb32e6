"""The results as a table, a page and JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from conformance.judge import Judgement, Outcome

_ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = ("dtype", "operators", "all exact", "samples", "exact", "close", "refused", "wrong")


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """The judgements of one dtype."""

    dtype: str
    judgements: Sequence[Judgement]

    @property
    def by_operator(self) -> dict[str, list[Judgement]]:
        """Judgements by operator, in the order of their names."""
        found: dict[str, list[Judgement]] = {}
        for one in sorted(self.judgements, key=lambda judgement: (judgement.operator, judgement.index)):
            found.setdefault(one.operator, []).append(one)
        return found

    def row(self) -> tuple[str, ...]:
        """The line of the table."""
        counts = collections.Counter(one.outcome for one in self.judgements)
        groups = self.by_operator.values()
        exact = sum(all(one.outcome is Outcome.EXACT for one in group) for group in groups)
        return (
            self.dtype,
            str(len(groups)),
            str(exact),
            str(len(self.judgements)),
            *(str(counts[outcome]) for outcome in Outcome),
        )


def text(sweeps: Sequence[Sweep]) -> str:
    """The table for a terminal, which is Markdown as well."""
    rows = [COLUMNS, *(sweep.row() for sweep in sweeps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def page(sweeps: Sequence[Sweep], command: str) -> str:
    """RESULTS.md: the table, and each operator that is not exact in every sample, with the reason."""
    parts = [
        "# Conformance\n",
        "Every differentiable operator of PyTorch's operator database (`op_db`), each of its samples traced by\n"
        "`gradoracle.trace`, sent through a running server, and outputs and every gradient compared with those of\n"
        "eager autograd. *exact*: equal in every bit (any NaN equals any other). *close*: within the tolerance of\n"
        "`torch.testing.assert_close`. *refused*: no answer, with a reason. *wrong*: anything else.\n",
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {platform.machine()}, CPU, one thread.\n"
        f"Written by `{command}`, which has malloc fill the memory that it gives out: one driver of torch's\n"
        "`linalg.lstsq` reads memory that it did not write, and without that it does not repeat its own bits.\n",
        text(sweeps) + "\n",
    ]
    for sweep in sweeps:
        rows = _not_exact(sweep)
        if rows:
            parts.append(f"## {sweep.dtype}: not exact\n")
            parts.append("| operator | samples | outcome | first reason |\n|---|---|---|---|\n" + "".join(rows))
    return "\n".join(parts)


def _not_exact(sweep: Sweep) -> list[str]:
    rows = []
    for name, group in sweep.by_operator.items():
        for outcome in (Outcome.WRONG, Outcome.REFUSED, Outcome.CLOSE):
            found = [one for one in group if one.outcome is outcome]
            if found:
                reason = _short(found[0].reason).replace("|", "\\|")[:400]
                rows.append(f"| {name} | {len(found)} of {len(group)} | {outcome.name.lower()} | {reason} |\n")
    return rows


def _short(reason: str) -> str:
    """On one line, with files of this project named from its root."""
    return reason.replace("\n", " ").replace(f"{_ROOT}{os.sep}", "")


def document(sweeps: Sequence[Sweep]) -> Mapping[str, Any]:
    """RESULTS.json: the figures, and every judgement that is not exact."""
    return {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "dtypes": {
            sweep.dtype: {
                **dict(zip(COLUMNS[1:], (int(cell) for cell in sweep.row()[1:]), strict=True)),
                "not exact": [
                    {
                        "operator": one.operator,
                        "sample": one.index,
                        "outcome": one.outcome.name,
                        "reason": _short(one.reason),
                    }
                    for one in sweep.judgements
                    if one.outcome is not Outcome.EXACT
                ],
            }
            for sweep in sweeps
        },
    }


def write(sweeps: Sequence[Sweep], command: str, folder: Path) -> None:
    """Both files."""
    (folder / "RESULTS.md").write_text(page(sweeps, command), encoding="utf-8")
    (folder / "RESULTS.json").write_text(json.dumps(document(sweeps), indent=1) + "\n", encoding="utf-8")

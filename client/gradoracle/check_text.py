"""A check's report as text. rich is imported when one is rendered, not before."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from gradoracle.checks import CheckReport, InputReport, Mismatch, Number, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.NON_DIFFERENTIABLE: "bold cyan",
    Verdict.NON_DETERMINISTIC: "bold magenta",
}


def render(report: CheckReport, *, color: bool, width: int) -> str:
    """The report as lines of text."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        width=width,
        highlight=False,
    )
    for part in parts(report):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def parts(report: CheckReport) -> list[RenderableType]:
    """What a console prints, one after another."""
    from rich.text import Text

    heading = Text.assemble((str(report.verdict), STYLES[report.verdict]), f"  {summary(report)}")
    found: list[RenderableType] = [heading]
    if report.inputs:
        found.append(_inputs(report))
    for one in report.inputs.values():
        if one.verdict is Verdict.FAIL and one.worst:
            found += [Text(f"Worst elements of {one.name}:"), _worst(one)]
    for opinion in report.opinions:
        if opinion.verdict is not Verdict.PASS:
            text = f"{opinion.name}: {opinion.explanation} (error {figure(opinion.error)})"
            found.append(Text.assemble((str(opinion.verdict), STYLES[opinion.verdict]), f"  {text}"))
    return found


def summary(report: CheckReport) -> str:
    """The figures of the whole check in one line."""
    spent = f"{report.evaluations} forward passes"
    if report.passed and report.detection_power:
        fault = figure(report.detection_power)
        return f"{spent} would have caught a relative fault of {fault} in one element of usual size"
    return spent


def _inputs(report: CheckReport) -> Table:
    from rich.text import Text

    table = _table("input", "verdict", "diagnosis", "error", "bound", "")
    for one in report.inputs.values():
        _add(
            table,
            one.name,
            Text(str(one.verdict), STYLES[one.verdict]),
            diagnosis(one),
            figure(one.max_error),
            figure(one.error_bound),
            one.explanation,
        )
    return table


def _worst(one: InputReport) -> Table:
    table = _table("index", "claimed", "autograd", "numerical", "error", "bound")
    for row in one.worst:
        _add(
            table,
            place(row),
            number(row.claimed),
            number(row.reference),
            number(row.numerical),
            figure(row.error),
            figure(row.error_bound),
        )
    return table


def place(row: Mismatch) -> str:
    """Where an element is; of a Jacobian's, which output's derivative it is, too."""
    index = str(list(row.index)) if row.index else "scalar"
    if not row.output:
        return index
    return f"d {row.output}{list(row.output_index) if row.output_index else ''} / d {index}"


def _table(*heads: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _add(table: Table, *cells: str | Text) -> None:
    """A row. Names are whatever callers chose: as plain strings, rich would read markup and emoji in them."""
    from rich.text import Text

    table.add_row(*(Text(one) if isinstance(one, str) else one for one in cells))


def diagnosis(one: InputReport) -> str:
    """The diagnosis, with its factor; or whether a claim lies between the slopes of a kink."""
    if one.diagnosis is not None:
        return f"{one.diagnosis} by {one.factor:.9g}" if one.factor is not None else str(one.diagnosis)
    if one.claim_inside is not None:
        return "between the slopes" if one.claim_inside else "outside the slopes"
    return ""


def figure(value: float) -> str:
    """An error or a bound: two figures are enough."""
    return "NaN" if math.isnan(value) else f"{value:.2g}"


def number(value: Number) -> str:
    """An element: enough figures to see a small error."""
    if isinstance(value, complex):
        return f"{value.real:.10g}{value.imag:+.10g}j"
    return "NaN" if math.isnan(value) else f"{value:.12g}"

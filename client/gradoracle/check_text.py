"""A check's report as text. rich is imported when one is rendered, not before."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
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
    for part in parts(report, width):
        console.print(part, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def parts(report: CheckReport, width: int = 100) -> list[RenderableType]:
    """What a console of so many columns prints, one after another, without cropping.

    Verdicts, diagnoses, indices and numbers stay in one piece. Where a table has no room for them, its rows become
    lines of text; where it has none for the sentences, they stand below. Words that are longer than a line run over its
    end: the terminal knows best where that is.
    """
    found: list[RenderableType] = [_headed(report.verdict, summary(report), width)]
    if text := remark(report):
        found.append(_lines(text, width))
    if report.inputs:
        found += _inputs(list(report.inputs.values()), width)
    for one in report.inputs.values():
        if one.verdict is Verdict.FAIL and one.worst:
            found += [_lines(f"Worst elements of {one.name}:", width), *_worst(one, width)]
    for opinion in report.opinions:
        if opinion.verdict is not Verdict.PASS:
            text = f"{opinion.name}: {opinion.explanation} (error {figure(opinion.error)})"
            found.append(_headed(opinion.verdict, text, width))
    return found


def summary(report: CheckReport) -> str:
    """The figures of the whole check in one line."""
    spent = f"{report.evaluations} forward pass{'' if report.evaluations == 1 else 'es'}"
    if report.passed and report.detection_power:
        fault = figure(report.detection_power)
        return f"{spent} would have caught a relative fault of {fault} in one element of usual size"
    return spent


NOTHING = "No input requires grad, so that there was nothing to judge."
_RANDOM = "No cotangents were given: outputs that are not scalars had random ones, which these figures contain."


def remark(report: CheckReport) -> str:
    """One line on what was judged, where the figures cannot be understood without it; else ""."""
    if not report.inputs:
        return NOTHING if report.verdict is Verdict.NON_DIFFERENTIABLE else ""
    return _RANDOM if report.random_cotangents and not report.passed else ""


def _inputs(inputs: list[InputReport], width: int) -> list[RenderableType]:
    """A table of the inputs, with their sentences in its last column or below it; or lines of text."""
    heads = ["input", "verdict", "diagnosis", "error", "bound"]
    rows = [
        [one.name, str(one.verdict), diagnosis(one), figure(one.max_error), figure(one.error_bound)] for one in inputs
    ]
    if not any(row[2] for row in rows):
        heads, rows = _without(heads, 2), [_without(row, 2) for row in rows]
    styles = {str(one.verdict): STYLES[one.verdict] for one in inputs}
    room = width - _width([heads[1:], *(row[1:] for row in rows)]) - _BETWEEN
    longest = max(_cells(row[0]) for row in [heads, *rows])
    sentence = max(_cells(one.explanation) for one in inputs)
    beside = min(sentence, _SENTENCE) + _BETWEEN
    if room >= min(longest, _NAME) + beside:
        name = min(longest, room - beside)
        sentences = [_wrapped(one.explanation, min(sentence, room - name - _BETWEEN)) for one in inputs]
        rows = [[*row, text] for row, text in zip(rows, sentences, strict=True)]
        return [_table([*heads, ""], rows, name, styles)]
    if room >= min(longest, _NAME):
        below = [_lines(f"{one.name}: {one.explanation}", width) for one in inputs]
        return [_table(heads, rows, min(longest, room), styles), *below]
    found: list[RenderableType] = [_lines("", width)]
    for row, one in zip(rows, inputs, strict=True):
        found += [*_listed(heads, row, width, styles), _lines(one.explanation, width, indent=2)]
    return found


def _worst(one: InputReport, width: int) -> list[RenderableType]:
    """A table of the worst elements, or lines of text."""
    heads, rows = elements(one)
    if _width([heads, *rows]) <= width:
        return [_table(heads, rows, None, {})]
    return [line for row in rows for line in _listed(heads, row, width, {})]


def elements(one: InputReport) -> tuple[list[str], list[list[str]]]:
    """The worst elements as cells, below their heads; without autograd's where it says nothing."""
    heads = ["index", "claimed", "autograd", "numerical", "error", "bound"]
    rows = [
        [
            place(row),
            number(row.claimed),
            number(row.reference),
            number(row.numerical),
            figure(row.error),
            figure(row.error_bound),
        ]
        for row in one.worst
    ]
    if _says_something(one.worst):
        return heads, rows
    return _without(heads, 2), [_without(row, 2) for row in rows]


def _says_something(rows: Sequence[Mismatch]) -> bool:
    """Whether autograd's gradient is neither that on trial nor 0 throughout, as it is of a function that autograd does
    not follow, one of numpy's for instance."""
    if all(row.reference == 0 for row in rows) and any(row.claimed != 0 for row in rows):
        return False
    return not all(row.reference == row.claimed or (_is_nan(row.reference) and _is_nan(row.claimed)) for row in rows)


def _is_nan(value: Number) -> bool:
    return value != value  # of complex numbers too


def _without(row: list[str], place: int) -> list[str]:
    return row[:place] + row[place + 1 :]


# ---- Tables


_SENTENCE = 30  # columns that the sentences of a table take at least, if they are as long; else they stand below it
_NAME = 12  # of an input's name, likewise; longer ones fold
_BETWEEN = 2  # columns between the cells of a table


def _cells(text: str) -> int:
    """The columns that a text takes in a terminal."""
    from rich.cells import cell_len

    return cell_len(text)


def _width(rows: list[list[str]]) -> int:
    """The columns that a table of these rows takes."""
    return sum(max(map(_cells, column)) + _BETWEEN for column in zip(*rows, strict=True)) + 1


def _table(heads: list[str], rows: list[list[str]], name: int | None, styles: dict[str, str]) -> Table:
    """A table, of whose columns only the first folds: to the width of `name`. Cells that `styles` names have theirs.

    Names are whatever callers chose: as plain strings, rich would read markup and emoji in them.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(heads[0], width=name, no_wrap=name is None, overflow="fold")
    for head in heads[1:]:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(Text(row[0]), *(Text(cell, styles.get(cell, "")) for cell in row[1:]))
    return table


# ---- Lines of text


def _headed(verdict: Verdict, text: str, width: int) -> Text:
    """A verdict in its colour, and what is to be said of it."""
    found = _lines(f"{verdict}  {text}", width)
    found.stylize(STYLES[verdict], 0, len(verdict))
    return found


def _listed(heads: list[str], row: list[str], width: int, styles: dict[str, str]) -> list[Text]:
    """A row without a table: the first cell, and below it the others with their heads."""
    items = []
    for head, cell in zip(heads[1:], row[1:], strict=True):
        if cell:
            together = _cells(f"  {head} {cell}") <= width
            items.append(f"{head}{_HARD if together else ' '}{cell.replace(' ', _HARD)}")
    found = _lines("  ".join(items), width, indent=2)
    for cell in row[1:]:
        if cell in styles:
            found.highlight_words([cell], styles[cell])
    return [_lines(row[0], width), found]


def _lines(text: str, width: int, *, indent: int = 0) -> Text:
    """A text broken into lines, which a console leaves as they are."""
    from rich.text import Text

    return Text(_wrapped(text, width, indent), no_wrap=True, overflow="ignore")


_HARD = "\u00a0"  # a space at which no line is broken
_INDEX = re.compile(r"\[[-\d, ]+\]")


def _wrapped(text: str, width: int, indent: int = 0) -> str:
    """A text broken into lines between words, of which an index such as [1, 2] is one."""
    text = _INDEX.sub(lambda found: found[0].replace(" ", _HARD), text)
    margin = " " * indent
    lines = textwrap.wrap(
        text,
        max(width, indent + 1),
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace(_HARD, " ")


# ---- Cells


def place(row: Mismatch) -> str:
    """Where an element is; of a Jacobian's, which output's derivative it is, too."""
    index = str(list(row.index)) if row.index else "scalar"
    if not row.output:
        return index
    return f"d {row.output}{list(row.output_index) if row.output_index else ''} / d {index}"


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

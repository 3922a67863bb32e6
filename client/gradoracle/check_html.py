"""A check's report as one HTML page, which needs nothing but itself: no scripts, no files, no network."""

from __future__ import annotations

import html
import math
import re

import numpy as np
import numpy.typing as npt

from gradoracle.check_text import diagnosis, elements, figure, remark, summary
from gradoracle.checks import CheckReport, InputReport, Rung, Verdict

_COLOURS = {
    Verdict.PASS: "#1a7f37",
    Verdict.FAIL: "#cf222e",
    Verdict.INCONCLUSIVE: "#9a6700",
    Verdict.NON_DIFFERENTIABLE: "#0969da",
    Verdict.NON_DETERMINISTIC: "#8250df",
}
_NAN, _INFINITE = "#8250df", "#1f2328"  # of heat maps, apart from the shades of red
_CELLS = 64  # of a heat map along each side, at most
_NUMBERS = frozenset({"claimed", "autograd", "numerical", "error", "bound"})  # heads of columns
_SMALL = re.compile(r"\d+(\.\d+)?e-\d+")
_WIDTH, _HEIGHT, _MARGIN = 480, 280, 48  # of the curve, in pixels

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #1f2328 }
table { border-collapse: collapse; margin: .5em 0 1.5em } th, td { padding: .2em .9em .2em 0; text-align: left }
th { border-bottom: 1px solid #d1d9e0 } td { font-variant-numeric: tabular-nums; border-bottom: 1px solid #f0f2f4 }
.number { white-space: nowrap } .verdict { font-weight: 600 } .key { display: inline-block; width: 11px; height: 11px }
svg text { font: 11px system-ui, sans-serif; fill: #59636e }
"""


def page(report: CheckReport) -> str:
    """The whole page."""
    parts = [
        f"<h1>{_verdict(report.verdict)}</h1><p>{html.escape(summary(report))}</p>",
        f"<p>{html.escape(remark(report))}</p>" if remark(report) else "",
        _inputs(report),
        *(_details(one) for one in report.inputs.values()),
        _opinions(report),
        _curve(report.ladder),
    ]
    title = f"gradoracle: {report.verdict}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _verdict(verdict: Verdict) -> str:
    return f'<span class="verdict" style="color:{_COLOURS[verdict]}">{verdict}</span>'


def _text(text: str) -> str:
    """A sentence, in which no number is broken at its minus sign."""
    return _SMALL.sub(r'<span class="number">\g<0></span>', html.escape(text))


def _table(heads: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are HTML already."""
    head = "".join(f"<th>{one}</th>" for one in heads)
    opening = ['<td class="number">' if one in _NUMBERS else "<td>" for one in heads]
    cells = [[f"{tag}{cell}</td>" for tag, cell in zip(opening, row, strict=True)] for row in rows]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _inputs(report: CheckReport) -> str:
    rows = [
        [
            html.escape(one.name),
            _verdict(one.verdict),
            html.escape(diagnosis(one)),
            figure(one.max_error),
            figure(one.error_bound),
            _text(one.explanation),
        ]
        for one in report.inputs.values()
    ]
    return _table(["input", "verdict", "diagnosis", "error", "bound", ""], rows) if rows else ""


def _details(one: InputReport) -> str:
    """The worst elements of an input, and where its errors are."""
    if one.verdict is not Verdict.FAIL:
        return ""
    heads, rows = elements(one)
    name = html.escape(one.name)
    table = _table(heads, [[html.escape(cell) for cell in row] for row in rows])
    found = f"<h2>Worst elements of {name}</h2>{table}" if rows else ""
    if one.errors is not None and one.errors.size > 1:
        found += f"<h2>Errors over {name}</h2>{_heat_map(one.errors)}"
    return found


def _opinions(report: CheckReport) -> str:
    if not report.opinions:
        return ""
    rows = [
        [one.name, _verdict(one.verdict), figure(one.error), figure(one.error_bound), _text(one.explanation)]
        for one in report.opinions
    ]
    return f"<h2>Second opinions</h2>{_table(['identity', 'verdict', 'error', 'bound', ''], rows)}"


def _heat_map(errors: npt.NDArray[np.generic]) -> str:
    """The errors as squares: rows are the last axis' vectors, and a square shows the largest of those that it covers.

    NaN is larger than all: it comes of no derivative.
    """
    shape = errors.shape
    matrix = np.asarray(errors, np.float64)
    matrix = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim > 1 else matrix.reshape(1, -1)
    blocks = [np.array_split(np.arange(size), min(size, _CELLS)) for size in matrix.shape]
    top = float(np.max(matrix[np.isfinite(matrix)], initial=0.0))
    side = 12
    cells = []
    for i, rows in enumerate(blocks[0]):
        for j, columns in enumerate(blocks[1]):
            block = matrix[np.ix_(rows, columns)]
            row, column = divmod(int(np.argmax(block)), len(columns))  # of the first NaN, where there is one
            value = float(block[row, column])
            index = np.unravel_index(int(rows[row]) * matrix.shape[1] + int(columns[column]), shape)
            label = f"{list(map(int, index))}: {figure(value)}"
            cells.append(
                f'<rect x="{j * side}" y="{i * side}" width="{side - 1}" height="{side - 1}" '
                f'fill="{_shade(value, top)}"><title>{label}</title></rect>'
            )
    width, height = len(blocks[1]) * side, len(blocks[0]) * side
    return f'<svg width="{width}" height="{height}" role="img">{"".join(cells)}</svg><p>{_legend(matrix, top)}</p>'


def _shade(value: float, top: float) -> str:
    """The colour of an error, where the largest finite one is `top`."""
    if not math.isfinite(value):
        return _NAN if math.isnan(value) else _INFINITE
    share = math.sqrt(value / top) if top else 0.0
    return f"hsl(356,{round(70 * share)}%,{round(95 - 45 * share)}%)"


def _legend(matrix: npt.NDArray[np.float64], top: float) -> str:
    """What the colours mean, and how many errors are no finite numbers."""
    parts = []
    finite = np.isfinite(matrix)
    if finite.any():
        largest = "Largest" if finite.all() else "Largest finite one"
        parts.append(f"{_key(_shade(top, top))} {largest}: {figure(top)}")
    for found, colour, name in ((np.isinf(matrix), _INFINITE, "infinite"), (np.isnan(matrix), _NAN, "NaN")):
        if count := int(found.sum()):
            parts.append(f"{_key(colour)} {name}: {count} of {matrix.size}")
    return "; ".join(parts)


def _key(colour: str) -> str:
    return f'<span class="key" style="background:{colour}"></span>'


def _curve(ladder: list[Rung]) -> str:
    """Error against step, both axes logarithmic."""
    points = [(one.step, one.error, one.error_bound) for one in ladder if one.step > 0]
    values = [y for _, *both in points for y in both if y > 0 and math.isfinite(y)]
    if len(points) < 2 or not values:
        return ""
    low_x, high_x = math.log10(min(x for x, _, _ in points)), math.log10(max(x for x, _, _ in points))
    low_y, high_y = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high_y = max(high_y, low_y + 1)

    def at(x: float, y: float) -> str:
        across = (math.log10(x) - low_x) / (high_x - low_x)
        up = (math.log10(max(y, 10.0**low_y)) - low_y) / (high_y - low_y)
        return f"{_MARGIN + across * (_WIDTH - 2 * _MARGIN):.1f},{_HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN):.1f}"

    def line(which: int, colour: str, dash: str) -> str:
        drawn = sorted((point[0], point[which]) for point in points if math.isfinite(point[which]))
        path = " ".join(at(x, y) for x, y in drawn)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>'

    ticks = "".join(
        f'<text x="4" y="{at(10.0**low_x, 10.0**k).split(",")[1]}">1e{k}</text>'
        for k in range(low_y, high_y + 1, max(1, (high_y - low_y) // 6))
    )
    bottom = (
        f'<text x="{_MARGIN}" y="{_HEIGHT - 16}">{10**low_x:.1g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 16}" text-anchor="end">{10**high_x:.1g}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step, relative to the input</text>'
    )
    return (
        "<h2>Error against step</h2><p>Plain central differences (solid) and their bound (dashed); the accepted "
        "derivative is extrapolated from them.</p>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{ticks}{bottom}'
        f"{line(1, '#0969da', '')}{line(2, '#59636e', '4 3')}</svg>"
    )

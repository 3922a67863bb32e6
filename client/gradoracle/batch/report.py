"""The results of a run as one HTML page, which needs nothing but itself: no files, no network.

The page holds one line of JSON a case, in a script element that browsers do not run: the head, from which lists and
filters are made at once, a tab, and the details, which stay text until somebody opens the case. The page's own scripts
draw everything, with DOM calls alone, so that no text of a case is ever read as HTML; the policy in the head lets run
nothing else.

The file is written case by case. Its size has bounds: see `Limits`. What they left out is said on the page.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import html
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import IO, Any

from gradoracle.batch import report_cases, report_text
from gradoracle.batch.report_text import Results
from gradoracle.batch.summary import OUTCOMES, Summary

STYLES = ("report.css",)
SCRIPTS = ("page.js", "draw.js", "case.js", "summary.js", "list.js")
"""In the order in which they run, as one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How large a page may become. Sizes are in characters of JSON."""

    good_details: int = 6_000_000
    """Of full details of cases that passed; the later ones keep their figures, without curve, graph and tensors."""
    other_details: int = 32_000_000
    """Of full details of all others."""
    brief_details: int = 16_000_000
    """Of the details without curve, graph, heat map and tensors; cases beyond keep their line in the list."""
    rows: int = 100_000
    """Lines of the list; cases beyond are counted, those that passed first."""


def write_report(
    results: Results, path: str | Path, *, title: str = "gradoracle", limits: Limits | None = None
) -> dict[str, Any]:
    """Writes the page, and gives what `summarise` gives. `results` is a results file, or records.

    Raises OSError where the file cannot be written.
    """
    summary = Summary()
    with report_text.replacing(path) as file:
        file.write(_head(title))
        file.write('<script type="application/json" id="cases">\n')
        cases = report_cases.Cases(file, limits or Limits())
        for record in report_text.read(results):
            summary.add(record)
            cases.add(record)
        file.write("</script>\n")
        document = summary.document()
        told = {**document, "listed": summary.listed, "left_out": cases.left_out, "order": OUTCOMES}
        _data(file, "summary-data", told)
        file.write(f"<noscript>{_table(document)}</noscript>\n")
        file.write(f"<script>{_script()}</script>\n</body>\n</html>\n")
    return document


def _head(title: str) -> str:
    """The page up to the cases."""
    style = "\n".join(_asset(name) for name in STYLES)
    written = datetime.datetime.now(datetime.UTC)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(_script())}'; base-uri 'none'"
    filled = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "VERSION": html.escape(metadata.version("gradoracle")),
        "WRITTEN": f"{written:%Y-%m-%d %H:%M} UTC",
        "MACHINE_TIME": f"{written:%Y-%m-%dT%H:%MZ}",
    }
    page = _asset("page.html")
    for name, text in filled.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _asset(name: str) -> str:
    return resources.files("gradoracle.batch").joinpath("report_assets", name).read_text(encoding="utf-8")


def _script() -> str:
    """The page's scripts as one, out of sight of every other."""
    return '(() => {\n"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data(file: IO[str], name: str, document: Mapping[str, Any]) -> None:
    file.write(f'<script type="application/json" id="{name}">{report_cases.data(document)}</script>\n')


def _table(document: Mapping[str, Any]) -> str:
    """The counts, for where scripts do not run."""
    rows = "".join(_rows(document))
    return f"<p>This page needs JavaScript to show the cases.</p><table><tbody>{rows}</tbody></table>"


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    for name, count in {"cases": document["cases"], **document["outcomes"]}.items():
        yield f'<tr><th scope="row">{html.escape(name)}</th><td>{count}</td></tr>'

"""The cases of the page, as lines of JSON; and which of their details there is room for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from gradoracle.batch import report_graph, report_text
from gradoracle.batch.record_json import plain
from gradoracle.batch.records import GROUPS, Record
from gradoracle.check_text import diagnosis
from gradoracle.errors import GradOracleError
from gradoracle.graph import Graph

if TYPE_CHECKING:
    from gradoracle.batch.report import Limits

_ID, _LABEL, _MESSAGE, _ERROR, _TEXT = 200, 60, 240, 4000, 1000  # characters that are shown, at most
_LABELS = 8  # of a case
_WORST_IN_BRIEF = 3
_GRAPHS_KNOWN = 50_000


class Cases:
    """Writes the lines.

    A line is "c", the head, a tab and the details, or nothing where there was no room; or "g" and the drawing of the
    next graph, to which the details of the cases after it refer by number. The head is [id, line, outcome, labels,
    diagnosis, error as multiple of its bound, seconds, message]. The details are the line of the results file, less
    what the head has, and with fewer digits.
    """

    def __init__(self, file: IO[str], limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._graphs: dict[
            bytes, int | None
        ] = {}  # by what they were made of: their numbers, None if they cannot be drawn
        self._drawn = 0
        self._room = {"good": limits.good_details, "other": limits.other_details, "brief": limits.brief_details}
        self._good_rows = limits.rows
        self._other_rows = limits.rows
        self.left_out = {"rows": 0, "details": 0, "brief": 0}
        """How many cases have no line; no details; details without curve, graph, heat map and tensors."""

    def add(self, record: Record) -> None:
        """Writes a case."""
        if record.is_good:
            has_row = self._good_rows > 0
            self._good_rows -= 1
        else:
            has_row = self._other_rows > 0
            self._other_rows -= 1
            self._good_rows -= 1
        if not has_row:
            self.left_out["rows"] += 1
            return
        details = self._details(record)
        self._file.write(f"c{data(_head(record))}\t{details}\n")

    def _details(self, record: Record) -> str:
        """Full details where there is room for them, else brief ones, else none."""
        budget = "good" if record.is_good else "other"
        if self._room[budget] > 0:
            document = full(record)
            graph = self._graph(record, budget)
            if graph is not None:
                document["drawing"] = graph
            text = data(document)
            self._room[budget] -= len(text)
            return text
        if self._room["brief"] > 0:
            text = data(brief(record))
            self._room["brief"] -= len(text)
            self.left_out["brief"] += 1
            return text
        self.left_out["details"] += 1
        return ""

    def _graph(self, record: Record, budget: str) -> int | None:
        """The number of the case's graph, which is written if no case had it before."""
        if not record.graph:
            return None
        key = hashlib.sha256(json.dumps(record.graph, sort_keys=True).encode()).digest()
        if key in self._graphs:
            return self._graphs[key]
        drawing = drawn(record.graph)
        number = None
        if drawing is not None:
            line = data(drawing)
            self._file.write(f"g{line}\n")
            self._room[budget] -= len(line)
            number = self._drawn
            self._drawn += 1
        if len(self._graphs) < _GRAPHS_KNOWN:
            self._graphs[key] = number
        return number


def data(document: Any) -> str:
    """JSON on one line that may stand in a script element: no tag can begin or end in it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates, which JSON can say and UTF-8 cannot.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("<", "\\u003c")


def full(record: Record) -> dict[str, Any]:
    """Everything that the page shows of a case."""
    document = record.to_json()
    for name in ("id", "line", "digest", "labels", "verdict", "graph"):
        document.pop(name, None)
    for name in ("expression", "graph_file"):
        if record.graph and name in record.graph:
            document[name] = _short(str(record.graph[name]), _TEXT)
    if record.error is not None:
        document["error"]["message"] = _short(record.error.message, _ERROR)
    for one in document.get("inputs", {}).values() if record.report is not None else ():
        if "errors" in one:
            one["errors"]["cells"] = [[_rounded(cell) for cell in row] for row in one["errors"]["cells"]]
    if "ladder" in document:
        document["ladder"] = [[_rounded(figure) for figure in rung] for rung in document["ladder"]]
    if record.timing is not None:
        document["timing"] = {name: _rounded(seconds) for name, seconds in document["timing"].items() if seconds}
    return document


def brief(record: Record) -> dict[str, Any]:
    """The same without what is large."""
    document = full(record)
    for name in ("ladder", "opinions", "values"):
        document.pop(name, None)
    for group in GROUPS:
        document.pop(group, None)
    if record.report is not None:
        document["opinions"] = [one for one in record.to_json()["opinions"] if one["verdict"] != "PASS"]
        for one in document["inputs"].values():
            one.pop("errors", None)
            if "worst" in one:
                one["worst"] = one["worst"][:_WORST_IN_BRIEF]
    document["is_brief"] = True
    return document


def drawn(graph: Mapping[str, Any]) -> dict[str, Any] | None:
    """The drawing of a case's graph; None where the record does not have it, or it is none."""
    try:
        if "expression" in graph:
            return report_graph.drawing(Graph.parse(graph["expression"]).message)
        if "graph" in graph:
            return report_graph.drawing(Graph.from_json(graph["graph"]).message)
    except (GradOracleError, DecodeError, AttributeError, TypeError, ValueError, RecursionError):
        pass  # the case's own result says what is wrong with it
    return None


def _head(record: Record) -> list[Any]:
    one = report_text.worst_input(record.report) if record.report is not None else None
    labels = {_short(name, _LABEL): _short(text, _LABEL) for name, text in list(record.labels.items())[:_LABELS]}
    if record.method:
        labels.setdefault("method", record.method)
    if record.device:
        labels.setdefault("device", _short(record.device, _LABEL))
    return [
        _short(record.id, _ID),
        record.line,
        record.outcome,
        labels,
        diagnosis(one) if one is not None else record.error.reason if record.error is not None else "",
        None if one is None else _rounded(plain(report_text.ratio(one.max_error, one.error_bound))),
        None if record.timing is None else _rounded(record.timing.total),
        _short(report_text.headline(record), _MESSAGE),
    ]


def _rounded(value: Any) -> Any:
    """A figure with the three digits that a page shows."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

"""Graphs as drawings: boxes with their texts, at the places that `report_layout` finds. The page draws them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from gradoracle import render
from gradoracle.batch import report_layout
from gradoracle.v1 import graph_pb2

BOXES = 200
"""A graph with more is told as text only."""

LINES = 500
"""Of that text, at most."""

_CHARACTER = 7.3  # pixels of one in the page's monospace font, at 12 pixels
_LABEL = 26  # characters of a label, at most
_TEXT = 300  # characters of a line, at most
_LINE, _PADDING = 16.0, 8.0  # pixels of a label's height, and around the text


@dataclasses.dataclass(slots=True)
class Shown:
    """A value or an output."""

    kind: str
    """ "input", "constant", "node", "no_grad" or "output"."""
    name: str
    label: str
    detail: str
    text: str
    """The whole line, as print(graph) has it."""
    needs: list[str]
    """Names of values."""


def drawing(graph: graph_pb2.Graph) -> dict[str, Any]:
    """The graph as the page draws it.

    {"width", "height", "boxes": [[kind, name, label, detail, text, x, y, width, height], …] with x and y of the upper
    left corner, in pixels; "edges": [[x, y, x, y, …], …] from a value down to who needs it}. Of a graph with too many
    boxes, {"lines": […]}.
    """
    shown = list(_shown(graph))
    if len(shown) > BOXES:
        lines = [one.text for one in shown[:LINES]]
        return {"lines": [*lines, f"… {len(shown) - LINES} more"] if len(shown) > LINES else lines}
    boxes = _boxes(shown)
    edges = report_layout.place(boxes)
    return {
        "width": round(max((box.x + box.width / 2 for box in boxes), default=0.0)),
        "height": round(max((box.y + box.height for box in boxes), default=0.0)),
        "boxes": [
            [
                *(one.kind, one.name, one.label, one.detail, one.text),
                *(round(number) for number in (box.x - box.width / 2, box.y, box.width, box.height)),
            ]
            for one, box in zip(shown, boxes, strict=True)
        ],
        "edges": [[round(number) for point in edge for number in point] for edge in edges],
    }


def _shown(graph: graph_pb2.Graph) -> Iterable[Shown]:
    for one in graph.inputs:
        options = render.input_options(one)
        yield Shown("input", one.name, one.name, options, f"{one.name} = input({options})", [])
    for constant in graph.constants:
        described = render.tensor_text(constant.value)
        line = f"{constant.name} = constant({described})"
        yield Shown("constant", constant.name, constant.name, described, line, [])
    for node in graph.nodes:
        given = f"({render.arguments(node)})"
        kind, note = ("no_grad", "  # no_grad") if node.no_grad else ("node", "")
        line = f"{node.name} = {node.target}{given}{note}"
        yield Shown(kind, node.name, _label(node), given, line, list(render.references(node)))
    for output in graph.outputs:
        line = f"output {output.name} = {output.value}"
        yield Shown("output", output.name, output.name, "", line, [output.value])


def _label(node: graph_pb2.Node) -> str:
    """The operator, and the value's name where that tells more."""
    parts = node.target.split(".")
    base = parts[1].strip("_") if len(parts) > 1 else node.target
    return node.name if base in (node.name, node.name.rpartition("_")[0]) else f"{node.name} = {base}"


def _boxes(shown: list[Shown]) -> list[report_layout.Box]:
    """A box for each, with texts cut to fit. What refers to a value that does not come before it has no edge there."""
    places: dict[str, int] = {}
    boxes = []
    for number, one in enumerate(shown):
        one.text, one.label, one.detail = _short(one.text, _TEXT), _short(one.label), _short(one.detail)
        width = max(len(one.label), len(one.detail), 3) * _CHARACTER + 2 * _PADDING
        height = (2 if one.detail else 1) * _LINE + _PADDING
        boxes.append(report_layout.Box(width, height, [places[name] for name in one.needs if name in places]))
        if one.kind != "output":
            places[one.name] = number
    return boxes


def _short(text: str, longest: int = _LABEL) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

"""The page of a batch as a file: what it holds, how large it becomes, how graphs are laid out, that it can be read."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import itertools
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from report_records import HOSTILE, checked, computed, every_outcome, failed, many

import gradoracle as go
from gradoracle.batch import report_cases, report_graph, report_layout
from gradoracle.batch.records import Record
from gradoracle.batch.report import Limits, write_report
from gradoracle.batch.summary import OUTCOMES, summarise

ASSETS = Path(report_cases.__file__).with_name("report_assets")


class Parsed(html.parser.HTMLParser):
    """The elements of a page, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.contents.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and self.cdata_elem:
            self.contents[-1] += data


def page(results: list[Record], path: Path, **options: Any) -> str:
    """The page of these results."""
    write_report(iter(results), path / "report.html", **options)
    return (path / "report.html").read_text(encoding="utf-8")


def cases(text: str) -> tuple[list[tuple[list[Any], Any]], list[Any]]:
    """The cases of a page, each as its head and its details, and the drawings."""
    (block,) = re.findall(r'<script type="application/json" id="cases">\n(.*?)</script>', text, re.DOTALL)
    found: list[tuple[list[Any], Any]] = []
    drawings = []
    for line in block.splitlines():
        if line[0] == "g":
            drawings.append(json.loads(line[1:]))
        else:
            head, _, details = line[1:].partition("\t")
            found.append((json.loads(head), json.loads(details) if details else None))
    return found, drawings


# ---- What the page holds


def test_each_case_is_a_line(tmp_path: Path) -> None:
    """Heads have what the list shows; details what the results file has; equal graphs are drawn once."""
    text = page(every_outcome(), tmp_path)
    found, drawings = cases(text)
    assert [one.id for one in every_outcome()] == [head[0] for head, _ in found]
    head, details = found[1]
    labels = {"operator": "aten.mul.Tensor", "dtype": "float64", "method": "check"}
    assert ["doubled", 2, "FAIL", labels, "SCALED by 2", 5e8, 0.02] == head[:7]
    assert "x: SCALED by 2; error 0.5 at [1, 2]" in head[7]
    assert {"shape": [2, 3], "cells": [[0, 0, 0], [0, 0, 0.5]]} == details["inputs"]["x"]["errors"]
    assert 6 == len(details["ladder"])
    assert "sum(x * 2)" == details["expression"]
    assert [0, 0] == [details["drawing"], found[0][1]["drawing"]]
    assert 1 == found[6][1]["drawing"]
    assert 2 == len(drawings)
    assert "COMPUTATION_FAILED" == found[5][0][4]


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    """No element loads anything, and the policy lets run these very styles and scripts and nothing else."""
    parsed = Parsed(page(every_outcome(), tmp_path, title="a <title> & more"))
    loading = {"src", "href", "srcset", "data", "action", "poster"}
    assert {"#list"} == {
        value for _, attributes in parsed.elements for key, value in attributes.items() if key in loading
    }
    (policy,) = [attributes["content"] for tag, attributes in parsed.elements if attributes.get("http-equiv")]
    style, *_, script = parsed.contents
    assert policy == (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; base-uri 'none'"
    )


def digest(text: str) -> str:
    """As a policy spells it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    """Whatever the texts of a case are, the page has the same elements."""
    nasty = [
        checked(HOSTILE, 1, "FAIL", labels={HOSTILE: HOSTILE}, graph={"expression": HOSTILE}),
        failed(f"{HOSTILE}2", 2, message=HOSTILE, kind=HOSTILE, node=HOSTILE),
    ]
    nice = [checked("a", 1, "FAIL", labels={"b": "c"}), failed("d", 2)]
    odd, plain = page(nasty, tmp_path, title=HOSTILE), page(nice, tmp_path, title="fine")
    assert Parsed(plain).elements[2:] != []
    assert [tag for tag, _ in Parsed(plain).elements] == [tag for tag, _ in Parsed(odd).elements]
    (first, _), _ = cases(odd)[0]
    assert HOSTILE == first[0]


def test_the_parser_of_these_tests_finds_markup() -> None:
    """The test above would see an element that came out of a text."""
    assert ["script", "img"] == [tag for tag, _ in Parsed(f'<script>"{HOSTILE}"</script>').elements]


def test_lone_surrogates_do_not_stop_it(tmp_path: Path) -> None:
    """JSON may hold half a character, which no file can."""
    found, _ = cases(page([checked("half \ud800", 1)], tmp_path))
    assert "half ?" == found[0][0][0]


def test_the_summary_is_the_summarys(tmp_path: Path) -> None:
    """The page has the figures of --json-summary, as data and as a table for where scripts do not run."""
    found = write_report(every_outcome(), tmp_path / "report.html")
    assert summarise(every_outcome()) == found
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (block,) = re.findall(r'id="summary-data">(.*?)</script>', text)
    data = json.loads(block)
    assert (list(OUTCOMES), found["outcomes"]) == (data["order"], data["outcomes"])
    assert '<th scope="row">FAIL</th><td>1</td>' in text.partition("<noscript>")[2]


def test_results_come_from_a_file_too(tmp_path: Path) -> None:
    """A path of a results file does as well as records; what is no result is told with its line, and leaves no page."""
    results = tmp_path / "results.jsonl"
    results.write_bytes(b"".join(one.to_line() for one in every_outcome()))
    write_report(results, tmp_path / "report.html")
    found, _ = cases((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert 8 == len(found)
    (tmp_path / "report.html").unlink()
    results.write_bytes(results.read_bytes() + b'{"id": 3}\n')
    with pytest.raises(ValueError, match="line 9"):
        write_report(results, tmp_path / "report.html")
    assert [results] == list(tmp_path.iterdir())


# ---- Its bounds


def left_out(text: str) -> dict[str, int]:
    """What the page says that it left out."""
    (block,) = re.findall(r'id="summary-data">(.*?)</script>', text)
    found: dict[str, int] = json.loads(block)["left_out"]
    return found


def test_failing_cases_keep_their_details(tmp_path: Path) -> None:
    """Where there is little room, cases that pass lose curves, graphs and tensors, and the page says how many."""
    results = [*(checked(f"right {i}", i) for i in range(1, 31)), computed("vjp", 31), checked("wrong", 32, "FAIL")]
    text = page(results, tmp_path, limits=Limits(good_details=3000))
    found, _ = cases(text)
    full = [head[0] for head, details in found if details.get("ladder")]
    assert ["right 1", "right 2", "wrong"] == [full[0], full[1], full[-1]]
    assert len(full) < 12
    assert {"rows": 0, "details": 0, "brief": 32 - len(full)} == left_out(text)
    (vjp,) = [details for head, details in found if head[0] == "vjp"]
    assert vjp["is_brief"]
    assert "outputs" not in vjp


def test_a_flood_of_failures_is_bounded_too(tmp_path: Path) -> None:
    """Failing cases then lose heat maps first, all but a line next, and in the end they are counted only."""
    results = [checked(f"wrong {i}", i, "FAIL") for i in range(1, 201)] + [checked("right", 201)]
    limits = Limits(other_details=5000, brief_details=5000, rows=150)
    text = page(results, tmp_path, limits=limits)
    found, _ = cases(text)
    out = left_out(text)
    assert (150, 51) == (len(found), out["rows"])
    assert out["details"] == sum(1 for _, details in found if details is None) > 0
    assert out["brief"] == sum(1 for _, details in found if details and details.get("is_brief")) > 0
    brief = next(details for _, details in found if details and details.get("is_brief"))
    assert "errors" not in brief["inputs"]["x"]
    assert [1, 2] == brief["inputs"]["x"]["worst"][0]["index"]
    assert 200 == summarise(results)["outcomes"]["FAIL"]


def test_right_cases_give_way_to_wrong_ones(tmp_path: Path) -> None:
    """Wrong cases that come late have their lines, however many right ones came before."""
    results = [
        *(checked(f"right {i}", i) for i in range(1, 21)),
        *(checked(f"w {i}", i, "FAIL") for i in range(21, 26)),
    ]
    found, _ = cases(page(results, tmp_path, limits=Limits(rows=10)))
    assert [f"right {i}" for i in range(1, 11)] + [f"w {i}" for i in range(21, 26)] == [head[0] for head, _ in found]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    """No case can blow up the page with a long id, label, message or graph."""
    graph = {"expression": f"x{' + x' * 5000}"}
    labels = {f"{i} {'k' * 1000}": "v" * 1000 for i in range(100)}
    results = [failed("i" * 100_000, 1, message="m" * 100_000), checked("b", 2, labels=labels, graph=graph)]
    assert len(page(results, tmp_path)) - len(page([], tmp_path)) < 250_000


def test_memory_does_not_grow_with_the_cases(tmp_path: Path) -> None:
    """Four times the cases take no more memory but for the figures that quantiles need."""

    def peak(count: int) -> int:
        tracemalloc.start()
        write_report(many(count), tmp_path / "report.html", limits=Limits(good_details=50_000))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # modules and tables that are loaded once
    assert peak(2000) < 1.5 * peak(500) + 200_000


# ---- Graphs


def boxes_of(found: dict[str, Any]) -> list[tuple[str, int, int, int, int]]:
    """(name, x, y, width, height) of each box."""
    return [(one[1], *one[5:]) for one in found["boxes"]]


def random_graph(seed: int, nodes: int) -> go.Graph:
    """A graph of so many nodes, with long edges, names and outputs."""
    chosen = random.Random(seed)  # noqa: S311  # no secrets
    g = go.Graph()
    values = [g.input("a"), g.input("bias"), g.constant(3.0)]
    for _ in range(nodes):
        left, right = chosen.choice(values[-4:]), chosen.choice(values)
        values.append(chosen.choice([lambda a, b: a * b, lambda a, b: a + b, lambda a, b: a.sin() - b])(left, right))
    g.output("y", values[-1])
    g.output("z", values[len(values) // 2])
    return g


@pytest.mark.parametrize("nodes", [0, 1, 5, 20, 60])
@pytest.mark.parametrize("seed", range(4))
def test_graphs_can_be_read(seed: int, nodes: int) -> None:
    """No two boxes overlap, all are inside, and every edge runs down from the value to who needs it."""
    graph = random_graph(seed, nodes)
    found = report_graph.drawing(graph.message)
    boxes = boxes_of(found)
    assert len(graph.names) + len(graph.outputs) == len(boxes)
    for (one, x, y, w, h), (other, x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, f"{one} and {other} overlap"
    assert all(
        0 <= x and x + w <= found["width"] + 1 and 0 <= y and y + h <= found["height"] for _, x, y, w, h in boxes
    )
    upper = {(round(x + w / 2), y + h) for _, x, y, w, h in boxes}
    lower = {(round(x + w / 2), y) for _, x, y, w, h in boxes}
    for edge in found["edges"]:
        assert near((edge[0], edge[1]), upper)
        assert near((edge[-2], edge[-1]), lower)
        assert sorted(edge[1::2]) == edge[1::2]


def near(point: tuple[int, int], others: set[tuple[int, int]]) -> bool:
    """Whether a point is one of the others, but for rounding."""
    return any(abs(point[0] - x) <= 1 and abs(point[1] - y) <= 1 for x, y in others)


def test_the_parts_of_a_box() -> None:
    """Boxes have kind, name, label, arguments and the whole line; a name of the user's own is on the label."""
    g = go.Graph()
    x = g.input("x", requires_grad=False)
    with g.no_grad():
        h = g.ops.softmax(x, dim=-1, name="attention")
    g.output("y", h * 2)
    rows = [one[:5] for one in report_graph.drawing(g.message)["boxes"]]
    assert [
        ["input", "x", "x", "requires_grad=False", "x = input(requires_grad=False)"],
        ["no_grad", "attention", "attention = softmax", "(x, -1)", "attention = aten.softmax.int(x, -1)  # no_grad"],
        ["node", "mul", "mul", "(attention, 2)", "mul = aten.mul.Tensor(attention, 2)"],
        ["output", "y", "y", "", "output y = mul"],
    ] == rows


def test_few_edges_cross() -> None:
    """Two chains that were named crosswise are drawn side by side."""
    boxes = [report_layout.Box(40, 20, sources) for sources in ([], [], [1], [0], [3], [2])]
    lines = report_layout.place(boxes)
    assert (boxes[0].x < boxes[1].x) == (boxes[3].x < boxes[2].x) == (boxes[4].x < boxes[5].x)
    assert all(abs(line[0][0] - line[-1][0]) < 1 for line in lines)


def test_large_graphs_are_text() -> None:
    """What would be no picture any more is a list of lines, with an end."""
    found = report_graph.drawing(random_graph(1, 600).message)
    assert {"lines"} == set(found)
    assert report_graph.LINES + 1 == len(found["lines"])
    assert found["lines"][-1].endswith(" more")


@pytest.mark.parametrize(
    "graph",
    [
        {"expression": "no_such_operator(x)"},
        {"expression": "("},
        {"graph": {"nodes": 3}},
        {"graph": None},
        {"graph_file": "none.json"},
        {"expression": "(" * 100_000},
    ],
)
def test_what_is_no_graph_is_not_drawn(graph: dict[str, Any], tmp_path: Path) -> None:
    """A graph that cannot be read leaves the case without a drawing, and the page whole."""
    assert report_cases.drawn(graph) is None
    found, drawings = cases(page([checked("a", 1, "FAIL", graph=graph)], tmp_path))
    assert ([], "a") == (drawings, found[0][0][0])


def test_references_to_nothing_are_no_edges() -> None:
    """A graph that the server refuses, since it refers to what is not there or to itself, is drawn all the same."""
    node = {"name": "a", "target": "aten.sin.default", "args": [{"value": "a"}]}
    graph = {"inputs": [{"name": "x"}], "nodes": [node], "outputs": [{"name": "y", "value": "nothing"}]}
    found = report_cases.drawn({"graph": graph})
    assert found is not None
    assert (3, []) == (len(found["boxes"]), found["edges"])


# ---- Colours


def colours(block: str) -> dict[str, str]:
    """Custom properties of a block of CSS."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out(theme: str) -> None:
    """Every text has a contrast of 4.5 at least against whatever it stands on, in both themes."""
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    light, dark = (colours(block) for block in re.findall(r":root \{([^}]*--page[^}]*--heat[^}]*)\}", style))
    found = light if theme == "light" else dark
    verdicts = ("fail", "error", "random", "unsure", "kink", "good")
    pairs = [(text, ground) for text in ("text", "quiet", "link") for ground in ("page", "card", "soft")]
    pairs += [(one, ground) for one in verdicts for ground in ("card", "soft", f"{one}-soft")]
    measured = [(text, ground, contrast(found[text], found[ground])) for text, ground in pairs]
    assert [] == [one for one in measured if one[2] < 4.5]


def test_contrast_is_measured_right() -> None:
    """The measure of these tests agrees with known pairs, and rejects a pale grey."""
    assert pytest.approx(21) == contrast("#000000", "#ffffff")
    assert pytest.approx(4.48, abs=0.01) == contrast("#777777", "#ffffff")
    assert contrast("#999999", "#ffffff") < 4.5

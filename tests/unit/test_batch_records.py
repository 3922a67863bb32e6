"""Records: one line, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from batch_cases import TIMING, erring, failing, passing

from gradoracle.batch import lines
from gradoracle.batch.record_json import heat
from gradoracle.batch.records import Record, TensorRecord, read_results, tensor_record


def test_a_record_comes_back_from_its_line_whole() -> None:
    """NaN, infinities, complex numbers, worst elements and maps survive the line."""
    before = failing("a", labels={"dtype": "float32"}, device="cpu", packed=3, graph={"expression": "x"})
    line = before.to_line()
    after = Record.from_json(json.loads(line))
    assert line == after.to_line()
    assert after.report is not None
    found = after.report.inputs["x"]
    assert ((1, 2), 1 + 2j, 3.0) == (found.worst[0].index, found.worst[0].claimed, found.worst[0].numerical)
    assert np.isnan(found.worst[0].reference)
    assert np.isnan(found.max_error)
    assert (-1.0, np.inf) == found.kink
    assert [[1.0, np.inf], [0.0, 2.0]] == found.errors.tolist()  # type: ignore[union-attr]
    assert ("FAIL", TIMING, 3, {"expression": "x"}) == (after.outcome, after.timing, after.packed, after.graph)


def test_lines_are_json_that_any_reader_takes() -> None:
    """No line holds NaN or Infinity as bare words, which are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    document = json.loads(failing("a").to_line(), parse_constant=refuse)
    assert "NaN" == document["inputs"]["x"]["max_error"]
    assert [[0.5, 0.001, "Infinity"], [0.25, 2e-4, 3e-4]] == document["ladder"]


@pytest.mark.parametrize(
    ("array", "data"),
    [
        (np.array(2.5, np.float32), 2.5),
        (np.array([1 + 2j]), [[1.0, 2.0]]),
        (np.array([np.nan, -np.inf]), ["NaN", "-Infinity"]),
        (np.array([True, False]), [True, False]),
        (np.zeros((2, 0)), [[], []]),
    ],
)
def test_tensors_are_kept_as_plain_numbers(array: np.ndarray, data: object) -> None:
    """What JSON cannot say is spelled as documented."""
    assert TensorRecord(array.shape, array.dtype.name, data) == tensor_record(array, keep=10)


def test_large_tensors_leave_their_norm() -> None:
    """Above `keep` elements, the norm stands for the data."""
    assert TensorRecord((2,), "float64", norm=5.0) == tensor_record(np.array([3.0, 4.0]), keep=1)


def test_a_map_covers_every_element_with_the_largest_of_each_cell() -> None:
    """At most 64 cells each way, the maximum of what a cell covers, NaN as infinite."""
    errors = np.zeros((3, 100, 130))
    errors[2, 99, 129] = 7
    errors[0, 0, 0] = np.nan
    found = heat(errors)
    assert (64, 64) == found.shape
    assert (np.inf, 7.0, 0.0) == (found[0, 0], found[-1, -1], float(np.sort(found.ravel())[-3]))
    assert (1, 1) == heat(np.array(3.0)).shape


def test_outcomes() -> None:
    """A verdict, OK, or ERROR; only PASS and OK are good."""
    assert [("PASS", True), ("FAIL", False), ("ERROR", False), ("OK", True)] == [
        (one.outcome, one.is_good)
        for one in (passing("a"), failing("b"), erring("c"), Record(id="d", line=1, method="vjp"))
    ]


def test_reading_passes_over_a_torn_last_line_alone(tmp_path: Path) -> None:
    """A piece of a line at the end is what a crash leaves; elsewhere it is damage, told with its line."""
    path = tmp_path / "r.jsonl"
    lines = [passing("a").to_line(), erring("b").to_line()]
    path.write_bytes(lines[0] + lines[1][:-7])
    assert ["a"] == [one.id for one in read_results(path)]
    path.write_bytes(lines[0] + lines[1][:-7] + b"\n" + lines[0])
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2: "):
        list(read_results(path))
    path.write_bytes(b'{"line": 3}\n')
    with pytest.raises(ValueError, match=r"line 1: expected a result, got \{\"line\": 3\} \(KeyError\('id'\)\)"):
        list(read_results(path))


def test_a_line_can_hold_what_its_case_held() -> None:
    """Numbers of more than 64 bits and bare NaN, which Python's json reads, stop no run; halves of surrogate pairs,
    which no case can hold, are spelled out."""
    graph = {"graph": {"nodes": [{"args": [{"integer": 2**80}]}]}}
    line = Record(id="\ud800", line=1, graph=graph).to_line()
    after = Record.from_json(lines.load(line))
    assert (r"\ud800", graph) == (after.id, after.graph)
    assert np.isnan(lines.load(b'{"x": NaN}')["x"])
    with pytest.raises(ValueError, match="Expecting value"):
        lines.load(b'{"x": nan}')

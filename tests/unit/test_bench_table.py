"""The table of benchmark figures: what is met, how it is written down, and that a missed row shows as missed."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from bench import engine_speed, run, servers, table, turns
from bench.table import Row, at_least, at_most

import gradoracle as go

MACHINE = {"date": "2026-01-02T03:04:05+00:00", "cpu": "some cpu", "cores": 2, "torch": "2.13.0"}


def row(value: float | None = 1.0, **options: Any) -> Row:
    given = {"name": "a row", "unit": "x", "wanted": at_most(1.5), "goal": None, "beside": "the floor", **options}
    return Row(value=value, **given)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (1.5, at_most(1.5), "met"),
        (1.5001, at_most(1.5), "missed"),
        (0.5, at_least(0.5), "met"),
        (0.4999, at_least(0.5), "missed"),
        (math.nan, at_most(1.5), "missed"),
        (math.nan, at_least(0.5), "missed"),
        (math.inf, at_most(1.5), "missed"),
        (7.0, None, ""),
        (None, at_most(1.5), "not measured"),
    ],
)
def test_a_row_is_met_within_its_bound(value: float | None, wanted: table.Bound | None, expected: str) -> None:
    """The bound itself is met, NaN never is; without a bound or a figure nothing is judged."""
    assert expected == row(value, wanted=wanted).verdict


def test_a_planted_missed_row_is_named() -> None:
    """A row beyond its bound shows in its line, in the summary, and in the JSON."""
    rows = [row(name="good"), row(9.0, name="bad"), row(9.0, name="told", wanted=None), row(None, name="absent")]
    assert table.summary(rows) == "1 of 2 met; missed: bad"
    assert [line.split()[0] for line in table.text(rows).splitlines() if "missed" in line] == ["bad"]
    assert [one["name"] for one in table.document(rows, MACHINE)["rows"] if one["verdict"] == "missed"] == ["bad"]
    assert table.summary(rows[:1]) == "1 of 1 met"


def test_a_goal_beyond_what_is_wanted_is_marked_when_reached() -> None:
    """A goal never changes the verdict."""
    assert row(1.2, goal=at_most(1.25)).cells()[3:5] == ("≤ 1.25 (reached)", "met")
    assert row(1.4, goal=at_most(1.25)).cells()[3:5] == ("≤ 1.25", "met")
    assert row(1.6, goal=at_most(1.25)).cells()[3:5] == ("≤ 1.25", "missed")
    assert row(None, goal=at_most(1.25)).cells()[3:5] == ("≤ 1.25", "not measured")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (1, "1"), (1.5, "1.5"), (1.456, "1.46"), (12.34, "12.3"), (20.0, "20"), (0.01234, "0.0123"),
        (4810.4, "4,810"), (1500.0, "1,500"), (-2.5, "-2.5"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    """Or all of those before the point; zeros behind it are left out, those before it are not."""
    assert expected == table.number(value)


def test_the_table_is_aligned_and_has_every_column() -> None:
    """Each column starts at the same place in every line."""
    lines = table.text([row(name="short"), row(123.4, name="a longer name", note="and why")]).splitlines()
    assert lines[0].split("  ")[0] == "row"
    assert [lines[0].index("measured"), lines[0].index("wanted")] == [lines[2].index("123 x"), lines[2].index("≤ 1.5")]
    assert lines[1].endswith("the floor")
    assert lines[2].endswith("the floor; and why")
    assert len(lines) == 3


def test_markdown_has_a_line_a_row() -> None:
    """Bars inside of a cell are escaped, so that they end none."""
    lines = table.markdown([row(beside="a | b")]).splitlines()
    assert lines[0] == "| row | measured | wanted | goal | verdict | measured against |"
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[2] == "| a row | 1 x | ≤ 1.5 | - | met | a \\| b |"


def test_json_says_where_and_what() -> None:
    """The machine, and each row whole; it is JSON for every reader, so NaN is a text."""
    found = json.loads(json.dumps(table.document([row(math.nan, goal=at_least(2))], MACHINE), allow_nan=False))
    assert found["machine"] == MACHINE
    assert found["rows"] == [
        {
            "name": "a row",
            "value": "nan",
            "unit": "x",
            "wanted": {"at_most": 1.5},
            "goal": {"at_least": 2},
            "verdict": "missed",
            "beside": "the floor",
            "note": "",
        }
    ]


@pytest.mark.parametrize("given", [row(), row(None, note="why"), row(3.0, wanted=None), row(2.0, goal=at_least(2))])
def test_rows_come_back_from_json(given: Row) -> None:
    """What was kept is what was measured."""
    assert given == table.read(json.loads(json.dumps(given.plain())))


def test_kept_subjects_stay_until_they_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--update replaces the subjects that were measured; the page shows all of them, in their order."""
    monkeypatch.setattr(run, "KEPT", tmp_path / "RESULTS.json")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    run.keep({"scale": [row(name="workers")], "callers": [row(name="old")]}, MACHINE)
    run.keep({"callers": [row(9.0, name="new")]}, {**MACHINE, "date": "2027-01-02T03:04:05+00:00", "load": 3.4})
    assert list(json.loads(run.KEPT.read_text())) == ["callers", "scale"]
    page = run.RESULTS.read_text()
    assert page.index("| new |") < page.index("| workers |")
    assert "| old |" not in page
    assert "1 of 2 met; missed: new." in page
    assert "callers 2027-01-02T03:04:05+00:00 (load 3.4), scale 2026-01-02T03:04:05+00:00" in page


def test_update_wants_whole_subjects(capsys: pytest.CaptureFixture[str]) -> None:
    """Some rows of a subject, or quick ones, are not kept."""
    for given in (["--only", "map", "--update"], ["--quick", "--update"]):
        with pytest.raises(SystemExit, match="2"):
            run.main(given)
        assert "--update keeps whole subjects: expected no --quick, and only subjects" in capsys.readouterr().err


def test_run_prints_and_writes_what_subjects_yield(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--only picks rows by a part of their name; a missed row is a row, and no failure of the run."""

    class Subject:
        @staticmethod
        def rows(quick: bool) -> list[Row]:
            assert quick
            return [row(name="first"), row(9.0, name="second")]

    monkeypatch.setattr(importlib, "import_module", lambda name: {"bench.made_up": Subject}[name])
    monkeypatch.setattr(run, "SUBJECTS", ("made_up",))
    assert run.main(["--quick", "--only", "second", "--json", str(tmp_path / "found.json")]) == 0
    assert "0 of 1 met; missed: second" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["name"] for one in found["rows"]] == ["second"]
    assert {"date", "cpu", "device", "torch", "grpcio", "python"} <= found["machine"].keys()
    assert run.main(["--quick", "--only", "made_up"]) == 0
    assert "1 of 2 met; missed: second" in capsys.readouterr().out


@pytest.mark.parametrize("subject", run.SUBJECTS)
def test_every_subject_can_be_measured(subject: str) -> None:
    """Each is a module with `rows`."""
    assert callable(importlib.import_module(f"bench.{subject}").rows)


def test_things_are_timed_in_turn() -> None:
    """One call of each a round, the first rounds for nothing."""
    calls: list[str] = []
    found = turns.seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warm=2)
    assert calls == ["a", "b"] * 5
    assert {name: one.shape for name, one in found.items()} == {"a": (3,), "b": (3,)}
    windows: list[float] = []
    assert turns.rates({"a": lambda window: windows.append(window) or len(windows)}, 1.0, 3) == {"a": 3}
    assert windows == [0.3, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [0, 2])
def test_one_server_of_this_process_is_found_or_none(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no server, or two, there is no front to look at."""
    found = iter([True] * count)
    monkeypatch.setattr(servers, "_is_front", lambda process: next(found, False))
    with pytest.raises(RuntimeError, match=r"expected one server started by this process, found \["):
        servers.front_pid()


def test_a_plan_is_found_again() -> None:
    """The benchmark that knows most of the worker's inside still fits it."""
    found = engine_speed.found_again("square", go.Graph.parse("x**2"), 5)
    assert found.unit == "us"
    assert found.value is not None
    assert 0 < found.value < 1e6

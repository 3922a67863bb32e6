"""Comparisons of two results files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from batch_cases import erring, failing, input_report, passing, report

from gradoracle import cli
from gradoracle.batch.compare import compare
from gradoracle.batch.records import Record
from gradoracle.results import Timing


def results(path: Path, *records: Record) -> Path:
    path.write_bytes(b"".join(one.to_line() for one in records))
    return path


def kinked(name: str, *, inside: bool) -> Record:
    one = input_report(verdict="NON_DIFFERENTIABLE", kink=(0.0, 1.0), claim_inside=inside)
    return Record(id=name, line=1, method="check", report=report(one))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (passing("a"), passing("a"), 0),
        (passing("a"), failing("a"), 1),
        (passing("a"), erring("a"), 1),
        (failing("a"), erring("a"), 1),
        (erring("a"), failing("a"), 1),
        (failing("a"), passing("a"), 0),
        (failing("a"), failing("a"), 0),
        (passing("a"), passing("b"), 1),
        (kinked("a", inside=True), kinked("a", inside=False), 1),
        (kinked("a", inside=False), kinked("a", inside=True), 0),
        (passing("a"), kinked("a", inside=False), 1),
    ],
)
def test_a_worse_outcome_is_a_regression(tmp_path: Path, old: Record, new: Record, code: int) -> None:
    """From good to bad, or gone: exit code 1; the same or better: 0."""
    files = results(tmp_path / "old.jsonl", old), results(tmp_path / "new.jsonl", new)
    assert code == cli.main(["compare", *map(str, files)])


def test_what_changed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Worse, better, new, gone, larger errors and latency, in words and as JSON."""
    close = Record(id="close", line=1, method="check", report=report(input_report(max_error=5e-10)))
    slow = passing("slow")
    slow.timing = Timing(check=1.0)
    quick = passing("slow")
    quick.timing = Timing(check=0.25, queue=9.0)
    old = results(tmp_path / "old.jsonl", passing("a"), failing("b"), passing("gone"), passing("close"), quick)
    new = results(tmp_path / "new.jsonl", failing("a"), passing("b"), erring("c"), close, slow)
    assert 1 == cli.main(["compare", str(old), str(new)])
    assert [
        "worse:",
        "  a: PASS -> FAIL (SCALED)",
        "better:",
        "  b: FAIL (SCALED) -> PASS",
        "larger error, still within its bound:",
        "  close: 0.001 -> 0.5 of the bound",
        "new:",
        "  c: ERROR (COMPUTATION_FAILED)",
        "gone:",
        "  gone",
        "check: median 350 ms before, 350 ms now (1.00 times case by case)",
        "1 worse, 1 better, 2 the same, 1 new, 1 gone",
    ] == capsys.readouterr().out.splitlines()
    assert 1 == cli.main(["compare", str(old), str(new), "--json", "--allow-missing"])
    document = json.loads(capsys.readouterr().out)
    assert (False, ["a"], ["b"], ["c"], ["gone"]) == (
        document["good"],
        [one["id"] for one in document["regressions"]],
        [one["id"] for one in document["improvements"]],
        list(document["added"]),
        document["missing"],
    )


def test_latency_is_compared_case_by_case_without_the_queue(tmp_path: Path) -> None:
    """The median of the cases' own ratios; the time in the queue is the load's, not the case's."""
    quick, slow = passing("a"), passing("a")
    quick.timing, slow.timing = Timing(check=0.25, queue=9.0), Timing(check=1.0)
    found = compare(results(tmp_path / "old.jsonl", quick), results(tmp_path / "new.jsonl", slow))
    assert {"check": (0.25, 1.0, 4.0)} == found.latency


def test_missing_cases_can_be_allowed(tmp_path: Path) -> None:
    """A new file of fewer cases is good, if one says so; a new case that fails never is."""
    old, new = results(tmp_path / "o.jsonl", passing("a"), passing("b")), results(tmp_path / "n.jsonl", passing("a"))
    assert [1, 0] == [cli.main(["compare", str(old), str(new), *more]) for more in ([], ["--allow-missing"])]
    results(new, passing("a"), passing("b"), failing("c"))
    assert 1 == cli.main(["compare", str(old), str(new)])


def test_what_is_no_results_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the file and the line."""
    good, bad = results(tmp_path / "o.jsonl", passing("a")), tmp_path / "n.jsonl"
    bad.write_text('{"x": 1}\n')
    assert 2 == cli.main(["compare", str(good), str(bad)])
    assert f'error: {bad}, line 1: expected a result, got {{"x": 1}}' in capsys.readouterr().err
    assert 2 == cli.main(["compare", str(good), str(tmp_path / "none.jsonl")])
    assert "none.jsonl: expected a results file, got: No such file or directory" in capsys.readouterr().err

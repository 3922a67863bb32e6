"""The results file: what a crash leaves at any byte resumes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from batch_cases import FakeClient, case, erring, failing, passing, run, write

from gradoracle.batch.records import read_results
from gradoracle.batch.results import ResultsFile
from gradoracle.errors import InvalidRequestError


def test_a_crash_at_any_byte_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off anywhere in its last lines, also with zeros after it, it resumes to the same results, each id once."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which costs time, and no crash here takes the system with it
    cases = write(tmp_path / "c.jsonl", case("one"), case("two"), "{broken", case("thrée"))
    out = tmp_path / "r.jsonl"
    run(FakeClient(), cases, out)
    whole = out.read_bytes()
    assert [b"one", b"two", b"line 3", "thrée".encode()] == [
        json.loads(line)["id"].encode() for line in whole.splitlines()
    ]
    for size in range(len(whole.splitlines(keepends=True)[0]), len(whole) + 1):
        for rest in (b"", b"\0" * 20)[: 1 + (size % 5 == 0)]:
            out.write_bytes(whole[:size] + rest)
            client = FakeClient()
            run(client, cases, out, resume=True)
            assert whole == out.read_bytes(), size
            finished = whole[:size].count(b"\n")
            assert 3 - finished + (finished > 2) == len(client.sent), size


@pytest.mark.parametrize("content", [b"my notes", b'{"idea": 1}\n{"x', b"{}\n", b'{"id": "a", "line": 1}\nnotes\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """Resuming into a file that holds no results changes nothing and says which line is none."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"r\.jsonl, line \d: expected a result, got '.*no results file"):
        ResultsFile(path, resume=True)
    assert content == path.read_bytes()


def test_without_resume_results_are_set_aside(tmp_path: Path) -> None:
    """A new run never destroys the last one's results."""
    path = tmp_path / "r.jsonl"
    for name in ("a", "b"):
        results = ResultsFile(path, resume=False)
        results.write(passing(name))
        results.finish()
    assert ["b"] == [one.id for one in read_results(path)]
    assert ["a"] == [one.id for one in read_results(tmp_path / "r.jsonl.old")]


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    """The second is told, whether it resumes or not, and the first goes on."""
    path = tmp_path / "r.jsonl"
    first = ResultsFile(path, resume=False)
    for resume in (True, False):
        with pytest.raises(InvalidRequestError, match="another process writes it; give each run, and each shard"):
            ResultsFile(path, resume=resume)
    first.write(passing("a"))
    first.finish()
    assert ["a"] == [one.id for one in read_results(path)]


def test_errors_can_be_tried_again(tmp_path: Path) -> None:
    """With `retry` the errors are taken out, and nothing else."""
    path = tmp_path / "r.jsonl"
    results = ResultsFile(path, resume=False)
    for record in (passing("a"), erring("b"), failing("c")):
        results.write(record)
    results.finish()
    again = ResultsFile(path, resume=True, retry=True)
    assert (True, False, True) == tuple(name in again.done for name in "abc")
    assert {"PASS": 1, "FAIL": 1} == again.earlier.counts
    again.write(passing("b"))
    again.finish()
    assert ["a", "c", "b"] == [one.id for one in read_results(path)]


def test_parquet_holds_the_same_records(tmp_path: Path) -> None:
    """Columns to query, and every record whole."""
    from pyarrow import parquet

    path = tmp_path / "r.parquet"
    records = [passing("a", labels={"dtype": "float32"}), failing("b"), erring("c")]
    results = ResultsFile(path, resume=False)
    for record in records:
        results.write(record)
    results.finish()
    assert [one.to_json() for one in records] == [one.to_json() for one in read_results(path)]
    table = parquet.read_table(path)
    assert ["PASS", "FAIL", "ERROR"] == table["outcome"].to_pylist()
    assert [None, "SCALED", None] == table["diagnosis"].to_pylist()
    assert [[("dtype", "float32")], [], []] == table["labels"].to_pylist()
    assert ["r.parquet"] == [one.name for one in tmp_path.iterdir()]


def test_parquet_resumes_from_its_lines_and_from_itself(tmp_path: Path) -> None:
    """A crash before the end leaves lines, which resume; so does a finished file, and a piece of a line is cut off."""
    path = tmp_path / "r.parquet"
    results = ResultsFile(path, resume=False)
    results.write(passing("a"))
    lines = results.lines.read_bytes()
    results.finish()
    for before in (lines + failing("b").to_line()[:30], None):
        if before is not None:
            path.unlink()
            results.lines.write_bytes(before)
        again = ResultsFile(path, resume=True)
        assert "a" in again.done
        again.write(failing("b" if before is not None else "c"))
        again.finish()
    assert ["a", "b", "c"] == [one.id for one in read_results(path)]


def test_a_parquet_file_of_something_else_is_told(tmp_path: Path) -> None:
    """Another table is no results file."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": [1]}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="expected a Parquet file of results"):
        list(read_results(tmp_path / "r.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named before anything runs."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "gradoracle.batch.parquet", raising=False)
    import gradoracle.batch

    monkeypatch.delattr(gradoracle.batch, "parquet", raising=False)
    with pytest.raises(InvalidRequestError, match=r"install gradoracle\[parquet\], or name a \.jsonl file"):
        ResultsFile(tmp_path / "r.parquet", resume=False)

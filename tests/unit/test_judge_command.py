"""`gradoracle judge` from its arguments on: the files that it reads and writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_cases import passing

import gradoracle as go
from gradoracle import cli
from gradoracle.batch.records import read_results

GIVEN = ["mine", "x=@x.npy", "--inputs", "more.npz", "--cotangent", "out=@g.npz:g"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a graph, candidates and inputs; judged without a server, each is right."""

    class Judge:
        def __init__(self, *_: Any, **__: Any) -> None:
            """Nothing is computed."""

        def judge(self, path: Path, _: int) -> Any:
            return passing(path.name)

    @contextlib.contextmanager
    def client(**_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr("gradoracle.cli.connection.client", client)
    monkeypatch.setattr("gradoracle.kernels.judge.Judge", Judge)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("a.py", "_helper.py"):
        (tmp_path / "mine" / name).write_text("x = 1\n")
    np.save(tmp_path / "x.npy", np.ones(2))
    np.savez(tmp_path / "more.npz", y=np.ones(2))
    np.savez(tmp_path / "g.npz", g=np.ones(2))
    (tmp_path / "graph.json").write_text(go.Graph.parse("x * y").to_json())
    (tmp_path / "link").symlink_to("x.npy")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """All files by name."""
    return {str(one): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "graph.json"], "--out graph.json: expected a file of its own, got that of REFERENCE;"),
        (["--out", "mine/a.py"], "--out mine/a.py: expected a file of its own, got that of CANDIDATES;"),
        (["--out", "mine/_helper.py"], "--out mine/_helper.py: expected a file of its own, got that of CANDIDATES;"),
        (["--out", "more.npz"], "--out more.npz: expected a file of its own, got that of --inputs;"),
        (["--out", "link"], "--out link: expected a file of its own, got that of x (x.npy);"),
        (["--out", "g.npz"], "--out g.npz: expected a file of its own, got that of out;"),
        (["--report", "mine/../x.npy"], "--report mine/../x.npy: expected a file of its own, got that of x (x.npy);"),
        (["--out", "r", "--report", "./r"], "--report r: expected a file of its own, got that of --out;"),
    ],
)
def test_no_two_files_may_be_one(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str) -> None:
    """By any name: exit code 2, both are named, nothing is run, and every file is as it was."""
    before = content(folder)
    assert 2 == cli.main(["judge", "graph.json", *GIVEN, *flags])
    assert before == content(folder)
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.endswith("; nothing was run, give one of them another name\n")
    assert not said.out


def test_other_files_may_be_written(folder: Path) -> None:
    """An expression is no file, the candidates' folder has room for results, and /dev/null takes from many."""
    assert 0 == cli.main(["judge", "x*y", *GIVEN, "--out", "x*y", "--report", "mine/r.html"])
    assert ["a.py"] == [one.id for one in read_results(folder / "x*y")]
    assert "a.py" in (folder / "mine" / "r.html").read_text()
    assert 0 == cli.main(["judge", "x*y", *GIVEN, "--out", "/dev/null", "--report", "/dev/null"])


def test_results_from_before_are_set_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As batches do it: what was there keeps its bytes, and where it is now is told; an empty file holds nothing."""
    results = folder / "r.jsonl"
    for before, old in ((b"", None), (b"first\n", "r.jsonl.old"), (b"second\n", "r.jsonl.old.2")):
        results.write_bytes(before)
        assert 0 == cli.main(["judge", "x*y", *GIVEN, "--out", "r.jsonl"])
        assert ["a.py"] == [one.id for one in read_results(results)]
        told = f"r.jsonl: the results from before are in {old} now\n" if old else ""
        assert told == capsys.readouterr().err
    assert b"first\n" == (folder / "r.jsonl.old").read_bytes()
    assert b"second\n" == (folder / "r.jsonl.old.2").read_bytes()

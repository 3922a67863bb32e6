"""`gradoracle batch` from its arguments on, with a client that needs no server: what it refuses, and returns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_cases import Lost, case, failing, passing, write
from batch_command import (
    RIGHT,
    WRONG,
    Batch,
    batch_command,  # noqa: F401  # the fixture "batch"
    content,
    judged,
)

from gradoracle import cli
from gradoracle.batch import report
from gradoracle.errors import ServerUnavailableError

# ---- Files that are one


def _hard_link(path: Path) -> str:
    os.link("c.jsonl", path)
    return str(path)


def _link(path: Path) -> str:
    path.symlink_to("c.jsonl")
    return str(path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "c.jsonl"], "--out c.jsonl: expected a file of its own, got that of CASES;"),
        (
            ["--out", "./sub/../c.jsonl"],
            "--out sub/../c.jsonl: expected a file of its own, got that of CASES (c.jsonl);",
        ),
        (
            ["--out", "r.jsonl", "--report", "r.jsonl"],
            "--report r.jsonl: expected a file of its own, got that of --out;",
        ),
        (["--out", "r.jsonl", "--junit", "c.jsonl"], "--junit c.jsonl: expected a file of its own, got that of CASES;"),
        (
            ["--out", "r.jsonl", "--json-summary", "c.jsonl"],
            "--json-summary c.jsonl: expected a file of its own, got that",
        ),
        (
            ["--out", "r", "--junit", "x", "--json-summary", "x"],
            "--json-summary x: expected a file of its own, got that of --junit;",
        ),
        (
            ["--out", "{shard}", "--shard", "1/2", "--report", "1"],
            "--report 1: expected a file of its own, got that of --out;",
        ),
        (
            ["--out", "{shard}", "--shard", "1/2", "--report", "{shard}"],
            "--report 1: expected a file of its own, got that of --out;",
        ),
        (
            ["--out", "r", "--shard", "1/2", "--junit", "{shard}.x", "--json-summary", "1.x"],
            "--json-summary 1.x: expected a file of its own, got that of --junit;",
        ),
        (["--out", "r", "--report", _hard_link], "expected a file of its own, got that of CASES (c.jsonl);"),
        (["--out", _link], "expected a file of its own, got that of CASES (c.jsonl);"),
    ],
)
def test_no_two_files_may_be_one(batch: Batch, flags: list[str | Callable[[Path], str]], told: str) -> None:
    """By any name: exit code 2, both flags are named, nothing is sent, and every file is as it was."""
    (batch.folder / "sub").mkdir()
    write(batch.folder / "c.jsonl", case("a"))
    given = [one if isinstance(one, str) else one(batch.folder / "other") for one in flags]
    (batch.folder / "sub").rmdir()
    before = content(batch.folder)
    code, text = batch("c.jsonl", *given)
    assert (2, [], before) == (code, batch.sent, content(batch.folder))
    assert told in text
    assert text.endswith("; nothing was run, give one of them another name\n")


def test_cases_on_stdin_have_a_file_too(batch: Batch) -> None:
    """Where stdin comes from a file, results may not take its place."""
    path = write(batch.folder / "c.jsonl", case("a"))
    before = content(batch.folder)
    command = [sys.executable, "-m", "gradoracle.cli", "batch", "-", "--out", "c.jsonl"]
    with path.open() as cases:
        done = subprocess.run(command, stdin=cases, stderr=subprocess.PIPE, text=True, check=False)
    assert (2, before) == (done.returncode, content(batch.folder))
    assert "--out c.jsonl: expected a file of its own, got that of CASES (/dev/stdin);" in done.stderr


def test_cases_beside_a_parquet_file_are_not_its_lines(batch: Batch) -> None:
    """A Parquet file's lines stand beside it until it is complete, under a name that may be the cases'."""
    write(batch.folder / "r.parquet.jsonl", case("a"))
    before = content(batch.folder)
    code, text = batch("r.parquet.jsonl", "--out", "r.parquet")
    assert (2, before) == (code, content(batch.folder))
    assert "--out r.parquet.jsonl: expected a file of its own, got that of CASES" in text


def test_what_is_no_file_may_stand_twice(batch: Batch) -> None:
    """/dev/null takes from many."""
    write(batch.folder / "c.jsonl", case("a"))
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--report", "/dev/null", "--junit", "/dev/null")
    assert (0, ["a"]) == (code, batch.ids()), text


def test_shards_with_the_same_options_write_files_of_their_own(batch: Batch) -> None:
    """{shard} in the name of any file is the shard's number."""
    write(batch.folder / "c.jsonl", case("a"), case("b"))
    reports = ["--report", "{shard}.html", "--junit", "x-{shard}/{shard}.xml", "--json-summary", "s{shard}.json"]
    for k, name in enumerate(("a", "b")):
        (batch.folder / f"x-{k}").mkdir()
        code, text = batch("c.jsonl", "--out", "r{shard}.jsonl", *reports, "--shard", f"{k}/2")
        assert (0, [name]) == (code, batch.ids(f"r{k}.jsonl")), text
    assert ["0.html", "1.html", "r0.jsonl", "r1.jsonl", "s0.json", "s1.json"] == sorted(
        one.name for one in batch.folder.iterdir() if one.is_file() and one.name != "c.jsonl"
    )
    for k, name in enumerate(("a", "b")):
        assert f'name="{name}"' in (batch.folder / f"x-{k}" / f"{k}.xml").read_text()


def test_help_says_in_which_names_the_shard_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the results, and of every report."""
    assert 0 == cli.main(["batch", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--out, --report, --junit and --json-summary, {shard} stands for the shard's number" in said


# ---- Reports that cannot be written


@pytest.mark.parametrize("flag", ["--report", "--junit", "--json-summary"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/x", "No such file or directory"), ("c.jsonl/x", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_a_report_that_cannot_be_written_is_told_before_anything_is_sent(
    batch: Batch, flag: str, path: str, reason: str
) -> None:
    """The flag, the path and what it needs stand in the error; results from before are where they were."""
    write(batch.folder / "c.jsonl", case("a"))
    (batch.folder / "r.jsonl").write_bytes(passing("old").to_line())
    before = content(batch.folder)
    code, text = batch("c.jsonl", "--out", "r.jsonl", flag, path)
    assert (2, [], before) == (code, batch.sent, content(batch.folder))
    folder = (batch.folder / path).parent
    told = f"{flag} {path}: expected a file that can be written, got: {reason}; nothing was sent, and {folder} must be"
    assert told in text


def test_a_report_that_fails_after_all_hides_no_wrong_gradient(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 2 comes after a wrong gradient's 1 and before a missing verdict's 4; other reports are written."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    batch.client.answer = judged
    for claim, code in ((WRONG, 1), (RIGHT, 2)):
        write(batch.folder / "c.jsonl", claim)
        found, text = batch("c.jsonl", "--out", "r.jsonl", "--report", "r.html", "--junit", "j.xml")
        assert code == found, text
        assert "error: --report r.html: expected a file that can be used, got: No space left on device; the " in text
        assert "the results are in r.jsonl\n" in text
        assert 'name="a"' in (batch.folder / "j.xml").read_text()


def test_a_server_that_goes_away_hides_no_wrong_gradient(batch: Batch) -> None:
    """1, then 3, 2, 4, as the help says, also where a run ends before its time."""
    write(batch.folder / "c.jsonl", WRONG, case("b"))
    answers: list[Any] = [failing("a").report]
    batch.client.answer = lambda _: answers.pop() if answers else Lost(ServerUnavailableError("gone"))
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--patience", "0")
    assert 1 == code, text
    assert "error: gone. r.jsonl has what was finished; --resume goes on" in text


# ---- Runs of nothing


def labelled(name: str, **labels: str) -> dict[str, Any]:
    return case(name, labels=labels)


@pytest.mark.parametrize(
    ("lines", "selection", "told"),
    [
        ([], None, "error: c.jsonl: expected a case on each line, got none; the file holds no cases\n"),
        (["", " "], None, "c.jsonl: expected a case on each line, got none; the file holds no cases\n"),
        (
            [labelled("a", dtype="float32"), labelled("b", operator="sin")],
            "dytpe == float32",
            "error: c.jsonl: no case matches --select 'dytpe == float32'; labels here: dtype, operator; "
            'did you mean "dtype"?\n',
        ),
        (
            [labelled("a", dtype="float32"), "{broken"],
            "sofmax",
            "error: c.jsonl: no case matches --select 'sofmax'; labels here: dtype\n",
        ),
        (
            [case("a")],
            "dtype == x",
            "error: c.jsonl: no case matches --select 'dtype == x'; the cases have no labels\n",
        ),
        ([case("a")], "mehtod == vjp", 'the cases have no labels; did you mean "method"?\n'),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--resume"], ["--shard", "1/2"]])
def test_a_run_of_no_cases_is_refused(
    batch: Batch, lines: list[Any], selection: str | None, told: str, flags: list[str]
) -> None:
    """Exit code 2, the reason and what may have been meant; results from before stay where they are."""
    write(batch.folder / "c.jsonl", *lines)
    (batch.folder / "r.jsonl").write_bytes(passing("old").to_line())
    before = content(batch.folder)
    chosen = [] if selection is None else ["--select", selection]
    code, text = batch("c.jsonl", "--out", "r.jsonl", *chosen, *flags)
    assert (2, [], before) == (code, batch.sent, content(batch.folder))
    assert text.endswith(told)


def test_an_empty_shard_of_some_cases_is_good(batch: Batch) -> None:
    """More shards than cases are no mistake."""
    write(batch.folder / "c.jsonl", labelled("a", dtype="x"), case("b"))
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--select", "dtype == x", "--shard", "1/2")
    assert (0, []) == (code, batch.ids())
    assert text.startswith("0 of 0 cases")


def test_a_label_that_no_case_has_is_told(batch: Batch) -> None:
    """Where it takes cases all the same, as an inequality does; a label that only some have is none."""
    write(batch.folder / "c.jsonl", labelled("a", dtype="float32"), case("b"))
    for selection, told in (("dytpe != float32", True), ("dtype != float64 and line < 9", False)):
        code, text = batch("c.jsonl", "--out", "r.jsonl", "--select", selection)
        assert (0, ["a", "b"]) == (code, batch.ids())
        warning = (
            '--select: no case of c.jsonl has a label "dytpe", so that it counts as empty; did you mean "dtype"?\n'
        )
        assert told is (warning in text)

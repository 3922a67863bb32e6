"""`gradoracle batch` from its arguments on, with a client that needs no server: what it refuses, keeps and returns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_cases import FakeClient, Lost, case, failing, passing, vjp_result, write

from gradoracle import cli
from gradoracle.batch import compare, report
from gradoracle.batch.records import Record, read_results
from gradoracle.errors import ComputationError, ServerUnavailableError

WRONG = case("a", method="check", claimed={"x": 5.0})
RIGHT = case("a", method="check", claimed={"x": 6.0})


class Batch:
    """Runs the command in a folder; `sent` are the ids that the last run asked for."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.client = FakeClient()
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        self.client.sent.clear()
        code = cli.main(["batch", "--pack", "1", *arguments])
        return code, self._capsys.readouterr().err

    @property
    def sent(self) -> list[str]:
        return [one.id for request in self.client.sent for one in request.tag.cases]

    def ids(self, name: str = "r.jsonl") -> list[str]:
        return [one.id for one in read_results(self.folder / name)]


@pytest.fixture
def batch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Batch:
    """The command, in an empty folder that is the working directory."""
    found = Batch(tmp_path, capsys)

    @contextlib.contextmanager
    def client(**_: Any) -> Iterator[FakeClient]:
        yield found.client

    monkeypatch.setattr("gradoracle.cli.connection.client", client)
    monkeypatch.chdir(tmp_path)
    return found


def judged(request: Any) -> Any:
    """Right or wrong, as the claim is."""
    (one,) = request.tag.cases
    if one.method != "check":
        return vjp_result()
    tensors = {name: tensor.data for _, name, tensor in request.tensors}
    record = passing(one.id) if b"\x18@" in b"".join(filter(None, tensors.values())) else failing(one.id)
    return record.report


def content(folder: Path) -> dict[str, bytes]:
    """All files by name."""
    return {one.name: one.read_bytes() for one in folder.iterdir()}


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


# ---- Resuming


def outcomes(batch: Batch) -> dict[str, str]:
    records = list(read_results(batch.folder / "r.jsonl"))
    assert len(records) == len({one.id for one in records})
    return {one.id: one.outcome for one in records}


def test_a_case_that_changed_runs_again(batch: Batch) -> None:
    """Its older result is replaced, the others are kept, and the way in which a line is written changes nothing."""
    batch.client.answer = judged
    write(batch.folder / "c.jsonl", WRONG, case("b"))
    assert 1 == batch("c.jsonl", "--out", "r.jsonl")[0]
    respelt = json.dumps(dict(reversed(WRONG.items())), indent=None, separators=(" , ", " : "))
    write(batch.folder / "c.jsonl", respelt, case("b"))
    assert (1, []) == (batch("c.jsonl", "--out", "r.jsonl", "--resume")[0], batch.sent)
    write(batch.folder / "c.jsonl", RIGHT, case("b"))
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--resume")
    assert (0, ["a"], {"a": "PASS", "b": "OK"}) == (code, batch.sent, outcomes(batch))
    assert text.startswith("r.jsonl: 1 case changed since, and will run again\n2 of 2 cases (1 from before) in ")
    assert text.endswith(": 1 PASS, 1 OK\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"id": "a", "expression": "x", "method": "chekc"}', RIGHT),
        (case("a", inputs={"x": 3}), case("a", inputs={"x": 3.0})),
        (
            '{"id": "a", "method": "vjp", "expression": "x", "inputs": {"x": NaN}}',
            case("a", expression="x", inputs={"x": None}),
        ),
        (
            '{"id": "a", "method": "vjp", "expression": "x", "inputs": {"x": NaN}}',
            '{"id": "a", "method": "vjp", "expression": "x", "inputs": {"x": Infinity}}',
        ),
        (case("a", labels={"k": "1"}), case("a", labels={"k": "2"})),
    ],
)
def test_every_change_is_noticed(batch: Batch, before: Any, after: Any) -> None:
    """A broken line that is mended, NaN for another number, labels, which reports count."""
    batch.client.answer = judged
    digests = []
    for line in (before, before, after):
        write(batch.folder / "c.jsonl", line)
        _, text = batch("c.jsonl", "--out", "r.jsonl", "--resume")
        assert ("will run again" in text) is (line is after)
        (record,) = read_results(batch.folder / "r.jsonl")
        digests.append(record.digest)
    assert digests[0] == digests[1] != digests[2]


def test_repetitions_change_with_their_case(batch: Batch) -> None:
    """Each has a result of its own, and all of them run again."""
    batch.client.answer = judged
    for claim, count in ((WRONG, 2), (WRONG, 0), (RIGHT, 2)):
        write(batch.folder / "c.jsonl", claim)
        batch("c.jsonl", "--out", "r.jsonl", "--repeat", "2", "--resume")
        assert count == len(batch.sent)
    assert {"a [1/2]": "PASS", "a [2/2]": "PASS"} == outcomes(batch)


def test_results_without_a_digest_are_taken_as_they_are(batch: Batch) -> None:
    """Files of older versions resume."""
    write(batch.folder / "c.jsonl", case("a"), case("b"))
    (batch.folder / "r.jsonl").write_bytes(failing("a").to_line())
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--resume")
    assert (1, ["b"], ["a", "b"]) == (code, batch.sent, batch.ids())
    assert text.startswith("2 of 2 cases (1 from before) in ")


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_results_of_cases_that_are_gone_stay_and_do_not_count(batch: Batch, name: str) -> None:
    """They are told with their number; exit code, summary and reports are of the cases that there are."""
    batch.client.answer = judged
    write(batch.folder / "c.jsonl", WRONG, case("b"))
    assert 1 == batch("c.jsonl", "--out", name)[0]
    write(batch.folder / "c.jsonl", case("b"), case("c"))
    reports = ["--report", "r.html", "--junit", "j.xml", "--json-summary", "s.json"]
    code, text = batch("c.jsonl", "--out", name, "--resume", *reports)
    assert (0, ["c"], ["a", "b", "c"]) == (code, batch.sent, batch.ids(name))
    assert (
        f"warning: {name} holds 1 result of cases that are not in c.jsonl; they stay in it, and count neither here nor "
        "in reports\n"
    ) in text
    assert text.endswith(": 2 OK\n")
    summary = json.loads((batch.folder / "s.json").read_text())
    assert (2, 0, 2) == (summary["cases"], summary["exit_code"], summary["outcomes"]["OK"])
    assert 'tests="2"' in (batch.folder / "j.xml").read_text()
    assert 2 == (batch.folder / "r.html").read_text().count("\nc[")


def test_errors_are_tried_again_and_changes_too(batch: Batch) -> None:
    """--retry-errors takes out both, and an error of a case that is gone stays."""
    batch.client.answer = lambda request: ComputationError("no") if request.tag.cases[0].id != "b" else vjp_result()
    write(batch.folder / "c.jsonl", case("a"), case("b"), case("gone"))
    assert 2 == batch("c.jsonl", "--out", "r.jsonl")[0]
    batch.client.answer = lambda _: vjp_result()
    write(batch.folder / "c.jsonl", case("a"), case("b", inputs={"x": 4.0}))
    code, text = batch("c.jsonl", "--out", "r.jsonl", "--resume", "--retry-errors")
    assert (0, {"a", "b"}) == (code, set(batch.sent)), text
    assert {"a": "OK", "b": "OK", "gone": "ERROR"} == outcomes(batch)


def test_results_with_and_without_digests_compare(batch: Batch) -> None:
    """Comparisons go by id, whichever version wrote the files."""
    write(batch.folder / "c.jsonl", case("a"))
    batch("c.jsonl", "--out", "r.jsonl")
    (record,) = read_results(batch.folder / "r.jsonl")
    assert isinstance(record.digest, str)
    assert 16 == len(record.digest)
    assert record.digest == Record.from_json(json.loads(record.to_line())).digest
    record.digest = None
    (batch.folder / "older.jsonl").write_bytes(record.to_line())
    found = compare.compare(batch.folder / "older.jsonl", batch.folder / "r.jsonl")
    assert (1, [], []) == (found.same, found.changes, found.missing)


# ---- Shards, and what is there already


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_a_shard_does_not_set_aside_the_results_of_another(batch: Batch, name: str) -> None:
    """It is told to write a file of its own, or to add to the other's; its own older results it sets aside."""
    write(batch.folder / "c.jsonl", *(case(f"c{k}") for k in range(4)))
    assert 0 == batch("c.jsonl", "--out", name, "--shard", "0/2")[0]
    before = content(batch.folder)
    code, text = batch("c.jsonl", "--out", name, "--shard", "1/2")
    assert (2, [], before) == (code, batch.sent, content(batch.folder))
    stem, _, suffix = name.partition(".")
    assert (
        f"error: --out {name}: expected a file of shard 1/2's own, got 2 results of cases that other shards take; "
        f'write --out "{stem}.{{shard}}.{suffix}", or add to the file with --resume\n'
    ) == text
    assert 0 == batch("c.jsonl", "--out", name, "--shard", "1/2", "--resume")[0]
    assert ["c0", "c1", "c2", "c3"] == sorted(batch.ids(name))
    for k in range(2):
        assert 0 == batch("c.jsonl", "--out", f"{stem}.{{shard}}.{suffix}", "--shard", f"{k}/2")[0]
    assert 0 == batch("c.jsonl", "--out", f"{stem}.{{shard}}.{suffix}", "--shard", "1/2")[0]
    assert ["c1", "c3"] == batch.ids(f"{stem}.1.{suffix}")


def test_a_shard_sets_aside_what_is_no_result(batch: Batch) -> None:
    """A file of something else is nobody's results."""
    write(batch.folder / "c.jsonl", case("c0"), case("c1"))
    (batch.folder / "r.jsonl").write_text('notes\n{"id": 3}\n[]\n"x"\n{"id": "c0"')
    assert (0, ["c1"]) == (batch("c.jsonl", "--out", "r.jsonl", "--shard", "1/2")[0], batch.ids())


def test_nothing_that_was_set_aside_is_lost(batch: Batch) -> None:
    """The third run's results leave those of the first where they are, and say where those of the second went."""
    for name in ("a", "b", "c"):
        write(batch.folder / "c.jsonl", case(name))
        code, text = batch("c.jsonl", "--out", "r.jsonl")
        assert 0 == code
    assert [["c"], ["a"], ["b"]] == [batch.ids(f"r.jsonl{suffix}") for suffix in ("", ".old", ".old.2")]
    assert text.startswith("r.jsonl: the results from before are in r.jsonl.old.2 now\n")

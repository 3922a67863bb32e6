"""`gradoracle batch` where results are there already: what it keeps, takes for done, sets aside and adds to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from batch_cases import case, failing, vjp_result, write
from batch_command import (
    RIGHT,
    WRONG,
    Batch,
    batch_command,  # noqa: F401  # the fixture "batch"
    content,
    judged,
)

from gradoracle.batch import compare
from gradoracle.batch.records import Record, read_results
from gradoracle.errors import ComputationError

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

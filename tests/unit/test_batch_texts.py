"""Texts of all kinds, in cases and in records, through everything that writes them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import orjson
import pytest
from batch_cases import FakeClient, case, run, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_records import checked, failed

from gradoracle import cli
from gradoracle.batch import annotations, parquet, text
from gradoracle.batch.case_files import CaseFile
from gradoracle.batch.junit import write_junit
from gradoracle.batch.progress import Progress
from gradoracle.batch.records import Record, read_results
from gradoracle.batch.report import write_report
from gradoracle.batch.runner import remark
from gradoracle.batch.summary import write_summary

HALF = "\ud800"
WORST = f"{HALF}-\udc80</script><!-- ]]>&\x00\x1b[2J\x85\u2028\u202e\ufffe\r\n::error::\"',\\ud800"
"""Everything at once: halves of pairs, markup, what XML and terminals cannot have, ends of lines."""


def paired(text: str) -> str:
    """The text with the two halves of a character, where they stand together, as that character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


TEXTS = st.lists(st.one_of(st.characters(), st.sampled_from(list(WORST))), max_size=20).map("".join).map(paired)
SURROGATES = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new one for each example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def has_half(*texts: str) -> bool:
    """Whether one of them is no text that UTF-8 can say."""
    return any(SURROGATES.search(one) for one in texts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4), st.booleans())
@example([(WORST, "a", "b"), ("a", HALF, "b"), ("a", "b", HALF), ("c", "d", "e")], True)
def test_each_line_is_a_result_and_half_a_pair_breaks_its_line_alone(
    texts: list[tuple[str, str, str]], escaped: bool
) -> None:
    """Whatever the ids and labels are, spelled out or not: each case has one result, in a file that any reader takes.
    A line with half a surrogate pair is one that is broken, named by its number."""
    with folder() as path:
        documents = [case(f"{name} {k}", labels={f"l{label}": value}) for k, (name, label, value) in enumerate(texts)]
        lines = [json.dumps(one, ensure_ascii=escaped).encode(errors="surrogatepass") for one in documents]
        (path / "c.jsonl").write_bytes(b"\n".join(lines))
        job = run(FakeClient(), path / "c.jsonl", path / "r.jsonl")
        found = sorted(read_results(path / "r.jsonl"), key=lambda one: one.line)
        ids = [orjson.loads(line)["id"] for line in (path / "r.jsonl").read_bytes().split(b"\n")[:-1]]
    assert sorted(ids) == sorted(one.id for one in found)
    assert len(texts) == len(found) == job.tally.total
    for k, (one, given_texts, document) in enumerate(zip(found, texts, documents, strict=True), 1):
        if not has_half(*given_texts):
            assert ("OK", document["id"], document["labels"]) == (one.outcome, one.id, one.labels)
            continue
        assert ("ERROR", f"line {k}") == (one.outcome, one.id)
        assert one.error is not None
        assert ("BAD_CASE", k) == (one.error.reason, one.error.line)
        assert one.error.message.startswith(f"line {k}: expected a JSON object, got ")
        assert one.error.message.endswith("is half a surrogate pair, and no character)")


def test_the_reason_names_the_half(tmp_path: Path) -> None:
    """Location, expected, got."""
    cases = write(tmp_path / "c.jsonl", "", r'{"id": "a\ud83d", "expression": "x"}', r'{"id": "\ud83d\ude00"}')
    first, second = CaseFile(str(cases)).entries()
    assert "line 2" == first.id
    assert (
        r"""line 2: expected a JSON object, got '{"id": "a\\ud83d", "expression": "x"}' """
        r"(\ud83d is half a surrogate pair, and no character)"
    ) == str(first.error)
    assert "\U0001f600" == second.id  # both halves are a character


def records(one: str) -> list[Record]:
    """Records with the text in every place that holds one."""
    expression = {"expression": one}
    wrong = checked(f"1{one}", 1, "FAIL", labels={"operator": one, one: one}, graph=expression, device=one)
    assert wrong.report is not None
    wrong.report.inputs = {one: dataclasses.replace(wrong.report.inputs["x"], name=one, explanation=one)}
    wrong.report.opinions = [dataclasses.replace(wrong.report.opinions[0], explanation=one)]
    doubtful = checked(f"2{one}", 2, "INCONCLUSIVE", labels={"operator": one}, graph={"graph_file": one})
    return [wrong, doubtful, failed(f"3{one}", 3, message=one, kind=one, node=one, field=one)]


def spelled(one: str) -> str:
    """The text as a results file has it."""
    return one.encode(errors="backslashreplace").decode()


class Elements(HTMLParser):
    """The tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example(WORST)
def test_records_are_lines_and_columns(one: str) -> None:
    """A line is UTF-8, one line, JSON for strict readers, and comes back the same; so does a row of Parquet."""
    with folder() as path:
        lines = [record.to_line() for record in records(one)]
        (path / "r.jsonl").write_bytes(b"".join(lines))
        parquet.write(path / "r.jsonl", path / "r.parquet")
        for found in (list(read_results(path / "r.jsonl")), list(read_results(path / "r.parquet"))):
            assert [f"{k}{spelled(one)}" for k in (1, 2, 3)] == [record.id for record in found]
            assert list(map(orjson.loads, lines)) == [record.to_json() for record in found]
            assert found[2].error is not None
            assert spelled(one) == found[2].error.message
    for line in lines:
        assert b"\n" == line[-1:]
        assert b"\n" not in line[:-1]
        assert json.loads(line) == orjson.loads(line)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example(WORST)
def test_reports_hold_the_text_and_nothing_but_text(one: str) -> None:
    """Pages, JUnit files and summaries are whole whatever the texts are, also where these never were a line."""
    with folder() as path:
        write_report(records(one), path / "r.html", title=one)
        write_report(records("plain"), path / "plain.html", title="plain")
        write_junit(records(one), path / "j.xml", name=one)
        write_summary(records(one), path / "s.json")
        pages = [(path / name).read_text(encoding="utf-8") for name in ("r.html", "plain.html")]
        suite = ET.parse(path / "j.xml").getroot()[0]  # noqa: S314  # our own
        summary = orjson.loads((path / "s.json").read_bytes())
    assert Elements(pages[1]).found == Elements(pages[0]).found
    readable = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", one)
    assert [f"{k}{readable}" for k in (1, 2, 3)] == [found.get("name") for found in suite.iter("testcase")]
    assert f"1{SURROGATES.sub('?', one)}" == summary["worst"][0]["id"]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
@example(WORST)
def test_what_terminals_and_logs_get_is_one_line_without_control_characters(one: str) -> None:
    """No id or message begins a line of its own, hides what follows, or stops the output."""
    shown = [remark(record) for record in records(one)]
    shown += annotations.annotations(records(one), cases=one)
    with contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as stream:
        Progress(3, 0).say(one)
        stream.flush()
        said = stream.buffer.getvalue().decode()
    assert "\n" == said[-1:]
    for line in (*shown, said[:-1]):
        assert line == line.encode().decode()
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line.partition("title=")[2] or line)
        assert not {"\n", "\r"} & set(line)


def test_a_run_with_such_ids_ends_as_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands print and write them: duplicates are told on a line each, comparisons list them."""
    name = WORST.replace(HALF, "").replace("\udc80", "")
    cases = write(tmp_path / "c.jsonl", case(name), case(name))
    assert 2 == cli.main(["batch", str(cases), "--out", str(tmp_path / "r.jsonl")])
    shown = capsys.readouterr().err
    assert f'line 2: the id "{text.one_line(name)}" stands already in line 1' in shown
    assert 2 == len(shown.splitlines())
    for file, kind in (("old.jsonl", "PASS"), ("new.jsonl", "FAIL")):
        (tmp_path / file).write_bytes(checked(name, 1, kind).to_line())
    assert 1 == cli.main(["compare", str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl")])
    out = capsys.readouterr().out
    assert f"  {text.one_line(name)}: PASS -> FAIL (SCALED)" in out.splitlines()


def test_results_of_an_older_version_with_half_a_pair_become_parquet(tmp_path: Path) -> None:
    """Such a line, spelled as JSON allows, is one of a results file; its row has the half spelled out."""
    document: dict[str, Any] = {**checked("a", 1).to_json(), "id": HALF}
    (tmp_path / "r.jsonl").write_text(json.dumps(document) + "\n")
    parquet.write(tmp_path / "r.jsonl", tmp_path / "r.parquet")
    assert [r"\ud800"] == [one.id for one in read_results(tmp_path / "r.parquet")]

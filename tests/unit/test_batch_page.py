"""What the page of a batch says of groups of cases, and how its lines of text are put together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_cases import failing, input_report, report
from browser import Browser, Page, installed, running
from report_records import checked, computed, failed

from gradoracle.batch.records import Record
from gradoracle.batch.report import write_report
from gradoracle.batch.report_text import sentence
from gradoracle.batch.runner import remark
from gradoracle.batch.text import sentences
from gradoracle.checks import Opinion, Verdict

GROUPS = {
    "operator": [checked("right", 1), checked("wrong", 2, "FAIL")],
    "method": [computed("one", 1), failed("two", 2)],
    "operator or method": [checked("right", 1), computed("one", 2)],
}


@pytest.mark.parametrize("listed", list(GROUPS))
def test_the_page_is_told_what_its_groups_are(tmp_path: Path, listed: str) -> None:
    """Operators where cases have that label, methods where none has, both where some have."""
    write_report(GROUPS[listed], tmp_path / "r.html")
    (block,) = re.findall(r'id="summary-data">(.*?)</script>', (tmp_path / "r.html").read_text())
    assert listed == json.loads(block)["listed"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a browser."""
    if installed() is None:
        pytest.skip("no chromium here (on Debian: apt-get install chromium)")
    with running(tmp_path_factory.mktemp("profile")) as found:
        assert isinstance(found, Browser)
        yield Page(found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("listed", "rows"),
    [
        ("operator", [["aten.mul.Tensor", "1 of 2"]]),
        ("method", [["check", "1 of 1"], ["vjp", "0 of 1"]]),
        ("operator or method", [["aten.mul.Tensor", "0 of 1"], ["vjp", "0 of 1"]]),
    ],
)
def test_groups_have_the_name_of_what_they_are(page: Page, tmp_path: Path, listed: str, rows: list[list[str]]) -> None:
    """Title, head and what screen readers say; and how many are not good of how many, also where all are."""
    write_report(GROUPS[listed], tmp_path / "r.html")
    page.open(tmp_path / "r.html")
    named = listed.capitalize()
    assert [f"By {listed}"] == page.texts("#groups h2")
    assert [f"By {listed}"] == page.each("#groups .scroll", "ariaLabel")
    assert [named, "Not good", "Verdicts"] == page.texts("#groups th")
    assert [cell for row in rows for cell in (*row, "")] == page.texts("#groups td")
    assert [] == page.complaints()


# ---- Sentences


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["It is wrong.", "the remainder falls"], "It is wrong; the remainder falls."),
        (["It is wrong. It is twice that.", "So is this."], "It is wrong. It is twice that; So is this."),
        (["the remainder falls", "0 must give 0"], "the remainder falls; 0 must give 0"),
        (["and so on...", "It ends. "], "and so on...; It ends."),
        (["It agrees."], "It agrees."),
        ([], ""),
    ],
)
def test_sentences_are_joined(parts: list[str], whole: str) -> None:
    """No full stop stands before a semicolon, and none is missing at the end."""
    assert whole == sentences(parts)


def test_lines_of_a_batch_hold_no_full_stop_before_a_semicolon() -> None:
    """A failing input has a sentence and opinions have phrases, which stand on one line."""
    opinions = [
        Opinion(name, Verdict.FAIL, 0.1, 1e-9, "the remainder of its expansion falls") for name in ("taylor", "b")
    ]
    record = failing("a")
    assert record.report is not None
    record.report.opinions = opinions
    told = "the remainder of its expansion falls"
    assert f"FAIL a: x: SCALED: It agrees; taylor: {told}; b: {told}." == remark(record)
    found = report(input_report())
    found.verdict, found.opinions = Verdict.FAIL, opinions
    opinions[0] = Opinion("taylor", Verdict.FAIL, 0.1, 1e-9, f"{told}.")
    assert f"taylor: {told}; b: {told}." == sentence(found)
    assert f"FAIL b: taylor: {told}; b: {told}." == remark(Record(id="b", line=1, method="check", report=found))

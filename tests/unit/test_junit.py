"""JUnit XML, the summary and annotations, of results of a batch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from report_records import HOSTILE, checked, computed, every_outcome, failed, many

from gradoracle.batch import summary
from gradoracle.batch.annotations import annotations
from gradoracle.batch.junit import write_junit
from gradoracle.batch.records import Record
from gradoracle.batch.summary import summarise, write_summary

# What Jenkins' schema allows: the attributes of an element (* must be there), and its children in order.
SCHEMA: dict[str, tuple[set[str], str]] = {
    "testsuites": (set(), "(testsuite )*"),
    "testsuite": ({"name*", "tests*", "failures*", "errors*", "skipped", "time"}, "(properties )?(testcase )*"),
    "properties": (set(), "(property )*"),
    "property": ({"name*", "value*"}, ""),
    "testcase": ({"name*", "classname", "time"}, "(skipped |failure |error )?"),
    "failure": ({"type", "message"}, ""),
    "error": ({"type", "message"}, ""),
    "skipped": ({"message"}, ""),
}
TIME = re.compile(r"\d+\.\d{3}")


def faults(element: ET.Element) -> Iterator[str]:
    """Where a JUnit file breaks the schema."""
    attributes, children = SCHEMA.get(element.tag, (set(), "never"))
    if element.tag not in SCHEMA:
        yield f"unknown element {element.tag}"
    known = {name.rstrip("*") for name in attributes}
    yield from (f"{element.tag}: unknown attribute {name}" for name in sorted(set(element.attrib) - known))
    needed = {name[:-1] for name in attributes if name.endswith("*")}
    yield from (f"{element.tag}: no attribute {name}" for name in sorted(needed - set(element.attrib)))
    if "time" in element.attrib and not TIME.fullmatch(element.attrib["time"]):
        yield f"{element.tag}: time {element.attrib['time']}"
    if not re.fullmatch(children, "".join(f"{one.tag} " for one in element)):
        yield f"{element.tag}: children {[one.tag for one in element]}"
    for one in element:
        yield from faults(one)


def written(results: list[Record], path: Path, **options: Any) -> ET.Element:
    """The suite of a JUnit file of the results, which must keep the schema."""
    write_junit(iter(results), path / "junit.xml", **options)
    root = ET.parse(path / "junit.xml").getroot()  # noqa: S314  # our own
    assert [] == list(faults(root))
    (suite,) = root
    counted = {
        key: sum(1 for case in suite.iter("testcase") if case.find(key) is not None) for key in ("failure", "error")
    }
    assert str(len(results)) == suite.get("tests") == str(len(suite.findall("testcase")))
    assert [str(counted["failure"]), str(counted["error"])] == [suite.get("failures"), suite.get("errors")]
    return suite


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<testsuites><testsuite name='a' tests='1' failures='0'/></testsuites>", "testsuite: no attribute errors"),
        ("<testsuites><suite/></testsuites>", "unknown element suite"),
        ("<testcase name='a' time='1e-05'/>", "testcase: time 1e-05"),
        ("<testcase name='a' verdict='PASS'/>", "testcase: unknown attribute verdict"),
        ("<testcase name='a'><failure/><error/></testcase>", "testcase: children ['failure', 'error']"),
    ],
)
def test_the_schema_finds_faults(text: str, fault: str) -> None:
    """The structure check of these tests rejects what Jenkins' schema rejects."""
    assert fault in list(faults(ET.fromstring(text)))  # noqa: S314  # our own


def test_each_outcome_has_its_element(tmp_path: Path) -> None:
    """Wrong gradients are failures, cases without a result are errors, what has no verdict is skipped with a reason."""
    suite = written(every_outcome(), tmp_path, name="cases.jsonl")
    found = {case.get("name"): [one.tag for one in case] for case in suite.iter("testcase")}
    assert found == {
        "right": [],
        "doubled": ["failure"],
        "at a kink": ["skipped"],
        "too flat": ["skipped"],
        "dropout": ["skipped"],
        "mm": ["error"],
        "a vjp": [],
        "right again": [],
    }
    assert ("cases.jsonl", "3") == (suite.get("name"), suite.get("skipped"))
    assert "0.232" == suite.get("time")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "SCALED" == failure.get("type")
    assert failure.get("message", "").startswith("x: SCALED by 2; error 0.5 at [1, 2], bound 1e-09.")
    assert "  [1, 2]: claimed 1, reference 0.5, numerical 0.5, error 0.5, bound 1e-09" in (failure.text or "")
    assert (failure.text or "").startswith("line 2\n")
    error = suite.find("testcase/error")
    assert error is not None
    assert ("ComputationError", True) == (error.get("type"), "(2x3 and 4x3)" in (error.get("message") or ""))
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert ("2", "1") == (properties["gradoracle.PASS"], properties["gradoracle.NON_DETERMINISTIC"])


def test_names_and_messages_are_text(tmp_path: Path) -> None:
    """Markup in an id stays text, line breaks stay, and what XML cannot say at all is replaced."""
    suite = written([failed(f"{HOSTILE}\nüñ\ud800", 1, message=HOSTILE), checked(HOSTILE, 2, "FAIL")], tmp_path)
    first, second = suite.iter("testcase")
    safe = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert f"{safe}\nüñ\ufffd" == first.get("name")
    assert safe == second.get("name")
    error = first.find("error")
    assert error is not None
    assert f"line 1\n{safe}" == error.text


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Where reading the results fails half-way, the old file stands, and nothing else is left in the folder."""

    def broken() -> Iterator[Record]:
        yield checked("right", 1)
        raise ValueError("results.jsonl, line 2: no result")

    (tmp_path / "junit.xml").write_text("old")
    with pytest.raises(ValueError, match="line 2"):
        write_junit(broken(), tmp_path / "junit.xml")
    assert "old" == (tmp_path / "junit.xml").read_text()
    assert ["junit.xml"] == [one.name for one in tmp_path.iterdir()]
    with pytest.raises(OSError, match="none"):
        write_junit(broken(), tmp_path / "none" / "junit.xml")


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    """Through a link its target is written; a pipe is written, and not replaced."""
    (tmp_path / "target.json").touch()
    (tmp_path / "link.json").symlink_to("target.json")
    write_summary([checked("right", 1)], tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert 1 == json.loads((tmp_path / "target.json").read_text())["cases"]
    read, write = os.pipe()
    write_summary([checked("right", 1)], f"/dev/fd/{write}")
    os.close(write)
    with open(read) as pipe:  # noqa: PTH123  # of a number
        assert 1 == json.load(pipe)["cases"]


# ---- The summary


def test_the_summary_counts() -> None:
    """Counts by outcome, diagnosis, reason and operator; the worst and the slowest; seconds."""
    found = summarise(every_outcome())
    assert 8 == found["cases"]
    outcomes = {"FAIL": 1, "ERROR": 1, "NON_DETERMINISTIC": 1, "INCONCLUSIVE": 1, "NON_DIFFERENTIABLE": 1, "PASS": 2}
    assert {**outcomes, "OK": 1} == found["outcomes"]
    assert ({"SCALED": 1}, {"COMPUTATION_FAILED": 1}) == (found["diagnoses"], found["errors"])
    (worst,) = found["worst"]
    assert ("doubled", 2, 0.5 / 1e-9, "x", "SCALED") == tuple(
        worst[key] for key in ("id", "line", "times_bound", "input", "diagnosis")
    )
    assert ["right again", "dropout"] == [one["id"] for one in found["slowest"]][:2]
    assert pytest.approx(0.232) == found["seconds"]["total"]
    assert pytest.approx(0.03) == found["seconds"]["median"]
    assert pytest.approx(0.08) == found["seconds"]["p95"] == found["seconds"]["max"]
    assert pytest.approx(0.002) == found["seconds"]["phases"]["backward"]
    assert {"cases": 1, "OK": 1} == found["operators"]["vjp"]
    assert 6 == found["operators"]["aten.mul.Tensor"]["cases"]


@pytest.mark.parametrize(
    ("results", "code", "lenient"),
    [
        ([], 0, 0),
        ([checked("a", 1), computed("b", 2)], 0, 0),
        ([checked("a", 1, "INCONCLUSIVE"), checked("b", 2)], 4, 0),
        ([checked("a", 1, "NON_DETERMINISTIC")], 4, 0),
        ([checked("a", 1, "NON_DIFFERENTIABLE"), checked("b", 2, "INCONCLUSIVE")], 4, 0),
        ([checked("a", 1, "NON_DIFFERENTIABLE", inside=False), checked("b", 2)], 4, 1),
        ([failed("a", 1), checked("b", 2, "INCONCLUSIVE")], 2, 2),
        ([failed("a", 1), failed("b", 2, "WorkerCrashedError")], 3, 3),
        ([checked("a", 1, "FAIL"), failed("b", 2, "ServerUnavailableError")], 1, 1),
    ],
)
def test_the_exit_code(results: list[Record], code: int, lenient: int) -> None:
    """A wrong gradient before a failed service, before a case at fault, before no verdict, which may be allowed.

    A gradient outside the slopes of a kink has no verdict, and is wrong where that is allowed.
    """
    assert code == summarise(results)["exit_code"]
    assert lenient == summarise(results, allow_inconclusive=True)["exit_code"]


def test_the_summary_as_a_file(tmp_path: Path) -> None:
    """The file is strict JSON: what is no number is a string."""
    nan = checked("nan", 1, "FAIL", inputs={"x": {**fail_of("NaN"), "diagnosis": "NAN"}})
    found = write_summary([nan], tmp_path / "summary.json")

    def refuse(text: str) -> None:
        raise AssertionError(f"no JSON: {text}")

    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert json.loads(json.dumps(found)) == read
    assert ("NaN", "Infinity") == (read["worst"][0]["error"], read["worst"][0]["times_bound"])


def fail_of(error: Any) -> dict[str, Any]:
    """A failing input with that error."""
    figures = {"max_error": error, "error_bound": 1e-9, "detection_power": 0.0}
    return {"verdict": "FAIL", "explanation": "It is wrong.", **figures}


def test_labels_without_end_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of operators that cases claim to have."""
    monkeypatch.setattr(summary, "GROUPS", 3)
    results = [checked(f"{i}", i, labels={"operator": f"op {i}"}) for i in range(1, 8)]
    assert {"op 1": 1, "op 2": 1, "op 3": 1, "(others)": 4} == {
        name: counts["cases"] for name, counts in summarise(results)["operators"].items()
    }


# ---- Annotations


def test_annotations_name_the_line() -> None:
    """Errors for wrong gradients and cases without a result, warnings without a verdict, nothing for the others."""
    found = list(annotations(every_outcome(), cases="nightly/cases.jsonl"))
    assert [
        "::error file=nightly/cases.jsonl,line=2,title=FAIL doubled::"
        "x: SCALED by 2; error 0.5 at [1, 2], bound 1e-09. It is twice the right gradient.",
        "::warning file=nightly/cases.jsonl,line=3,title=NON_DIFFERENTIABLE at a kink::x: It agrees.",
        "::warning file=nightly/cases.jsonl,line=4,title=INCONCLUSIVE too flat::x: It agrees.",
        "::warning file=nightly/cases.jsonl,line=5,title=NON_DETERMINISTIC dropout::x: It agrees.",
        "::error file=nightly/cases.jsonl,line=6,title=ERROR mm::"
        'ComputationError: node "matmul": shapes cannot be multiplied (2x3 and 4x3)',
    ] == found


def test_a_gradient_outside_the_slopes_of_a_kink_is_wrong(tmp_path: Path) -> None:
    """It is a failure in JUnit's file and an error among the annotations, not what one may pass over."""
    found = [checked("at a kink", 1, "NON_DIFFERENTIABLE", inside=False)]
    suite = written(found, tmp_path)
    assert ("1", "0") == (suite.get("failures"), suite.get("skipped"))
    assert ["NON_DIFFERENTIABLE"] == [one.get("type") for one in suite.iter("failure")]
    assert ["::error title=NON_DIFFERENTIABLE at a kink::x: It agrees."] == list(annotations(found))


def test_annotations_are_escaped() -> None:
    """No id or message can end its annotation or begin another."""
    name = "a,b:c%0A\r\n::error::x"
    (found,) = annotations([failed(name, 1, message="100 % wrong\n::error::y")], cases="a,b.jsonl")
    assert "\n" not in found
    assert "\r" not in found
    assert (
        "::error file=a%2Cb.jsonl,line=1,title=ERROR a%2Cb%3Ac%250A %3A%3Aerror%3A%3Ax::"
        "ComputationError: 100 %25 wrong ::error::y"
    ) == found


def test_annotations_have_an_end() -> None:
    """GitHub drops all but the first ten without a word; here the last line says how many there are."""
    found = list(annotations(many(2000), limit=3))
    kinds = [line.split(" ")[0] for line in found]
    assert (3, 3, "::notice") == (kinds.count("::error"), kinds.count("::warning"), kinds[-1])
    counts = summarise(many(2000))["outcomes"]
    more = counts["FAIL"] + counts["ERROR"] - 3
    assert (
        f"::notice title=gradoracle::{more} more errors and {counts['INCONCLUSIVE'] - 3} more warnings; " in found[-1]
    )

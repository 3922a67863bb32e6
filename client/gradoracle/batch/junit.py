"""Results as JUnit XML, as Jenkins, GitLab and their like read it: one suite, one test case a result."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO
from xml.sax import saxutils

from gradoracle.batch import report_text
from gradoracle.batch.records import Record
from gradoracle.batch.report_text import Results
from gradoracle.batch.summary import OUTCOMES

# What XML 1.0 cannot say, not even as &#0;.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_ELEMENTS = {"FAIL": "failure", "ERROR": "error", "PASS": None, "OK": None}
_COUNTERS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def write_junit(results: Results, path: str | Path, *, name: str = "gradoracle") -> None:
    """Writes a JUnit XML file.

    FAIL is a failure, and so is a gradient outside the slopes of a kink; a case without a result is an error; what else
    has no verdict (inconclusive, non-differentiable, non-deterministic) counts as skipped, with the reason. Class names
    are operators, so that systems which group by class group by operator; times are the server's. Raises OSError where
    the file cannot be written.
    """
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    seconds = 0.0
    # The suite's attributes come before its cases, and are known after them.
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as cases, report_text.replacing(path) as file:
        for record in report_text.read(results):
            outcomes[record.outcome] += 1
            counts[_COUNTERS.get(_write_case(cases, record) or "", "passed")] += 1
            seconds += record.timing.total if record.timing is not None else 0.0
        totals = "".join(f' {key}="{counts[key]}"' for key in ("failures", "errors", "skipped"))
        totals = f'name={_quoted(name)} tests="{counts.total()}"{totals} time="{seconds:.3f}"'
        file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n<testsuite {totals}>\n<properties>\n')
        for outcome in OUTCOMES:
            file.write(f'<property name="gradoracle.{outcome}" value="{outcomes[outcome]}"/>\n')
        file.write("</properties>\n")
        cases.seek(0)
        shutil.copyfileobj(cases, file)
        file.write("</testsuite>\n</testsuites>\n")


def _write_case(file: IO[str], record: Record) -> str | None:
    """Writes a test case. Gives the element that tells its outcome."""
    seconds = record.timing.total if record.timing is not None else 0.0
    class_name = f"gradoracle.{report_text.operator(record)}"
    file.write(f'<testcase classname={_quoted(class_name)} name={_quoted(record.id)} time="{seconds:.3f}">')
    element = "failure" if record.is_wrong else _ELEMENTS.get(record.outcome, "skipped")
    if element is not None:
        message = report_text.headline(record)
        if element == "skipped":
            file.write(f"<skipped message={_quoted(f'{record.outcome}: {message}')}/>")
        else:
            kind = record.error.type if record.error is not None else _diagnosis(record)
            text = saxutils.escape(_sayable(f"line {record.line}\n{report_text.at_length(record)}"))
            file.write(f"<{element} type={_quoted(kind)} message={_quoted(message)}>{text}</{element}>")
    file.write("</testcase>\n")
    return element


def _diagnosis(record: Record) -> str:
    one = report_text.worst_input(record.report) if record.report is not None else None
    return record.outcome if one is None or one.diagnosis is None else str(one.diagnosis)


def _sayable(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def _quoted(text: str) -> str:
    return saxutils.quoteattr(_sayable(text))

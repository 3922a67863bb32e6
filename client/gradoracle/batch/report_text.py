"""What reports say of one result, in a line and at length; and how they read results and write files."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from gradoracle.batch import record_json, records
from gradoracle.batch.records import Record
from gradoracle.batch.text import one_line as one_line
from gradoracle.batch.text import sentences
from gradoracle.check_text import NOTHING, diagnosis, figure, number, place
from gradoracle.checks import CheckReport, InputReport, Verdict

Results: TypeAlias = str | Path | Iterable[Record]
"""A results file, or the records themselves."""


def read(results: Results) -> Iterable[Record]:
    """The records, one after another."""
    return records.read_results(results) if isinstance(results, str | Path) else results


def check_writable(path: str | Path) -> None:
    """Whether `replacing` can write there, as far as can be told before. Raises OSError. Leaves nothing behind."""
    path = Path(path)
    if path.exists() and not path.is_file():
        if path.is_dir() or not os.access(path, os.W_OK):
            code = errno.EISDIR if path.is_dir() else errno.EACCES
            raise OSError(code, os.strerror(code), str(path))
        return
    with tempfile.TemporaryFile(dir=path.resolve().parent):
        pass


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[str]]:
    """A file to write, which takes the place of `path` once it is whole; where that fails, `path` stays as it was.

    What is no regular file, such as a pipe, is written as it is. A question mark stands for what UTF-8 cannot say.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            yield file
        return
    path = path.resolve()  # a link stays one
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def ratio(error: float, bound: float) -> float:
    """How many times its bound an error is; infinite where it is NaN."""
    if not math.isfinite(error):
        return math.inf
    if bound > 0:
        return error / bound
    return math.inf if error > 0 else 0.0


def worst_input(report: CheckReport) -> InputReport | None:
    """The input that the verdict is about: of those that have it, the one farthest from its bound.

    Where one is wrong without a verdict of FAIL, at a kink, it is about that.
    """
    wrong = [] if report.verdict is Verdict.FAIL else [one for one in report.inputs.values() if one.wrong]
    found = wrong or [one for one in report.inputs.values() if one.verdict is report.verdict]
    return max(found, key=lambda one: ratio(one.max_error, one.error_bound), default=None)


def headline(record: Record) -> str:
    """One line: what is wrong, where, and by how much; "" where there is nothing to say."""
    if record.error is not None:
        return one_line(f"{record.error.type}: {record.error.message}")
    return "" if record.report is None or record.report.passed else sentence(record.report)


def sentence(report: CheckReport) -> str:
    """One line on a report that is no PASS."""
    one = worst_input(report)
    if one is None:
        failed = [f"{found.name}: {found.explanation}" for found in report.opinions if found.verdict is report.verdict]
        return one_line(sentences(failed) or (str(report.verdict) if report.inputs else NOTHING))
    if one.verdict is not Verdict.FAIL:
        return one_line(f"{one.name}: {one.explanation}")
    where = f" at {place(one.worst[0])}" if one.worst and (one.worst[0].index or one.worst[0].output) else ""
    text = f"{one.name}: {diagnosis(one)}; error {figure(one.max_error)}{where}, bound {figure(one.error_bound)}"
    return one_line(f"{text}. {one.explanation}")


def at_length(record: Record) -> str:
    """What is wrong, by input, with the worst elements. Quick: there may be thousands of these."""
    if record.error is not None:
        return record.error.message
    return "" if record.report is None else "\n".join(_lines(record.report))


def _lines(report: CheckReport) -> Iterator[str]:
    for one in report.inputs.values():
        found = " ".join(filter(None, (str(one.verdict), diagnosis(one))))
        yield f"{one.name}: {found}; error {figure(one.max_error)}, bound {figure(one.error_bound)}. {one.explanation}"
        for row in one.worst:
            values = ", ".join(f"{name} {number(getattr(row, name))}" for name in ("claimed", "reference", "numerical"))
            yield f"  {place(row)}: {values}, error {figure(row.error)}, bound {figure(row.error_bound)}"
    for opinion in report.opinions:
        if opinion.verdict is not Verdict.PASS:
            yield f"{opinion.name}: {opinion.verdict}; {opinion.explanation} (error {figure(opinion.error)})"


def operator(record: Record) -> str:
    """The operator that the case is about, as its labels tell; else its method."""
    return record.labels.get("operator") or record.method or "unreadable"


def finite(value: float) -> Any:
    """A figure as JSON has it."""
    return record_json.plain(value)

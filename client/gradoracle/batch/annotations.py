"""Results as workflow commands, which GitHub shows beside the lines of the case file."""

from collections.abc import Iterator
from pathlib import Path

import click

from gradoracle.batch import report_text
from gradoracle.batch.records import Record
from gradoracle.batch.report_text import Results
from gradoracle.batch.text import whole

SHOWN = 10
"""Of errors and of warnings each: GitHub shows no more of a step, and drops the others without a word."""

_LONGEST = 1000  # characters of a message


def annotations(results: Results, *, cases: str | Path = "", limit: int = SHOWN) -> Iterator[str]:
    """One line for each result that is not good: errors for wrong gradients, those outside the slopes of a kink too,
    and for cases without a result; warnings where there is no verdict. `cases` is the case file, relative to the
    repository.

    Of each kind there are `limit` at most; a last one says how many more there are.
    """
    left_out = dict.fromkeys(("error", "warning"), 0)
    room = dict.fromkeys(left_out, limit)
    for record in report_text.read(results):
        if record.is_good:
            continue
        level = "error" if record.is_wrong or record.error is not None else "warning"
        if room[level]:
            room[level] -= 1
            yield _command(level, record, str(cases))
        else:
            left_out[level] += 1
    more = [f"{count} more {level}{'s' if count > 1 else ''}" for level, count in left_out.items() if count]
    if more:
        yield f"::notice title=gradoracle::{' and '.join(more)}; the results file has them all"


def print_all(results: Results, *, cases: str | Path = "", limit: int = SHOWN) -> None:
    """Prints `annotations` to stdout."""
    for line in annotations(results, cases=cases, limit=limit):
        click.echo(line)


def _command(level: str, record: Record, cases: str) -> str:
    properties = {"file": cases, "line": str(record.line)} if cases else {}
    properties["title"] = f"{record.outcome} {report_text.one_line(record.id)}"
    message = report_text.headline(record) or record.outcome
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{level} {given}::{_data(message)}"


def _data(text: str) -> str:
    """Percent signs first, so that they are not escaped twice."""
    return whole(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

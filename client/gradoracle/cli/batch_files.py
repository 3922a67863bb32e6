"""The files that a batch names: told apart and tried before it runs, written after."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradoracle.cli import distinct, failures, output
from gradoracle.cli.batch_options import BatchOptions
from gradoracle.cli.failures import InputError

if TYPE_CHECKING:
    from gradoracle.batch.results import ResultsFile


@contextlib.contextmanager
def used(what: str) -> Iterator[None]:
    """Turns an error of the system into one that names the argument."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: expected a file that can be used, got: {error.strerror or error}") from error


# ---- Before


def check(cases: str, out: Path, options: BatchOptions) -> None:
    """Whether all files are different ones, and the reports can be written. Raises InputError, and changes none."""
    from gradoracle.batch import report_text

    named = [("CASES", _cases(cases)), *_results(out), *_reports(options)]
    distinct.check((one, other) for one, other in itertools.combinations(named, 2) if one[0] != other[0])
    for flag, path in _reports(options):
        try:
            report_text.check_writable(path)
        except OSError as error:
            raise InputError(
                f"{flag} {path}: expected a file that can be written, got: {error.strerror or error}; nothing was "
                f"sent, and {path.absolute().parent} must be a folder that can be written to"
            ) from error


def _cases(cases: str) -> Path:
    from gradoracle.batch import case_files

    return Path("/dev/stdin") if cases == "-" else case_files.path_of(cases)


def _results(out: Path) -> list[tuple[str, Path]]:
    """The results file, and where its lines are until it is complete."""
    from gradoracle.batch.earlier import lines_of

    return [("--out", path) for path in dict.fromkeys((out, lines_of(out)))]


def _reports(options: BatchOptions) -> list[tuple[str, Path]]:
    given = (("--report", options.report), ("--junit", options.junit), ("--json-summary", options.json_summary))
    return [(flag, path) for flag, path in given if path is not None]


# ---- After


def write(results: ResultsFile, options: BatchOptions, cases: str) -> int:
    """Writes what was asked for beside the results. Returns an exit code: 0, or 2 where something was not written."""
    from gradoracle.batch import annotations, junit, report, summary

    name, allowed = Path(cases).name, options.allow_inconclusive
    writers: dict[str, Callable[[Path], object]] = {
        "--report": lambda path: report.write_report(results.records(), path, title=name),
        "--junit": lambda path: junit.write_junit(results.records(), path, name=name),
        "--json-summary": lambda path: summary.write_summary(results.records(), path, allow_inconclusive=allowed),
    }
    code = 0
    for flag, path in _reports(options):
        try:
            with used(f"{flag} {path}"):
                writers[flag](path)
        except InputError as error:
            code = failures.USAGE
            click.echo(f"error: {error.message}; the results are in {results.path}", err=True)
    if options.as_json:
        output.print_json(summary.summarise(results.records(), allow_inconclusive=allowed))
    if options.annotations:
        annotations.print_all(results.records(), cases=cases)
    return code

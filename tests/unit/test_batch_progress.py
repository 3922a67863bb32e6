"""Progress: what people see of a run, and what it amounts to."""

from __future__ import annotations

import io
import sys

import pytest
from batch_cases import erring, failing, input_report, passing, report

from gradoracle.batch import progress
from gradoracle.batch.progress import Progress, clock
from gradoracle.batch.records import Record
from gradoracle.batch.tally import Tally


def unsure() -> Record:
    return Record(id="u", line=1, method="check", report=report(input_report(verdict="INCONCLUSIVE")))


def kinked(*, inside: bool) -> Record:
    one = input_report(verdict="NON_DIFFERENTIABLE", kink=(0.0, 1.0), claim_inside=inside)
    return Record(id="k", line=1, method="check", report=report(one))


def tally(*records: Record) -> Tally:
    found = Tally()
    for record in records:
        found.add(record)
    return found


@pytest.mark.parametrize(
    ("records", "codes"),
    [
        ([passing("a")], (0, 0)),
        ([], (0, 0)),
        ([passing("a"), unsure()], (4, 0)),
        ([kinked(inside=True), unsure()], (4, 0)),
        ([kinked(inside=False), unsure()], (4, 1)),
        ([kinked(inside=False), erring("a")], (2, 1)),
        ([unsure(), erring("a")], (2, 2)),
        ([unsure(), erring("a"), erring("b", "WorkerCrashedError")], (3, 3)),
        ([unsure(), erring("b", "DeadlineExceededError"), failing("c")], (1, 1)),
    ],
)
def test_the_worst_decides_the_exit_code(records: list[Record], codes: tuple[int, int]) -> None:
    """A wrong gradient, then the service, then the input, then no verdict, which may be allowed; from lines too.

    Where it is allowed, a gradient outside the slopes of a kink is wrong.
    """
    found = tally(*records)
    from_lines = Tally()
    for record in records:
        from_lines.add_line(record.to_json())
    for one in (found, from_lines, found + Tally()):
        assert codes == (one.exit_code(), one.exit_code(allow_inconclusive=True))
        assert len(records) == one.total


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then a line with count, rate, remaining time and verdicts; nothing where quiet is asked for."""
    now = iter([float(10 * k) for k in range(1000)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Progress(10, 2) as shown:
        for record in (passing("a"), failing("b")):
            shown.add(record)
    lines = capsys.readouterr().err.splitlines()
    assert 2 == len(lines)
    assert lines[1].startswith("4/10 (")
    assert "/s, " in lines[1]
    assert lines[1].endswith(" left): 1 PASS, 1 FAIL")
    with Progress(10, 2, quiet=True) as shown:
        shown.add(passing("a"))
    assert "" == capsys.readouterr().err


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts by verdict, and sentences between."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(3, 1) as shown:
        shown.add(passing("a"))
        shown.say("the server is back [ok] :warning:")
        shown.add(failing("b"))
    text = screen.getvalue()
    assert "the server is back [ok] :warning:" in text
    assert "3/3" in text
    assert "1 PASS" in text
    assert "1 FAIL" in text


def test_the_summary_counts_what_was_there_before() -> None:
    """All results of the file, and the rate of this run."""
    shown = Progress(5, 2)
    shown.add(passing("a"))
    text = shown.summary(tally(passing("a"), failing("b"), failing("c")))
    assert text.startswith("3 of 5 cases (2 from before) in ")
    assert text.endswith(": 1 PASS, 2 FAIL")


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.21 s"), (65, "1:05"), (3723, "1:02:03")])
def test_times_for_people(seconds: float, text: str) -> None:
    """Seconds, minutes, hours."""
    assert text == clock(seconds)

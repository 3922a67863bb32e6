"""How far a run is: a bar on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradoracle.batch.records import Record
from gradoracle.batch.tally import OUTCOMES, Tally
from gradoracle.batch.text import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LINE_EVERY = 10.0  # seconds, without a terminal
_DRAWN_EVERY = 0.1  # seconds, on a terminal

_COLOURS = {"PASS": "green", "OK": "green", "FAIL": "red", "ERROR": "red", "NON_DETERMINISTIC": "magenta"}


class Progress:
    """Shows results as they come: how many of `total` (`done` before this run), rate, remaining time, counts."""

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self._total = total
        self._before = done
        self._tally = Tally()
        self._quiet = quiet
        self._started = time.monotonic()
        self._shown = self._started
        self._bar: Bar | None = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._before, counts="", rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()

    def add(self, record: Record) -> None:
        """There is another result."""
        self._tally.add(record)
        if self._quiet:
            return
        now = time.monotonic()
        if now - self._shown < (_LINE_EVERY if self._bar is None else _DRAWN_EVERY):
            return
        self._shown = now
        if self._bar is None:
            self.say(self.line())
        else:
            self._draw()

    def say(self, text: str) -> None:
        """A sentence between."""
        text = one_line(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, emoji=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Cases a second in this run."""
        return self._tally.total / max(time.monotonic() - self._started, 1e-9)

    def line(self) -> str:
        """How things stand."""
        completed = self._before + self._tally.total
        left = max(self._total - completed, 0)
        remaining = f", {clock(left / self.rate)} left" if left and self._tally.total else ""
        return f"{completed}/{self._total} ({self.rate:.3g}/s{remaining}): {self._tally}"

    def summary(self, tally: Tally) -> str:
        """How things came out, with the results from before in the tally."""
        took = clock(time.monotonic() - self._started)
        before = f" ({self._before} from before)" if self._before else ""
        count = f"{self._before + self._tally.total} of {self._total} cases{before}"
        return f"{count} in {took} ({self.rate:.3g}/s): {tally}"

    def _make_bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )

    def _draw(self) -> None:
        assert self._bar is not None  # noqa: S101  # only called where there is one
        counts = " ".join(
            f"[{_COLOURS.get(one, 'yellow')}]{self._tally.counts[one]} {one}[/]"
            for one in OUTCOMES
            if self._tally.counts[one]
        )
        self._bar.update(
            self._task,
            completed=self._before + self._tally.total,
            counts=counts,
            rate=f"{self.rate:.3g}/s",
            refresh=True,
        )


def clock(seconds: float) -> str:
    """A time for people: 3.2 s, 4:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Tells how far a trace is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int], None]
"""Called with what is being done ("capturing", "checking at the given point", …) and how many operators were seen."""

_PATIENCE = 2.0  # seconds before the first line of a trace that nobody listens to
_INTERVAL = 0.5  # seconds between calls
_EVERY = 256  # operators between looks at the clock


class Reporter:
    """Calls the caller's callback, or writes one line on a terminal if the trace takes more than two seconds."""

    def __init__(self, progress: Progress | None) -> None:
        self._stage = ""
        self._operators = 0
        self._written = False
        now = time.monotonic()
        self._progress: Progress | None
        if progress is not None:
            self._progress, self._next = progress, now
        elif sys.stderr is not None and sys.stderr.isatty():
            self._progress, self._next = self._write, now + _PATIENCE
        else:
            self._progress, self._next = None, now

    def stage(self, name: str) -> None:
        """The next thing has begun."""
        self._stage = name
        self._report(force=not self._written)

    def operator(self) -> None:
        """Another operator was recorded."""
        self._operators += 1
        if self._operators % _EVERY == 0:
            self._report()

    def close(self) -> None:
        """Ends the line on the terminal, if there is one."""
        if self._written:
            print(file=sys.stderr)
            self._written = False

    def _report(self, force: bool = False) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._next or (force and self._progress != self._write):
            self._next = now + _INTERVAL
            self._progress(self._stage, self._operators)

    def _write(self, stage: str, operators: int) -> None:
        self._written = True
        print(f"\rtracing: {stage}, {operators} operators so far\x1b[K", end="", file=sys.stderr, flush=True)

"""The results file: written so that a crash at any byte leaves a file that resumes.

A result is one line, handed to the system whole and at once. So what a crash can leave is full lines and, at the end, a
piece of one, which is cut off when the file is opened again; its case has no result then, and runs again. Parquet has
no such form, so a .parquet file is written at the end, from lines that are kept beside it until it is complete.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradoracle.batch import lines
from gradoracle.batch.earlier import lines_of
from gradoracle.batch.ids import Index
from gradoracle.batch.records import Record, read_results
from gradoracle.batch.tally import Tally
from gradoracle.errors import InvalidRequestError

_START = b'{"id":'


class ResultsFile:
    """A results file that is being written. Records come from any thread.

    `resume` goes on with what is there. Taken out are then, with `retry`, the errors, and results of cases that have
    changed since, as the cases that are `known` tell; what is no result of one of those stays, uncounted. Otherwise a
    file of that name is set aside as NAME.old, or NAME.old.2, … where that is there. Raises InvalidRequestError where
    the file is no results file, or another process writes it; OSError where it cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool, retry: bool = False, known: Index | None = None) -> None:
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        self.lines = lines_of(path)
        """Where the lines are."""
        self.done = Index()
        """The cases that have a result."""
        self.earlier = Tally()
        """Those results."""
        self.changed = 0
        """Results that were taken out because their cases have changed."""
        self.foreign = 0
        """Results of cases that are not known, which stay in the file and nowhere else."""
        self.set_aside: Path | None = None
        """What was there before, where it was not gone on with."""
        self._retry = retry
        self._known = known
        self._lock = threading.Lock()
        if self.is_parquet:
            from gradoracle.batch import parquet  # tells what is missing, before anything runs

            if resume and not self.lines.exists() and self.path.exists():
                parquet.to_lines(self.path, self.lines)
        self._file = self._open(resume)

    def _open(self, resume: bool) -> int:
        file = _locked(self.lines)
        try:
            if resume:
                if self._take_up(file):
                    self._rewrite()
                    os.close(file)
                    file = _locked(self.lines)
            elif os.fstat(file).st_size:
                self.set_aside = set_aside(self.lines)
                os.close(file)
                file = _locked(self.lines)
            if self.is_parquet and not resume and self.path.exists():
                self.set_aside = set_aside(self.path)
        except BaseException:
            os.close(file)
            raise
        self.done.freeze()
        return file

    def _take_up(self, file: int) -> int:
        """Notes what has a result, and cuts off what a crash left of a line. Returns how many lines are to go."""
        end = leaving = 0
        with open(file, "rb", closefd=False) as reader:
            for number, line in enumerate(reader, 1):
                if not line.endswith(b"\n"):
                    self._cut(file, line, number, end)
                    break
                end += len(line)
                if not line.strip():
                    continue
                document = self._document(line, number)
                changed = self._has_changed(document)
                self.changed += changed
                if changed or self._is_retried(document):
                    leaving += 1
                elif not self._is_known(document):
                    self.foreign += 1
                else:
                    self.done.add(document["id"], document.get("digest"))
                    self.earlier.add_line(document)
        return leaving

    def _is_known(self, document: dict[str, Any]) -> bool:
        return self._known is None or document["id"] in self._known

    def _has_changed(self, document: dict[str, Any]) -> bool:
        """Whether it is the result of what the case was before."""
        if self._known is None or not self._is_known(document):
            return False
        return not self._known.matches(document["id"], document.get("digest"))

    def _is_retried(self, document: dict[str, Any]) -> bool:
        return self._retry and "error" in document and self._is_known(document)

    def records(self) -> Iterator[Record]:
        """The results of known cases, from before and of this run."""
        for record in read_results(self.path):
            if self._known is None or record.id in self._known:
                yield record

    def _document(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            document: dict[str, Any] = lines.load(line)
            if isinstance(document["id"], str) and type(document["line"]) is int:
                return document
        except (ValueError, TypeError, KeyError):
            pass
        raise self._foreign(number, line)

    def _rewrite(self) -> None:
        """Takes out of the file what is to go, so that those cases run again."""
        draft = self.lines.with_name(f"{self.lines.name}.draft")
        with self.lines.open("rb") as old, draft.open("wb") as new:
            for line in filter(bytes.strip, old):
                document = lines.load(line)
                if not (self._has_changed(document) or self._is_retried(document)):
                    new.write(line)
            new.flush()
            os.fsync(new.fileno())
        draft.replace(self.lines)

    def _cut(self, file: int, rest: bytes, number: int, end: int) -> None:
        """Cuts off the last line, if it is the beginning of a result, or the zeros that a power failure leaves."""
        rest = rest.rstrip(b"\0")
        if rest[: len(_START)] != _START[: len(rest)]:
            raise self._foreign(number, rest)
        os.ftruncate(file, end)

    def _foreign(self, number: int, line: bytes) -> InvalidRequestError:
        shown = line[:60].decode(errors="replace").strip()
        return InvalidRequestError(
            f"{self.lines}, line {number}: expected a result, got {shown!r}; this is no results file, or a damaged "
            "one. Give another with --out, or start anew without --resume"
        )

    def write(self, record: Record) -> None:
        """Adds a record."""
        line = record.to_line()
        with self._lock:
            written = os.write(self._file, line)
            while written < len(line):  # a full disk tells so at the next attempt
                written += os.write(self._file, line[written:])

    def finish(self) -> None:
        """Makes the file complete and lets go of it."""
        if self._file < 0:
            return
        with self._lock:
            os.fsync(self._file)
            if self.is_parquet:
                from gradoracle.batch import parquet

                parquet.write(self.lines, self.path)
                self.lines.unlink()
            os.close(self._file)
            self._file = -1


def _locked(path: Path) -> int:
    """Opens a file to add to it. Raises InvalidRequestError where another process does."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise InvalidRequestError(
            f"{path}: another process writes it; give each run, and each shard, a file of its own"
        ) from error
    return file


def set_aside(path: Path) -> Path:
    """Gives a file a name that none has, and returns it."""
    names = itertools.chain([".old"], (f".old.{number}" for number in itertools.count(2)))
    old = next(one for one in (path.with_name(f"{path.name}{name}") for name in names) if not os.path.lexists(one))
    path.rename(old)
    return old

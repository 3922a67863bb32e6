"""The results file: written so that a crash at any byte leaves a file that resumes.

A result is one line, handed to the system whole and at once. So what a crash can leave is full lines and, at the end, a
piece of one, which is cut off when the file is opened again; its case has no result then, and runs again. Parquet has
no such form, so a .parquet file is written at the end, from lines that are kept beside it until it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

from gradoracle.batch import lines
from gradoracle.batch.ids import Ids
from gradoracle.batch.records import Record
from gradoracle.batch.tally import Tally
from gradoracle.errors import InvalidRequestError

_START = b'{"id":'


class ResultsFile:
    """A results file that is being written. Records come from any thread.

    `resume` goes on with what is there, with `retry` without the errors, which are taken out; otherwise a file of that
    name is set aside as NAME.old. Raises InvalidRequestError where the file is no results file, or another process
    writes it; OSError where it cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool, retry: bool = False) -> None:
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        self.lines = path.with_name(f"{path.name}.jsonl") if self.is_parquet else path
        """Where the lines are."""
        self.done = Ids()
        """The ids that have a result."""
        self.earlier = Tally()
        """Those results."""
        self._lock = threading.Lock()
        if self.is_parquet:
            from gradoracle.batch import parquet  # tells what is missing, before anything runs

            if resume and not self.lines.exists() and self.path.exists():
                parquet.to_lines(self.path, self.lines)
        self._file = self._open(resume, retry)

    def _open(self, resume: bool, retry: bool) -> int:
        file = _locked(self.lines)
        try:
            if resume:
                self._take_up(file)
                if retry:
                    self._drop_errors()
                    os.close(file)
                    file = _locked(self.lines)
            elif os.fstat(file).st_size:
                self.lines.replace(_old(self.lines))
                os.close(file)
                file = _locked(self.lines)
            if self.is_parquet and not resume:
                with contextlib.suppress(FileNotFoundError):
                    self.path.replace(_old(self.path))
        except BaseException:
            os.close(file)
            raise
        self.done.freeze()
        return file

    def _take_up(self, file: int) -> None:
        """Notes what has a result, and cuts off what a crash left of a line."""
        end = 0
        with open(file, "rb", closefd=False) as reader:
            for number, line in enumerate(reader, 1):
                if not line.endswith(b"\n"):
                    self._cut(file, line, number, end)
                    break
                end += len(line)
                if line.strip():
                    self._note(self._document(line, number))

    def _note(self, document: dict[str, Any]) -> None:
        self.done.add(document["id"])
        self.earlier.add_line(document)

    def _document(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            document: dict[str, Any] = lines.load(line)
            if isinstance(document["id"], str) and type(document["line"]) is int:
                return document
        except (ValueError, TypeError, KeyError):
            pass
        raise self._foreign(number, line)

    def _drop_errors(self) -> None:
        """Takes the errors out of the file, so that their cases run again."""
        self.done, self.earlier = Ids(), Tally()
        draft = self.lines.with_name(f"{self.lines.name}.draft")
        with self.lines.open("rb") as old, draft.open("wb") as new:
            for line in filter(bytes.strip, old):
                document = lines.load(line)
                if "error" not in document:
                    self._note(document)
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


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")

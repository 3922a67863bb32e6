"""Files of cases, read one case at a time and any number of times."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import IO, cast

from gradoracle.batch import cases, lines, protobuf
from gradoracle.batch.arrays import CaseError
from gradoracle.batch.cases import Case

FORMATS = ("jsonl", "protobuf")
_PROTOBUF = (".pb", ".binpb", ".protobuf", ".pbstream")


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """One place in a file of cases: a case, or why there is none."""

    id: str
    line: int
    case: Case | None = None
    error: CaseError | None = None
    digest: str | None = None
    """Of what stands there; None where that cannot be told apart from the rest of the file."""


class CaseFile:
    """A file of cases: JSON lines, or length-delimited protobuf; either may be compressed (.gz).

    `source` is a path; "-" for what comes on stdin, which is put into a temporary file first; or "corpus:float64", a
    file of cases that comes with gradoracle. `form` is one of FORMATS; without it the suffix tells. Raises OSError
    where there is no such file.
    """

    def __init__(self, source: str, form: str | None = None) -> None:
        self._path = None if source == "-" else path_of(source)
        self.name = source if self._path else "stdin"
        self.base = self._path.parent if self._path else Path()
        suffixes = [one for one in (self._path.suffixes if self._path else ()) if one != ".gz"]
        self.form = form or ("protobuf" if suffixes and suffixes[-1] in _PROTOBUF else "jsonl")
        self._spooled: IO[bytes] | None = None
        if self._path is None:
            self._spooled = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object
            shutil.copyfileobj(sys.stdin.buffer, self._spooled)
        else:
            self._path.open("rb").close()

    def close(self) -> None:
        """Lets go of what came on stdin."""
        if self._spooled is not None:
            self._spooled.close()

    def entries(self) -> Iterator[Entry]:
        """Every case, in order. Raises OSError where the file cannot be read to its end."""
        if self._spooled is not None:
            self._spooled.seek(0)
            yield from self._entries(self._spooled)
            return
        assert self._path is not None  # noqa: S101  # it is one or the other
        with self._path.open("rb") as file:
            if self._path.suffix != ".gz":
                yield from self._entries(file)
                return
            with gzip.open(file) as expanded:
                yield from self._entries(cast("IO[bytes]", expanded))

    def _entries(self, file: IO[bytes]) -> Iterator[Entry]:
        if self.form == "protobuf":
            for place, found in protobuf.read(file):
                if isinstance(found, Case):
                    yield Entry(found.id, place, case=found, digest=found.digest)
                else:
                    yield Entry(f"line {place}", place, error=found)
            return
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                case = cases.parse(raw, line)
            except CaseError as error:
                yield Entry(cases.id_of(raw, line), line, error=error, digest=lines.digest(raw.strip()))
            else:
                yield Entry(case.id, line, case=case, digest=case.digest)


def path_of(source: str) -> Path:
    """The file that a `source` names, which may be one of this package."""
    kind, colon, name = source.partition(":")
    if kind == "corpus" and colon and not Path(source).exists():
        return Path(str(resources.files("gradoracle").joinpath(f"corpus/{name}.jsonl.gz")))
    return Path(source)

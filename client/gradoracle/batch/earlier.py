"""What a results file has from before, read without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gradoracle.batch import lines
from gradoracle.batch.ids import Index


def lines_of(path: Path) -> Path:
    """Where the lines of a results file are: in itself, or, of a Parquet file that is not complete, beside it."""
    return path.with_name(f"{path.name}.jsonl") if path.suffix == ".parquet" else path


def index(path: Path, *, errors: bool = True) -> Index:
    """The cases that have a result there, without `errors` only those whose result is none.

    What is no result is passed over: who goes on with the file tells. Raises OSError where it cannot be read.
    """
    found = Index()
    for line in _lines(path):
        try:
            document = lines.load(line)
            if errors or "error" not in document:
                found.add(document["id"], document.get("digest"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    found.freeze()
    return found


def _lines(path: Path) -> Iterator[bytes]:
    there = lines_of(path)
    if there.is_file():
        with there.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    elif path.suffix == ".parquet" and path.is_file():
        from gradoracle.batch import parquet

        try:
            yield from map(str.encode, parquet.record_lines(path))
        except ValueError:
            return

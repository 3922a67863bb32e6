"""Results as Parquet: columns to query, and each record whole, as its line, in the column `record`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradoracle.batch.lines import dump, load
from gradoracle.batch.records import Record
from gradoracle.errors import InvalidRequestError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise InvalidRequestError(
        "Parquet files need pyarrow, which is not installed; install gradoracle[parquet], or name a .jsonl file"
    ) from error

_ROWS = 1000  # of a group; so many are held in memory


def _schema() -> Any:
    text, real = pa.string(), pa.float64()
    return pa.schema(
        [
            ("id", text),
            ("line", pa.int64()),
            ("method", text),
            ("outcome", text),
            ("verdict", text),
            ("labels", pa.map_(text, text)),
            ("device", text),
            ("diagnosis", text),
            ("max_error", real),
            ("error_bound", real),
            ("detection_power", real),
            ("evaluations", pa.int64()),
            ("seconds", real),
            ("queue_seconds", real),
            ("error_type", text),
            ("error_reason", text),
            ("error_message", text),
            ("record", text),
        ]
    )


def _row(line: bytes) -> dict[str, Any]:
    document = load(line)
    if b"\\ud" in line:  # perhaps half a surrogate pair, which a column of texts cannot hold
        line = dump(document)
        document = load(line)
    record = Record.from_json(document)
    report, timing, fault = record.report, record.timing, record.error
    inputs = list(report.inputs.values()) if report else []
    worst = max(inputs, key=lambda one: one.max_error, default=None)
    return {
        "id": record.id,
        "line": record.line,
        "method": record.method,
        "outcome": record.outcome,
        "verdict": str(report.verdict) if report else None,
        "labels": list(record.labels.items()),
        "device": record.device,
        "diagnosis": next((str(one.diagnosis) for one in inputs if one.diagnosis), None),
        "max_error": worst.max_error if worst else None,
        "error_bound": worst.error_bound if worst else None,
        "detection_power": report.detection_power if report else None,
        "evaluations": report.evaluations if report else None,
        "seconds": timing.total if timing else None,
        "queue_seconds": timing.queue if timing else None,
        "error_type": fault.type if fault else None,
        "error_reason": fault.reason if fault else None,
        "error_message": fault.message if fault else None,
        "record": line.decode().rstrip("\n"),
    }


def write(lines: Path, path: Path) -> None:
    """Makes a Parquet file of a file of lines; it appears under its name when it is complete."""
    draft = path.with_name(f"{path.name}.draft")
    with lines.open("rb") as file, pq.ParquetWriter(draft, _schema(), compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for line in file:
            if line.strip():
                rows.append(_row(line))
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, _schema()))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, _schema()))
    _sync(draft)
    draft.replace(path)


def record_lines(path: Path) -> Iterator[str]:
    """The records of a file, each as the line that it was. Raises ValueError where it is none of results."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=["record"]):
                yield from batch.column("record").to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path}: expected a Parquet file of results: {error}") from error


def read(path: Path) -> Iterator[Record]:
    """The records of a file. Raises ValueError where it is none of results."""
    for line in record_lines(path):
        yield Record.from_json(load(line.encode()))


def to_lines(path: Path, lines: Path) -> None:
    """Makes a file of lines of a Parquet file, to go on with; it appears under its name when it is complete."""
    draft = lines.with_name(f"{lines.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        for line in record_lines(path):
            file.write(f"{line}\n")
    _sync(draft)
    draft.replace(lines)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

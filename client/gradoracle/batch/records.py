"""One result of a batch: what a line of a results file holds.

A line is one JSON object. What does not apply is left out; what JSON cannot say is written as the command line's --json
writes it: NaN and infinities as the strings "NaN", "Infinity" and "-Infinity", a complex number as [real, imaginary].

    id              the case's id; of a line that has none, or is broken, "line 17"
    line            where the case stood in its file, counted from 1 (of a protobuf file: the how manieth message)
    digest          of what the case said, so that --resume runs a case again that has changed; older files have none
    method          "check", "vjp", …; left out where the line could not be read
    labels          texts by name, as the case gave them: {"operator": "aten.mul.Tensor", "dtype": "float32"}
    device          the device that the case asked for
    verdict         of a check: "PASS", "FAIL", "INCONCLUSIVE", "NON_DIFFERENTIABLE" or "NON_DETERMINISTIC"
    inputs          of a check, by input: verdict, diagnosis, factor, max_error, error_bound, kink, claim_inside,
                    explanation, detection_power, worst: [{index, claimed, reference, numerical, error, error_bound}],
                    errors: {shape, cells}, see `heat`
    detection_power, evaluations, ladder, opinions    of a check, as in CheckReport
    outputs, gradients, tangents, jacobian, hessian, products, values
                    what other methods gave, by name; of pairs by name and name: {shape, dtype, data}, or norm instead
                    of data where the tensor is large; null where torch's gradient is None. `values` is what `inspect`
                    tells
    timing          seconds of the server by phase, and their sum as "total"
    packed          the number of cases that shared one request; the timing is this case's share
    error           of a case that failed: {type, reason, message, node, line, field}; such a line has no verdict
    graph           {"expression": "…"}, {"graph": the proto's JSON} or {"graph_file": path}, for who draws it; left out
                    where it is large
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradoracle import dtypes
from gradoracle.batch import lines
from gradoracle.batch.record_json import fields, of_report, plain, report
from gradoracle.checks import CheckReport, Verdict
from gradoracle.results import PHASES, Timing
from gradoracle.tensors import Array

GROUPS = ("outputs", "gradients", "tangents", "jacobian", "hessian", "products")
"""The fields of a result that hold tensors."""

_CHARACTERS = 1 << 16  # of a graph; a larger one is left out of the results


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor among the results."""

    shape: tuple[int, ...]
    """Sizes."""
    dtype: str
    """torch's name of it."""
    data: Any = None
    """Nested numbers, as JSON has them; None where the tensor was too large to keep."""
    norm: float | None = None
    """Without data: the square root of the sum of the squares of the elements, in double precision, or NaN."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Why a case has no result."""

    type: str
    """The exception's class, such as "ComputationError"."""
    reason: str
    """The service's ErrorReason, such as "COMPUTATION_FAILED"; of lines and files that cannot be read, "BAD_CASE"."""
    message: str
    """Location, expected, got."""
    node: str | None = None
    """The node of the graph that is at fault."""
    line: int | None = None
    """The line of the case file that is at fault."""
    field: str | None = None
    """The field of the case or of the request that is at fault."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """One result. The module's docstring tells its form as a line."""

    id: str
    """The case's id, unique in its file."""
    line: int
    """Where the case stood in its file, counted from 1."""
    digest: str | None = None
    """Of what the case said, or None where that is not known."""
    method: str | None = None
    """The client's name of the method, or None where the case could not be read."""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the case said about itself."""
    device: str | None = None
    """The device that the case asked for."""
    report: CheckReport | None = None
    """Of a check. Its `errors` arrays are heat maps: two axes, at most `CELLS` long."""
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Of a check: the shapes of the inputs that have a heat map."""
    tensors: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By group of `GROUPS`, then by name: a TensorRecord, None, or (jacobian, hessian) those by a second name."""
    values: dict[str, Any] | None = None
    """Of inspect: shape, dtype, … by value."""
    timing: Timing | None = None
    """Seconds of the server by phase."""
    packed: int | None = None
    """How many cases shared the request; None where it had its own."""
    error: Fault | None = None
    """Why there is no result."""
    graph: dict[str, Any] | None = None
    """{"expression": …}, {"graph": …} or {"graph_file": …}."""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of a check."""
        return None if self.report is None else self.report.verdict

    @property
    def outcome(self) -> str:
        """In one word: the verdict of a check, "OK" for other results, "ERROR" where there is none."""
        if self.error is not None:
            return "ERROR"
        return "OK" if self.report is None else str(self.report.verdict)

    @property
    def is_good(self) -> bool:
        """Whether nothing is to be said about it."""
        return self.outcome in ("PASS", "OK")

    @property
    def is_wrong(self) -> bool:
        """Whether it is a check that shows a gradient to be wrong, by its verdict or at a kink."""
        return self.report is not None and self.report.wrong

    def to_json(self) -> dict[str, Any]:
        """The line, as what the json module writes."""
        document: dict[str, Any] = {"id": self.id, "line": self.line}
        for name in ("digest", "method", "labels", "device"):
            if one := getattr(self, name):
                document[name] = one
        if self.report is not None:
            document |= of_report(self.report, self.shapes)
        for group, found in self.tensors.items():
            document[group] = {name: _of_tensor(one) for name, one in found.items()}
        if self.timing is not None:
            spent = {phase: getattr(self.timing, phase) for phase in PHASES}
            document["timing"] = {**spent, "total": sum(spent.values())}
        if self.error is not None:
            document["error"] = {key: value for key, value in fields(self.error).items() if value is not None}
        for name, rest in (("values", self.values), ("packed", self.packed), ("graph", self.graph)):
            if rest is not None:
                document[name] = rest
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Record:
        """The record of a line. Raises ValueError where it is none."""
        try:
            return _record(document)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"expected a result, got {json.dumps(document)[:200]} ({error!r})") from error

    def to_line(self) -> bytes:
        """The line itself, with its end."""
        return lines.dump(self.to_json())


def read_results(path: str | Path) -> Iterator[Record]:
    """The records of a results file, one after another; `.parquet` files need gradoracle[parquet].

    What a crash left of a last line is passed over. Raises ValueError, with the line's number, where another line is no
    result.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        from gradoracle.batch import parquet

        yield from parquet.read(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if not line.strip():
                continue
            try:
                yield Record.from_json(lines.load(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error


# ---- Parts


def tensor_record(array: Array, *, keep: int) -> TensorRecord:
    """The record of an array: its elements where they are at most `keep`, else its norm."""
    name = dtypes.NAMES[dtypes.FROM_NUMPY[array.dtype]]
    if array.size <= keep:
        return TensorRecord(array.shape, name, _nested(array))
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return TensorRecord(array.shape, name, norm=float(np.linalg.norm(wide)))


def _nested(array: Array) -> Any:
    """The elements as nested numbers that JSON can say."""
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    elif array.dtype.kind == "V":  # the types of ml_dtypes, each of which fits into a double
        array = array.astype(np.float64)
    nested = array.tolist()
    return _plain_all(nested) if array.dtype.kind == "f" and not np.isfinite(array).all() else nested


def _plain_all(nested: Any) -> Any:
    return [_plain_all(one) for one in nested] if isinstance(nested, list) else plain(nested)


def graph_record(graph: Mapping[str, Any]) -> dict[str, Any] | None:
    """The graph of a case as its record keeps it, or None where it is large."""
    message = graph.get("graph")
    if message is None:
        size = sum(map(len, graph.values()))
    elif len(message.get("nodes", ())) > _CHARACTERS // 100:  # a node takes more than that
        return None
    else:
        size = len(json.dumps(message))
    return dict(graph) if size <= _CHARACTERS else None


def _of_tensor(one: Any) -> Any:
    if isinstance(one, TensorRecord):
        kept = {"norm": plain(one.norm)} if one.data is None else {"data": one.data}
        return {"shape": list(one.shape), "dtype": one.dtype, **kept}
    return None if one is None else {name: _of_tensor(inner) for name, inner in one.items()}


def _record(document: Mapping[str, Any]) -> Record:
    timing = document.get("timing")
    error = document.get("error")
    spent = Timing(**{phase: timing[phase] for phase in PHASES}) if timing else None
    inputs = document.get("inputs", {})
    return Record(
        id=document["id"],
        line=document["line"],
        digest=document.get("digest"),
        method=document.get("method"),
        labels=dict(document.get("labels", {})),
        device=document.get("device"),
        report=report(document, spent or Timing()) if "verdict" in document else None,
        shapes={name: tuple(one["errors"]["shape"]) for name, one in inputs.items() if "errors" in one},
        tensors={
            group: {name: _tensor(one) for name, one in document[group].items()}
            for group in GROUPS
            if group in document
        },
        values=document.get("values"),
        timing=spent,
        packed=document.get("packed"),
        error=Fault(**error) if error else None,
        graph=document.get("graph"),
    )


def _tensor(one: Any) -> Any:
    if one is None:
        return None
    if "dtype" in one and isinstance(one["dtype"], str):
        norm = float(one["norm"]) if "norm" in one else None
        return TensorRecord(tuple(one["shape"]), one["dtype"], one.get("data"), norm)
    return {name: _tensor(inner) for name, inner in one.items()}

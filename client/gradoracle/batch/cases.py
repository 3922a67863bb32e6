"""Cases: one line of a file of cases, as CONTRACT's "Batch files" has it, to one request.

{"id": "softmax", "expression": "softmax(x, dim=-1)", "inputs": {"x": {"random": "normal", "shape": [8, 64]}}}

id                                       default: "line 17"
graph | expression | graph_file          the proto's JSON, an expression, or a .json file (else the proto's bytes)
method                                   default: "check"
inputs, cotangents, claimed, tangents, vectors      arrays by name (`arrays`), as the method of Client takes them
options                                  the method's other arguments: device, seed, wrt, retain, batched, of, order, …
labels                                   texts by name, which come back in the result, for --select and for reports
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from gradoracle import dtypes, requests
from gradoracle.batch import arrays, lines
from gradoracle.batch.array_files import ArrayFileError, ArrayFiles
from gradoracle.batch.arrays import CaseError
from gradoracle.graph import Graph
from gradoracle.requests import Request

METHODS: Mapping[str, Callable[..., Request[Any]]] = {
    "check": requests.check,
    "vjp": requests.vjp,
    "evaluate": requests.evaluate,
    "jvp": requests.jvp,
    "jacobian": requests.jacobian,
    "hessian": requests.hessian,
    "hvp": requests.hvp,
    "inspect": requests.inspect,
}
"""What makes a request, by the client's name of the method."""

_ARRAYS = ("cotangents", "claimed", "tangents", "vectors")  # beside the inputs
_GRAPHS = ("graph", "expression", "graph_file")
_FIELDS = ("id", *_GRAPHS, "method", "inputs", *_ARRAYS, "options", "labels")
_NAMES = ("wrt", "retain", "batched", "of")  # options that are one name or several
_KINDS: Mapping[str, tuple[type, str]] = {
    "device": (str, "a device"),
    "seed": (int, "a whole number"),
    "order": (int, "1 or 2"),
    "mode": (str, "'probe' or 'full'"),
    "forward_mode": (bool, "true or false"),
    "batched_gradients": (bool, "true or false"),
}
_GRAPHS_KEPT = 1024


@dataclasses.dataclass(slots=True, eq=False)
class Case:
    """One case, whose arrays and graph are not read yet."""

    id: str
    """Unique in its file."""
    line: int
    """Where it stands there, counted from 1."""
    method: str
    """The client's name of the method."""
    labels: dict[str, str]
    """What the case says about itself."""
    options: dict[str, Any]
    """The method's other arguments."""
    graph: Mapping[str, Any]
    """{"graph": …}, {"expression": …} or {"graph_file": …}."""
    arrays: Mapping[str, Any]
    """The arrays by field, as the case has them."""
    request: Request[Any] | None = None
    """The request, where the case came with one: of a protobuf file."""
    digest: str | None = None
    """Of all that the case says in its file; of files that it names, the names alone."""

    @property
    def device(self) -> str | None:
        """The device that it asks for."""
        device: str | None = self.options.get("device")
        return device


# ---- Lines


def parse(raw: bytes, line: int) -> Case:
    """The case of a line of JSON. Raises CaseError, with `line`, where it is none."""
    try:
        return _parsed(raw, line)
    except CaseError as error:
        error.line = line
        raise


def id_of(raw: bytes, line: int) -> str:
    """The id of a line, whatever else is wrong with it."""
    try:
        return _id(lines.load(raw, strict=True), line)
    except (ValueError, RecursionError):
        return f"line {line}"


def _id(document: Any, line: int) -> str:
    found = document.get("id") if isinstance(document, Mapping) else None
    if isinstance(found, str) and found:
        return found
    return str(found) if type(found) is int else f"line {line}"


def _parsed(raw: bytes, line: int) -> Case:
    try:
        document = lines.load(raw, strict=True)
    except (ValueError, RecursionError) as error:
        shown = raw.decode(errors="replace").strip()
        shown = shown if len(shown) <= 80 else f"{shown[:60]} … {shown[-20:]}"
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise CaseError(f"line {line}: expected a JSON object, got {shown!r} ({reason})") from error
    if not isinstance(document, dict):
        raise CaseError(f"line {line}: expected a JSON object, got {str(document)[:80]}")
    for key in document:
        if key not in _FIELDS:
            hint = dtypes.suggestion(dtypes.nearest(key, _FIELDS)) or f"; a case has {', '.join(_FIELDS)}"
            raise CaseError(f'line {line}: no field "{key}" in a case{hint}', field=key)
    if "id" in document and _id(document, line) != str(document["id"]):
        raise CaseError(f"line {line}: expected a text as id, got {json.dumps(document['id'])[:80]}", field="id")
    method = document.get("method", "check")
    if not isinstance(method, str) or method not in METHODS:
        hint = dtypes.suggestion(dtypes.nearest(str(method), METHODS))
        raise CaseError(f"line {line}: expected one of {', '.join(METHODS)} as method, got {method!r}{hint}")
    return Case(
        id=_id(document, line),
        line=line,
        method=method,
        labels=_labels(document.get("labels", {}), line),
        options=_options(document.get("options", {}), method, line),
        graph=_graph(document, line),
        arrays=_arrays(document, method, line),
        digest=lines.digest(lines.canonical(document)),
    )


def _labels(document: Any, line: int) -> dict[str, str]:
    if not isinstance(document, Mapping):
        raise CaseError(f"line {line}: expected texts by name as labels, got {json.dumps(document)[:80]}")
    return {name: one if isinstance(one, str) else json.dumps(one) for name, one in document.items()}


def _graph(document: Mapping[str, Any], line: int) -> dict[str, Any]:
    found = {key: document[key] for key in _GRAPHS if key in document}
    if len(found) != 1:
        got = " and ".join(found) or "none of them"
        raise CaseError(f"line {line}: expected one of {', '.join(_GRAPHS)}, got {got}", field="graph")
    ((key, value),) = found.items()
    if not isinstance(value, dict if key == "graph" else str):
        expected = "the proto's JSON" if key == "graph" else "a text"
        raise CaseError(f"line {line}: expected {expected} as {key}, got {json.dumps(value)[:80]}", field=key)
    return found


def _arrays(document: Mapping[str, Any], method: str, line: int) -> dict[str, Any]:
    found = {"inputs": document.get("inputs", {})}
    for key in _ARRAYS:
        if document.get(key) is not None:
            if key not in _parameters(method):
                raise CaseError(f"line {line}: {method} takes no {key}", field=key)
            found[key] = document[key]
    return found


@functools.cache
def _parameters(method: str) -> tuple[str, ...]:
    return tuple(inspect.signature(METHODS[method]).parameters)


def _options(document: Any, method: str, line: int) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise CaseError(f"line {line}: expected an object as options, got {json.dumps(document)[:80]}", field="options")
    for key, value in document.items():
        known = [name for name in _parameters(method) if name in _KINDS or name in _NAMES]
        if key not in known:
            hint = dtypes.suggestion(dtypes.nearest(key, known)) or f"; there are {', '.join(known)}"
            raise CaseError(f'line {line}: no option "{key}" of {method}{hint}', field=f"options.{key}")
        if key in _NAMES:
            good = isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
            expected = "a name or a list of names"
        else:
            kind, expected = _KINDS[key]
            good = type(value) is kind
        if value is not None and not good:
            raise CaseError(
                f"line {line}: expected {expected} as options.{key}, got {json.dumps(value)[:80]}",
                field=f"options.{key}",
            )
    return {key: value for key, value in document.items() if value is not None}


# ---- Requests


class Requests:
    """Makes the requests of cases; keeps the graphs that come again."""

    def __init__(self, files: ArrayFiles) -> None:
        self._files = files
        self._expression = functools.lru_cache(maxsize=_GRAPHS_KEPT)(Graph.parse)
        self._json = functools.lru_cache(maxsize=_GRAPHS_KEPT)(Graph.from_json)
        self._file = functools.lru_cache(maxsize=_GRAPHS_KEPT // 8)(self._from_file)

    def make(self, case: Case) -> Request[Any]:
        """The request of a case. Raises GradOracleError, CaseError among them, or TypeError where there is none."""
        if case.request is not None:
            return case.request
        try:
            graph = self.graph(case)
            given = {field: arrays.arrays(one, field, self._files) for field, one in case.arrays.items()}
        except ArrayFileError as error:
            raise CaseError(str(error)) from error
        return METHODS[case.method](graph, given.pop("inputs"), **given, **case.options)

    def graph(self, case: Case) -> Graph:
        """The graph of a case, which nobody may change. Raises GradOracleError or ArrayFileError."""
        source = case.graph
        if "expression" in source:
            return self._expression(source["expression"])
        if "graph" in source:
            return self._json(json.dumps(source["graph"]))
        return self._file(source["graph_file"])

    def _from_file(self, text: str) -> Graph:
        path = self._files.path(text)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArrayFileError(f"{path}: expected a readable file, got: {error.strerror}") from error
        return Graph.from_json(data) if path.suffix == ".json" else Graph.from_bytes(data)

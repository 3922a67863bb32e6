"""A check's report as a part of a result line, and back.

It comes back as the CheckReport that it was, but for the errors of an input's elements, which become a heat map.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradoracle.checks import CheckReport, Diagnosis, InputReport, Mismatch, Number, Opinion, Rung, Verdict
from gradoracle.results import Timing
from gradoracle.tensors import Array

CELLS = 64
"""Of a heat map along each side, at most."""


def heat(errors: Array) -> Array:
    """The errors of an input's elements as a map: the last axis across, the others down, at most CELLS each way.

    A cell is the largest of the elements that it covers; NaN counts as infinite.
    """
    matrix = np.asarray(errors, np.float64)
    matrix = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim > 1 else matrix.reshape(1, -1)
    matrix = np.where(np.isnan(matrix), np.inf, matrix)
    for axis, size in enumerate(matrix.shape):
        if size > CELLS:
            starts = np.array([part[0] for part in np.array_split(np.arange(size), CELLS)])
            matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return matrix


def plain(value: Any) -> Any:
    """One number as JSON has it."""
    if type(value) is float and math.isfinite(value):  # nearly all, of thousands of cases
        return value
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def fields(one: Any) -> dict[str, Any]:
    """A dataclass by field. Its own asdict copies deeply, which costs."""
    return {name: getattr(one, name) for name in _names(type(one))}  # type: ignore[arg-type]  # a class is hashable


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def of_report(report: CheckReport, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "verdict": str(report.verdict),
        "inputs": {name: _of_input(one, shapes.get(name)) for name, one in report.inputs.items()},
        "detection_power": plain(report.detection_power),
        "evaluations": report.evaluations,
        "ladder": [[plain(one.step), plain(one.error), plain(one.error_bound)] for one in report.ladder],
        "opinions": [
            {
                "name": one.name,
                "verdict": str(one.verdict),
                "error": plain(one.error),
                "error_bound": plain(one.error_bound),
                "explanation": one.explanation,
            }
            for one in report.opinions
        ],
    }


def _of_input(one: InputReport, shape: tuple[int, ...] | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "verdict": str(one.verdict),
        "max_error": plain(one.max_error),
        "error_bound": plain(one.error_bound),
        "detection_power": plain(one.detection_power),
        "explanation": one.explanation,
    }
    if one.diagnosis is not None:
        document["diagnosis"] = str(one.diagnosis)
    if one.factor is not None:
        document["factor"] = plain(one.factor)
    if one.kink is not None:
        document["kink"] = [plain(slope) for slope in one.kink]
    if one.claim_inside is not None:
        document["claim_inside"] = one.claim_inside
    if one.worst:
        document["worst"] = [
            {
                name: list(value) if name in _PLACES else plain(value)
                for name, value in fields(row).items()
                if name == "index" or value not in ("", ())
            }
            for row in one.worst
        ]
    if one.errors is not None and one.errors.size:
        cells = [[plain(cell) for cell in row] for row in heat(one.errors).tolist()]
        document["errors"] = {"shape": list(shape or one.errors.shape), "cells": cells}
    return document


# ---- From JSON


def _number(value: Any) -> Number:
    if isinstance(value, list):
        return complex(float(value[0]), float(value[1]))
    return float(value)


def report(document: Mapping[str, Any], timing: Timing) -> CheckReport:
    return CheckReport(
        verdict=Verdict(document["verdict"]),
        inputs={name: _input(name, one) for name, one in document["inputs"].items()},
        detection_power=float(document["detection_power"]),
        evaluations=document["evaluations"],
        ladder=[Rung(*map(float, rung)) for rung in document["ladder"]],
        opinions=[_opinion(one) for one in document["opinions"]],
        timing=timing,
        tag=document["id"],
    )


def _input(name: str, one: Mapping[str, Any]) -> InputReport:
    kink = one.get("kink")
    return InputReport(
        name=name,
        verdict=Verdict(one["verdict"]),
        worst=[_mismatch(row) for row in one.get("worst", ())],
        diagnosis=Diagnosis(one["diagnosis"]) if "diagnosis" in one else None,
        factor=float(one["factor"]) if "factor" in one else None,
        max_error=float(one["max_error"]),
        error_bound=float(one["error_bound"]),
        kink=(float(kink[0]), float(kink[1])) if kink else None,
        claim_inside=one.get("claim_inside"),
        explanation=one["explanation"],
        detection_power=float(one["detection_power"]),
        errors=np.array(_floats(one["errors"]["cells"])) if "errors" in one else None,
    )


_NUMBERS = ("claimed", "reference", "numerical")
_PLACES = ("index", "output_index")


def _mismatch(row: Mapping[str, Any]) -> Mismatch:
    found: dict[str, Any] = {name: _number(row[name]) for name in _NUMBERS}
    found |= {name: float(row[name]) for name in ("error", "error_bound")}
    found |= {name: tuple(row[name]) for name in _PLACES if name in row}
    return Mismatch(**found, **{name: value for name, value in row.items() if name not in found})


def _opinion(one: Mapping[str, Any]) -> Opinion:
    return Opinion(
        one["name"], Verdict(one["verdict"]), float(one["error"]), float(one["error_bound"]), one["explanation"]
    )


def _floats(rows: Iterable[Iterable[Any]]) -> list[list[float]]:
    return [[float(cell) for cell in row] for row in rows]

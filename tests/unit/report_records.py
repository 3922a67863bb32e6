"""Results of batches, made by hand, for tests of reports."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from gradoracle.batch.records import Record

LADDER = [[0.0625 / 2**k, 1e-4 / 4**k, 2e-4 / 4**k] for k in range(6)]

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!-- ' & \x00\x1b]"
"""Text that wants to be more than text."""


def checked(name: str, line: int, outcome: str = "PASS", *, inside: bool = True, **more: Any) -> Record:
    """A check of one input, x of shape (2, 3), with everything that a report may have.

    `inside`: at a kink, whether the gradient lies between the slopes.
    """
    one: dict[str, Any] = {
        "verdict": outcome,
        "max_error": 0.5 if outcome == "FAIL" else 1e-12,
        "error_bound": 1e-9,
        "detection_power": 1e-8 if outcome == "PASS" else 0.0,
        "explanation": "It is twice the right gradient." if outcome == "FAIL" else "It agrees.",
    }
    if outcome == "FAIL":
        one |= {"diagnosis": "SCALED", "factor": 2.0, "worst": [mismatch([1, 2], 1.0, 0.5)]}
        one["errors"] = {"shape": [2, 3], "cells": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]}
    if outcome == "NON_DIFFERENTIABLE":
        one |= {"kink": [0.0, 1.0], "claim_inside": inside}
    return Record.from_json(
        {
            "id": name,
            "line": line,
            "method": "check",
            "labels": {"operator": "aten.mul.Tensor", "dtype": "float64"},
            "verdict": outcome,
            "inputs": {"x": one},
            "detection_power": one["detection_power"],
            "evaluations": 51,
            "ladder": LADDER,
            "opinions": [
                {
                    "name": "linear_zero",
                    "verdict": "PASS",
                    "error": 0.0,
                    "error_bound": 1e-9,
                    "explanation": "0 gives 0",
                }
            ],
            "timing": timing(check=0.01 * line),
            "graph": {"expression": "sum(x * 2)"},
            **more,
        }
    )


def mismatch(index: list[int], claimed: Any, right: Any) -> dict[str, Any]:
    """A wrong element."""
    figures = {"claimed": claimed, "reference": right, "numerical": right, "error": 0.5, "error_bound": 1e-9}
    return {"index": index, **figures}


def failed(name: str, line: int, kind: str = "ComputationError", message: str = "torch raised", **more: Any) -> Record:
    """A case without a result."""
    error = {"type": kind, "reason": "COMPUTATION_FAILED", "message": message, "line": line, **more}
    return Record.from_json({"id": name, "line": line, "method": "check", "error": error})


def computed(name: str, line: int) -> Record:
    """A vjp."""
    tensor = {"shape": [2], "dtype": "float64", "norm": 5.0, "data": [3.0, 4.0]}
    return Record.from_json(
        {
            "id": name,
            "line": line,
            "method": "vjp",
            "outputs": {"out": tensor},
            "gradients": {"x": tensor, "y": None},
            "timing": timing(backward=0.002),
            "graph": {"expression": "x * y"},
        }
    )


def timing(**spent: float) -> dict[str, float]:
    """Seconds by phase."""
    phases = dict.fromkeys(("queue", "decode", "plan", "forward", "backward", "check", "encode"), 0.0)
    return {**phases, **spent, "total": sum(spent.values())}


def every_outcome() -> list[Record]:
    """One case an outcome, and a second one that passes."""
    return [
        checked("right", 1),
        checked("doubled", 2, "FAIL"),
        checked("at a kink", 3, "NON_DIFFERENTIABLE"),
        checked("too flat", 4, "INCONCLUSIVE"),
        checked("dropout", 5, "NON_DETERMINISTIC"),
        failed("mm", 6, message='node "matmul": shapes cannot be multiplied (2x3 and 4x3)', node="matmul"),
        computed("a vjp", 7),
        checked("right again", 8),
    ]


def many(count: int, *, seed: int = 0) -> Iterator[Record]:
    """A night's work: three in a hundred are not good."""
    chosen = random.Random(seed)  # noqa: S311  # no secrets
    operators = ("softmax.int", "cumsum.default", "matmul.default", "gather.default", "sin.default", "norm.Scalar")
    for line in range(1, count + 1):
        operator = chosen.choice(operators)
        outcome = chosen.choices(("PASS", "FAIL", "INCONCLUSIVE", "ERROR"), (97, 1, 1, 1))[0]
        name = f"{operator.split('.')[0]} {chosen.randint(1, 64)}x{chosen.randint(1, 64)} #{line}"
        labels = {"operator": f"aten.{operator}", "dtype": chosen.choice(("float32", "float64"))}
        if outcome == "ERROR":
            yield failed(name, line)
        else:
            graph = {"expression": f"sum(x * {line % 50})"}
            seconds = timing(check=chosen.lognormvariate(-4, 1))
            yield checked(name, line, outcome, labels=labels, graph=graph, timing=seconds)

"""What a check costs beside torch.autograd.gradcheck: `python tests/bench/check_speed.py [--json]`.

Wanted: at least 50 times faster than gradcheck's slow mode on a dense 2,000-to-2,000 function, 20 times on an
elementwise one, and never more than 3 times its fast mode on small functions; in full mode, which measures every
element of the Jacobian, 3 and 10 times faster than the slow mode. All in one run on one thread, the checkers taking
turns. A benchmark, not a test. Results are kept in check_bars.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

import check_cases
from bench.table import Row, at_least, at_most

import gradoracle as go
from gradoracle_server.engine.report import Mode

F64 = torch.float64


def functions() -> dict[str, tuple[Callable[..., Any], list[torch.Tensor], int, bool]]:
    """By name: a function, its inputs, how often it is timed, and whether it is a small one."""
    torch.manual_seed(0)
    weight = torch.randn(2000, 2000, dtype=F64) / 2000**0.5
    draw = torch.randn
    return {
        "tanh(W v), 2000 to 2000": (lambda v: torch.tanh(weight @ v), [draw(2000, dtype=F64)], 1, False),
        "tanh(v), 2000 elements": (torch.tanh, [draw(2000, dtype=F64)], 3, False),
        "tanh, 5x3": (torch.tanh, [draw(5, 3, dtype=F64)], 30, True),
        "tanh(x @ w), 5x3 3x4": (
            lambda x, w: torch.tanh(x @ w), [draw(5, 3, dtype=F64), draw(3, 4, dtype=F64)], 30, True,
        ),
        "log_softmax, 8x10": (lambda x: torch.log_softmax(x, -1), [draw(8, 10, dtype=F64)], 30, True),
        "softmax(x @ w).log().sum(), 20x30 30x10": (
            lambda x, w: torch.softmax(x @ w, -1).log().sum(), [draw(20, 30, dtype=F64), draw(30, 10, dtype=F64)], 10,
            True,
        ),
    }  # fmt: skip


def seconds(times: int, *calls: Callable[[], Any]) -> list[float]:
    """The median of each of some calls, which take turns, after one that does not count."""
    spent: list[list[float]] = [[] for _ in calls]
    for turn in range(times + 1):
        for call, its in zip(calls, spent, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                its.append(time.perf_counter() - start)
    return [statistics.median(its) for its in spent]


def measured(*, slow_large: bool = True) -> Iterator[dict[str, Any]]:
    """One row a function and mode, in seconds; gradcheck's slow mode on the largest takes 10 s, and may be left out."""
    for name, (function, inputs, times, small) in functions().items():
        if not (slow_large or small or times > 1):
            continue
        tracked = [one.clone().requires_grad_() for one in inputs]
        named = {f"x{place}": one for place, one in enumerate(inputs)}
        plan = check_cases.plan_of(function, named)  # a server has it from the first request with this graph
        report = check_cases.planned(plan, named)
        ours, fast = seconds(
            max(3, times),
            lambda: check_cases.planned(plan, named),  # noqa: B023 - called at once
            lambda: torch.autograd.gradcheck(function, tracked, fast_mode=True),  # noqa: B023
        )
        (slow,) = seconds(3 if small else 1, lambda: torch.autograd.gradcheck(function, tracked))  # noqa: B023
        probe = {
            "function": name,
            "mode": "probe",
            "verdict": report.verdict.name,
            "passes": report.evaluations,
            "ours": ours,
            "fast": fast,
            "slow": slow,
            "small": small,
        }
        yield probe
        if not small:
            report = check_cases.planned(plan, named, mode=Mode.FULL)
            (ours,) = seconds(1, lambda: check_cases.planned(plan, named, mode=Mode.FULL))  # noqa: B023
            full = {"mode": "full", "verdict": report.verdict.name, "passes": report.evaluations, "ours": ours}
            yield {**probe, **full}


class Kernel(torch.autograd.Function):
    """One of somebody's own, which nobody can batch."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return cotangent * torch.cos(x)


def exchanged() -> Iterator[Row]:
    """go.gradcheck where a test suite had torch's: the function is traced, and its graph judged by a private server; a
    kernel is judged as it is."""
    functions: dict[str, Callable[..., Any]] = {
        "sin of 64 elements": torch.sin,
        "a kernel of 64 elements": Kernel.apply,
    }
    for name, function in functions.items():
        x = torch.randn(64, dtype=F64, requires_grad=True)
        ours, slow = seconds(
            15,
            lambda: go.gradcheck(function, (x,)),  # noqa: B023 - called at once
            lambda: torch.autograd.gradcheck(function, (x,)),  # noqa: B023
        )
        beside = f"torch's gradcheck as it is by default, {slow * 1e3:.1f} ms"
        yield Row(f"go.gradcheck, {name}", slow / ours, "x faster", None, None, beside, f"ours {ours * 1e3:.2f} ms")


def rows(quick: bool) -> Iterator[Row]:
    """Large functions beside gradcheck's slow mode, small ones beside its fast mode."""
    torch.set_num_threads(1)
    wanted = {("probe", True): 50, ("probe", False): 20, ("full", True): 3, ("full", False): 10}  # by mode, and dense
    for row in measured(slow_large=not quick):
        name = f"check, {row['function']}, {row['mode']}"
        ours = f"ours {row['ours'] * 1e3:.2f} ms, {row['verdict']}"
        if row["small"]:
            beside = f"gradcheck's fast mode, {row['fast'] * 1e3:.2f} ms"
            yield Row(name, row["ours"] / row["fast"], "x", at_most(3), None, beside, ours)
        else:
            bound = wanted[row["mode"], "W" in row["function"]]
            beside = f"gradcheck's slow mode, {row['slow'] * 1e3:,.0f} ms"
            yield Row(name, row["slow"] / row["ours"], "x faster", at_least(bound), None, beside, ours)
    yield from exchanged()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(measured())
    if options.json:
        print(json.dumps(rows))
        return
    print(
        "| function | mode | verdict | passes | ours, ms | gradcheck fast, ms | slow, ms | ours / fast | slow / ours |"
    )
    print("| --- " * 9 + "|")
    for row in rows:
        ours, fast, slow = (1e3 * row[key] for key in ("ours", "fast", "slow"))
        print(
            f"| {row['function']} | {row['mode']} | {row['verdict']} | {row['passes']} "
            f"| {ours:.2f} | {fast:.2f} | {slow:.1f} | {ours / fast:.1f} | {slow / ours:.0f} |"
        )


if __name__ == "__main__":
    main()

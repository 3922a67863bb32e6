"""What checks say of functions whose values are noisier than rounding of their outputs explains.

    python tests/bench/check_noise.py [--seeds N]

Of each function, at N points: the verdicts on autograd's gradient, which is right, and on one that is half as large
again. Writes check_noise.md. A right gradient must not fail; that nothing can be told of it is no fault.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from check_cases import check

from gradoracle_server.engine.report import Verdict

Function = Callable[[torch.Tensor], torch.Tensor]

OUT = Path(__file__).with_suffix(".md")
SIZE = 5


def table(cells: int) -> Function:
    """A sine that is looked up among so many cells, and linear between."""
    grid = torch.linspace(-6, 6, cells + 1, dtype=torch.float64)
    values, width = grid.sin(), 12 / cells

    def looked_up(x: torch.Tensor) -> torch.Tensor:
        place = ((x.detach() + 6) / width).floor().long().clamp(0, cells - 1)
        left = values[place]
        return (left + (x - grid[place]) * (values[place + 1] - left) / width).sum()

    return looked_up


def entropy(x: torch.Tensor) -> torch.Tensor:
    """In which trigammas cancel."""
    found: torch.Tensor = torch.distributions.Beta(x.exp(), 1 + x.exp()).entropy()  # type: ignore[no-untyped-call]
    return found.sum()


FUNCTIONS: Mapping[str, Function] = {
    "sin(1e5 x)": lambda x: (1e5 * x).sin().sum(),
    "sin(1e6 x)": lambda x: (1e6 * x).sin().sum(),
    "sin(1e7 x)": lambda x: (1e7 * x).sin().sum(),
    "sin(1e8 x)": lambda x: (1e8 * x).sin().sum(),
    "sin(1e10 x)": lambda x: (1e10 * x).sin().sum(),
    "(x + 1e4)^2 - 1e8 - 2e4 x": lambda x: ((x + 1e4) ** 2 - 1e8 - 2e4 * x).sum(),
    "(x + 1e5)^2 - 1e10 - 2e5 x": lambda x: ((x + 1e5) ** 2 - 1e10 - 2e5 * x).sum(),
    "(x + 1e7)^2 - 1e14 - 2e7 x": lambda x: ((x + 1e7) ** 2 - 1e14 - 2e7 * x).sum(),
    "lgamma(x + 1e6) - lgamma(1e6)": lambda x: (
        torch.lgamma(x + 1e6) - torch.lgamma(torch.tensor(1e6, dtype=torch.float64))
    ).sum(),
    "(exp(1e-6 x) - 1) / 1e-6": lambda x: ((torch.exp(1e-6 * x) - 1) / 1e-6).sum(),
    "(exp(1e-10 x) - 1) / 1e-10": lambda x: ((torch.exp(1e-10 * x) - 1) / 1e-10).sum(),
    "(x + 1e-6 sin(1e6 x))^2": lambda x: (x + 1e-6 * (1e6 * x).sin()).square().sum(),
    "sin in float32 inside": lambda x: x.float().sin().double().sum(),
    "entropy of Beta(exp(x), 1 + exp(x))": entropy,
    "a sine looked up in 1e3 cells": table(1_000),
    "a sine looked up in 1e4 cells": table(10_000),
    "a sine looked up in 1e6 cells": table(1_000_000),
}


def verdicts(function: Function, seeds: int) -> tuple[Counter[Verdict], Counter[Verdict]]:
    """On the right gradient, and on the wrong one."""
    right: Counter[Verdict] = Counter()
    wrong: Counter[Verdict] = Counter()
    for seed in range(seeds):
        x = torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf)
        right[check(lambda x: function(x), x).verdict] += 1
        wrong[check(lambda x: function(x), x, claimed={"x": 1.5 * gradient}).verdict] += 1
    return right, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, metavar="N")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    lines = [
        "# Checks of functions that are noisier than their outputs",
        "",
        "Written by `python tests/bench/check_noise.py`, whose head says what is counted. "
        f"{seeds} points of {SIZE} numbers each, torch {torch.__version__}.",
        "",
        "| function | right: PASS | no verdict | FAIL | half as large again: FAIL | no verdict | PASS |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, function in FUNCTIONS.items():
        right, wrong = verdicts(function, seeds)
        counts = [right[Verdict.PASS], seeds - right[Verdict.PASS] - right[Verdict.FAIL], right[Verdict.FAIL]]
        counts += [wrong[Verdict.FAIL], seeds - wrong[Verdict.PASS] - wrong[Verdict.FAIL], wrong[Verdict.PASS]]
        lines.append(f"| `{name}` | {' | '.join(map(str, counts))} |")
        print(lines[-1], flush=True)
    OUT.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a long graph costs beside eager torch: `python tests/bench/long_chain.py [--nodes N] [--size N] [--json]`.

A chain of operators on tensors of `size` float32 elements and its gradient, by the engine and by the same torch calls
in a loop, each in a process of its own with one thread. Time is the median of the runs after the first; memory is the
resident set's largest growth during the runs, and for the engine also that while the program was built.

Wanted: at most 1.3 times eager's time, and no more memory during the runs. Measured on two cores with torch 2.13.0 for
10,000 nodes on 10,000 elements: 0.99 times the time, 0.86 times the memory, and 65 MB for the program.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.table import Row, at_most

from gradoracle_server.engine import autodiff, plan
from gradoracle_server.engine.graph import GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.phases import Phases

RUNS = 7


def resident() -> float:
    """The resident set now, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """The largest that it was, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def eager(nodes: int, x: torch.Tensor) -> torch.Tensor:
    """The chain by hand."""
    leaf = x.detach().requires_grad_()
    y = leaf
    for place in range(nodes):
        y = torch.sin(y) if place % 2 else y * 1.01
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return gradient


def chain(nodes: int) -> GraphSpec:
    """The chain as a graph."""
    made = []
    for place in range(nodes):
        before = Ref(f"n{place - 1}" if place else "x")
        target, args = ("aten.sin.default", (before,)) if place % 2 else ("aten.mul.Tensor", (before, 1.01))
        made.append(NodeSpec(f"n{place}", target, args))
    return GraphSpec((InputSpec("x"),), tuple(made), (("y", f"n{nodes - 1}"),))


def measure(side: str, nodes: int, size: int) -> dict[str, float]:
    """One side's figures, in this process."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    x = torch.linspace(-1, 1, size)
    before = resident()
    build = 0.0
    if side == "engine":
        made = plan.build(chain(nodes), device)
        made.program()
        build = peak() - before
        phases, cotangents = Phases(device), {"y": torch.ones(size)}
    start_of_runs, seconds = resident(), []
    for _ in range(RUNS):
        start = time.perf_counter()
        if side == "engine":
            gradient = autodiff.vjp(made, {"x": x}, phases, cotangents=cotangents).gradients["x"]
        else:
            gradient = eager(nodes, x)
        seconds.append(time.perf_counter() - start)
    assert gradient is not None
    figures = {"seconds": statistics.median(seconds[1:]), "run_mb": peak() - start_of_runs, "build_mb": build}
    return {**figures, "sum": float(gradient.double().sum())}


def both(nodes: int, size: int) -> dict[str, dict[str, float]]:
    """The figures of both sides, whose gradients are equal."""
    figures = {}
    for side in ("eager", "engine"):
        command = [sys.executable, __file__, "--side", side, f"--nodes={nodes}", f"--size={size}"]
        figures[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert figures["eager"]["sum"] == figures["engine"]["sum"], "the gradients differ"
    return figures


def rows(quick: bool) -> Iterator[Row]:
    """Time and memory of a long graph on tensors that count."""
    nodes = 2_000 if quick else 10_000
    found = both(nodes, 10_000)
    for name, figure, unit, wanted in (("time", "seconds", "s", 1.3), ("memory", "run_mb", "MB", 1.0)):
        eager, engine = found["eager"][figure], found["engine"][figure]
        beside = f"the same torch calls by hand, {eager:.3g} {unit}"
        yield Row(f"{nodes:,} nodes of 10,000 elements, {name}", engine / eager, "x", at_most(wanted), None, beside)


def main() -> None:
    """Measures both sides in turn and prints a table."""
    parser = argparse.ArgumentParser(description="What a long graph costs beside eager torch.")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=["engine", "eager"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.nodes, arguments.size)))
        return
    figures = both(arguments.nodes, arguments.size)
    ratios = {name: figures["engine"][name] / figures["eager"][name] for name in ("seconds", "run_mb")}
    if arguments.json:
        print(json.dumps({**figures, "ratios": ratios}))
        return
    print(f"{arguments.nodes} nodes on {arguments.size} elements, torch {torch.__version__}\n")
    print(f"{'':<8}{'seconds':>10}{'run MB':>10}{'build MB':>10}")
    for side, row in figures.items():
        print(f"{side:<8}{row['seconds']:>10.3f}{row['run_mb']:>10.1f}{row['build_mb']:>10.1f}")
    print(f"{'ratio':<8}{ratios['seconds']:>10.2f}{ratios['run_mb']:>10.2f}")


if __name__ == "__main__":
    main()

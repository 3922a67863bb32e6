"""What tracing costs: `python tests/bench/trace_chain.py [--nodes N] [--repeats N] [--json]`.

A chain of N operators (1,000 unless said) is traced, self-check and all. The first trace of a process is shown apart,
because it also imports torch's tracer. Wanted: 1,000 nodes in less than 2 s. A benchmark, not a test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.table import Row, at_most

from gradoracle.tracing import trace


def chain(x: torch.Tensor, nodes: int) -> torch.Tensor:
    """`nodes` operators in a row."""
    for _ in range(nodes // 2):
        x = x.sin() + 0.1
    return x


def timed(nodes: int) -> float:
    """Seconds for one trace."""
    started = time.perf_counter()
    graph = trace(chain, torch.linspace(-1, 1, 100), nodes)
    seconds = time.perf_counter() - started
    if len(graph.message.nodes) != nodes:
        raise AssertionError(f"expected {nodes} nodes, got {len(graph.message.nodes)}")
    return seconds


def rows(quick: bool) -> Iterator[Row]:
    """A trace of 1,000 nodes, self-check and all."""
    timed(2)
    seconds = sorted(timed(1000) for _ in range(1 if quick else 5))
    yield Row("trace, 1,000 nodes", seconds[len(seconds) // 2], "s", at_most(2), None, "nothing", "self-check and all")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    first = timed(2)
    seconds = sorted(timed(options.nodes) for _ in range(options.repeats))
    figures = {
        "nodes": options.nodes,
        "first trace of the process, 2 nodes": round(first, 3),
        "best": round(seconds[0], 3),
        "median": round(seconds[len(seconds) // 2], 3),
        "worst": round(seconds[-1], 3),
        "torch": torch.__version__,
    }
    print(json.dumps(figures) if options.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()

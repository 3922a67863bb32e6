"""How fast `gradoracle batch` is: `python tests/bench/batch_speed.py [--cases N] [--repeats N] [--json]`.

Cases are small operators whose inputs are written out as numbers. One server with a worker a core is started once and
not counted; all else of a batch is: reading the file twice, requests, answers, writing the results. Beside it, in turn
and in the same run, so that a slow moment of the machine falls on all of them:

    check   batch          `check` cases                       wanted: 1.5 times the loop or more
            gradcheck      torch.autograd.gradcheck, slow mode, in a loop in this process, on the same functions and
                           inputs, which are tensors already
            server         the same requests, one a case and made before, over Client.map: what the server can do
                           with its workers saturated          wanted: the batch is at 0.9 of it or more
    vjp     batch, server  `vjp` cases of a few nodes          wanted: 0.4 times the loop, 0.9 of the server
            packed         as server, but the cases packed into requests as a batch packs them
            eager          torch.autograd.grad in a loop in this process

and the memory of this process: its growth from a file of N cases to one of four times as many, which should be flat. A
benchmark, not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.table import Row, at_least

import gradoracle as go
from gradoracle.batch.array_files import ArrayFiles
from gradoracle.batch.case_files import CaseFile
from gradoracle.batch.cases import Requests
from gradoracle.batch.results import ResultsFile
from gradoracle.batch.runner import PACK, Run, Settings
from gradoracle.batch.shards import Plan
from gradoracle.batch.survey import survey

CHECKS: dict[str, Callable[..., torch.Tensor]] = {
    "tanh(x)": torch.tanh,
    "x.exp()": torch.exp,
    "softmax(x, dim=-1)": lambda x: torch.softmax(x, dim=-1),
    "x * x.sum()": lambda x: x * x.sum(),
    "logsumexp(x, dim=0)": lambda x: torch.logsumexp(x, dim=0),
    "sin(x) * x": lambda x: torch.sin(x) * x,
    "x @ x.t()": lambda x: x @ x.t(),
    "cumsum(x, dim=0)": lambda x: torch.cumsum(x, dim=0),
}
"""Small operators, as expressions and as functions."""
SHAPE = (4, 5)
VJP = "(sin(x * y) + x**2).sum()"
WANTED = {"check_over_gradcheck": 1.5, "vjp_over_eager": 0.4, "check_over_server": 0.9, "vjp_over_server": 0.9}


def check_cases(count: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Expressions and inputs."""
    generator = np.random.default_rng(0)
    expressions = list(CHECKS)
    for place in range(count):
        yield expressions[place % len(expressions)], {"x": generator.normal(size=SHAPE)}


def vjp_cases(count: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """One expression, and inputs of eight elements."""
    generator = np.random.default_rng(1)
    for _ in range(count):
        yield VJP, {"x": generator.normal(size=8), "y": generator.normal(size=8)}


def write(path: Path, method: str, cases: Iterator[tuple[str, dict[str, np.ndarray]]]) -> None:
    """A file of cases."""
    with path.open("w") as file:
        for place, (expression, inputs) in enumerate(cases):
            case = {"id": f"c{place}", "method": method, "expression": expression}
            file.write(json.dumps({**case, "inputs": {name: one.tolist() for name, one in inputs.items()}}) + "\n")


def gradcheck_loop(cases: list[tuple[str, dict[str, np.ndarray]]]) -> Callable[[], None]:
    """torch's own check of the same cases."""
    ready = [(CHECKS[expression], torch.from_numpy(inputs["x"]).requires_grad_()) for expression, inputs in cases]

    def run() -> None:
        for function, x in ready:
            assert torch.autograd.gradcheck(function, (x,), fast_mode=False)

    return run


def eager_loop(cases: list[tuple[str, dict[str, np.ndarray]]]) -> Callable[[], None]:
    """The same gradients with torch alone, from array to arrays."""

    def run() -> None:
        for _, inputs in cases:
            x = torch.from_numpy(inputs["x"]).requires_grad_()
            y = torch.from_numpy(inputs["y"]).requires_grad_()
            out = (torch.sin(x * y) + x**2).sum()
            first, second = torch.autograd.grad(out, (x, y))
            first.numpy(), second.numpy(), out.detach().numpy()  # as far as the results of a batch

    return run


def batch_run(client: go.Client, cases: Path, out: Path) -> None:
    """All of `gradoracle batch` but the start of processes."""
    file = CaseFile(str(cases))
    files, plan = ArrayFiles(file.base), Plan()
    results = ResultsFile(out, resume=False)
    survey(file, plan, files, results.done)
    run = Run(file, plan, results, Settings(), files=files)
    run.run(client)
    results.finish()
    assert set(run.tally.counts) <= {"PASS", "OK"}, str(run.tally)


def server_run(client: go.Client, cases: Path, method: str, pack: int) -> Callable[[], None]:
    """The same requests, made before, so many cases in each where a batch packs them."""
    from gradoracle.batch.packing import Packer, kind_of, packed

    make = Requests(ArrayFiles(cases.parent))
    items = []
    for entry in CaseFile(str(cases)).entries():
        assert entry.case is not None
        part = make.make(entry.case)
        kind = kind_of(method, make.graph(entry.case), part, entry.case.options)
        items.append((kind, part))
    packs = Packer(pack).packs(items)
    ready = [packed(kind, parts) if kind and len(parts) > 1 else parts[0] for kind, parts in packs]

    def run() -> None:
        for _ in client.map(ready, window=64, ordered=False):
            pass

    return run


def timed(work: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for place in range(repeats + 1):  # the first round warms up
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if place:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def memory(address: str, cases: int) -> int:
    """The largest resident set, in bytes, of a process that runs a batch of so many vjp cases."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", str(cases), "--address", address]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(address: str, cases: int) -> int:
    """The same for this process."""
    import resource

    with tempfile.TemporaryDirectory() as folder, go.Client(address) as client:
        path = Path(folder) / "cases.jsonl"
        write(path, "vjp", vjp_cases(cases))
        batch_run(client, path, Path(folder) / "results.jsonl")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(count: int, checks: int, repeats: int) -> dict[str, Any]:
    """Every figure."""
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "repeats": repeats}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, go.local_server(None) as address, go.Client(address) as client:
        out = Path(folder) / "results.jsonl"
        for method, number, cases, loop, name in (
            ("check", checks, check_cases, gradcheck_loop, "gradcheck"),
            ("vjp", count, vjp_cases, eager_loop, "eager"),
        ):
            path = Path(folder) / f"{method}.jsonl"
            write(path, method, cases(number))
            seconds = timed(
                {
                    "batch": functools.partial(batch_run, client, path, out),
                    "server": server_run(client, path, method, 1),
                    "packed": server_run(client, path, method, PACK),
                    name: loop(list(cases(number))),
                },
                repeats,
            )
            figures[method] = {
                "cases": number,
                **{f"{one}_us": round(s / number * 1e6, 1) for one, s in seconds.items()},
            }
            figures[f"{method}_over_{name}"] = round(seconds[name] / seconds["batch"], 3)
            figures[f"{method}_over_server"] = round(seconds["server"] / seconds["batch"], 3)
        figures["memory_mib"] = {str(n): round(memory(address, n) / 2**20, 1) for n in (count, 4 * count)}
    return {**figures, "wanted": WANTED}


def rows(quick: bool) -> Iterator[Row]:
    """A batch beside loops in process, and beside what its server can do."""
    cases = 400 if quick else 3000
    found = measure(cases, cases, 1 if quick else 3)
    for method, loop in (("check", "gradcheck"), ("vjp", "eager")):
        for other, what in ((loop, f"a loop of {loop}"), ("server", "the server saturated")):
            row, key = found[method], f"{method}_over_{other}"
            beside = f"{what}, {row[f'{other}_us']:.0f} us a case; ours {row['batch_us']:.0f}"
            yield Row(f"batch of {method}, beside {other}", found[key], "x faster", at_least(WANTED[key]), None, beside)
    small, large = found["memory_mib"].values()
    beside = f"{small} MiB for a quarter of the cases"
    yield Row("batch, memory of four times the cases", large / small, "x", None, None, beside)


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    print(f"{figures['machine']}; median of {figures['repeats']}\n")
    print(f"{'':<8}{'cases':>8}{'batch':>12}{'server':>12}{'packed':>12}{'loop':>12}   microseconds a case")
    for method, loop in (("check", "gradcheck"), ("vjp", "eager")):
        row = figures[method]
        print(
            f"{method:<8}{row['cases']:>8}{row['batch_us']:>12}{row['server_us']:>12}{row['packed_us']:>12}{row[f'{loop}_us']:>12}"
        )
    print()
    for name, wanted in figures["wanted"].items():
        print(f"{name:<24}{figures[name]:>8} (wanted: {wanted} or more)")
    small, large = figures["memory_mib"].items()
    print(f"memory                  {small[1]} MiB for {small[0]} cases, {large[1]} MiB for {large[0]}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="How fast a batch is.")
    parser.add_argument("--cases", type=int, default=10_000, help="vjp cases")
    parser.add_argument("--checks", type=int, default=10_000, help="check cases")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory_of(arguments.address, arguments.memory_of))
        return
    figures = measure(arguments.cases, arguments.checks, arguments.repeats)
    if arguments.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()

"""What a check costs beside gradcheck's fast mode: `python tests/bench/check_operators.py [NAME …]`.

Takes the sample of each differentiable operator of PyTorch's own operator database that the planted faults are tried
on, in float64, and checks the right gradient in probe mode. `ours` is the whole check, `forward` what of it is not
spent in the operator's forward, and `own` what is spent neither there nor in its backward; gradcheck is called in turn
with it, and all of its time counts. One thread, some minutes. A benchmark, not a test. Without names the result is kept
in check_operators.md.

Wanted: never more than 3 times. Where that is missed, passes say why: elements in which a fault of 1e-8 would not show
along some direction are looked at one by one, with other steps, or an operator has no rule for batches.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance import faults
from conformance.corpus import cases, graphs, work
from conformance.samples import silence

from gradoracle_server import heap
from gradoracle_server.engine.check import Options

KEPT = 1 << 28  # bytes of freed memory, which this process keeps as a worker does: both checkers have it
TIMES = 5
PATIENCE = 60  # seconds for one operator
MOST = 3.0  # wanted
BOUNDS = (1.0, 2.0, 3.0, 5.0, 10.0)


class Cost(NamedTuple):
    """Of one operator; times in seconds."""

    operator: str
    ours: float
    forward: float
    own: float
    fast: float
    passes: int
    verdict: str


class TooLongError(Exception):
    """No result within PATIENCE."""


class Clock:
    """The time spent inside of some calls, in seconds; of calls inside of others once."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._inside = False

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, with its time counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent += time.perf_counter() - start
                self._inside = False

        return run


class Engine:
    """Autograd's engine with a clock: what it runs is the operator's backward."""

    def __init__(self, clock: Clock) -> None:
        self.run_backward = clock.timed(torch.autograd.Variable._execution_engine.run_backward)


def costs(names: list[str]) -> Iterator[Cost | str]:
    """Of each operator, or its name where there is nothing to be measured."""

    def too_long(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    for name in names:
        signal.alarm(PATIENCE)
        try:
            yield cost(name) or name
        except TooLongError:
            yield name
        finally:
            signal.alarm(0)


def cost(name: str) -> Cost | None:
    """None where no sample suits."""
    torch.manual_seed(0)
    subject, _ = cases.chosen(name, torch.float64)
    if subject is None:
        return None
    forward, backward = Clock(), Clock()
    engine = Engine(backward)
    made = graphs.plan_of_function(forward.timed(subject.function), len(subject.inputs))
    primals = {f"x{place}": one for place, one in enumerate(subject.inputs)}
    tracked = [one.detach().clone().requires_grad_() for one in subject.inputs]

    def ours() -> Any:
        with unittest.mock.patch.object(torch.autograd.Variable, "_execution_engine", engine):
            return graphs.checked(made, primals, options=Options())

    def fast() -> Any:
        return torch.autograd.gradcheck(subject.function, tracked, raise_exception=False, fast_mode=True)

    report, _ = ours(), fast()
    spent: list[tuple[float, float, float, float]] = []
    for _ in range(TIMES):
        forward.spent = backward.spent = 0.0
        whole = seconds(ours)
        rest = whole - forward.spent
        spent.append((whole, rest, rest - backward.spent, seconds(fast)))
    whole, rest, own, other = (statistics.median(column) for column in zip(*spent, strict=True))
    return Cost(name, whole, rest, own, other, report.evaluations, report.verdict.name)


def seconds(call: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def text(found: list[Cost], left: list[str]) -> Iterator[str]:
    """The lines of check_operators.md."""
    whole = sorted(one.ours / one.fast for one in found)
    forward = sorted(one.forward / one.fast for one in found)
    own = sorted(one.own / one.fast for one in found)
    yield "# What a check costs beside gradcheck's fast mode"
    yield ""
    yield "Written by `python tests/bench/check_operators.py`, whose head says what is measured. Ratios of medians of"
    yield f"{TIMES} calls, in turn, one thread."
    yield ""
    yield "| of gradcheck's fast mode | the whole check | without the operator's forward | nor its backward |"
    yield "| --- | --- | --- | --- |"
    last = 0.0
    for bound in (*BOUNDS, float("inf")):
        counts = [sum(last < one <= bound for one in column) for column in (whole, forward, own)]
        name = f"{last:g} to {bound:g} times" if bound < float("inf") else f"more than {last:g} times"
        yield f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} |"
        last = bound
    columns = whole, forward, own
    yield f"| median | {' | '.join(f'{statistics.median(one):.2f}' for one in columns)} |"
    yield f"| 95 % are below | {' | '.join(f'{one[int(0.95 * len(one))]:.2f}' for one in columns)} |"
    yield ""
    yield f"{len(found)} operators; without a suitable sample, or none within {PATIENCE} s: {', '.join(left) or '-'}."
    yield ""
    yield f"Those beyond {MOST:g} times:"
    yield ""
    yield "| operator | check / fast mode | without forward | own | check, ms | fast mode, ms | passes | verdict |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for one in sorted(found, key=lambda one: -one.ours / one.fast):
        if one.ours > MOST * one.fast:
            yield (
                f"| {one.operator} | {one.ours / one.fast:.1f} | {one.forward / one.fast:.1f} "
                f"| {one.own / one.fast:.1f} | {one.ours * 1e3:.2f} | {one.fast * 1e3:.2f} | {one.passes} "
                f"| {one.verdict} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="operators, patterns too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heap.keep_freed_memory(KEPT)
    silence()
    found: list[Cost] = []
    left: list[str] = []
    names = [one for one in faults.names_of("float64", options.name, None) if one not in (work.KINKS, work.OTHERS)]
    for one in costs(names):
        if isinstance(one, str):
            left.append(one)
        else:
            found.append(one)
            print(f"{one.operator}: {one.ours / one.fast:.1f}", file=sys.stderr, flush=True)
    lines = "\n".join(text(found, left)) + "\n"
    print(lines)
    if not options.name:
        Path(__file__).with_suffix(".md").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()

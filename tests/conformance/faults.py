"""A corpus of planted faults: `python tests/conformance/faults.py [--operators N] [--json]`.

Operators of PyTorch's own operator database get a backward that is wrong in one of the ways in which backward formulas
have been wrong in earnest, one way at a time; and the right backward, as the other class. gradoracle's two modes and
torch.autograd.gradcheck's two judge each case in the same run. The table counts, for each kind of fault, how many of
its cases each checker rejects, and in the first line how many right gradients it rejects. An operator is in the corpus
where its sample is smooth, deterministic and small enough for gradcheck's slow mode.

Wanted: every fault of relative size 1e-8 or more rejected, and no right gradient rejected. Results are in faults.md.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "unit"), str(TESTS / "bench")]

import check_bars  # noqa: E402 - found through the path above
import check_cases  # noqa: E402

from gradoracle_server.engine.report import Mode, Verdict  # noqa: E402

LARGEST = 300  # elements of the inputs, and of the output
Wrong = Callable[[list[torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator with one backward."""

    operator: str
    fault: str  # "right" for the other class
    function: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    order: int = 1


def _first(change: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    """Changes the first input's gradient."""
    return lambda inputs, cotangent, right: (change(right[0]), *right[1:])


def _element(place: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Wrong:
    def changed(gradient: torch.Tensor) -> torch.Tensor:
        found = gradient.clone(memory_format=torch.contiguous_format)
        flat = found.view(-1)
        flat[place] = change(flat[place])
        return found

    return _first(changed)


def _strided(inputs: Any, cotangent: torch.Tensor, right: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return right if cotangent.is_contiguous() else (right[0] * 0.5, *right[1:])


def faults(function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> dict[str, Wrong]:
    """The ways in which the backward of a function can be wrong at this point, so that each does change it."""
    tracked = [one.detach().clone().requires_grad_() for one in inputs]
    output = function(*tracked)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    (gradient,) = torch.autograd.grad(output, tracked[:1], cotangent, retain_graph=True)
    flat = gradient.reshape(-1)
    # An element whose gradient is not small beside the others': smaller ones are within the others' rounding.
    eligible = (flat.abs() >= 0.3 * flat.abs().max()).nonzero().flatten()
    place = int(eligible[len(eligible) // 2])

    def for_ones(inputs: list[torch.Tensor], _: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            again = function(*inputs)
            found = torch.autograd.grad(again, inputs, torch.ones_like(again), allow_unused=True)
        return tuple(torch.zeros_like(a) if b is None else b for a, b in zip(inputs, found, strict=True))

    def squared(inputs: list[torch.Tensor], cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            again = function(*inputs)
            found = torch.autograd.grad(again, inputs, cotangent * cotangent.abs(), allow_unused=True)
        return tuple(torch.zeros_like(a) if b is None else b for a, b in zip(inputs, found, strict=True))

    found: dict[str, Wrong] = {
        "element * (1 + 1e-8)": _element(place, lambda g: g * (1 + 1e-8)),
        "element * (1 + 1e-4)": _element(place, lambda g: g * (1 + 1e-4)),
        "element * 2": _element(place, lambda g: g * 2),
        "element zeroed": _element(place, lambda g: g * 0),
        "element's sign": _element(place, torch.neg),
        "element NaN": _element(place, lambda g: g * math.nan),
        "sign": _first(torch.neg),
        "factor 1 + 1e-8": _first(lambda g: g * (1 + 1e-8)),
        "factor 1.001": _first(lambda g: g * 1.001),
        "factor 0.5": _first(lambda g: g * 0.5),
        "zero": _first(torch.zeros_like),
        "cotangent ignored": for_ones,
        "cotangent squared": squared,
    }
    if output.numel() > 1:
        found["wrong for strided cotangents"] = _strided
    if gradient.is_complex():
        found["conjugated"] = _first(torch.conj_physical)
    for axis in range(gradient.dim() - 1):
        if gradient.shape[axis] == gradient.shape[axis + 1] > 1 and not torch.allclose(gradient, gradient.mT):
            found["transposed"] = _first(lambda g, axis=axis: g.transpose(axis, axis + 1))
    if gradient.dim() and gradient.shape[0] > 1 and not torch.allclose(gradient, gradient.flip(0)):
        found["rows reversed"] = _first(lambda g: g.flip(0))
    if len(inputs) > 1 and inputs[0].shape == inputs[1].shape:
        other = torch.autograd.grad(output, tracked[1], cotangent, allow_unused=True)[0]
        if other is not None and not torch.allclose(other, gradient):
            found["inputs swapped"] = lambda inputs, cotangent, right: (right[1], right[0], *right[2:])
    return found


def corpus(most: int, dtype: torch.dtype = torch.float64) -> Iterator[Case]:
    """The cases of up to `most` operators."""
    seen: set[str] = set()
    for name, everything, inputs in check_bars.samples(dtype, 5):
        if name in seen or len(seen) >= most:
            continue
        fitting = all(one.dtype == dtype and 1 < one.numel() <= LARGEST for one in inputs)
        if not fitting:
            continue

        def function(*args: torch.Tensor, everything: Any = everything) -> torch.Tensor:
            return everything(*args)[0]

        try:
            cases = list(_cases(name, function, tuple(inputs)))
        except Exception as error:
            print(f"{name}: left out: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
            continue
        if cases:
            seen.add(name)
            yield from cases


def _cases(name: str, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> Iterator[Case]:
    output = function(*inputs)
    if not output.numel() or output.numel() > LARGEST or output.dtype not in (torch.float64, torch.complex128):
        return
    tracked = [one.detach().clone().requires_grad_() for one in inputs]
    gradients = torch.autograd.grad(function(*tracked).abs().sum(), tracked, allow_unused=True)
    if any(one is None or not one.isfinite().all() or not one.any() for one in gradients):
        return
    moved = (gradients[0] * inputs[0]).abs().max()
    if moved <= 1e-6 * output.abs().max():  # rounding, as of corrcoef of two observations: no fault of it is one
        return
    right = check_cases.planted(function, lambda inputs, cotangent, right: right)
    if check_cases.check(right, *inputs).verdict is not Verdict.PASS:
        return
    yield Case(name, "right", right, inputs)
    for fault, wrong in faults(function, inputs).items():
        yield Case(name, fault, check_cases.planted(function, wrong), inputs)


# ---- Checkers: each tells whether it rejects


def _ours(mode: Mode) -> Callable[[Case], bool]:
    def rejects(case: Case) -> bool:
        return check_cases.check(case.function, *case.inputs, mode=mode, order=case.order).verdict is Verdict.FAIL

    return rejects


def _gradchecks(fast: bool) -> Callable[[Case], bool]:
    def rejects(case: Case) -> bool:
        tracked = [one.detach().clone().requires_grad_() for one in case.inputs]
        return not torch.autograd.gradcheck(case.function, tracked, raise_exception=False, fast_mode=fast)

    return rejects


CHECKERS = {
    "probe": _ours(Mode.PROBE),
    "full": _ours(Mode.FULL),
    "gradcheck fast": _gradchecks(True),
    "gradcheck slow": _gradchecks(False),
}


@dataclasses.dataclass
class Tally:
    """What the checkers made of the cases of each kind."""

    operators: int = 0
    cases: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    rejected: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: {name: collections.Counter() for name in CHECKERS}
    )
    seconds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)  # where our modes were wrong

    def judge(self, case: Case) -> None:
        self.operators += case.fault == "right"
        self.cases[case.fault] += 1
        for name, rejects in CHECKERS.items():
            start = time.perf_counter()
            try:
                answer = rejects(case)
            except Exception as error:
                answer = True
                print(f"{name}: {case.operator}: {case.fault}: {error!r:.120}", file=sys.stderr)
            self.seconds[name] += time.perf_counter() - start
            self.rejected[name][case.fault] += answer
            if answer == (case.fault == "right") and not name.startswith("gradcheck"):
                self.wrong.append(f"{name}: {case.operator}: {case.fault}")

    def table(self) -> str:
        """In Markdown."""
        heads = ["fault", "cases", *CHECKERS]
        lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for fault, count in self.cases.items():
            figures = [str(self.rejected[name][fault]) for name in CHECKERS]
            lines.append(f"| {fault} | {count} | " + " | ".join(figures) + " |")
        seconds = [f"{self.seconds[name]:.0f}" for name in CHECKERS]
        lines.append("| seconds | | " + " | ".join(seconds) + " |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operators", type=int, default=1000, help="operators at most")
    parser.add_argument("--dtype", default="float64", choices=["float64", "complex128"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    tally = Tally()
    try:
        for case in corpus(options.operators, getattr(torch, options.dtype)):
            tally.judge(case)
    except KeyboardInterrupt:
        print("Interrupted: what follows is of the operators until then.")
    if options.json:
        print(json.dumps({"operators": tally.operators, "cases": tally.cases, "rejected": tally.rejected}))
        return
    print(f"{tally.operators} operators, {sum(tally.cases.values())} cases\n\n{tally.table()}\n")
    print("Wrong answers of ours:", *tally.wrong, sep="\n  ")


if __name__ == "__main__":
    main()

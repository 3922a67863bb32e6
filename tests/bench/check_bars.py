"""How often numerical derivatives' error bars hold the truth: `python tests/bench/check_bars.py [--samples N]`.

Takes the float64 samples of every differentiable operator of PyTorch's own operator database, measures slopes along
random directions, and holds them against autograd's gradients. A sample counts as smooth where its slope was found
without a kink. Wanted: the truth inside the bar for at least 99.9 % of smooth samples, and a median relative error of
at most 1e-12. Where torch's gradient is not the derivative, as `conformance/corpus/known.py` lists, it is no truth:
those directions are counted apart, and all that are outside of their bars are listed.
A benchmark, not a test: pytest does not collect it. Results are kept in check_bars.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from bench.table import Row, at_least, at_most
from conformance.corpus import known
from conformance.corpus.subjects import wrapped
from conformance.samples import Case, cases, full_name, operators, silence

from gradoracle_server.engine import ladders, slopes, trial
from gradoracle_server.engine.evaluate import seed_everything
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

CPU = torch.device("cpu")
EPSILON = torch.finfo(torch.float64).eps
LARGEST = 20_000  # elements of an input, beyond which a sample is left out


def samples(dtype: torch.dtype, most: int) -> Iterator[tuple[str, Callable[..., Any], list[torch.Tensor]]]:
    """(operator, function of the differentiable inputs, those inputs) of each sample.

    Each is called through the operator's own gradcheck_wrapper, as torch's gradient tests do: cholesky, say, reads one
    triangle, and its gradient is that of the function of the whole matrix which the wrapper makes of it.
    """
    for operator in operators(dtype):
        name = full_name(operator)
        try:
            found = list(cases(operator, dtype, most))
        except Exception as error:
            print(f"{name}: no samples: {type(error).__name__}", file=sys.stderr)
            continue
        for case in found:
            one = _function(wrapped(operator, case), case, dtype)
            if one is not None:
                yield name, *one


def _function(
    function: Callable[..., Any], case: Case, dtype: torch.dtype
) -> tuple[Callable[..., Any], list[torch.Tensor]] | None:
    flat, spec = pytree.tree_flatten((case.args, case.kwargs))
    places = [k for k, one in enumerate(flat) if isinstance(one, torch.Tensor) and one.requires_grad]
    plain = all(not isinstance(one, torch.Tensor) or one.layout is torch.strided for one in flat)
    if not places or not plain or sum(flat[k].numel() for k in places) > LARGEST:
        return None
    if any(flat[k].dtype is not dtype for k in places):  # a gradient in float32 is no truth for a bar of float64
        return None

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [one.detach() if isinstance(one, torch.Tensor) else one for one in flat]
        for place, tensor in zip(places, inputs, strict=True):
            values[place] = tensor
        args, kwargs = pytree.tree_unflatten(values, spec)
        leaves = [one for one in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(one, torch.Tensor)]
        return tuple(one for one in leaves if one.dtype.is_floating_point or one.dtype.is_complex)

    return call, [flat[k].detach().clone() for k in places]


def measured(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Iterator[tuple[float, float, float, bool]]:
    """(error, bar, size of the gradient along the direction, kinked) of each direction that is measured."""
    tracked = [one.requires_grad_() for one in inputs]
    seed_everything(0, CPU)
    outputs = function(*tracked)
    generator = torch.Generator().manual_seed(7)
    weights = [trial.drawn_like(one, generator) if one.requires_grad else None for one in outputs]
    live = [(one, w) for one, w in zip(outputs, weights, strict=True) if w is not None and one.numel()]
    if not live:
        return
    found = torch.autograd.grad([a for a, _ in live], tracked, [b for _, b in live], allow_unused=True)
    base = [one.detach() for one in inputs]

    def quiet(point: Any) -> Any:
        with torch.no_grad():
            return function(*point)

    passes = Passes(quiet, base, weights, device=CPU, seed=0)
    for place, gradient in enumerate(found):
        space = Space.of(place, "", base[place], "")
        if gradient is None or not space.size:
            continue
        flat = space.flat(gradient)
        directions = space.drawn(2, generator)
        terms = directions * flat
        wanted = 1e-10 * terms.norm(dim=1)
        question = slopes.Question(space, directions, wanted)
        claimed = terms.sum(1)
        # The truth itself is known to rounding only.
        rounding = 4 * EPSILON * terms.abs().sum(1)
        slope = ladders.measure(passes, question)
        if passes.batching and not bool(((claimed - slope.value).abs() <= slope.bar + rounding).all()):
            passes.batching = False  # as a check does: vmap rolls a tensor without axes along the axis of points
            slope = ladders.measure(passes, question)
            passes.batching = True
        errors = (claimed - slope.value).abs()
        scale = torch.maximum(terms.norm(dim=1), claimed.abs())
        bars = slope.bar + rounding
        yield from zip(errors.tolist(), bars.tolist(), scale.tolist(), slope.kinked.tolist(), strict=True)


def run(most: int, only: str = "") -> dict[str, Any]:
    rows: list[tuple[str, float, float, float]] = []
    wrong: list[tuple[str, float, float, float]] = []
    kinked = unknown = failed = 0
    for name, function, inputs in samples(torch.float64, most):
        if only and only not in name:
            continue
        try:
            found = list(measured(function, inputs))
        except Exception as failure:
            failed += 1
            print(f"{name}: {type(failure).__name__}: {str(failure)[:100]}", file=sys.stderr)
            continue
        for error, bar, scale, kink in found:
            if not math.isfinite(scale):
                unknown += 1
            elif kink:
                kinked += 1
            elif not bar < 1e-3 * scale and scale > 0:
                unknown += 1
            else:
                (wrong if known.why(name, "float64", 1) else rows).append((name, error, bar, scale))
    outside = [row for row in rows if not row[1] <= row[2]]
    outside_by_torch = [row for row in wrong if not row[1] <= row[2]]
    relative = torch.tensor([error / scale for _, error, _, scale in rows if scale > 0] or [0.0])
    widths = torch.tensor([bar / scale for _, _, bar, scale in rows if scale > 0] or [0.0])
    return {
        "directions": len(rows),
        "inside": 1 - len(outside) / max(1, len(rows)),
        "median_error": float(relative.median()),
        "p95_error": float(relative.quantile(0.95)),
        "median_bar": float(widths.median()),
        "p95_bar": float(widths.quantile(0.95)),
        "kinked": kinked,
        "unknown": unknown,
        "failed": failed,
        "outside": [_line(*one) for one in outside],
        "wrong_in_torch": len(wrong),
        "wrong_in_torch_outside": [_line(*one) for one in outside_by_torch],
    }


def _line(name: str, error: float, bar: float, scale: float) -> str:
    return f"{name}: error {error:.2e}, bar {bar:.2e}, of {scale:.2e}"


def rows(quick: bool) -> Iterator[Row]:
    """How often the bars hold the truth, and how far it is: no speed, but what speed must not be bought with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(1 if quick else 2)
    note = f"{found['directions']:,} directions, and {found['wrong_in_torch']} where torch's gradient is wrong"
    yield Row("error bars that hold autograd's gradient", found["inside"], "", at_least(0.999), None, "autograd", note)
    yield Row("numerical slope, median relative error", found["median_error"], "", at_most(1e-12), None, "autograd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6, help="samples of each operator")
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    silence()
    found = run(options.samples, options.only)
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(key, value if not isinstance(value, list) else "\n  " + "\n  ".join(value))


if __name__ == "__main__":
    main()

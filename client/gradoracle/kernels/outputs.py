"""Whether a candidate's outputs are near enough to the reference's.

The rule, for each element of an output:

    |candidate - exact|  <=  2 * own + 8 * moved + 16 * eps * (|exact| + rms)

`exact` is the reference graph run in double precision on the same inputs. `own` is the largest error that torch makes
in this output in the inputs' precision: no worse than twice torch's own. `moved` is how far the element moves, at most,
in four runs in which each input is moved by up to half a unit in its last place: what another order of summation may
cost where the function is badly conditioned. eps belongs to the output's dtype, and rms is that of the output. NaN and
infinities must stand where the reference has them. Shape and dtype must be the reference's; whole numbers and bools
must be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gradoracle.checks import Diagnosis, InputReport, Mismatch, Verdict
from gradoracle.client import Client
from gradoracle.errors import GradOracleError
from gradoracle.graph import Graph
from gradoracle.tensors import Array

_RUNS = 4
_WORST = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What the outputs are held against, by their names."""

    torch: Mapping[str, Array]
    """In the inputs' precision."""
    exact: Mapping[str, Array]
    """In double precision."""
    moved: Mapping[str, Array]
    """How far each element moves with the inputs' last place."""


def reference(
    client: Client, graph: Graph, inputs: Mapping[str, Array], seed: int | None, device: str | None
) -> Reference:
    """Runs the reference. A graph that cannot be run in double precision is its own exact result."""

    def outputs(primals: Mapping[str, Array]) -> dict[str, Array]:
        return client.evaluate(graph, primals, seed=seed, device=device).outputs

    own = outputs(inputs)
    wide = {name: _wide(array) for name, array in inputs.items()}
    try:
        exact = outputs(wide)
        if any(exact[name].shape != own[name].shape for name in own):
            raise GradOracleError("shapes differ")
    except GradOracleError:  # dtypes are written into the graph
        wide, exact = dict(inputs), own
    generator = np.random.default_rng(0)
    moved = {name: np.zeros(one.shape) for name, one in own.items()}
    for _ in range(_RUNS):
        shaken = {name: _shaken(wide[name], inputs[name], generator) for name in wide}
        for name, one in outputs(shaken).items():
            with np.errstate(invalid="ignore"):
                moved[name] = np.fmax(moved[name], np.abs(_wide(one) - _wide(exact[name])).astype(np.float64))
    return Reference(own, {name: _wide(one) for name, one in exact.items()}, moved)


def judge(name: str, candidate: Array | None, found: Reference) -> InputReport:
    """The findings for one output, under the name "output NAME"."""
    own, exact = found.torch[name], found.exact[name]
    if candidate is None or candidate.shape != own.shape or candidate.dtype != own.dtype:
        got = "none" if candidate is None else f"{candidate.dtype.name} {list(candidate.shape)}"
        return _report(name, Verdict.FAIL, f"Expected {own.dtype.name} {list(own.shape)}, got {got}.")
    mine = _wide(candidate)
    error, bound = _errors(mine, exact), _bound(own, exact, found.moved[name])
    bad = ~(error <= bound)
    if not own.size:
        return _report(name, Verdict.PASS, "It is empty, as the reference.")
    ratio = np.where(np.isnan(error), np.inf, error) / np.where(bound > 0, bound, np.finfo(float).tiny)
    order = np.argsort(-ratio, axis=None, kind="stable")[:_WORST]
    first = np.unravel_index(order[0], own.shape)
    if not bad.any():
        text = "It agrees with the reference."
        return _report(name, Verdict.PASS, text, max_error=error[first], error_bound=bound[first])
    worst = []
    for flat in order:
        place = np.unravel_index(flat, own.shape)
        if bad[place]:
            index = tuple(int(one) for one in place)
            numbers = (mine[place].item(), _wide(own)[place].item(), exact[place].item())
            worst.append(Mismatch(index, *numbers, float(error[place]), float(bound[place])))
    diagnosis, factor = _diagnosis(mine, exact, bad)
    return _report(
        name,
        Verdict.FAIL,
        f"It is wrong in {int(bad.sum())} of {own.size} elements.",
        max_error=error[first],
        error_bound=bound[first],
        worst=worst,
        diagnosis=diagnosis,
        factor=factor,
        errors=error.astype(np.float32),
    )


def _errors(mine: Array, exact: Array) -> Array:
    """|candidate - exact|; 0 where both are the same infinity or NaN, NaN where only one is."""
    same = (mine == exact) | (np.isnan(mine) & np.isnan(exact))
    with np.errstate(invalid="ignore", over="ignore"):
        error: Array = np.where(same, 0.0, np.abs(mine - exact))
    return error


def _bound(own: Array, exact: Array, moved: Array) -> Array:
    if own.dtype.kind in "biu":
        return np.zeros(own.shape)
    finite = np.where(np.isfinite(exact), np.abs(exact), 0.0)
    rms = float(np.sqrt(np.mean(finite**2))) if own.size else 0.0
    with np.errstate(invalid="ignore"):
        errors = np.abs(_wide(own) - exact)
    torchs = float(np.max(errors[np.isfinite(errors)], initial=0.0))
    moves = np.where(np.isfinite(moved), moved, 0.0)
    bound: Array = 2 * torchs + 8 * moves + 16 * _eps(own.dtype) * (finite + rms)
    return bound


def _diagnosis(mine: Array, exact: Array, bad: Array) -> tuple[Diagnosis, float | None]:
    if np.isnan(mine[bad & np.isfinite(exact)]).any():
        return Diagnosis.NAN, None
    if not np.isfinite(mine).all() or not np.isfinite(exact).all() or not np.any(exact):
        return Diagnosis.UNKNOWN, None
    if not np.any(mine):
        return Diagnosis.ZEROED, None
    factor = complex(np.vdot(exact, mine) / np.vdot(exact, exact))
    rest = np.linalg.norm(mine - factor * exact) / np.linalg.norm(mine)
    if rest < 1e-4 and rest < 0.1 * abs(factor - 1) and abs(factor.imag) < 1e-4 * abs(factor):
        flipped = abs(factor.real + 1) < 1e-4
        return (Diagnosis.SIGN_FLIPPED, None) if flipped else (Diagnosis.SCALED, factor.real)
    return (Diagnosis.SINGLE_ELEMENTS if bad.mean() < 0.1 else Diagnosis.UNKNOWN), None


def _report(name: str, verdict: Verdict, explanation: str, **fields: Any) -> InputReport:
    usual: dict[str, Any] = {
        "worst": [],
        "diagnosis": Diagnosis.UNKNOWN if verdict is Verdict.FAIL else None,
        "factor": None,
        "errors": None,
    }
    given = {**usual, **fields}
    given["max_error"] = float(fields.get("max_error", np.inf if verdict is Verdict.FAIL else 0.0))
    given["error_bound"] = float(fields.get("error_bound", 0.0))
    return InputReport(
        name=f"output {name}",
        verdict=verdict,
        explanation=explanation,
        kink=None,
        claim_inside=None,
        detection_power=0.0,
        **given,
    )


def _wide(array: Array) -> Array:
    """In double precision; whole numbers and bools as they are."""
    if array.dtype.kind in "biu":
        return array
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _eps(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _shaken(wide: Array, given: Array, generator: np.random.Generator) -> Array:
    """Each element moved by up to half a unit in the last place of the dtype that was given."""
    if given.dtype.kind in "biu":
        return wide
    moves = 1 + (generator.random(given.shape) - 0.5) * _eps(given.dtype)
    shaken: Array = (wide * moves).astype(wide.dtype)
    return shaken

"""One case: traced, sent, and compared with torch's eager autograd in this process."""

from __future__ import annotations

import dataclasses
import enum
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

import gradoracle as go
from conformance.samples import Case, Part, parts, values_of
from gradoracle.tracing import trace

SEED = 20_240_229


class Outcome(enum.IntEnum):
    """From best to worst."""

    EXACT = 0
    CLOSE = 1
    REFUSED = 2
    WRONG = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one case."""

    operator: str
    index: int
    outcome: Outcome
    reason: str = ""


Ask = Callable[[go.Graph, Mapping[str, Any], Mapping[str, Any], int], go.VjpResult]
"""(graph, primals, cotangents, seed) -> outputs and gradients."""


def through(client: go.Client) -> Ask:
    """Asks a server."""
    return lambda graph, primals, cotangents, seed: client.vjp(graph, primals, cotangents, seed=seed)


def judge(case: Case, ask: Ask) -> Judgement:
    """Traces the case, asks for outputs and gradients, and holds them against eager autograd's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = trace(case.fn, *case.args, **case.kwargs)
    except go.TraceError as error:
        return Judgement(case.operator, case.index, Outcome.REFUSED, f"trace: {error}")
    pieces = parts(case)
    names = graph.inputs
    if len(names) != len(pieces):
        reason = f"{len(pieces)} tensors among the arguments, {len(names)} inputs of the graph"
        return Judgement(case.operator, case.index, Outcome.WRONG, reason)
    tracked = [graph.requires_grad(name) for name in names]
    outputs, cotangents, gradients = eager(case, pieces, tracked)
    primals = {name: to_numpy(piece.tensor) for name, piece in zip(names, pieces, strict=True)}
    sent = {name: to_numpy(one) for name, one in zip(graph.outputs, cotangents, strict=True) if one is not None}
    try:
        found = ask(graph, primals, sent, SEED)
    except go.GradOracleError as error:
        return Judgement(case.operator, case.index, Outcome.REFUSED, f"server: {type(error).__name__}: {error}")
    pairs: list[tuple[str, torch.Tensor | None, Any]] = [
        (f"output {name}", one, found.outputs.get(name)) for name, one in zip(graph.outputs, outputs, strict=True)
    ]
    named = zip(names, gradients, tracked, strict=True)
    pairs += [(f"gradient of {name}", one, found.gradients.get(name)) for name, one, wanted in named if wanted]
    outcome, reason = max((compare(*pair) for pair in pairs), key=lambda pair: pair[0])
    return Judgement(case.operator, case.index, outcome, reason)


def eager(
    case: Case, pieces: list[Part], tracked: list[bool]
) -> tuple[list[torch.Tensor], list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Outputs, cotangents (None for outputs without a gradient) and gradients by each piece, by torch alone."""
    fresh = [
        piece.tensor.clone(memory_format=torch.contiguous_format).requires_grad_(wanted)
        for piece, wanted in zip(pieces, tracked, strict=True)
    ]
    leaves, spec = pytree.tree_flatten((case.args, case.kwargs))
    arguments = list(leaves)
    targets = list(fresh)
    for place, leaf in enumerate(leaves):
        mine = [at for at, piece in enumerate(pieces) if piece.place == place]
        if len(mine) == 1:
            arguments[place] = fresh[mine[0]]
        elif mine:  # a sparse argument, whose gradient is sparse too; the values of that are the values' gradient
            sparse = leaf.detach().clone().requires_grad_(tracked[mine[-1]])
            arguments[place] = targets[mine[-1]] = sparse
    args, kwargs = pytree.tree_unflatten(arguments, spec)
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = case.fn(*args, **kwargs)
        outputs = list(result) if isinstance(result, tuple) else [result]
        generator = torch.Generator().manual_seed(SEED)
        cotangents = [_cotangent(one, generator) for one in outputs]
        live = [(one, cotangent) for one, cotangent in zip(outputs, cotangents, strict=True) if one.requires_grad]
        wanted = [target for target, is_tracked in zip(targets, tracked, strict=True) if is_tracked]
        pulled: list[torch.Tensor | None] = [None] * len(wanted)
        if live and wanted:
            roots, along = zip(*live, strict=True)
            pulled = list(torch.autograd.grad(roots, wanted, along, allow_unused=True))
    found = iter(pulled)
    gradients = [next(found) if is_tracked else None for is_tracked in tracked]
    gradients = [values_of(one) if one is not None and one.layout is not torch.strided else one for one in gradients]
    return [one.detach() for one in outputs], cotangents, gradients


def _cotangent(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """Random numbers for what has a gradient."""
    if not output.requires_grad:
        return None
    return torch.randn(output.shape, generator=generator, dtype=output.dtype)


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A dense tensor's values, row-major."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain._is_zerotensor():  # autograd's own, which has no memory
        plain = torch.zeros(plain.shape, dtype=plain.dtype)
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


def compare(what: str, want: torch.Tensor | None, got: np.ndarray[Any, Any] | None) -> tuple[Outcome, str]:
    """EXACT for equal bits, where any NaN equals any other; CLOSE for what torch.testing.assert_close passes."""
    if want is None or got is None:
        if want is None and got is None:
            return Outcome.EXACT, ""
        return Outcome.WRONG, f"{what}: torch gives {describe(want)}, the server {describe(got)}"
    wanted = to_numpy(want)
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return Outcome.WRONG, f"{what}: torch gives {describe(wanted)}, the server {describe(got)}"
    differing = np.argwhere(~_equal_bits(wanted, got))
    if not len(differing):
        return Outcome.EXACT, ""
    index = tuple(int(one) for one in differing[0])
    reason = (
        f"{what}: {len(differing)} of {wanted.size} elements differ, first at {list(index)}: torch "
        f"{wanted[index]!r}, server {got[index]!r}"
    )
    rtol, atol = torch.testing._comparison.default_tolerances(want.dtype)
    try:
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
    except AssertionError:
        return Outcome.WRONG, reason
    return Outcome.CLOSE, reason


def _equal_bits(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> npt.NDArray[np.bool_]:
    """Elementwise; the real and the imaginary part of a complex number must both be equal."""
    if one.dtype.kind == "c":
        return _equal_bits(one.real, other.real) & _equal_bits(one.imag, other.imag)
    if one.dtype.kind not in "fV":  # V: ml_dtypes' bfloat16
        same: npt.NDArray[np.bool_] = one == other
        return same
    kind = f"u{one.dtype.itemsize}"
    bits: npt.NDArray[np.bool_] = np.ascontiguousarray(one).view(kind) == np.ascontiguousarray(other).view(kind)
    both_nan: npt.NDArray[np.bool_] = np.isnan(one) & np.isnan(other)
    return np.reshape(bits, one.shape) | both_nan


def describe(value: Any) -> str:
    """A tensor or array in a few words."""
    return "none" if value is None else f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"

"""The judgement of a torch callable: as a graph where it is faithful to what is on trial, else in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from gradoracle import claims, inprocess, judging
from gradoracle.checks import CheckReport
from gradoracle.errors import TraceError
from gradoracle.tracing import trace
from gradoracle.tracing.arguments import Call

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool, np.bool_),
    int: (int, np.integer),
    float: (float, np.floating),
    complex: (complex, np.complexfloating),
}


@torch.inference_mode(False)  # whose tensors autograd cannot record
def check(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    claimed: Any,
    cotangents: Any,
    options: dict[str, Any],
    ask: judging.Ask,
) -> CheckReport:
    """As `gradoracle.check`, which it is the torch side of; `ask` asks the server about a graph."""
    args = tensors_of(inputs)
    call = Call(fn, args, {})
    tried = _on_trial(call)
    given = [
        made.detach() if isinstance(one, list | tuple) and isinstance(made, torch.Tensor) else one
        for one, made in zip(inputs, args, strict=True)
    ]
    claimed = claims.claimed_by(claimed, given)
    engine = inprocess.engine()
    own = claimed is None and engine is not None
    if own and has_own_gradient(_run_once(call)):
        return _in_process(call, tried, claimed, cotangents, options)
    try:
        graph = trace(fn, *args)
    except TraceError as error:
        if engine is None:
            raise without_engine(error) from error
        return _in_process(call, tried, claimed, cotangents, options)
    if own and graph.message.functions:
        return _in_process(call, tried, claimed, cotangents, options)
    primals = {leaf.name: claims.host_array(leaf.tensor, leaf.name) for leaf in call.leaves if not leaf.is_buffer}
    known = {name: primals[name] for name in graph.inputs if name in primals}
    return judging.judge(judging.on_trial(graph, tried | _without_gradient(call)), known, claimed, cotangents, ask)


def without_engine(error: TraceError) -> TraceError:
    """The refusal of a trace where the function cannot be judged in this process either."""
    text = f"{error}; gradoracle[server] would judge it in this process, as it is: install that, or make it traceable"
    return TraceError(text, reason=error.reason, metadata=error.metadata)


def _on_trial(call: Call) -> set[str]:
    """The inputs that require grad, or every floating one where none says so."""
    marked = {leaf.name for leaf in call.leaves if leaf.requires_grad and leaf.tensor.requires_grad}
    return marked or {leaf.name for leaf in call.leaves if leaf.requires_grad}


def _without_gradient(call: Call) -> set[str]:
    """The inputs whose dtype has no gradient: they are named in reports, which say so."""
    return {leaf.name for leaf in call.leaves if leaf.shuffles}


# ---- In this process


class _Fresh:
    """The function on copies of what it is called with, for tensors in place of its leaves but buffers."""

    def __init__(self, call: Call, tried: set[str]) -> None:
        self._call = call
        for place, leaf in enumerate(call.leaves):
            call.differentiable_by(place, leaf.name in tried)

    def __call__(self, point: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [one for _, one in self.named(point)]

    def named(self, point: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """Its outputs with their names."""
        given = iter(point)
        raised = False
        tensors = []
        for leaf in self._call.leaves:
            if leaf.is_buffer:
                tensors.append(leaf.tensor.detach().clone())
                continue
            one = next(given)
            raised = raised or one.dtype != leaf.tensor.dtype
            # Functions that call autograd themselves need what they are given to require grad, also for values alone.
            if not one.requires_grad and not _is_dual(one):
                one = one.detach().requires_grad_(leaf.requires_grad)
            tensors.append(one.clone())
        if raised:
            tensors = [
                wide(one) if leaf.is_buffer else one for leaf, one in zip(self._call.leaves, tensors, strict=True)
            ]
        return self._call.run(tensors)


def _is_dual(tensor: torch.Tensor) -> bool:
    """Whether it carries a tangent, which it would lose when it is detached."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _in_process(call: Call, tried: set[str], claimed: Any, cotangents: Any, options: dict[str, Any]) -> CheckReport:
    engine = inprocess.engine()
    assert engine is not None  # noqa: S101  # whoever calls has looked
    request = inprocess.options(**options)
    function = _Fresh(call, tried)
    leaves = [leaf for leaf in call.leaves if not leaf.is_buffer]
    tensors = [leaf.tensor.detach() for leaf in leaves]
    tensors = [one.clone() if one.is_inference() else one for one in tensors]
    with left_alone(tensors):
        outputs = function.named(tensors)
        shown = tried | _without_gradient(call)
        alone = is_raisable(function, tensors)
        raising = not alone and is_raisable(function, tensors, raising=True)
        named = {leaf.name: (one, leaf.name in shown) for leaf, one in zip(leaves, tensors, strict=True)}
        return inprocess.check(
            engine,
            function,
            named,
            [name for name, _ in outputs],
            request,
            claimed=_claims(claimed, {name: one for name, (one, _) in named.items() if name in tried}),
            cotangents=_cotangents(cotangents, dict(outputs)),
            raisable=alone or raising,
            raising=raising,
        )


def _claims(claimed: Any, tried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if claimed is None:
        return {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tried.items()}
    named = claims.by_name(claimed, list(tried), shapes, "claimed", "input")
    originals = {name: claims.host_array(tensor, name) for name, tensor in tried.items()}
    arrays = claims.like(named, originals, "claimed")
    return {name: _like(array, tried.get(name)) for name, array in arrays.items()}


def _cotangents(cotangents: Any, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if cotangents is None:
        return {}
    named = claims.by_name(cotangents, list(outputs), {}, "cotangents", "output")
    return {
        name: _like(claims.host_array(one, f'cotangents["{name}"]'), outputs.get(name)) for name, one in named.items()
    }


def _like(array: Any, other: torch.Tensor | None) -> torch.Tensor:
    found = of_numpy(array)
    return found if other is None else found.to(other.device)


def is_raisable(function: inprocess.Function, tensors: Sequence[torch.Tensor], *, raising: bool = False) -> bool:
    """Whether the function computes in float64 throughout when it is given that; with `raising`, when the tensors that
    it holds itself are raised to it, too."""
    engine = inprocess.engine()
    low = any(wide(one).dtype != one.dtype for one in tensors)
    return not low or (engine is not None and engine.is_smooth_in_float64(function, tensors, raising=raising))


# ---- Looking at a function


def _run_once(call: Call) -> list[torch.Tensor]:
    """Its outputs; none where it raises for gradients that torch refuses, which tracing settles."""
    leaves = call.fresh()
    with left_alone(leaves), contextlib.suppress(RuntimeError, TraceError):
        return [one for _, one in call.run(call.started(leaves))]
    return []


def has_own_gradient(outputs: Sequence[Any]) -> bool:
    """Whether a torch.autograd.Function stands behind outputs."""
    return any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in nodes_behind(outputs))


def nodes_behind(outputs: Sequence[Any]) -> Iterator[Any]:
    """Every node of the autograd graph of tensors, each once."""
    waiting = [one.grad_fn for one in outputs if isinstance(one, torch.Tensor) and one.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


@contextlib.contextmanager
def left_alone(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Under autograd, whatever mode holds around; torch's random states are afterwards what they were."""
    devices = sorted({one.device.index or 0 for one in tensors if one.device.type == "cuda"})
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        yield


# ---- Tensors


_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 or complex128; others as they are."""
    return tensor.to(_WIDE.get(tensor.dtype, tensor.dtype))


def tensors_of(inputs: Sequence[Any]) -> list[Any]:
    """What a function gets for its arguments: torch tensors for arrays, else the values themselves.

    Numbers, lists of whole numbers and tuples are arrays where nothing else is one: beside others they may be
    dimensions.
    """
    beside = any(_is_array(one) for one in inputs) or any(_has_dtype(one) for one in pytree.tree_leaves(list(inputs)))
    return [_tensor_of(one, place, beside=beside) for place, one in enumerate(inputs)]


def _tensor_of(value: Any, place: int, *, beside: bool) -> Any:
    alone = not beside and bool(_kinds(value) - {bool})
    if isinstance(value, torch.Tensor) or not (alone or _is_array(value)):
        return value
    found = of_numpy(claims.host_array(value, f"inputs[{place}]"))
    return found.requires_grad_(found.dtype.is_floating_point or found.dtype.is_complex)


def of_numpy(array: Any) -> torch.Tensor:
    """A tensor of its own memory; ml_dtypes' bfloat16 and float8 too."""
    array = np.array(array, order="C")  # a copy, of native byte order
    if array.dtype.kind != "V":
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    bits = np.int16 if array.itemsize == 2 else np.uint8
    return torch.from_numpy(array.view(bits)).view(getattr(torch, array.dtype.name))


def _is_array(value: Any) -> bool:
    return _has_dtype(value) or (isinstance(value, list) and bool(_kinds(value) & {float, complex}))


def _has_dtype(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray | np.generic) or hasattr(value, "__dlpack__")


def _kinds(value: Any) -> set[type]:
    """Of which kinds a number, or those in nested lists, are; none where anything else is among them."""
    if isinstance(value, list | tuple):
        inside = [_kinds(one) for one in value]
        return set().union(*inside) if all(inside) else set()
    return next(({kind} for kind, types in _KINDS.items() if isinstance(value, types)), set())

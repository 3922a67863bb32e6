"""The judgement of a torch callable: as a graph where it is faithful to what is on trial, else in this process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from gradoracle import claims, inprocess, judging
from gradoracle.checks import CheckReport
from gradoracle.errors import TraceError
from gradoracle.graph import Graph
from gradoracle.tracing import foreign, trace
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.given import of_numpy, tensors_of, wide
from gradoracle.tracing.layouts import Layout


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
    found: Graph | _Trial | Exception
    try:
        graph = _graph(call, args, own=claimed is None)
        found = _start(call, tried) if graph is None else graph
    except Exception as error:
        if inprocess.engine() is None:
            raise
        found = error
    if isinstance(found, Exception):
        found = _start_otherwise(call, tried, inputs, found, is_claimed=claimed is not None)
    if isinstance(found, _Trial):
        return _in_process(found, claimed, cotangents, options)
    primals = {leaf.name: claims.host_array(leaf.tensor, leaf.name) for leaf in call.leaves if not leaf.is_buffer}
    known = {name: primals[name] for name in found.inputs if name in primals}
    return judging.judge(judging.on_trial(found, tried | _without_gradient(call)), known, claimed, cotangents, ask)


def _graph(call: Call, args: Sequence[Any], *, own: bool) -> Graph | None:
    """The graph by which a function is judged; None where it is judged in this process. `own`: its own gradient is on
    trial, which no graph tells that has one of its own. Raises what the function raises."""
    engine = inprocess.engine()
    own = own and engine is not None
    if own and has_own_gradient(_run_once(call)):
        return None
    try:
        graph = trace(call.fn, *args)
    except TraceError as error:
        if engine is None:
            raise without_engine(error) from error
        return None
    return None if own and graph.message.functions else graph


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
    """The function on copies of what it is called with, for tensors in place of its leaves but buffers.

    The copies lie in memory as the caller's tensors do.
    """

    def __init__(self, call: Call, tried: set[str]) -> None:
        self._call = call
        for place, leaf in enumerate(call.leaves):
            call.differentiable_by(place, leaf.name in tried)
        self._layouts = [Layout(leaf.tensor) for leaf in call.leaves]

    def __call__(self, point: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [one for _, one in self.named(point)]

    def named(self, point: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """Its outputs with their names."""
        leaves = self._call.leaves
        inputs = [leaf for leaf in leaves if not leaf.is_buffer]
        raised = any(one.dtype != leaf.tensor.dtype for one, leaf in zip(point, inputs, strict=True))
        given = iter(point)
        differentiated = any(one.requires_grad for one in point)  # then what requires none is frozen
        tensors = []
        for leaf, layout in zip(leaves, self._layouts, strict=True):
            if leaf.is_buffer:
                own = leaf.tensor.detach()
                tensors.append(layout.copy(wide(own) if raised else own))
                continue
            one = next(given)
            # Functions that call autograd themselves need what they are given to require grad, also for values alone.
            if not differentiated and not one.requires_grad and not _is_dual(one):
                one = one.detach().requires_grad_(leaf.requires_grad)
            tensors.append(layout.copy(one))
        return self._call.run(tensors)


def _is_dual(tensor: torch.Tensor) -> bool:
    """Whether it carries a tangent, which it would lose when it is detached."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, slots=True)
class _Trial:
    """A function that is judged in this process, after its first run."""

    function: _Fresh
    tensors: dict[str, torch.Tensor]
    """What it is run on: all leaves but buffers."""
    tried: set[str]
    """The names of those on trial."""
    shown: set[str]
    """And of those that are named beside them."""
    outputs: dict[str, torch.Tensor]


def _start(call: Call, tried: set[str]) -> _Trial:
    """Runs a function once. Raises what it raises."""
    function = _Fresh(call, tried)
    leaves = [leaf for leaf in call.leaves if not leaf.is_buffer]
    tensors = [leaf.tensor.detach() for leaf in leaves]
    tensors = [one.clone() if one.is_inference() else one for one in tensors]
    with left_alone(tensors):
        outputs = dict(function.named(tensors))
    named = {leaf.name: one for leaf, one in zip(leaves, tensors, strict=True)}
    return _Trial(function, named, tried, tried | _without_gradient(call), outputs)


def _start_otherwise(
    call: Call, tried: set[str], inputs: Sequence[Any], error: Exception, *, is_claimed: bool
) -> _Trial:
    """The same for a function that raised an error on tensors which require grad, with what it may take instead.

    Raises the error that is the function's own, and TraceError where nothing is claimed of a function that takes, or
    gives, no tensors of torch's.
    """
    if not is_claimed and not foreign.is_about(error, foreign.TENSORS):
        raise error
    found = [(error, foreign.TENSORS)]
    for other, kinds in foreign.calls(call, inputs):
        try:
            trial = _start(other, tried)
        except Exception as raised:
            found.append((raised, kinds))
            continue
        if not is_claimed:
            raise foreign.no_gradient(call.fn) from error
        return trial
    raise foreign.own_error(found)


def _in_process(trial: _Trial, claimed: Any, cotangents: Any, options: dict[str, Any]) -> CheckReport:
    engine = inprocess.engine()
    assert engine is not None  # noqa: S101  # whoever calls has looked
    tensors = list(trial.tensors.values())
    with left_alone(tensors):
        alone = is_raisable(trial.function, tensors)
        raising = not alone and is_raisable(trial.function, tensors, raising=True)
        return inprocess.check(
            engine,
            trial.function,
            {name: (one, name in trial.shown) for name, one in trial.tensors.items()},
            list(trial.outputs),
            inprocess.options(**options),
            claimed=_claims(claimed, {name: one for name, one in trial.tensors.items() if name in trial.tried}),
            cotangents=_cotangents(cotangents, trial.outputs),
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

"""Runs a function once and records its operators."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from torch._library import custom_ops
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gradoracle.errors import TraceError
from gradoracle.tracing import autograd, blame
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.refusals import Unfaithful, refusal
from gradoracle.tracing.seeds import SEED, seed
from gradoracle.tracing.watch import Hook, Watch, mark_of

if TYPE_CHECKING:
    from gradoracle.tracing.apart import Apart


@dataclasses.dataclass(slots=True)
class Captured:
    """What a run recorded."""

    module: fx.GraphModule
    names: list[str]
    """Of the outputs."""
    tracked: list[bool]
    """Whether each output carries a gradient."""
    changed: frozenset[int]
    """Places of the leaves that the function changed in place."""
    random: list[tuple[str, blame.Place]]
    """Operators that draw random numbers."""
    own_gradient: list[tuple[str, blame.Place]]
    """What brings a gradient of its own, in words: custom Functions and hooks."""
    classes: list[type[torch.autograd.Function]]
    """The custom Functions among that."""
    can_stand_apart: bool
    """Whether each of them can be a node of its own: custom Functions and hooks on tensors can."""
    apart: Apart | None
    """Those that are nodes of their own in the graph."""
    watch: Watch

    @property
    def outputs(self) -> list[tuple[str, Any]]:
        """Names of the outputs, with the nodes that give them."""
        returned: Any = self.module.graph.output_node().args[0]
        return list(zip(self.names, returned, strict=True))


def capture(call: Call, reporter: Reporter, *, before_autograd: bool, apart: Apart | None = None) -> Captured:
    """Records the operators as the function calls them, or below autograd and autocast, where those have done their
    part. Raises TraceError for what no graph can express, Unfaithful for what this way of recording cannot.

    With `apart`, custom Functions and hooks become nodes of their own.
    """
    leaves = call.fresh()
    tensors = call.started(leaves)
    watch = Watch(call, tensors, reporter)
    kept: list[tuple[str, torch.Tensor]] = []

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        with watch.watching(), apart.intercepting() if apart else contextlib.nullcontext():
            kept.extend(call.run(inputs))
        return [tensor for _, tensor in kept]

    try:
        module = record(run, tensors, watch, before_autograd=before_autograd)
    except (TraceError, Unfaithful):
        raise
    except Exception as error:
        found = _own_or_tracers(call, reporter, error)
        if found is error:
            raise
        raise found from error
    _check_dense(call, kept)
    outputs = [tensor for _, tensor in kept]
    findings = autograd.look(outputs)
    if apart:
        apart.add_hooks(module.graph, [*_hooks_on_arguments(call, module), *watch.hooks])
    closed_over = [one for one in findings.variables if not any(one is leaf for leaf in leaves)]
    _check_variables(call, module, closed_over, watch)
    return Captured(
        module,
        [name for name, _ in kept],
        [tensor.requires_grad for tensor in outputs],
        frozenset(watch.changed),
        watch.random,
        own_gradient(call, findings, watch),
        findings.functions,
        not (watch.saved_tensor_hooks or watch.lost_hooks or findings.hooked),
        apart,
        watch,
    )


def record(
    run: Callable[..., Any], tensors: Sequence[torch.Tensor], watch: Watch, *, before_autograd: bool
) -> fx.GraphModule:
    """What make_fx makes of a function that watches itself. Raises TraceError where the run broke a rule of tracing,
    Unfaithful where the tracer lost sight of a value; what the function itself raises comes out as it is."""
    make = make_fx(
        run,
        None if before_autograd else _custom_operators(),
        pre_dispatch=before_autograd,
        tracing_mode="real",
        _error_on_data_dependent_ops=False,
    )
    outside = _OutsideRandom()
    seed()
    with warnings.catch_warnings(), watch.observing(), torch.enable_grad(), _light_metadata():
        warnings.simplefilter("ignore")
        try:
            module = make(*tensors)
        except TraceError:
            raise
        except Exception:
            watch.check()
            raise
    watch.check(completed=True)
    outside.check(watch)
    _check_constants(module, watch)
    return module


def _own_or_tracers(call: Call, reporter: Reporter, error: Exception) -> Exception:
    """The error itself where the function raises without being recorded too; else that it cannot be recorded."""
    leaves = call.fresh()
    tensors = call.started(leaves)
    watch = Watch(call, tensors, reporter)
    seed()
    try:
        with warnings.catch_warnings(), watch.observing(), torch.enable_grad():
            warnings.simplefilter("ignore")
            call.run(tensors)
    except TraceError as refused:
        return refused
    except Exception:
        return error
    return Unfaithful(
        f"torch cannot record what the function does: {type(error).__name__}: {str(error)[:200]}",
        blame.of_traceback(error.__traceback__) or blame.of_function(call.fn),
        "write it with torch's operators on dense tensors",
        construct=type(error).__name__,
    )


def _custom_operators() -> dict[Any, Callable[..., Any]]:
    """The Python functions behind operators made by torch.library.custom_op, to be recorded instead of them.

    Only below autograd: above it, an operator's own gradient would be lost with it.
    """
    return {
        one._opoverload: one._init_fn
        for one in list(custom_ops.OPDEFS.values())
        if not one._opoverload._schema.is_mutable
    }


@contextlib.contextmanager
def _light_metadata() -> Iterator[None]:
    """Keeps make_fx from making a fake tensor for every real one that it sees: it takes most of the time, nobody looks
    at it here, and it does not work for sparse tensors."""
    heavy = proxy_tensor.extract_val

    def extract(value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if type(value) in (torch.Tensor, torch.nn.Parameter) else heavy(value, *args, **kwargs)

    proxy_tensor.extract_val = extract  # type: ignore[assignment]
    try:
        yield
    finally:
        proxy_tensor.extract_val = heavy


class _OutsideRandom:
    """The random numbers that a graph cannot draw: Python's, numpy's, torch's where the function seeds it."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = _numpy_state()

    def check(self, watch: Watch) -> None:
        if random.getstate() != self._python:
            raise self._refusal(watch, "Python's random module")
        if _numpy_state() != self._numpy:
            raise self._refusal(watch, "numpy.random")
        if torch.initial_seed() != SEED:
            raise refusal(
                "the function seeds torch's random numbers, which a graph cannot",
                blame.of_function(watch.call.fn),
                "leave the seed to the request: seed=",
                construct="torch.manual_seed",
            )

    @staticmethod
    def _refusal(watch: Watch, what: str) -> TraceError:
        return refusal(
            f"the function draws numbers from {what}, and the graph would keep those of this one run",
            blame.of_function(watch.call.fn),
            "draw them with torch, or pass them as arguments",
            construct=what,
        )


def _numpy_state() -> Any:
    """A comparable form of the state of numpy's global generator."""
    state: Any = np.random.get_state()
    return state[0], state[1].tobytes(), state[2:]


def _hooks_on_arguments(call: Call, module: fx.GraphModule) -> Iterator[Hook]:
    """The hooks that the caller had put on the arguments."""
    for leaf, node in zip(call.leaves, module.graph.find_nodes(op="placeholder"), strict=True):
        if leaf.requires_grad:
            for function in (getattr(leaf.tensor, "_backward_hooks", None) or {}).values():
                yield Hook(function, leaf.tensor.detach(), node, blame.of_function(call.fn))


def own_gradient(call: Call, findings: autograd.Findings, watch: Watch) -> list[tuple[str, blame.Place]]:
    """What brings a gradient of its own, in words, with its place."""
    found = [(f"the custom autograd.Function {one.__qualname__}", blame.of_function(one)) for one in findings.functions]
    hooks = [one.place for one in watch.hooks if one.is_active]
    found += [("a hook on a gradient (Tensor.register_hook)", where) for where in (*hooks, *watch.lost_hooks)]
    found += [("saved_tensors_hooks", where) for where in watch.saved_tensor_hooks]
    here = blame.of_function(call.fn)
    found += [(f"a hook on the node {name}", here) for name in findings.hooked]
    for leaf in call.leaves:
        if leaf.requires_grad and getattr(leaf.tensor, "_backward_hooks", None):
            found.append((f'a hook on the gradient of "{leaf.name}"', here))
    return found


def _check_dense(call: Call, outputs: Sequence[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in outputs:
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise refusal(
                f'the output "{name}" has the layout {layout}, and a graph gives dense tensors',
                blame.of_function(call.fn),
                "return it with .to_dense()",
                construct="sparse output",
            )


def _check_constants(module: fx.GraphModule, watch: Watch) -> None:
    """Every constant is the caller's own tensor, and none a value that came into being during the run."""
    for node in module.graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target))
        if isinstance(value, torch.Tensor) and watch.created(value):
            users = list(node.users)
            raise Unfaithful(
                "the tracer lost sight of a value on its way through something that is no operator",
                mark_of(users[0]).place if users and "gradoracle" in users[0].meta else blame.UNKNOWN,
                "compute it with torch's operators",
                construct="untraceable value",
            )


def _check_variables(call: Call, module: fx.GraphModule, variables: Sequence[torch.Tensor], watch: Watch) -> None:
    """No gradient flows into a tensor that is not an argument."""
    for variable in variables:
        if watch.created(variable):
            continue
        used, where = _first_use(call, module, variable)
        name, is_parameter = blame.closed_over(call.fn, used)
        shown = f'"{name}"' if name else f"a tensor of shape {list(used.shape)}"
        owner = name.rpartition(".")[0].partition(".")[0]
        raise refusal(
            f"the function uses {shown}, which requires grad and is not an argument, so that its gradient would be "
            "lost",
            where,
            f'trace the module itself, or pass "{owner}" as an argument'
            if is_parameter
            else "pass it as an argument, or use it detached",
            construct="closed-over tensor that requires grad",
        )


def _first_use(call: Call, module: fx.GraphModule, variable: torch.Tensor) -> tuple[torch.Tensor, blame.Place]:
    """The closed-over tensor through which a variable gets in, which may be computed from it, and where it is used."""
    for node in module.graph.find_nodes(op="get_attr"):
        constant = getattr(module, str(node.target))
        if not isinstance(constant, torch.Tensor) or not constant.requires_grad:
            continue
        if any(one is variable for one in autograd.look([constant]).variables):
            for user in node.users:
                if "gradoracle" in user.meta:
                    return constant, mark_of(user).place
    return variable, blame.of_function(call.fn)

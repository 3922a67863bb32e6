"""Turns torch callables into graphs. The one part of the client that needs torch (extra `[torch]`).

A function is run once and its operators are recorded, the way torch.fx.experimental's make_fx does it: before autograd
and autocast, so that the graph has the very operators that the function calls. While it runs it is watched (`watch`)
for what such a recording keeps silent about: values that leave the tensors, memory that is not the function's own,
gradients that are not the operators'. What was recorded becomes a message (`export`), and the message is run again and
held against the function, values and gradients, bit for bit, at several points (`verify`).

Where that fails, the operators are recorded once more below autocast. What brings a gradient of its own, a custom
autograd.Function or a hook, becomes an operator with a graph for its values and another for its gradient (`apart`); and
where that fails too, the whole function does (`joint`). Where nothing is faithful, TraceError says which construct
stands in the way, and where.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from gradoracle.errors import TraceError
from gradoracle.graph import Graph
from gradoracle.tracing import blame
from gradoracle.tracing.apart import Apart
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.capture import Captured, capture
from gradoracle.tracing.export import export
from gradoracle.tracing.joint import forbid_second_order, joint, placeholders_of, variants
from gradoracle.tracing.progress import Progress, Reporter
from gradoracle.tracing.refusals import Unfaithful
from gradoracle.tracing.tracked import settled
from gradoracle.tracing.verify import Checker
from gradoracle.tracing.watch import DYNAMIC, mark_of
from gradoracle.v1 import graph_pb2

__all__ = ["Progress", "TraceError", "trace"]

_ONE_AT_A_TIME = threading.RLock()  # random states, and what recording replaces for its time, are the process's


def trace(fn: Callable[..., Any], /, *args: Any, progress: Progress | None = None, **kwargs: Any) -> Graph:
    """The graph of what `fn(*args, **kwargs)` computes.

    Tensors among the arguments, also inside containers and modules, become inputs under the names of fn's parameters:
    "x", "params.w", "xs.0"; the parameters of a module under the names of named_parameters(). Floating and complex ones
    require grad, parameters if they do. Everything else is kept as it is: numbers, flags, buffers, tensors that the
    function finds for itself. So are dtypes and shapes: trace again for others. Outputs are "out", or "out0", "out1", …
    in flattening order; a dict keeps its keys. A sparse argument becomes its indices and values: "x.values".

    `fn` runs several times, on copies: modules, tensors and random states are afterwards what they were. `progress` is
    called from time to time with what is being done and the number of operators seen; without it, a trace that takes
    more than two seconds says so on stderr, if that is a terminal.

    The graph gives fn's own values and gradients, bit for bit, at the given point and at another one, or TraceError is
    raised. It says which construct cannot be expressed, at which line, and what to do.
    """
    reporter = Reporter(progress)
    with _ONE_AT_A_TIME, _left_alone():
        try:
            call = Call(fn, args, kwargs)
            return Graph.from_message(settled(call, reporter, lambda: _traced(call, reporter)))
        finally:
            reporter.close()


def _traced(call: Call, reporter: Reporter) -> graph_pb2.Graph:
    reporter.stage("capturing")
    try:
        captured = capture(call, reporter, before_autograd=True)
    except Unfaithful as first:
        return _otherwise(call, reporter, None, first)
    checker = Checker(call, reporter)
    if captured.own_gradient:
        return _with_own_gradient(call, reporter, checker, captured)
    try:
        return _checked(call, captured, checker)
    except Unfaithful as first:
        return _otherwise(call, reporter, checker, first)


def _checked(call: Call, captured: Captured, checker: Checker) -> graph_pb2.Graph:
    graph = export(captured.module, placeholders_of(call), captured.changed, captured.outputs, call.device)
    varies = any(mark_of(node).depends & DYNAMIC for node in captured.module.graph.nodes if node.op == "call_function")
    checker.check(graph, sizes_vary=varies)
    return graph


def _otherwise(call: Call, reporter: Reporter, checker: Checker | None, first: Unfaithful) -> graph_pb2.Graph:
    """The other ways of recording. Raises the first one's refusal where they do no better."""
    reporter.stage("capturing once more, below autocast")
    try:
        captured = capture(call, reporter, before_autograd=False)
    except Unfaithful:
        raise first.refusal from first
    checker = checker or Checker(call, reporter)
    if captured.own_gradient:
        return _with_own_gradient(call, reporter, checker, captured)
    with contextlib.suppress(Unfaithful):
        graph = _checked(call, captured, checker)
        if checker.second_order_agrees(graph):
            return graph
    with contextlib.suppress(Unfaithful):
        return _joint_checked(call, reporter, checker)
    raise first.refusal from first


def _with_own_gradient(call: Call, reporter: Reporter, checker: Checker, captured: Captured) -> graph_pb2.Graph:
    """A function with a gradient of its own must not be told by its operators, even where they happen to agree.

    Each custom Function and each hook becomes an operator of its own, if that is possible, else the whole function.
    """
    what, where = captured.own_gradient[0]
    error: Exception | None = None
    if captured.can_stand_apart:
        try:
            return _apart_checked(call, reporter, checker, captured)
        except (Unfaithful, RuntimeError) as failed:
            error = failed
    try:
        return _joint_checked(call, reporter, checker)
    except (Unfaithful, RuntimeError) as failed:
        error = error or failed
    reason = error.refusal if isinstance(error, Unfaithful) else error
    text = f"{where}: " if where != blame.UNKNOWN else ""
    raise TraceError(
        f"{text}{what} has a gradient that no graph expresses: {reason}",
        metadata={"construct": what, "location": str(where)},
    ) from error


def _apart_checked(call: Call, reporter: Reporter, checker: Checker, first: Captured) -> graph_pb2.Graph:
    reporter.stage("capturing once more, with functions apart")
    apart = Apart(first.classes)
    captured = capture(call, reporter, before_autograd=True, apart=apart)
    functions = apart.functions(reporter, captured.watch)
    graph = export(captured.module, placeholders_of(call), captured.changed, captured.outputs, call.device, apart)
    graph.functions.extend(functions)
    return _second_order_settled(graph, checker)


def _joint_checked(call: Call, reporter: Reporter, checker: Checker) -> graph_pb2.Graph:
    return _second_order_settled(joint(call, reporter), checker)


def _second_order_settled(graph: graph_pb2.Graph, checker: Checker) -> graph_pb2.Graph:
    """The graph with second derivatives as the function's, or with none. Raises Unfaithful where the first differ."""
    checker.check(graph, sizes_vary=True)
    for variant in variants(graph):
        if checker.second_order_agrees(variant):
            break
    else:
        variant = graph_pb2.Graph()
        variant.CopyFrom(graph)
        forbid_second_order(variant)
    if variant is not graph:
        checker.check(variant, sizes_vary=True)
    return variant


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """Puts back random states and modes, whatever happens inside."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if on_cuda else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)

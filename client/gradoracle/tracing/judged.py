"""The judgement of a function on the tensors that it was given: as it is, or as a graph.

A graph has a float64 shadow where the function itself has none.
"""

from __future__ import annotations

from typing import Any

from gradoracle import inprocess, judging, private
from gradoracle.checks import CheckReport, Verdict
from gradoracle.client import Client
from gradoracle.errors import TraceError
from gradoracle.graph import Graph
from gradoracle.tracing import trace
from gradoracle.tracing.callables import is_raisable
from gradoracle.tracing.given import wide
from gradoracle.tracing.joint import with_contiguous_cotangents
from gradoracle.tracing.naming import signature_of
from gradoracle.tracing.originals import Originals

_LAYOUTS = frozenset({"linear_strided", "linear_transposed", "linear_expanded", "linear_cotangent"})
"""The opinions on what a backward makes of cotangents that are not contiguous."""

PARTS = frozenset({"frozen", "linear_outputs"})
"""Those on what it makes of inputs and outputs one at a time, which no recorded gradient tells."""


def report(run: Originals, *, batched: bool) -> CheckReport:
    """The report on a function's gradients."""
    if inprocess.engine() is None:
        raise ModuleNotFoundError(
            "gradcheck needs gradoracle[server], which is not installed", name="gradoracle_server"
        )
    raisable = is_raisable(run, run.base)
    graph = None if raisable or batched else _graph(run)
    if graph is None:
        return _in_process(run, raisable=raisable, batched=batched)
    found = _of_graph(graph, run)
    if not graph.message.functions:
        return found
    # A gradient is recorded for contiguous cotangents of all outputs, by all inputs. What the function makes of others,
    # it is asked itself.
    own = _in_process(run, raisable=False)
    if _stumbles(own, _LAYOUTS | PARTS):
        return own
    if not _stumbles(found):
        return found
    return _of_graph(Graph.from_message(with_contiguous_cotangents(graph.message)), run)


def _stumbles(found: CheckReport, asked: frozenset[str] = _LAYOUTS) -> set[str]:
    """Which of these opinions say that the gradients are wrong; by default, of those on cotangents' layouts."""
    return {one.name for one in found.opinions if one.name in asked and one.verdict is Verdict.FAIL}


def _in_process(run: Originals, *, raisable: bool, batched: bool = False) -> CheckReport:
    engine = inprocess.engine()
    assert engine is not None  # noqa: S101  # whoever calls has looked
    raising = not raisable and is_raisable(run, run.base, raising=True)
    tracked = (one.requires_grad for one in run.tensors)
    return inprocess.check(
        engine,
        run,
        dict(zip(run.names, zip(run.base, tracked, strict=True), strict=True)),
        [f"out{place}" for place in range(len(run.results()))],
        inprocess.options(batched_gradients=batched),
        claimed={},
        cotangents={},
        raisable=raisable or raising,
        raising=raising,
    )


def _graph(run: Originals) -> Graph | None:
    """A graph of a function of low precision; None where none can stand for it."""
    low = any(wide(one).dtype != one.dtype for one in run.base)
    if not low or run.forward_mode or not run.differentiable():
        return None
    weights = run.closed_over()
    if any(one is two for one in weights for two in run.tensors):
        return None

    def function(*arguments: Any) -> Any:
        """A module's parameters are no inputs here."""
        return run.function(*arguments)

    signature = signature_of(run.function)
    if signature is not None:
        function.__signature__ = signature  # type: ignore[attr-defined]  # for the inputs' names
    try:
        for one in weights:
            one.requires_grad_(False)  # so that they are constants, whose gradients nobody wants here
        graph = trace(function, *run.arguments)
    except TraceError:
        return None
    finally:
        for one in weights:
            one.requires_grad_()
    if len(graph.inputs) != len(run.tensors):
        return None
    tried = {name for name, one in zip(graph.inputs, run.tensors, strict=True) if one.requires_grad}
    return judging.on_trial(graph, tried)


def _of_graph(graph: Graph, run: Originals) -> CheckReport:
    primals = dict(zip(graph.inputs, run.base, strict=True))

    def ask(client: Client) -> CheckReport:
        return client.check(graph, primals)

    return private.call(ask)

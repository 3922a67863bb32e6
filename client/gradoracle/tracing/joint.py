"""A function with a gradient of its own, as one operator: a graph for its values, another for its gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from gradoracle.tracing import blame
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.autograd import gradients
from gradoracle.tracing.capture import Captured, capture, record
from gradoracle.tracing.export import Placeholder, export
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.refusals import Unfaithful
from gradoracle.tracing.watch import Watch
from gradoracle.v1 import graph_pb2 as pb
from gradoracle.v1 import tensor_pb2

_NAME = "traced"
_COTANGENT = "cotangent."
"""How the names of cotangents begin, before that of the output."""


def joint(call: Call, reporter: Reporter) -> pb.Graph:
    """The whole of a function as one operator. Raises TraceError or Unfaithful as `function_of` does."""
    forward = capture(call, reporter, before_autograd=False)
    return _wrapped(_function(call, reporter, forward, lambda _: False), forward)


def function_of(call: Call, reporter: Reporter, *, foreign: Callable[[torch.Tensor], bool]) -> pb.Function:
    """An operator, without a name. Raises TraceError or Unfaithful where a value or a gradient cannot be recorded, or
    where it keeps a tensor that is `foreign`: that came into being around it."""
    forward = capture(call, reporter, before_autograd=False)
    return _function(call, reporter, forward, foreign)


def _function(
    call: Call, reporter: Reporter, forward: Captured, foreign: Callable[[torch.Tensor], bool]
) -> pb.Function:
    if forward.random:
        name, where = forward.random[0]
        why = forward.own_gradient[0][0] if forward.own_gradient else "a construct that only a joint graph expresses"
        raise Unfaithful(
            f"{name} draws random numbers in a function with {why}, and its gradient would draw others",
            where,
            "draw them outside and pass them as arguments",
            construct="random numbers beside a gradient of its own",
        )
    _check_foreign(forward.module, foreign)
    values = export(forward.module, placeholders_of(call), forward.changed, forward.outputs, call.device)
    backward = _backward(call, reporter, forward, foreign)
    if not backward.outputs:
        raise Unfaithful(
            "no gradient flows from its results to its arguments",
            blame.of_function(call.fn),
            "use it under torch.no_grad()",
            construct="no gradient",
        )
    return pb.Function(forward=values, backward=backward)


def _check_foreign(module: fx.GraphModule, foreign: Callable[[torch.Tensor], bool]) -> None:
    for node in module.graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target))
        if isinstance(value, torch.Tensor) and foreign(value):
            raise Unfaithful(
                "its gradient uses a tensor that is not one of its arguments",
                blame.UNKNOWN,
                "pass the tensor as an argument",
                construct="closed-over tensor in a gradient",
            )


def placeholders_of(call: Call) -> list[Placeholder]:
    """What stands for the leaves in a graph: inputs, and constants for buffers."""
    return [Placeholder(leaf.name, leaf.requires_grad, leaf.tensor if leaf.is_buffer else None) for leaf in call.leaves]


def _backward(call: Call, reporter: Reporter, forward: Captured, foreign: Callable[[torch.Tensor], bool]) -> pb.Graph:
    """The gradients of <cotangents, outputs>, as operators of the leaves and the cotangents."""
    reporter.stage("capturing the gradient")
    leaves = call.fresh()
    with torch.enable_grad():
        outputs = [one for _, one in call.run(call.started(call.fresh()))]
    cotangents = [torch.ones_like(one) for one in outputs]
    tensors = [*leaves, *cotangents]
    watch = Watch(call, tensors, reporter)
    found: list[str] = []

    def run(*given: torch.Tensor) -> list[torch.Tensor]:
        inputs, pulled_from = given[: len(leaves)], given[len(leaves) :]
        with watch.watching():
            results = [one for _, one in call.run(call.started(inputs))]
            # Recorded as differentiable, so that the gradient can be differentiated in its turn.
            pulled = gradients(results, pulled_from, inputs, create_graph=True)
        found.extend(leaf.name for leaf, one in zip(call.leaves, pulled, strict=True) if one is not None)
        return [one for one in pulled if one is not None]

    module = record(run, tensors, watch, before_autograd=False)
    _check_foreign(module, foreign)
    names = [f"{_COTANGENT}{name}" for name in forward.names]
    placeholders = [*placeholders_of(call), *(Placeholder(name) for name in names)]
    returned: Any = module.graph.output_node().args[0]
    gradient_nodes = list(zip(found, returned, strict=True))
    return export(module, placeholders, frozenset(watch.changed), gradient_nodes, call.device)


def _wrapped(function: pb.Function, forward: Captured) -> pb.Graph:
    graph = pb.Graph()
    graph.inputs.extend(function.forward.inputs)
    graph.functions.append(function)
    graph.functions[0].name = _NAME
    node = graph.nodes.add(name=_NAME, target=f"function.{_NAME}")
    for one in graph.inputs:
        node.args.add().value = one.name
    for place, (name, tracked) in enumerate(zip(forward.names, forward.tracked, strict=True)):
        value = _NAME
        if len(forward.names) > 1:
            item = graph.nodes.add(name=f"{_NAME}.{place}", target="getitem")
            item.args.add().value = _NAME
            item.args.add().integer = place
            value = item.name
        if not tracked:
            cut = graph.nodes.add(name=f"{value}.detached", target="aten.detach.default")
            cut.args.add().value = value
            value = cut.name
        graph.outputs.add(name=name, value=value)
    return graph


def variants(graph: pb.Graph) -> Iterator[pb.Graph]:
    """The same graph with more and more ways for gradients of gradients through its functions.

    Recording a gradient shows detach where autograd takes a saved tensor out again, and no_grad over what a custom
    Function's forward computes; neither says what a second derivative is to see.
    """
    yield graph
    attached = pb.Graph()
    attached.CopyFrom(graph)
    for node in (node for function in attached.functions for node in function.backward.nodes):
        if node.target == "aten.detach.default":
            node.target = "aten.alias.default"
    yield attached
    tracked = pb.Graph()
    tracked.CopyFrom(attached)
    for node in (node for function in tracked.functions for node in function.backward.nodes):
        node.no_grad = False
    yield tracked


def with_contiguous_cotangents(graph: pb.Graph) -> pb.Graph:
    """The same graph, whose functions take cotangents of any strides.

    A gradient is recorded for contiguous ones. What torch makes of those alone stays in the recording: `contiguous()`
    is no operator there, and a reshape is a view.
    """
    found = pb.Graph()
    found.CopyFrom(graph)
    for function in found.functions:
        backward = function.backward
        recorded = list(backward.nodes)
        del backward.nodes[:]
        taken = {node.name for node in recorded}
        names = {}
        for name in (one.name for one in backward.inputs if one.name.startswith(_COTANGENT)):
            node = _node(backward, f"{name}.contiguous", "aten.contiguous.default", name, taken=taken)
            names[name] = node.name
        for node in recorded:
            for argument in (*node.args, *(one.argument for one in node.kwargs)):
                _redirect(argument, names)
        backward.nodes.extend(recorded)
        for output in backward.outputs:
            output.value = names.get(output.value, output.value)
    return found


def _redirect(argument: pb.Argument, names: Mapping[str, str]) -> None:
    """Makes references to some values references to others."""
    if argument.WhichOneof("kind") == "list":
        for item in argument.list.items:
            _redirect(item, names)
    elif argument.value in names:
        argument.value = names[argument.value]


def forbid_second_order(graph: pb.Graph) -> None:
    """Makes second derivatives through the graph's functions an error, where they would be wrong.

    embedding_renorm_ over no rows leaves a tensor as it is, and torch has no derivative for it. None of the elements of
    each input go in beside the gradient, so that autograd sees it depend on them all.
    """
    for function in graph.functions:
        backward = function.backward
        rows = _node(backward, "no_rows", "aten.zeros.default")
        rows.args.add().integers.values.append(0)
        rows.kwargs.add(name="dtype").argument.dtype = tensor_pb2.DTYPE_INT64
        inputs = [_none_of(backward, one.name) for one in backward.outputs]
        for output in backward.outputs:
            gradient = output.value
            flat = _flat(backward, gradient)
            parts = [flat, *(_node(backward, "as", "aten.to.other", one, gradient).name for one in inputs)]
            joined = _node(backward, "joined", "aten.cat.default")
            listed = joined.args.add().list
            for part in parts:
                listed.items.add().value = part
            column = _node(backward, "column", "aten.unsqueeze.default", joined.name)
            column.args.add().integer = 1
            once = _node(backward, "no_second_derivative", "aten.embedding_renorm_.default", column.name, rows.name)
            for number in (1.0, 2.0):
                once.args.add().real = number
            output.value = _node(backward, "gradient", "aten.view_as.default", once.name, gradient).name


def _flat(graph: pb.Graph, value: str) -> str:
    node = _node(graph, "flat", "aten.reshape.default", value)
    node.args.add().integers.values.append(-1)
    return node.name


def _none_of(graph: pb.Graph, value: str) -> str:
    """A tensor of no elements that depends on a value; real, to be converted to any dtype."""
    node = _node(graph, "none", "aten.slice.Tensor", _flat(graph, value))
    for number in (0, 0, 0):
        node.args.add().integer = number
    return _node(graph, "none", "aten.abs.default", node.name).name


def _node(graph: pb.Graph, base: str, target: str, *references: str, taken: Collection[str] = ()) -> pb.Node:
    """Another node with those references as its first arguments, whose name is none of the graph's or those `taken`."""
    known = {one.name for group in (graph.inputs, graph.constants, graph.nodes) for one in group}
    name = next(
        name for count in itertools.count() if not {name := f"{base}.{count}" if count else base} & {*known, *taken}
    )
    node: pb.Node = graph.nodes.add(name=name, target=target)
    for reference in references:
        node.args.add().value = reference
    return node

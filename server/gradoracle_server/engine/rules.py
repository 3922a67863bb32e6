"""The rules of graph.proto: names, order, references, operators, arguments, outputs. Each broken one has its words."""

from __future__ import annotations

from typing import cast

import torch

from gradoracle_server.engine import arguments
from gradoracle_server.engine.errors import Fault, listed, nearest, suggestion
from gradoracle_server.engine.graph import FUNCTION, GETITEM, Argument, FunctionSpec, GraphSpec, NodeSpec, Ref
from gradoracle_server.engine.operators import Operator, serve

_LONGEST_NAME = 200  # bytes


def check(spec: GraphSpec, device: torch.device) -> dict[str, Operator]:
    """Holds a graph to every rule. Returns the operator of each node but the getitem ones; raises Fault at the first
    rule broken."""
    known = _check_names(spec)
    functions = _check_functions(spec, device)
    operators: dict[str, Operator] = {}
    listy: set[str] = set()  # nodes whose result is a tuple or list
    seen = {one.name for one in spec.inputs} | {name for name, _ in spec.constants}
    for place, node in enumerate(spec.nodes):
        field = f"graph.nodes[{place}]"
        _check_references(node, seen, known, spec, field)
        if node.target == GETITEM:
            _check_getitem(node, listy, operators, functions, spec, field)
        elif node.target.startswith(FUNCTION):
            _check_call(node, functions, listy, field)
        else:
            operator = serve(node.target, node=node.name, field=f"{field}.target")
            arguments.check(node, operator, field)
            _check_lists(node, operator, listy, field)
            operators[node.name] = operator
            if operator.returns_tuple:
                listy.add(node.name)
        _check_devices(node, device, field)
        seen.add(node.name)
    _check_outputs(spec, seen, listy)
    return operators


def _check_names(spec: GraphSpec) -> set[str]:
    """Every name is well-formed and stands once. Returns them all."""
    known: set[str] = set()
    lists = (
        ("inputs", [one.name for one in spec.inputs]),
        ("constants", [name for name, _ in spec.constants]),
        ("nodes", [node.name for node in spec.nodes]),
    )
    for kind, names in lists:
        for place, name in enumerate(names):
            field = f"graph.{kind}[{place}].name"
            _check_name(name, field)
            if name in known:
                message = f'{field}: the name "{name}" stands twice; inputs, constants and nodes share one set of names'
                raise Fault("DUPLICATE_NAME", message, field=field, name=name)
            known.add(name)
    return known


def _check_functions(spec: GraphSpec, device: torch.device) -> dict[str, FunctionSpec]:
    """Each function's graphs keep the rules themselves, and the one fits the other. Returns them by name."""
    found: dict[str, FunctionSpec] = {}
    for place, function in enumerate(spec.functions):
        field = f"graph.functions[{place}]"
        if not function.name.isidentifier():
            message = f"{field}.name: expected letters, digits and underscores, got {function.name[:40]!r}"
            raise Fault("INVALID_GRAPH", message, field=f"{field}.name")
        if function.name in found:
            message = f'{field}.name: the name "{function.name}" stands twice among the functions'
            raise Fault("DUPLICATE_NAME", message, field=f"{field}.name", name=function.name)
        found[function.name] = function
        for side, graph in (("forward", function.forward), ("backward", function.backward)):
            _check_inner(function.name, side, graph, device, f"{field}.{side}")
        _check_fit(function, field)
    return found


def _check_inner(name: str, side: str, graph: GraphSpec, device: torch.device, field: str) -> None:
    if graph.functions:
        message = f'function "{name}": its {side} graph must not have functions of its own'
        raise Fault("INVALID_GRAPH", message, field=f"{field}.functions")
    try:
        check(graph, device)
    except Fault as fault:
        inner = fault.field.replace("graph", field, 1)
        raise Fault(
            fault.reason, f'function "{name}", {side}: {fault.message}', field=inner, **fault.metadata
        ) from None


def _check_fit(function: FunctionSpec, field: str) -> None:
    """The backward graph takes values and cotangents, and gives gradients by inputs of the forward graph."""
    expected = len(function.forward.inputs) + len(function.forward.outputs)
    if len(function.backward.inputs) != expected:
        message = (
            f'function "{function.name}", backward: expected {expected} inputs, the forward graph\'s '
            f"{len(function.forward.inputs)} and a cotangent for each of its {len(function.forward.outputs)} outputs, "
            f"got {len(function.backward.inputs)}"
        )
        raise Fault("INVALID_GRAPH", message, field=f"{field}.backward.inputs")
    inputs = [one.name for one in function.forward.inputs]
    for name, _ in function.backward.outputs:
        if name not in inputs:
            hint = suggestion(nearest(name, inputs)) or f"; there is {listed(inputs)}"
            message = f'function "{function.name}", backward: the forward graph has no input "{name}"{hint}'
            raise Fault("INVALID_GRAPH", message, field=f"{field}.backward.outputs")


def _check_call(node: NodeSpec, functions: dict[str, FunctionSpec], listy: set[str], field: str) -> None:
    name = node.target.removeprefix(FUNCTION)
    function = functions.get(name)
    if function is None:
        near = nearest(name, functions)
        hint = suggestion(near) or f"; there is {listed(functions)}"
        message = f'node "{node.name}": the graph has no function "{name}"{hint}'
        raise Fault("UNKNOWN_OPERATOR", message, field=f"{field}.target", node=node.name, target=node.target)
    expected = len(function.forward.inputs)
    tensors = [one for one in node.args if isinstance(one, Ref) and one.name not in listy]
    if node.kwargs or len(node.args) != expected or len(tensors) != expected:
        got = ", ".join(arguments.description(one) for one in (*node.args, *node.kwargs.values())) or "nothing"
        plural = "s" if expected != 1 else ""
        message = f'node "{node.name}": {node.target} expects {expected} positional tensor{plural}, got {got}'
        raise Fault("INVALID_ARGUMENT", message, field=field, node=node.name, target=node.target, got=got)
    if len(function.forward.outputs) > 1:
        listy.add(node.name)


def _check_name(name: str, field: str) -> None:
    size = len(name.encode())
    if not name:
        raise Fault("INVALID_GRAPH", f"{field}: expected a name, got an empty string", field=field)
    if size > _LONGEST_NAME:
        message = f"{field}: expected a name of at most {_LONGEST_NAME} bytes, got {size}: {name[:40]!r}…"
        raise Fault("INVALID_GRAPH", message, field=field)
    if not name.isprintable():
        raise Fault("INVALID_GRAPH", f"{field}: expected a name without control characters, got {name!r}", field=field)


def _references(argument: Argument, path: str) -> list[tuple[str, str]]:
    """(name, place) of each reference in an argument."""
    if isinstance(argument, Ref):
        return [(argument.name, path)]
    if isinstance(argument, list):
        return [
            found for place, item in enumerate(argument) for found in _references(item, f"{path}.list.items[{place}]")
        ]
    return []


def _node_references(node: NodeSpec, field: str) -> list[tuple[str, str]]:
    found = [pair for place, one in enumerate(node.args) for pair in _references(one, f"{field}.args[{place}]")]
    for place, one in enumerate(node.kwargs.values()):
        found += _references(one, f"{field}.kwargs[{place}]")
    return found


def _check_references(node: NodeSpec, seen: set[str], known: set[str], spec: GraphSpec, field: str) -> None:
    for name, path in _node_references(node, field):
        if name in seen:
            continue
        if name in known:
            cycle = _cycle(node.name, spec)
            if cycle:
                ring = " -> ".join(cycle)
                message = f'node "{node.name}": its arguments depend on its own result: {ring}'
                raise Fault("CYCLE", message, field=path, node=node.name, cycle=ring)
            message = f'node "{node.name}": refers to "{name}", which stands after it; nodes run in the order given'
            raise Fault("UNKNOWN_REFERENCE", message, field=path, node=node.name, reference=name)
        near = nearest(name, seen)
        hint = suggestion(near) or f"; known here: {listed(sorted(seen)[:5])}"
        message = f'node "{node.name}": refers to "{name}", and nothing has that name{hint}'
        raise Fault("UNKNOWN_REFERENCE", message, field=path, node=node.name, reference=name, nearest=", ".join(near))


def _cycle(start: str, spec: GraphSpec) -> list[str]:
    """A ring of references from `start` back to itself, or nothing. Without recursion: graphs may be deep."""
    edges = {node.name: [name for name, _ in _node_references(node, "")] for node in spec.nodes}
    came_from: dict[str, str] = {}
    stack = [start]
    while stack:
        name = stack.pop()
        for target in edges.get(name, ()):
            if target == start:
                ring = [start, name]
                while ring[-1] != start:
                    ring.append(came_from[ring[-1]])
                return ring[::-1] if name != start else [start, start]
            if target in edges and target not in came_from:
                came_from[target] = name
                stack.append(target)
    return []


def _check_getitem(
    node: NodeSpec,
    listy: set[str],
    operators: dict[str, Operator],
    functions: dict[str, FunctionSpec],
    spec: GraphSpec,
    field: str,
) -> None:
    fits = len(node.args) == 2 and not node.kwargs and isinstance(node.args[0], Ref)
    index = node.args[1] if fits else None
    if not fits or not isinstance(index, int) or isinstance(index, bool):
        got = ", ".join(arguments.description(one) for one in node.args) or "nothing"
        message = f'node "{node.name}": getitem expects a reference and an int, got {got}'
        raise Fault("INVALID_ARGUMENT", message, field=field, node=node.name, target=GETITEM, got=got)
    source = cast(Ref, node.args[0])
    if source.name not in listy:
        message = (
            f'node "{node.name}": getitem expects a tuple or list, got the tensor "{source.name}"; use aten.select.int'
        )
        raise Fault(
            "INVALID_ARGUMENT", message, field=f"{field}.args[0]", node=node.name, target=GETITEM, got=source.name
        )
    count = _results(source.name, operators, functions, spec)
    if count > 1 and not -count <= index < count:
        message = f'node "{node.name}": "{source.name}" has {count} results, got index {index}'
        raise Fault("INVALID_ARGUMENT", message, field=f"{field}.args[1]", node=node.name, target=GETITEM, got=index)


def _results(name: str, operators: dict[str, Operator], functions: dict[str, FunctionSpec], spec: GraphSpec) -> int:
    """How many results a node has; 1 also where it returns a list, whose length only the run tells."""
    if name in operators:
        return len(operators[name].schema.returns)
    target = next(node.target for node in spec.nodes if node.name == name)
    return len(functions[target.removeprefix(FUNCTION)].forward.outputs)


def _check_lists(node: NodeSpec, operator: Operator, listy: set[str], field: str) -> None:
    """A tuple or list may stand only for a list, and a tensor only for a tensor."""
    positional = [parameter for parameter in operator.schema.arguments if not parameter.kwarg_only]
    pairs = list(zip(positional, node.args, strict=False))
    pairs += [(parameter, node.kwargs[parameter.name]) for parameter in operator.schema.arguments
              if parameter.name in node.kwargs]  # fmt: skip
    for parameter, argument in pairs:
        wants_list = "List[" in str(parameter.real_type) and isinstance(argument, Ref)
        for name, _ in _references(argument, ""):
            if (name in listy) != wants_list:
                expected = "a list of tensors" if wants_list else "a tensor"
                got = (
                    f'the tensor "{name}"'
                    if wants_list
                    else f'"{name}", which is a tuple or list; take it apart with getitem'
                )
                message = f'node "{node.name}": {node.target} argument "{parameter.name}" expects {expected}, got {got}'
                raise Fault(
                    "INVALID_ARGUMENT", message, field=field, node=node.name, target=node.target,
                    argument=parameter.name, expected=expected, got=name,
                )  # fmt: skip


def _check_devices(node: NodeSpec, device: torch.device, field: str) -> None:
    for argument in (*node.args, *node.kwargs.values()):
        if isinstance(argument, torch.device) and argument.type != "cpu" and not _same_device(argument, device):
            message = f'node "{node.name}": expected device "{device}" (the request\'s) or "cpu", got "{argument}"'
            raise Fault(
                "INVALID_ARGUMENT",
                message,
                field=field,
                node=node.name,
                target=node.target,
                expected=device,
                got=argument,
            )


def _same_device(asked: torch.device, device: torch.device) -> bool:
    return asked.type == device.type and (asked.index is None or asked.index == device.index)


def _check_outputs(spec: GraphSpec, known: set[str], listy: set[str]) -> None:
    if not spec.outputs:
        raise Fault("INVALID_GRAPH", "graph.outputs: expected at least one output, got none", field="graph.outputs")
    names: set[str] = set()
    for place, (name, value) in enumerate(spec.outputs):
        field = f"graph.outputs[{place}]"
        _check_name(name, f"{field}.name")
        if name in names:
            message = f'{field}.name: the name "{name}" stands twice among the outputs'
            raise Fault("DUPLICATE_NAME", message, field=f"{field}.name", name=name)
        names.add(name)
        if value not in known:
            near = nearest(value, known)
            message = f'output "{name}": refers to "{value}", and nothing has that name{suggestion(near)}'
            raise Fault("UNKNOWN_REFERENCE", message, field=f"{field}.value", reference=value, nearest=", ".join(near))
        if value in listy:
            got = f'"{value}", which is a tuple or list; take it apart with getitem'
            raise Fault("INVALID_GRAPH", f'output "{name}": expected a tensor, got {got}', field=f"{field}.value")

"""Turns a graph into a program: checks every rule of graph.proto, then builds an `fx.GraphModule`.

The module's generated code is straight-line Python that calls the overloads one after another and drops each value
after its last use, so it costs what the same calls written by hand would. Nothing is reordered, merged or left out: a
node whose result nobody wants still runs, because its random draws, or its error, are part of the program.
"""

from __future__ import annotations

import dataclasses
import operator as python_operator
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from gradoracle_server.engine import arguments
from gradoracle_server.engine.errors import Fault, listed, nearest, suggestion
from gradoracle_server.engine.graph import GETITEM, Argument, GraphSpec, NodeSpec, Ref
from gradoracle_server.engine.operators import Operator, serve

_LONGEST_NAME = 200
_VARIANTS = 8  # programs kept for one graph, by what they return


@dataclasses.dataclass(slots=True)
class Plan:
    """A checked graph, ready to run on one device."""

    spec: GraphSpec
    device: torch.device
    operators: dict[str, Operator]  # by node; getitem nodes have none
    constants: dict[str, torch.Tensor]
    _programs: dict[tuple[str, ...], Program] = dataclasses.field(default_factory=dict)

    @property
    def output_values(self) -> tuple[str, ...]:
        """The value behind each output, in order."""
        return tuple(value for _, value in self.spec.outputs)

    def program(self, extra: Sequence[str] = ()) -> Program:
        """The program that returns the outputs' values and then those named in `extra`. Kept for the next time."""
        returned = self.output_values + tuple(extra)
        program = self._programs.get(returned)
        if program is None:
            if len(self._programs) >= _VARIANTS:
                self._programs.pop(next(iter(self._programs)))
            program = self._programs[returned] = Program(self, returned)
        return program


class Program:
    """A compiled graph: tensors for the inputs in, a tuple of values out."""

    def __init__(self, plan: Plan, returned: Sequence[str]) -> None:
        self._plan = plan
        graph, self._names = _fx_graph(plan, returned)
        self.module = fx.GraphModule(_Constants(plan.constants), graph)
        self._forward = self.module.forward

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """Runs under whatever grad mode holds, and leaves it so. Raises Fault with the node where torch raises."""
        mode = torch.is_grad_enabled()
        try:
            return self._forward(*inputs)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._fault(error) from error
        finally:
            torch._C._set_grad_enabled(mode)
            torch._C._set_fwd_grad_enabled(True)

    def _fault(self, error: Exception) -> Fault:
        """The same error, with the node that raised it, found by the line of the generated code."""
        node = self._node_at(error.__traceback__)
        if node is None:
            return computation_failed(error)
        return computation_failed(error, node=node.name, target=node.target)

    def _node_at(self, trace: types.TracebackType | None) -> NodeSpec | None:
        code = self._forward.__func__.__code__
        while trace is not None:
            if trace.tb_frame.f_code is code:
                line = trace.tb_lineno - self.module._prologue_start
                index = self.module._lineno_map.get(line)  # type: ignore[union-attr]
                return None if index is None else self._names[index]
            trace = trace.tb_next
        return None


class _Constants(torch.nn.Module):
    """Holds a graph's constants for the generated code, under c0, c1, …"""

    def __init__(self, constants: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for place, value in enumerate(constants.values()):
            self.register_buffer(f"c{place}", value)


def computation_failed(error: Exception, *, node: str = "", target: str = "") -> Fault:
    """What the caller gets where torch raised while it ran their graph: torch's message, and the node if known."""
    location = f'node "{node}": {target}: ' if node else ""
    kind = type(error).__name__
    text = str(error).strip() or kind
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return Fault("LIMIT_EXCEEDED", f"{location}{text}", node=node, limit="device memory")
    return Fault("COMPUTATION_FAILED", f"{location}{text}", node=node, target=target, exception=kind)


def build(spec: GraphSpec, device: torch.device) -> Plan:
    """Checks the graph and builds its plan. Raises Fault with the first rule broken."""
    known = _check_names(spec)
    operators: dict[str, Operator] = {}
    listy: set[str] = set()  # nodes whose result is a tuple or list
    seen = {one.name for one in spec.inputs} | {name for name, _ in spec.constants}
    for place, node in enumerate(spec.nodes):
        field = f"graph.nodes[{place}]"
        _check_references(node, seen, known, spec, field)
        if node.target == GETITEM:
            _check_getitem(node, listy, operators, field)
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
    constants = {name: value.to(device) for name, value in spec.constants}
    return Plan(spec, device, operators, constants)


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
        return [found for place, item in enumerate(argument) for found in _references(item, f"{path}.list.items[{place}]")]
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


def _check_getitem(node: NodeSpec, listy: set[str], operators: dict[str, Operator], field: str) -> None:
    fits = len(node.args) == 2 and not node.kwargs and isinstance(node.args[0], Ref)
    index = node.args[1] if fits else None
    if not fits or not isinstance(index, int) or isinstance(index, bool):
        got = ", ".join(arguments.description(one) for one in node.args) or "nothing"
        message = f'node "{node.name}": getitem expects a reference and an int, got {got}'
        raise Fault("INVALID_ARGUMENT", message, field=field, node=node.name, target=GETITEM, got=got)
    source = node.args[0]
    assert isinstance(source, Ref)
    if source.name not in listy:
        message = f'node "{node.name}": getitem expects a tuple or list, got the tensor "{source.name}"; use aten.select.int'
        raise Fault(
            "INVALID_ARGUMENT", message, field=f"{field}.args[0]", node=node.name, target=GETITEM, got=source.name
        )
    returns = operators[source.name].schema.returns
    if len(returns) > 1 and not -len(returns) <= index < len(returns):
        message = f'node "{node.name}": "{source.name}" has {len(returns)} results, got index {index}'
        raise Fault("INVALID_ARGUMENT", message, field=f"{field}.args[1]", node=node.name, target=GETITEM, got=index)


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
                got = f'the tensor "{name}"' if wants_list else f'"{name}", which is a tuple or list; take it apart with getitem'
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
                "INVALID_ARGUMENT", message, field=field, node=node.name, target=node.target, expected=device, got=argument
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
            raise Fault(
                "UNKNOWN_REFERENCE", message, field=f"{field}.value", reference=value, nearest=", ".join(near)
            )
        if value in listy:
            message = f'output "{name}": expected a tensor, got "{value}", which is a tuple or list; take it apart with getitem'
            raise Fault("INVALID_GRAPH", message, field=f"{field}.value")


def _fx_graph(plan: Plan, returned: Sequence[str]) -> tuple[fx.Graph, dict[int, NodeSpec]]:
    """The fx form of the graph, and which of its nodes (by position) stand for which of ours."""
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for place, one in enumerate(plan.spec.inputs):
        made[one.name] = graph.placeholder(f"i{place}")
    for place, name in enumerate(plan.constants):
        made[name] = graph.get_attr(f"c{place}")
    by_place: dict[int, NodeSpec] = {}
    count = len(made)
    no_grad = False
    for node in plan.spec.nodes:
        if node.no_grad != no_grad:
            no_grad = node.no_grad
            # Forward mode too, unlike torch.no_grad, so that both modes see the same function.
            graph.call_function(torch._C._set_grad_enabled, (not no_grad,))
            graph.call_function(torch._C._set_fwd_grad_enabled, (not no_grad,))
            count += 2
        made[node.name] = _fx_node(graph, node, plan, made)
        by_place[count] = node
        count += 1
    graph.output(tuple(made[name] for name in returned))
    return graph, by_place


def _fx_node(graph: fx.Graph, node: NodeSpec, plan: Plan, made: dict[str, fx.Node]) -> fx.Node:
    args = tuple(_fx_argument(one, made) for one in node.args)
    if node.target == GETITEM:
        return graph.call_function(python_operator.getitem, args)
    operator = plan.operators[node.name]
    kwargs = arguments.with_device(node, operator, plan.device)
    return graph.call_function(operator.overload, args, {key: _fx_argument(one, made) for key, one in kwargs.items()})


def _fx_argument(argument: Argument, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, Ref):
        return made[argument.name]
    if isinstance(argument, list):
        return [_fx_argument(item, made) for item in argument]
    return argument

"""Turns a graph that keeps the rules into a program: an `fx.GraphModule`.

The module's generated code is straight-line Python that calls the overloads one after another and drops each value
after its last use, so it costs what the same calls written by hand would. Nothing is reordered, merged or left out: a
node whose result nobody wants still runs, because its random draws, its error, or what it changes in place, are part of
the program.

In-place overloads may change values that the graph itself made. What came from outside is never changed: inputs may be
looked at again by who sent them, and constants serve the next request with the same graph.
"""

from __future__ import annotations

import dataclasses
import operator as python_operator
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from gradoracle_server.engine import arguments, fresh, functions, memory, rules
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import FUNCTION, GETITEM, Argument, GraphSpec, NodeSpec, Ref
from gradoracle_server.engine.operators import Operator

_VARIANTS = 8  # programs kept for one graph, by what they return


@dataclasses.dataclass(slots=True)
class Plan:
    """A checked graph, ready to run on one device."""

    spec: GraphSpec
    device: torch.device
    operators: dict[str, Operator]  # by node; getitem nodes and calls of functions have none
    constants: dict[str, torch.Tensor]
    functions: dict[str, Callable[..., Any]]  # by name
    _programs: dict[tuple[str, ...], Program] = dataclasses.field(default_factory=dict)
    needs: dict[Any, Any] = dataclasses.field(default_factory=dict)  # kept by `limits`
    wants_zeros: bool = False  # whether it must run on memory that holds zeros: see `fresh`

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

    def rebuilt(self, spec: GraphSpec) -> Plan:
        """The plan of another graph on the same device."""
        return build(spec, self.device)


class Program:
    """A compiled graph: tensors for the inputs in, a tuple of values out."""

    def __init__(self, plan: Plan, returned: Sequence[str]) -> None:
        self._plan = plan
        graph, self._names = _fx_graph(plan, returned)
        self.module = _Module(_Constants(plan.constants), graph)
        self._forward = self.module.forward

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """Runs under whatever grad mode holds, and leaves it so. Raises Fault with the node where torch raises."""
        mode = torch.is_grad_enabled()
        try:
            return self._forward(*inputs)  # type: ignore[no-any-return]
        except Fault:
            raise
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
        code = type(self.module).forward.__code__
        while trace is not None:
            if trace.tb_frame.f_code is code:
                line = trace.tb_lineno - self.module._prologue_start
                index = (self.module._lineno_map or {}).get(line)
                return None if index is None else self._names.get(index)
            trace = trace.tb_next
        return None


class _Module(fx.GraphModule):
    """A GraphModule whose code calls each overload's C++ entry point itself.

    fx writes `torch.ops.aten.mul.Tensor(a, b)`: four look-ups and a Python frame before that entry point, together as
    much as a small operator takes. The lines, and so the nodes that errors are traced to, stay as they are.
    """

    def recompile(self) -> Any:
        made = self._graph.python_code(root_module="self")
        self._code, self._lineno_map, self._prologue_start = made.src, made._lineno_map, made._prologue_start
        scope = dict(made.globals)
        for node in self._graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                scope[_flat(str(node.target))] = node.target._op
        source = _CALL.sub(lambda match: f"{match[1]}{_flat(match[2])}(", made.src)
        exec(compile(source, "<graph>", "exec"), scope)  # noqa: S102 - fx's code, from a graph that keeps the rules
        type(self).forward = scope["forward"]
        return made


_CALL = re.compile(r"^( +\w+ = )torch\.ops\.(aten\.\w+\.\w+)\(", re.MULTILINE)
"""The beginning of a line that calls an overload. Texts among the arguments stand later in the line, and in one."""


def _flat(name: str) -> str:
    return name.replace(".", "_dot_")


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
    if memory.is_exhausted(error):
        return memory.exhausted(error, location=location, node=node, target=target)
    return Fault("COMPUTATION_FAILED", f"{location}{text}", node=node, target=target, exception=kind)


def build(spec: GraphSpec, device: torch.device) -> Plan:
    """Checks the graph and builds its plan. Raises Fault with the first rule broken."""
    operators = rules.check(spec, device)
    constants = {name: value.to(device) for name, value in spec.constants}
    own = {
        one.name: functions.operator(one, build(one.forward, device).program(), build(one.backward, device).program())
        for one in spec.functions
    }
    return Plan(spec, device, operators, constants, own, wants_zeros=fresh.needed(spec))


_STATE = ("running_mean", "running_var")
"""Parameters of the normalisations that change their tensors in training, which their schemas do not say."""


def _fx_graph(plan: Plan, returned: Sequence[str]) -> tuple[fx.Graph, dict[int, NodeSpec]]:
    """The fx form of the graph, and which of its nodes (by position) stand for which of ours."""
    graph = fx.Graph()
    outside = {one.name: graph.placeholder(f"i{place}") for place, one in enumerate(plan.spec.inputs)}
    outside |= {name: graph.get_attr(f"c{place}") for place, name in enumerate(plan.constants)}
    made = dict(outside)
    for name in _state(plan):
        if name in outside:
            made[name] = graph.call_function(torch.ops.aten.clone.default, (outside[name],))
    by_place: dict[int, NodeSpec] = {}
    no_grad = False
    for node in plan.spec.nodes:
        if node.no_grad != no_grad:
            no_grad = node.no_grad
            # Forward mode too, unlike torch.no_grad, so that both modes see the same function.
            graph.call_function(torch._C._set_grad_enabled, (not no_grad,))
            graph.call_function(torch._C._set_fwd_grad_enabled, (not no_grad,))
        for argument in _written(node, plan):
            graph.call_function(_own, (made[argument.name], list(outside.values()), node.name, node.target))
        made[node.name] = _fx_node(graph, node, plan, made)
        by_place[len(graph.nodes) - 1] = node
    graph.output(tuple(made[name] for name in returned))
    return graph, by_place


def _arguments(node: NodeSpec, plan: Plan, names: Sequence[str]) -> list[Ref]:
    """The references that a node passes for the parameters of those names."""
    operator = plan.operators.get(node.name)
    if operator is None:
        return []
    positional = [one.name for one in operator.schema.arguments if not one.kwarg_only]
    given = dict(zip(positional, node.args, strict=False)) | dict(node.kwargs)
    return [one for name in names if isinstance(one := given.get(name), Ref)]


def _state(plan: Plan) -> set[str]:
    return {one.name for node in plan.spec.nodes for one in _arguments(node, plan, _STATE)}


def _written(node: NodeSpec, plan: Plan) -> list[Ref]:
    operator = plan.operators.get(node.name)
    return _arguments(node, plan, operator.writes) if operator is not None and operator.writes else []


def _own(tensor: torch.Tensor, outside: Sequence[torch.Tensor], node: str, target: str) -> None:
    """Raises Fault where a tensor that is about to be changed shares memory with an input or a constant.

    Looked at when it runs, because which operators return views, and of what, no schema tells reliably.
    """
    storage = tensor.untyped_storage().data_ptr()
    if storage and any(one.untyped_storage().data_ptr() == storage for one in outside):
        message = (
            f'node "{node}": {target} would change an input or a constant in place, which never change; '
            "clone it first (aten.clone.default)"
        )
        raise Fault("OPERATOR_REFUSED", message, node=node, target=target, why="changes an input or a constant")


def _fx_node(graph: fx.Graph, node: NodeSpec, plan: Plan, made: dict[str, fx.Node]) -> fx.Node:
    args = tuple(_fx_argument(one, made) for one in node.args)
    if node.target == GETITEM:
        return graph.call_function(python_operator.getitem, args)
    if node.target.startswith(FUNCTION):
        return graph.call_function(plan.functions[node.target.removeprefix(FUNCTION)], args)
    operator = plan.operators[node.name]
    named = arguments.with_device(node, operator, plan.device)
    kwargs = {key: _fx_argument(one, made) for key, one in named.items()}
    placed, kwargs = arguments.in_order(operator.schema, args, kwargs)
    return graph.call_function(operator.overload, tuple(placed), kwargs)


def _fx_argument(argument: Argument, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, Ref):
        return made[argument.name]
    if isinstance(argument, list):
        return [_fx_argument(item, made) for item in argument]
    return argument

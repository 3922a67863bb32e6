"""Programs: straight-line Python that calls the overloads of a graph one after another.

Each value is dropped after its last use, so a program costs what the same calls written by hand would. The source is
written here and not by torch.fx, which takes four times as long to build and print a small graph: for 11 nodes 1.05 ms
of the 1.9 ms that a request with a new graph took in a worker.
"""

from __future__ import annotations

import keyword
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradoracle_server.engine import arguments, memory
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import FUNCTION, GETITEM, Argument, NodeSpec, Ref

if TYPE_CHECKING:
    from gradoracle_server.engine.plan import Plan

_STATE = ("running_mean", "running_var")
"""Parameters of the normalisations that change their tensors in training, which their schemas do not say."""

_LINE = 200  # characters of a message


class Program:
    """A compiled graph: tensors for the inputs in, a tuple of values out."""

    def __init__(self, plan: Plan, returned: Sequence[str]) -> None:
        writer = _Writer(plan)
        source = writer.source(returned)
        exec(compile(source, "<graph>", "exec"), writer.scope)  # noqa: S102 - from a graph that keeps the rules
        # Out of its own scope: in a ring, it would hold the constants until the next collection.
        self._forward: Callable[..., tuple[Any, ...]] = writer.scope.pop("forward")
        self._code = self._forward.__code__
        self._nodes = writer.nodes

    def __call__(self, inputs: Sequence[torch.Tensor], *, recorded: bool = False) -> tuple[Any, ...]:
        """Runs under whatever grad mode holds, or, `recorded`, under autograd, and leaves the mode as it was. Raises
        Fault with the node where torch raises."""
        mode = torch.is_grad_enabled()
        if recorded and not mode:
            torch._C._set_grad_enabled(True)
        try:
            return self._forward(*inputs)
        except Fault:
            raise
        except Exception as error:
            raise self._fault(error) from error
        finally:
            torch._C._set_grad_enabled(mode)
            torch._C._set_fwd_grad_enabled(True)

    def _fault(self, error: Exception) -> Fault:
        """The same error, with the node that raised it, found by the line of the source."""
        node = self._node_at(error.__traceback__)
        if node is None:
            return computation_failed(error)
        return computation_failed(error, node=node.name, target=node.target)

    def _node_at(self, trace: types.TracebackType | None) -> NodeSpec | None:
        while trace is not None:
            if trace.tb_frame.f_code is self._code:
                return self._nodes.get(trace.tb_lineno)
            trace = trace.tb_next
        return None


def computation_failed(error: Exception, *, node: str = "", target: str = "") -> Fault:
    """What the caller gets where torch raised while it ran their graph: torch's message, and the node if known."""
    location = f'node "{node}": {target}: ' if node else ""
    kind = type(error).__name__
    text = str(error).strip() or kind
    if memory.is_exhausted(error):
        return memory.exhausted(error, location=location, node=node, target=target)
    return Fault("COMPUTATION_FAILED", f"{location}{text}", node=node, target=target, exception=kind)


def is_refusal(error: Exception) -> bool:
    """Whether an operator, or a caller's own function by whatever it raises, refuses the numbers that it was given, and
    might take others: it was not for want of memory, and the request is not at fault."""
    if memory.ran_out(error):
        return False
    return not isinstance(error, Fault) or error.reason == "COMPUTATION_FAILED"


def in_words(error: Exception) -> str:
    """What an operator or function raised, in a line: its type and the beginning of its message."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, Fault):
        kind, text = error.metadata.get("exception", kind), error.message
    line = next(iter(text.strip().splitlines()), "")
    return f"{kind}: {line[:_LINE].rstrip('.')}" if line else kind


class _Writer:
    """Writes a graph's source, one line a node, and collects the objects that the source names."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.scope: dict[str, Any] = {
            "own": _own,
            "clone": torch.ops.aten.clone.default._op,
            "set_grad": torch._C._set_grad_enabled,
            "set_forward_grad": torch._C._set_fwd_grad_enabled,
        }
        self.nodes: dict[int, NodeSpec] = {}  # by the number of their line
        self._lines: list[str] = []
        self._objects: dict[int, str] = {}  # names in the scope, by id
        inputs = {one.name: f"i{place}" for place, one in enumerate(plan.spec.inputs)}
        constants = {name: f"c{place}" for place, name in enumerate(plan.constants)}
        self.scope |= {constants[name]: value for name, value in plan.constants.items()}
        self._outside = inputs | constants
        self._inputs = list(inputs.values())
        self._made = dict(self._outside)  # the variable of each value

    def source(self, returned: Sequence[str]) -> str:
        """A function `forward` of the inputs."""
        self._lines.append(f"def forward({', '.join(self._inputs)}):")
        for place, name in enumerate(sorted(_state(self._plan) & self._outside.keys())):
            self._lines.append(f" s{place} = clone({self._outside[name]})")
            self._made[name] = f"s{place}"
        drops = _last_uses(self._plan.spec.nodes, returned)
        no_grad = False
        for place, node in enumerate(self._plan.spec.nodes):
            if node.no_grad != no_grad:
                no_grad = node.no_grad
                # Forward mode too, unlike torch.no_grad, so that both modes see the same function.
                self._lines.append(f" set_grad({not no_grad}); set_forward_grad({not no_grad})")
            for argument in _written(node, self._plan):
                outside = "".join(f"{one}, " for one in self._outside.values())
                named = f"{node.name!r}, {node.target!r}"
                self._lines.append(f" own({self._made[argument.name]}, ({outside}), {named})")
            call = self._call(node)
            self._made[node.name] = f"v{place}"
            dropped = "".join(f"; {self._made[name]} = None" for name in drops.get(place, ()))
            self._lines.append(f" v{place} = {call}{dropped}")
            self.nodes[len(self._lines)] = node
        self._lines.append(f" return ({''.join(f'{self._made[name]}, ' for name in returned)})")
        return "\n".join(self._lines)

    def _call(self, node: NodeSpec) -> str:
        if node.target == GETITEM:
            value, index = (self._text(one) for one in node.args)
            return f"{value}[{index}]"
        placed: Sequence[Argument] = node.args
        named: Mapping[str, Argument] = {}
        if node.target.startswith(FUNCTION):
            function = self._name_of(self._plan.functions[node.target.removeprefix(FUNCTION)])
        else:
            operator = self._plan.operators[node.name]
            # The overload's C++ entry point itself: four look-ups and a Python frame stand before it otherwise,
            # together as much as a small operator takes.
            function = self._name_of(operator.overload._op)
            given = arguments.with_device(node, operator, self._plan.device)
            placed, named = arguments.in_order(operator.schema, node.args, given)
        texts = [self._text(one) for one in placed]
        texts += [f"{key}={self._text(one)}" for key, one in named.items() if not keyword.iskeyword(key)]
        words = [f"{key!r}: {self._text(one)}" for key, one in named.items() if keyword.iskeyword(key)]
        if words:
            texts.append(f"**{{{', '.join(words)}}}")
        return f"{function}({', '.join(texts)})"

    def _text(self, argument: Argument) -> str:
        """An argument as it is written in the source: in full where Python can, else by a name in the scope."""
        if isinstance(argument, Ref):
            return self._made[argument.name]
        if isinstance(argument, list | tuple):
            return f"[{', '.join(self._text(one) for one in argument)}]"
        if argument is None or isinstance(argument, bool | int | str):
            return repr(argument)
        if isinstance(argument, float) and math.isfinite(argument):
            return repr(argument)
        return self._name_of(argument)

    def _name_of(self, thing: Any) -> str:
        name = self._objects.get(id(thing))
        if name is None:
            name = self._objects[id(thing)] = f"k{len(self._objects)}"
            self.scope[name] = thing
        return name


def _last_uses(nodes: Sequence[NodeSpec], returned: Sequence[str]) -> dict[int, list[str]]:
    """By node, the values that no later one needs."""
    last = {}
    for place, node in enumerate(nodes):
        last[node.name] = place
        for name in _references([*node.args, *node.kwargs.values()]):
            if name in last:  # inputs and constants are others' to drop
                last[name] = place
    found: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in returned:
            found.setdefault(place, []).append(name)
    return found


def _references(given: Sequence[Argument]) -> Iterator[str]:
    for one in given:
        if isinstance(one, Ref):
            yield one.name
        elif isinstance(one, list | tuple):
            yield from _references(one)


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

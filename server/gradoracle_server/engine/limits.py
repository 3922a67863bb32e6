"""Memory, before work: what a request will need at the least, found by shape propagation, against what it may have.

The need is bounded from below: what a graph certainly holds at once, so that no request is refused here that could
have been served. (Over 1,466 samples of torch's operator database the bound was above the real peak for one operator:
the pull-back of mish, which torch makes of several operators on meta tensors and of one on others.) What a bound from
below misses (values that decide sizes, buffers inside of kernels) runs into the limit of the process itself, and gets
the same error from there.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from gradoracle_server.engine import dryrun, memory, shapes
from gradoracle_server.engine.graph import FUNCTION, GETITEM, Argument, GraphSpec, NodeSpec, Ref
from gradoracle_server.engine.operators import find
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.shapes import Shape, Value

_REMEMBERED = 64  # needs kept with a plan, by the shapes of its inputs
_SLACK = 4  # a pull-back keeps and makes no more than so many times what the run allocates, nearly always
_LONGEST_DRY_RUN = 5_000  # nodes


class Work(enum.Enum):
    """What is done with a graph, as far as memory goes."""

    EVALUATE = "evaluate"
    INSPECT = "inspect"
    JVP = "jvp"
    VJP = "vjp"
    JACOBIAN = "jacobian"
    HESSIAN = "hessian"
    CHECK = "check"

    __hash__ = object.__hash__  # a member equals itself alone; Enum's own is a call of Python for each look-up


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a request needs at the least, and what needs them: the beginning of a sentence."""

    bytes: int
    what: str
    node: str = ""
    target: str = ""
    values: int | None = None
    """Bytes of all that is computed with and of all that is computed, for one point, freed meanwhile or not; None where
    that is not known."""


@dataclasses.dataclass(slots=True)
class _Flow:
    """What a run of a graph allocates, inputs left out."""

    total: int = 0  # by all nodes together
    is_known: bool = True  # whether that is all of it
    peak: int = 0  # held at once, values given up after their last use
    outputs: list[Value] = dataclasses.field(default_factory=list)
    last: dict[str, int] = dataclasses.field(default_factory=dict)  # the place of the node that reads a value last


def require(
    plan: Plan,
    primals: Mapping[str, torch.Tensor],
    allowed: int,
    work: Work,
    *,
    of: Sequence[str] = (),
    wrt: Sequence[str] = (),
    batched: Sequence[str] = (),
) -> Need | None:
    """What a request needs; None where nobody asked. Raises Fault LIMIT_EXCEEDED where it is more than `allowed` bytes
    (0: no limit) of memory.

    Looks at shapes and dtypes alone. Primals that do not fit the graph are let through: who binds them has the words.
    """
    if not allowed or len(primals) != len(plan.spec.inputs):
        return None
    given_as: list[Any] = [work, tuple(of) if of else (), tuple(wrt) if wrt else (), tuple(batched) if batched else ()]
    for one in plan.spec.inputs:
        primal = primals.get(one.name)
        if primal is None:
            return None
        given_as += primal.shape, primal.dtype
    key = tuple(given_as)
    need = plan.needs.get(key)
    if need is None:
        given = {one.name: shapes.of(primals[one.name]) for one in plan.spec.inputs}
        need = _need(_Request(plan, given, allowed, work, of, wrt, batched))
        known = {*primals, *(name for name, _ in plan.spec.outputs)}
        selected = [*of, *wrt, *batched]
        # Names that are not the graph's, or stand there again and again, could be of any size.
        if len(selected) <= 2 * len(known) and known.issuperset(selected):
            if len(plan.needs) >= _REMEMBERED:
                plan.needs.pop(next(iter(plan.needs)))
            plan.needs[key] = need
    if need.bytes > allowed:
        raise memory.too_much(need.what, need.bytes, allowed, node=need.node, target=need.target)
    return need


@dataclasses.dataclass(slots=True)
class _Request:
    """What is asked for."""

    plan: Plan
    given: Mapping[str, Shape]  # the inputs, as they came
    allowed: int
    work: Work
    of: Sequence[str]
    wrt: Sequence[str]
    batched: Sequence[str]

    @property
    def held(self) -> int:
        """Bytes of the inputs."""
        return sum(one.bytes for one in self.given.values())

    @property
    def count(self) -> int:
        """Of examples."""
        sizes = [self.given[name].sizes for name in self.batched if name in self.given]
        return max([one[0] for one in sizes if one], default=1)

    @property
    def example(self) -> dict[str, Shape]:
        """The inputs of one example."""
        return {
            name: Shape(one.sizes[1:], one.dtype) if name in self.batched else one for name, one in self.given.items()
        }

    def wanted(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those to differentiate by."""
        return {
            one.name: inputs[one.name]
            for one in self.plan.spec.inputs
            if (one.name in self.wrt if self.wrt else one.requires_grad) and _floating(inputs[one.name])
        }


def _need(request: _Request) -> Need:
    plan, held, allowed = request.plan, request.held, request.allowed
    constants = {name: shapes.of(value) for name, value in plan.constants.items()}
    flow = _flow(plan.spec, {**request.example, **constants}, held, allowed)
    if isinstance(flow, Need):
        return flow
    run = Need(held + flow.peak, "the request needs")
    need = max([run, *_of_results(request, flow)], key=lambda one: one.bytes)
    differentiates = request.work not in (Work.EVALUATE, Work.JVP)
    if need.bytes > allowed or request.batched or not differentiates or held + flow.total <= allowed // _SLACK:
        return dataclasses.replace(need, values=_values(request, flow))
    return max(need, _of_pull_back(request, flow), key=lambda one: one.bytes)


def _values(request: _Request, flow: _Flow) -> int | None:
    """As in a Need. What functions of the graph's own do inside is not looked at."""
    if not flow.is_known or request.plan.spec.functions:
        return None
    constants = sum(one.nbytes for one in request.plan.constants.values())
    return request.held + constants + request.count * flow.total


def _of_results(request: _Request, flow: _Flow) -> Iterator[Need]:
    """The answer, which is made whole before it is sent."""
    held, count, wanted = request.held, request.count, request.wanted(request.given)
    if request.work is Work.INSPECT:
        yield Need(held + flow.total, "to keep every value of the graph at once needs")
        return
    names = [name for name, _ in request.plan.spec.outputs]
    outputs = {name: one for name, one in zip(names, flow.outputs, strict=True) if isinstance(one, Shape)}
    for name, one in outputs.items():
        yield Need(held + count * one.bytes, f'output "{name}": with {_described(one)} the request needs')
    size = sum(one.bytes for one in outputs.values())
    if request.work is Work.VJP:
        reached = _reached(request.plan.spec)
        size += sum(one.bytes for name, one in request.wanted(request.example).items() if name in reached)
    yield Need(held + count * size, "with the tensors of its answer the request needs")
    if request.work is Work.JACOBIAN:
        floating = {name: one for name, one in outputs.items() if _floating(one) and name in (request.of or names)}
        yield from _blocks("the Jacobian of output", floating, wanted, held, "by input")
    elif request.work is Work.HESSIAN:
        yield from _blocks("the Hessian by input", wanted, wanted, held, "and")


def _blocks(
    what: str, rows: Mapping[str, Shape], columns: Mapping[str, Shape], held: int, joint: str
) -> Iterator[Need]:
    """Each block of a Jacobian or Hessian, and all of them together."""
    total = 0
    for row, first in rows.items():
        for column, second in columns.items():
            size = math.prod(first.sizes) * second.bytes
            total += size
            shape = [*first.sizes, *second.sizes]
            yield Need(held + size, f'with {what} "{row}" {joint} "{column}", of shape {shape}, the request needs')
    yield Need(held + total, "with all of its blocks the request needs")


def _of_pull_back(request: _Request, flow: _Flow) -> Need:
    """The run with what autograd keeps of it, and the pull-back."""
    plan = request.plan
    if plan.spec.functions or len(plan.spec.nodes) > _LONGEST_DRY_RUN:
        return Need(0, "")

    def call(node: NodeSpec, resolve: Any) -> Any:
        def value(argument: Any) -> Any:
            return resolve(argument) if isinstance(argument, Ref) else argument

        return shapes.invoke(plan.operators[node.name].overload, node.args, node.kwargs, value)

    inputs = [(spec, request.given[spec.name]) for spec in plan.spec.inputs]
    found = dryrun.measure(inputs, plan.constants, plan.spec.nodes, plan.output_values, call, flow.last)
    # A check holds one run's tape while it makes another's.
    size = found.bytes + (found.kept if request.work is Work.CHECK and found.complete else 0)
    if found.node is None:
        return Need(size, "with what the run keeps for it the pull-back needs")
    node = found.node
    what = f'node "{node.name}": {node.target}: with what is kept for the pull-back the request needs'
    return Need(size, what, node.name, node.target)


def _flow(spec: GraphSpec, outside: Mapping[str, Shape], held: int, allowed: int) -> _Flow | Need:
    """Walks through a graph, as far as `allowed` bytes, of which `held` are taken, go: a `Need` where they end."""
    flow = _Flow(last=_last_reads(spec))
    values: dict[str, Value] = dict(outside)
    owners: dict[str, str] = {}  # by value: the value whose memory it is
    sizes: dict[str, int] = {}  # by owner: its bytes, while they are held
    ends: dict[int, list[str]] = {}
    for name, place in flow.last.items():
        ends.setdefault(place, []).append(name)
    live = 0
    for place, node in enumerate(spec.nodes):
        try:
            found, inside = _call(spec, node, values, allowed)
        except OverflowError:
            return _over(node, None, memory.UNCOUNTABLE)
        values[node.name] = found.value
        flow.is_known = flow.is_known and found.value is not None
        owner = owners[node.name] = _owner(node, found, owners)
        sizes[node.name] = found.allocated
        if owner != node.name:  # a value lives as long as the last of its views
            flow.last[owner] = max(flow.last.get(owner, place), flow.last.get(node.name, place))
            ends.setdefault(flow.last[owner], []).append(owner)
        live += found.allocated
        flow.total += found.allocated
        flow.peak = max(flow.peak, live + inside)
        if held + live + inside > allowed:
            return _over(node, found.value, held + live + inside)
        ended = ends.get(place, []) if node.name in flow.last else [*ends.get(place, ()), node.name]
        live -= sum(sizes.pop(name, 0) for name in ended if flow.last.get(name, place) <= place)
    flow.outputs = [values.get(value) for _, value in spec.outputs]
    return flow


def _over(node: NodeSpec, value: Value, size: int) -> Need:
    what = f'node "{node.name}": {node.target}: with {_described(value)} the request needs'
    return Need(size, what, node.name, node.target)


def _call(spec: GraphSpec, node: NodeSpec, values: Mapping[str, Value], allowed: int) -> tuple[shapes.Call, int]:
    """What a node returns and allocates, and what it holds on the way beside that."""
    if node.target == GETITEM:
        source, index = node.args
        several = values.get(source.name) if isinstance(source, Ref) else None
        return shapes.Call(_item(several, index), 0, (0,)), 0
    args = [_known(one, values) for one in node.args]
    kwargs = {name: _known(one, values) for name, one in node.kwargs.items()}
    if _Unknown in args or _Unknown in kwargs.values():
        return shapes.UNKNOWN, 0
    if node.target.startswith(FUNCTION):
        return _function(spec, node.target.removeprefix(FUNCTION), args, allowed)
    operator = find(node.target)
    assert operator is not None  # noqa: S101 - the graph keeps the rules
    found = shapes.call(operator.overload, args, kwargs)
    return found, found.passing


def _item(several: Value, index: Argument) -> Shape | None:
    if not isinstance(several, tuple) or isinstance(several, Shape) or not isinstance(index, int):
        return None
    return several[index] if -len(several) <= index < len(several) else None


def _function(spec: GraphSpec, name: str, args: Sequence[Any], allowed: int) -> tuple[shapes.Call, int]:
    forward = next(one.forward for one in spec.functions if one.name == name)
    outside = dict(zip((one.name for one in forward.inputs), args, strict=True))
    flow = _flow(forward, {**outside, **{key: shapes.of(value) for key, value in forward.constants}}, 0, allowed)
    if isinstance(flow, Need):
        return shapes.UNKNOWN, flow.bytes
    outputs = tuple(one if isinstance(one, Shape) else None for one in flow.outputs)
    size = sum(one.bytes for one in outputs if one is not None)
    return shapes.Call(outputs[0] if len(outputs) == 1 else outputs, 0, (-1,)), max(size, flow.peak)


class _Unknown:
    """Stands for a value of unknown shape among arguments."""


def _known(argument: Argument, values: Mapping[str, Value]) -> Any:
    if isinstance(argument, Ref):
        value = values.get(argument.name)
        if isinstance(value, tuple) and not isinstance(value, Shape):
            return list(value) if all(one is not None for one in value) else _Unknown
        return _Unknown if value is None else value
    if isinstance(argument, list):
        found = [_known(one, values) for one in argument]
        return _Unknown if _Unknown in found else found
    return argument


def _owner(node: NodeSpec, found: shapes.Call, owners: Mapping[str, str]) -> str:
    """The value whose memory a node's result is."""
    if found.allocated or not found.views or found.views[0] < 0:
        return node.name
    tensors = [one.name for one in _references(node)]
    if not tensors:
        return node.name
    place = found.views[0] if found.views[0] < len(tensors) else 0
    return owners.get(tensors[place], tensors[place])


def _references(node: NodeSpec) -> Iterator[Ref]:
    for one in (*node.args, *node.kwargs.values()):
        if isinstance(one, Ref):
            yield one
        elif isinstance(one, list):
            yield from (item for item in one if isinstance(item, Ref))


def _last_reads(spec: GraphSpec) -> dict[str, int]:
    last = {one.name: place for place, node in enumerate(spec.nodes) for one in _references(node)}
    return last | {value: len(spec.nodes) for _, value in spec.outputs}


def _reached(spec: GraphSpec) -> set[str]:
    """The values that a pull-back from the outputs gets to."""
    found = {value for _, value in spec.outputs}
    for node in reversed(spec.nodes):
        if node.name in found and not node.no_grad and not node.target.startswith("aten.detach"):
            found |= {one.name for one in _references(node)}
    return found


def _floating(shape: Shape) -> bool:
    return shape.dtype.is_floating_point or shape.dtype.is_complex


def _described(value: Value) -> str:
    """ "a float64 tensor of shape [2, 3]"."""
    if isinstance(value, Shape):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.sizes)}"
    return "its results"

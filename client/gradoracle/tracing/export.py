"""What was recorded, as a message: fx nodes to nodes of graph.proto."""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from gradoracle.dtypes import NUMBERS
from gradoracle.operators import table
from gradoracle.tracing import blame
from gradoracle.tracing.refusals import Unfaithful
from gradoracle.tracing.rewrites import Operation, rewritten
from gradoracle.tracing.watch import mark_of
from gradoracle.v1 import graph_pb2 as pb
from gradoracle.v1 import tensor_pb2

if TYPE_CHECKING:
    from gradoracle.tracing.apart import Apart, Occurrence

_MEMORY_FORMATS: Mapping[torch.memory_format, pb.MemoryFormat] = {
    torch.contiguous_format: pb.MEMORY_FORMAT_CONTIGUOUS,
    torch.preserve_format: pb.MEMORY_FORMAT_PRESERVE,
    torch.channels_last: pb.MEMORY_FORMAT_CHANNELS_LAST,
    torch.channels_last_3d: pb.MEMORY_FORMAT_CHANNELS_LAST_3D,
}
_LAYOUTS: Mapping[torch.layout, pb.Layout] = {
    torch.strided: pb.LAYOUT_STRIDED,
    torch.sparse_coo: pb.LAYOUT_SPARSE_COO,
    torch.sparse_csr: pb.LAYOUT_SPARSE_CSR,
    torch.sparse_csc: pb.LAYOUT_SPARSE_CSC,
    torch.sparse_bsr: pb.LAYOUT_SPARSE_BSR,
    torch.sparse_bsc: pb.LAYOUT_SPARSE_BSC,
}


class Placeholder:
    """What stands for one placeholder of the recorded graph: an input, or a constant with its value."""

    def __init__(self, name: str, requires_grad: bool = True, value: torch.Tensor | None = None) -> None:
        self.name = name
        self.requires_grad = requires_grad
        self.value = value


def export(
    module: fx.GraphModule,
    placeholders: Sequence[Placeholder],
    changed: frozenset[int],
    outputs: Sequence[tuple[str, Any]],
    device: torch.device,
    apart: Apart | None = None,
) -> pb.Graph:
    """The message. `changed` are the places of the placeholders that are changed in place and so are copied first.

    `outputs` pairs a name with a node of the recorded graph. Raises Unfaithful where a node has no form in the message.
    """
    writer = _Writer(module, device, apart)
    live = _live(module.graph, [value for _, value in outputs if isinstance(value, fx.Node)])
    writer.placeholders(placeholders, changed, live)
    for node in module.graph.nodes:
        if node.op == "call_function" and node in live:
            writer.node(node)
    for name, value in outputs:
        writer.output(name, value)
    return writer.message


def _live(graph: fx.Graph, outputs: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that outputs need, that draw random numbers, or that change what may be needed."""
    live = set(outputs)
    for node in reversed(graph.nodes):
        if node in live or _has_effects(node):
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _has_effects(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return True
    if not target._schema.is_mutable:
        return False
    # A count that nothing reads, such as num_batches_tracked.
    changed = node.args[0] if node.args else None
    alone = isinstance(changed, fx.Node) and changed.op == "placeholder" and len(changed.users) == 1
    return not (alone and not node.users)


class _Writer:
    def __init__(self, module: fx.GraphModule, device: torch.device, apart: Apart | None) -> None:
        self.message = pb.Graph()
        self._module = module
        self._device = device
        self._apart = apart
        self._names: dict[fx.Node, str] = {}
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        self._constants: dict[int, str] = {}

    # ---- Names

    def _free(self, base: str) -> str:
        name, count = base, self._counts.get(base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        self._taken.add(name)
        return name

    # ---- Parts

    def placeholders(
        self, placeholders: Sequence[Placeholder], changed: frozenset[int], live: Container[fx.Node]
    ) -> None:
        self._taken.update(one.name for one in placeholders)
        nodes = self._module.graph.find_nodes(op="placeholder")
        for place, (node, one) in enumerate(zip(nodes, placeholders, strict=True)):
            name = one.name
            if one.value is None:
                self.message.inputs.add(name=name, requires_grad=None if one.requires_grad else False)
            elif node in live:
                name = self._constant(one.value, name)
            else:
                continue
            if place in changed and node in live:
                copy = self.message.nodes.add(name=self._free(f"{name}.copy"), target="aten.clone.default")
                copy.args.add().value = name
                name = copy.name
            self._names[node] = name

    def _constant(self, value: torch.Tensor, name: str) -> str:
        """A constant with the strides that it had, as far as they are an order of the dimensions."""
        if value.layout is not torch.strided:
            layout = str(value.layout).removeprefix("torch.")
            raise Unfaithful(
                f"a constant has the layout {layout}, which has no wire form",
                blame.UNKNOWN,
                "pass it as an argument, or make it dense",
                construct="sparse constant",
            )
        plain = value.detach().resolve_conj().resolve_neg().cpu()
        order = sorted(range(plain.dim()), key=lambda axis: (-plain.stride()[axis], axis))
        message = self.message.constants.add(name=name, value=tensor_message(plain.permute(order)))
        if order == list(range(plain.dim())) or plain.numel() < 2:
            return message.name
        node = self.message.nodes.add(name=self._free(f"{name}.strided"), target="aten.permute.default")
        node.args.add().value = name
        node.args.add().integers.values.extend(order.index(axis) for axis in range(plain.dim()))
        return node.name

    def node(self, node: fx.Node) -> None:
        mark = mark_of(node)
        if node.target is operator.getitem:
            source, index = node.args
            message = self.message.nodes.add(target="getitem", no_grad=not mark.tracked)
            message.args.add().value = self._reference(source)
            message.args.add().integer = index  # type: ignore[assignment]
            message.name = self._name(node, f"{self._reference(source)}.{index}")
            occurrence = self._occurrence(source)
            if occurrence is not None and occurrence.is_cut(index):  # type: ignore[arg-type]
                cut = self.message.nodes.add(target="aten.detach.default")
                cut.args.add().value = message.name
                cut.name = self._name(node, f"{message.name}.detached")
            return
        if node.target is torch._C._set_grad_enabled:
            return  # each node has its own flag
        if (occurrence := self._occurrence(node)) is not None:
            message = self.message.nodes.add(target=f"function.{occurrence.target}", no_grad=not mark.tracked)
            for one in node.args:
                message.args.add().value = self._reference(one)
            message.name = self._name(node, occurrence.target)
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            name = getattr(node.target, "__name__", str(node.target))
            raise Unfaithful(
                f"{name} is no ATen operator", mark.place, "write it with torch's operators", construct=name
            )
        operation = rewritten(node, self._device)
        if operation is None:
            return
        attributes = [one for one in node.all_input_nodes if one.op == "get_attr"]
        if any(isinstance(getattr(self._module, str(one.target)), torch.Generator) for one in attributes):
            raise Unfaithful(
                f"{operation.target} draws from a generator of its own, of type Generator, which has no wire form",
                mark.place,
                "leave it out: the request's seed= decides",
                construct="generator=",
            )
        target = f"{operation.target.namespace}.{operation.target.__name__}"
        self._check_served(target, mark.place)
        message = pb.Node(target=target, no_grad=not mark.tracked)
        self._write_arguments(message, operation, mark.place)
        base = operation.target.overloadpacket.__name__.strip("_")
        if operation.into is None:
            message.name = self._name(node, base)
            self.message.nodes.append(message)
            return
        message.name = self._free(base)
        self.message.nodes.append(message)
        copy = self.message.nodes.add(target="aten.copy_.default", no_grad=message.no_grad)
        copy.args.add().value = self._reference(operation.into)
        copy.args.add().value = message.name
        copy.name = self._name(node, "copy")

    def _occurrence(self, node: Any) -> Occurrence | None:
        """The custom Function or hook that a node stands for."""
        return self._apart.of(node.target) if self._apart is not None else None

    def _name(self, node: fx.Node, base: str) -> str:
        name = self._names[node] = self._free(base)
        return name

    @staticmethod
    def _check_served(target: str, where: blame.Place) -> None:
        operators = table()
        if target in operators.served:
            return
        why = operators.refused.get(target)
        what = f"it {why}" if why else f"torch {operators.torch}, which the server's table is of, has no such operator"
        raise Unfaithful(f"{target} is not served: {what}", where, "write it with other operators", construct=target)

    def output(self, name: str, value: Any) -> None:
        self.message.outputs.add(name=name, value=self._reference(value))

    # ---- Arguments

    def _reference(self, node: Any) -> str:
        if isinstance(node, torch.Tensor):  # an output that is a closed-over tensor itself
            return self._attribute(node, "constant")
        if node not in self._names and node.op == "get_attr":
            self._names[node] = self._attribute(getattr(self._module, str(node.target)), "constant")
        return self._names[node]

    def _attribute(self, value: torch.Tensor, base: str) -> str:
        if id(value) not in self._constants:
            self._constants[id(value)] = self._constant(value, self._free(base))
        return self._constants[id(value)]

    def _write_arguments(self, message: pb.Node, operation: Operation, where: blame.Place) -> None:
        for value in operation.args:
            self._write(message.args.add(), value, operation, where)
        for name, value in operation.kwargs.items():
            self._write(message.kwargs.add(name=name).argument, value, operation, where)

    def _write(self, argument: pb.Argument, value: Any, operation: Operation, where: blame.Place) -> None:
        if isinstance(value, fx.Node):
            argument.value = self._reference(value)
        elif isinstance(value, list | tuple):
            self._write_list(argument, value, operation, where)
        elif not (_write_number(argument, value) or _write_kind(argument, value)):
            raise Unfaithful(
                f"{operation.target} has the argument {str(value)[:60]} of type {type(value).__name__}, which has no "
                "wire form",
                where,
                "write it with other arguments",
                construct=f"argument of type {type(value).__name__}",
            )

    def _write_list(
        self, argument: pb.Argument, values: Sequence[Any], operation: Operation, where: blame.Place
    ) -> None:
        if values and all(type(value) is int for value in values):
            argument.integers.values.extend(values)
            return
        argument.list.SetInParent()
        for value in values:
            self._write(argument.list.items.add(), value, operation, where)


def _write_number(argument: pb.Argument, value: Any) -> bool:
    """Writes None, a number or a string. False for anything else."""
    if value is None:
        argument.none.SetInParent()
    elif isinstance(value, bool):
        argument.boolean = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        argument.integer = value
    elif isinstance(value, float):
        argument.real = value
    elif isinstance(value, complex):
        argument.complex.real, argument.complex.imag = value.real, value.imag
    elif isinstance(value, str):
        argument.text = value
    else:
        return False
    return True


def _write_kind(argument: pb.Argument, value: Any) -> bool:
    """Writes one of torch's own kinds. False for anything else."""
    if isinstance(value, torch.dtype) and str(value).removeprefix("torch.") in NUMBERS:
        argument.dtype = NUMBERS[str(value).removeprefix("torch.")]
    elif isinstance(value, torch.device):
        argument.device = str(value)
    elif isinstance(value, torch.memory_format):
        argument.memory_format = _MEMORY_FORMATS[value]
    elif isinstance(value, torch.layout) and value in _LAYOUTS:
        argument.layout = _LAYOUTS[value]
    else:
        return False
    return True


def tensor_message(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """A dense tensor on the CPU as a message."""
    dtype = NUMBERS[str(tensor.dtype).removeprefix("torch.")]
    raw = tensor.contiguous().reshape(-1)
    data = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
    return tensor_pb2.Tensor(dtype=dtype, shape=tensor.shape, data=data)

"""What comes back: one class for each method, read from the response's message."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from gradoracle import dtypes
from gradoracle.tensors import Array, Bytes, decode
from gradoracle.v1 import service_pb2, tensor_pb2

Attachments: TypeAlias = Sequence[Bytes]
"""Bytes of the tensors that came apart from the message, in a stream or in shared memory."""

PHASES = ("queue", "decode", "plan", "forward", "backward", "check", "encode")
"""What a request's time is spent on, in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timing(Mapping[str, float]):
    """Seconds that the server spent, by phase: `timing.forward` or `timing["forward"]`, and all of them `timing.total`.

    0 where a phase did not occur.
    """

    queue: float = 0.0
    decode: float = 0.0
    plan: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    check: float = 0.0
    encode: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the phases. The network's share is not in it."""
        return sum(self.values())

    def __getitem__(self, phase: str) -> float:
        if phase not in PHASES:
            raise KeyError(phase)
        seconds: float = getattr(self, phase)
        return seconds

    def __iter__(self) -> Iterator[str]:
        return iter(PHASES)

    def __len__(self) -> int:
        return len(PHASES)


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Result:
    """What every result has."""

    timing: Timing
    """Seconds by phase."""
    tag: object = None
    """The request's tag, in `Client.map`."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class EvaluateResult(Result):
    """The values of a graph's outputs."""

    outputs: dict[str, Array]
    """By the outputs' names."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class VjpResult(Result):
    """Outputs and gradients."""

    outputs: dict[str, Array]
    """By the outputs' names."""
    gradients: dict[str, Array | None]
    """By the names of the inputs in `wrt`, then of the values in `retain`. None where no output depends on one."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class JvpResult(Result):
    """Outputs and tangents."""

    outputs: dict[str, Array]
    """By the outputs' names."""
    tangents: dict[str, Array]
    """By the names of the floating and complex outputs; zeros where an output does not move."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class JacobianResult(Result):
    """Outputs and Jacobians."""

    outputs: dict[str, Array]
    """By the outputs' names."""
    jacobian: dict[tuple[str, str], Array]
    """By (output, input); the shape is the output's, then the input's. Zeros where independent."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class HessianResult(Result):
    """Outputs, first and second derivatives."""

    outputs: dict[str, Array]
    """By the outputs' names."""
    gradients: dict[str, Array | None]
    """By the inputs' names."""
    hessian: dict[tuple[str, str], Array]
    """By (row, column), both inputs; the shape is the row's, then the column's. Zeros where independent."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class HvpResult(Result):
    """Outputs, first derivatives, and products of the Hessian with vectors."""

    outputs: dict[str, Array]
    """By the outputs' names."""
    gradients: dict[str, Array | None]
    """By the inputs' names."""
    products: dict[str, Array]
    """By the inputs' names: the sum over columns of H[input, column] @ vector[column]."""


@dataclasses.dataclass(frozen=True, slots=True)
class ValueInfo:
    """The state of one value of a graph that ran under autograd."""

    shape: tuple[int, ...]
    """Sizes. Empty for a tuple or list of tensors."""
    dtype: str | None
    """torch's name of it, or None for a tuple or list of tensors."""
    stride: tuple[int, ...]
    """In elements."""
    requires_grad: bool
    """torch's requires_grad."""
    is_leaf: bool
    """torch's is_leaf."""
    grad_fn: str | None
    """torch's name of the function that made it, such as "MulBackward0", or None."""
    target: str | None
    """The node's operator, or None for inputs and constants."""
    is_tuple: bool
    """Whether it is a tuple or list of tensors, which getitem nodes take apart."""


class Inspection(dict[str, ValueInfo]):
    """A ValueInfo for each input, constant and node by name, in the graph's order."""

    def __init__(self, values: Mapping[str, ValueInfo], timing: Timing) -> None:
        super().__init__(values)
        self.timing = timing
        """Seconds by phase."""
        self.tag: object = None
        """The request's tag, in `Client.map`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A device that requests may name."""

    name: str
    """ "cpu", "cuda:0"."""
    description: str
    """The maker's name for it."""
    workers: int
    """Processes bound to it."""
    workers_alive: int
    """Those of them that are alive."""
    memory_bytes: int
    """Total memory; 0 where not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server; 0 means none."""

    queue: int
    """Requests waiting for one device."""
    queue_bytes: int
    """Bytes of requests waiting for one device."""
    message_bytes: int
    """Bytes of one gRPC message."""
    graph_nodes: int
    """Nodes of one graph."""
    tensor_bytes: int
    """Bytes of one tensor."""
    memory_bytes: int
    """Bytes of memory for one worker."""
    request_seconds: float
    """Seconds for one request, queueing included."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is."""

    version: str
    """gradoracle's version."""
    torch_version: str
    """torch's version."""
    python_version: str
    """Python's version."""
    default_device: str
    """Where requests run that name no device."""
    devices: tuple[Device, ...]
    """The devices."""
    limits: Limits
    """The limits."""

    @property
    def workers(self) -> int:
        """Processes that run requests, over all devices."""
        return sum(device.workers for device in self.devices)


@dataclasses.dataclass(frozen=True, slots=True)
class OperatorInfo:
    """One overload of an operator."""

    name: str
    """As graphs name it: "aten.add.Tensor"."""
    schema: str
    """As torch writes it."""
    differentiable: bool
    """Whether autograd has a derivative for it, its own or through the operators that it is made of."""
    random: bool
    """Whether it draws random numbers."""
    refused: str | None
    """Why it is not served, or None where it is."""


# ---- From messages


def evaluate(message: service_pb2.EvaluateResponse, attached: Attachments) -> EvaluateResult:
    """Reads a response."""
    return EvaluateResult(outputs=_arrays(message.outputs, attached), timing=timing(message))


def vjp(message: service_pb2.ComputeVjpResponse, attached: Attachments) -> VjpResult:
    """Reads a response."""
    return VjpResult(
        outputs=_arrays(message.outputs, attached),
        gradients=_gradients(message.gradients, attached),
        timing=timing(message),
    )


def jvp(message: service_pb2.ComputeJvpResponse, attached: Attachments) -> JvpResult:
    """Reads a response."""
    return JvpResult(
        outputs=_arrays(message.outputs, attached),
        tangents=_arrays(message.tangents, attached),
        timing=timing(message),
    )


def jacobian(message: service_pb2.ComputeJacobianResponse, attached: Attachments) -> JacobianResult:
    """Reads a response."""
    return JacobianResult(
        outputs=_arrays(message.outputs, attached),
        jacobian={(block.output, block.input): decode(block.tensor, attached) for block in message.blocks},
        timing=timing(message),
    )


def hessian(message: service_pb2.ComputeHessianResponse, attached: Attachments) -> HessianResult:
    """Reads a response."""
    return HessianResult(
        outputs=_arrays(message.outputs, attached),
        gradients=_gradients(message.gradients, attached),
        hessian={(block.row, block.column): decode(block.tensor, attached) for block in message.blocks},
        timing=timing(message),
    )


def hvp(message: service_pb2.ComputeHessianResponse, attached: Attachments) -> HvpResult:
    """Reads a response."""
    return HvpResult(
        outputs=_arrays(message.outputs, attached),
        gradients=_gradients(message.gradients, attached),
        products=_arrays(message.products, attached),
        timing=timing(message),
    )


def inspection(message: service_pb2.InspectGraphResponse, _: Attachments) -> Inspection:
    """Reads a response."""
    return Inspection({one.name: _value_info(one) for one in message.values}, timing(message))


def server_info(message: service_pb2.DescribeServerResponse, _: Attachments) -> ServerInfo:
    """Reads a response."""
    limits = message.limits
    return ServerInfo(
        version=message.version,
        torch_version=message.torch_version,
        python_version=message.python_version,
        default_device=message.default_device,
        devices=tuple(
            Device(one.name, one.description, one.workers, one.workers_alive, one.memory_bytes)
            for one in message.devices
        ),
        limits=Limits(
            queue=limits.queue,
            queue_bytes=limits.queue_bytes,
            message_bytes=limits.message_bytes,
            graph_nodes=limits.graph_nodes,
            tensor_bytes=limits.tensor_bytes,
            memory_bytes=limits.memory_bytes,
            request_seconds=limits.request_seconds,
        ),
    )


def operators(message: service_pb2.ListOperatorsResponse, _: Attachments) -> list[OperatorInfo]:
    """Reads a response."""
    return [
        OperatorInfo(one.name, one.schema, one.differentiable, one.random, one.refused or None)
        for one in message.operators
    ]


def timing(message: object) -> Timing:
    """The timing in a response."""
    spent = message.timing  # type: ignore[attr-defined]  # every response has it
    return Timing(spent.queue, spent.decode, spent.plan, spent.forward, spent.backward, spent.check, spent.encode)


def _arrays(tensors: Iterable[tensor_pb2.NamedTensor], attached: Attachments) -> dict[str, Array]:
    return {one.name: decode(one.tensor, attached) for one in tensors}


def _gradients(tensors: Iterable[tensor_pb2.NamedTensor], attached: Attachments) -> dict[str, Array | None]:
    return {one.name: decode(one.tensor, attached) if one.HasField("tensor") else None for one in tensors}


def _value_info(one: service_pb2.ValueInfo) -> ValueInfo:
    return ValueInfo(
        shape=tuple(one.shape),
        dtype=dtypes.NAMES.get(one.dtype),
        stride=tuple(one.stride),
        requires_grad=one.requires_grad,
        is_leaf=one.is_leaf,
        grad_fn=one.grad_fn or None,
        target=one.target or None,
        is_tuple=one.is_tuple,
    )

"""One function per RPC: a parsed request in, a response message out."""

from __future__ import annotations

import collections
import dataclasses
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from google.protobuf.message import Message

from gradoracle.v1 import graph_pb2, tensor_pb2
from gradoracle.v1 import service_pb2 as pb
from gradoracle_server.engine import autodiff, batching, evaluate, fresh, limits, operators, plan
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.limits import Work
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.replay import Replays
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker import checks, graphs, threads
from gradoracle_server.worker.tensors import NUMBERS, Incoming, Outgoing

_PLANS = 512  # kept by a worker; a plan of a few nodes takes some tens of kB
PLAN_BYTES = 256 * 1024 * 1024  # of memory that they take, at most


class Plans:
    """Plans by the bytes of their graph, the least recently used given up first.

    The bytes themselves are the key, not a hash of them: two graphs can never be taken for one another.
    """

    def __init__(self, count: int = _PLANS, size: int = PLAN_BYTES) -> None:
        self._plans: collections.OrderedDict[bytes, Plan] = collections.OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._most = count
        self._most_bytes = size
        self._bytes = 0  # that all of them take, as far as can be told
        self._dropped = 0  # that others took, which may not have been collected yet
        self._asked: bytes | None = None  # the one that was asked for last

    def get(self, key: bytes) -> Plan | None:
        found = self._plans.get(key)
        if found is not None:
            self._plans.move_to_end(key)
            self._asked = key
        return found

    def weigh(self) -> None:
        """Weighs what was asked for last once more: it grows with what is asked of it."""
        key, self._asked = self._asked, None
        if key is not None and (found := self._plans.get(key)) is not None:
            self._weigh(key, found)

    def put(self, key: bytes, made: Plan) -> None:
        self._plans[key] = made
        self._weigh(key, made)

    @property
    def held(self) -> int:
        """What `clear` may give back."""
        return self._bytes + self._dropped

    def clear(self) -> None:
        self._plans.clear()
        self._sizes.clear()
        self._bytes = self._dropped = 0
        gc.collect()

    def _weigh(self, key: bytes, made: Plan) -> None:
        size = made.held(len(key))
        self._bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        while len(self._plans) > 1 and (len(self._plans) > self._most or self._bytes > self._most_bytes):
            old, _ = self._plans.popitem(last=False)
            self._bytes -= (dropped := self._sizes.pop(old))
            self._dropped += dropped


@dataclasses.dataclass(slots=True)
class Context:
    """What a handler works with: the worker's own for as long as it lives, and the one request's."""

    options: WorkerOptions
    device: torch.device
    plans: Plans
    replays: Replays
    phases: Phases
    incoming: Incoming
    outgoing: Outgoing
    graph: bytes | None  # the graph's bytes, where they were taken out of the request
    plan_cache: int = 0  # as in Reply
    verdict: int = 0

    def plan(self, message: graph_pb2.Graph) -> Plan:
        """The plan of the request's graph, from the cache where it can be."""
        with self.phases.measure("plan"):
            key = self.graph if self.graph is not None else message.SerializeToString(deterministic=True)
            found = self.plans.get(key)
            self.plan_cache = 1 if found is not None else 2
            if found is None:
                if self.graph is not None:
                    message = graph_pb2.Graph.FromString(self.graph)
                found = plan.build(graphs.read(message, self.incoming, self.options.max_graph_nodes), self.device)
                if graphs.is_whole(message):  # the same bytes with other attachments are another graph
                    self.plans.put(key, found)
            fresh.zero(found.wants_zeros)
            return found

    def tensors(self, messages: Sequence[tensor_pb2.NamedTensor], field: str) -> dict[str, torch.Tensor]:
        """The tensors of one list of the request."""
        if not messages:
            return {}
        with self.phases.measure("decode"):
            return self.incoming.named(messages, field)

    def require(self, made: Plan, primals: Mapping[str, torch.Tensor], work: Work, **options: Sequence[str]) -> None:
        """Raises Fault where the work would take more memory than a request may have; and has as many threads ready as
        it is worth."""
        with self.phases.measure("plan"):
            need = limits.require(made, primals, self.options.max_memory_bytes, work, **options)
            if self.device.type == "cpu":
                threads.suit(self.options.threads, need, work)

    def seed(self, request: Any) -> None:
        """Seeds every generator, so that nothing of an earlier request decides what this one draws."""
        evaluate.seed_everything(request.seed & 0xFFFF_FFFF_FFFF_FFFF, self.device)

    def write(self, into: Any, tensors: Mapping[str, torch.Tensor | None]) -> None:
        """Appends named tensors to a repeated field; None becomes a name without a tensor."""
        for name, tensor in tensors.items():
            item = into.add(name=name)
            if tensor is not None:
                self.outgoing.fill(item.tensor, tensor)


def _outputs(made: Plan, outputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor | None]:
    return dict(zip((name for name, _ in made.spec.outputs), outputs, strict=True))


def evaluate_graph(request: pb.EvaluateRequest, context: Context) -> pb.EvaluateResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    context.require(made, primals, Work.EVALUATE)
    context.seed(request)
    outputs = evaluate.evaluate(made, primals, context.phases)
    response = pb.EvaluateResponse()
    with context.phases.measure("encode"):
        context.write(response.outputs, _outputs(made, outputs))
    return response


def compute_vjp(request: pb.ComputeVjpRequest, context: Context) -> pb.ComputeVjpResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    cotangents = context.tensors(request.cotangents, "cotangents")
    context.require(made, primals, Work.VJP, wrt=request.wrt, batched=request.batched)
    context.seed(request)
    options: dict[str, Any] = {"cotangents": cotangents, "wrt": request.wrt, "retain": _once(request.retain, "retain")}
    if request.batched:
        found = batching.vjp(made, primals, context.phases, batched=_once(request.batched, "batched"), **options)
    else:
        found = context.replays.vjp(context.graph, made, primals, context.phases, **options)
    response = pb.ComputeVjpResponse()
    with context.phases.measure("encode"):
        context.write(response.outputs, _outputs(made, found.outputs))
        context.write(response.gradients, found.gradients)
    return response


def _once(names: Iterable[str], field: str) -> list[str]:
    """The names of a list, each of which may stand there once."""
    found: list[str] = []
    for name in names:
        if name in found:
            raise Fault("DUPLICATE_NAME", f'{field}: the name "{name}" stands twice', field=field, name=name)
        found.append(name)
    return found


def compute_jvp(request: pb.ComputeJvpRequest, context: Context) -> pb.ComputeJvpResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    tangents = context.tensors(request.tangents, "tangents")
    context.require(made, primals, Work.JVP)
    context.seed(request)
    found = autodiff.jvp(made, primals, context.phases, tangents=tangents)
    response = pb.ComputeJvpResponse()
    with context.phases.measure("encode"):
        context.write(response.outputs, _outputs(made, found.outputs))
        context.write(response.tangents, found.gradients)
    return response


def compute_jacobian(request: pb.ComputeJacobianRequest, context: Context) -> pb.ComputeJacobianResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    context.require(made, primals, Work.JACOBIAN, of=request.of, wrt=request.wrt)
    context.seed(request)
    outputs, blocks = autodiff.jacobian(made, primals, context.phases, of=request.of, wrt=request.wrt)
    response = pb.ComputeJacobianResponse()
    with context.phases.measure("encode"):
        context.write(response.outputs, _outputs(made, outputs))
        for (output, name), block in blocks.items():
            context.outgoing.fill(response.blocks.add(output=output, input=name).tensor, block)
    return response


def compute_hessian(request: pb.ComputeHessianRequest, context: Context) -> pb.ComputeHessianResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    cotangents = context.tensors(request.cotangents, "cotangents")
    vectors = context.tensors(request.vectors, "vectors")
    context.require(made, primals, Work.VJP if vectors else Work.HESSIAN, wrt=request.wrt)
    context.seed(request)
    response = pb.ComputeHessianResponse()
    blocks: dict[tuple[str, str], torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}
    options: dict[str, Any] = {"cotangents": cotangents, "wrt": request.wrt}
    if vectors:
        found, products = autodiff.hvp(made, primals, context.phases, vectors=vectors, **options)
    else:
        found, blocks = autodiff.hessian(made, primals, context.phases, **options)
    with context.phases.measure("encode"):
        context.write(response.outputs, _outputs(made, found.outputs))
        context.write(response.gradients, found.gradients)
        for (row, column), block in blocks.items():
            context.outgoing.fill(response.blocks.add(row=row, column=column).tensor, block)
        context.write(response.products, products)
    return response


def inspect_graph(request: pb.InspectGraphRequest, context: Context) -> pb.InspectGraphResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    context.require(made, primals, Work.INSPECT)
    context.seed(request)
    response = pb.InspectGraphResponse()
    for state in evaluate.inspect(made, primals, context.phases):
        info = response.values.add(name=state.name, target=state.target, is_tuple=state.is_tuple)
        tensor = state.tensor
        if tensor is not None:
            info.dtype = NUMBERS.get(tensor.dtype, tensor_pb2.DTYPE_UNSPECIFIED)
            info.shape.extend(tensor.shape)
            if tensor.layout is torch.strided:
                info.stride.extend(tensor.stride())
            info.requires_grad, info.is_leaf = tensor.requires_grad, tensor.is_leaf
            info.grad_fn = tensor.grad_fn.name() if tensor.grad_fn is not None else ""
    return response


def list_operators(request: pb.ListOperatorsRequest, context: Context) -> pb.ListOperatorsResponse:
    response = pb.ListOperatorsResponse()
    for row in operators.table():
        if request.name_contains in str(row["name"]) and (request.include_refused or not row["refused"]):
            response.operators.add(
                name=str(row["name"]),
                schema=str(row["schema"]),
                differentiable=bool(row["differentiable"]),
                random=bool(row["random"]),
                refused=str(row["refused"]),
            )
    return response


def check_gradients(request: pb.CheckGradientsRequest, context: Context) -> pb.CheckGradientsResponse:
    made = context.plan(request.graph)
    primals = context.tensors(request.primals, "primals")
    cotangents = context.tensors(request.cotangents, "cotangents")
    claimed = context.tensors(request.claimed, "claimed")
    context.require(made, primals, Work.CHECK, wrt=request.wrt)
    context.seed(request)
    report = checks.run(request, made, primals, claimed, cotangents, context.phases)
    context.verdict = int(report.verdict)
    with context.phases.measure("encode"):
        return checks.write(report, context.outgoing)


Handler = Callable[[Any, Context], Message]

HANDLERS: Mapping[str, tuple[type[Message], Handler]] = {
    "Evaluate": (pb.EvaluateRequest, evaluate_graph),
    "ComputeVjp": (pb.ComputeVjpRequest, compute_vjp),
    "ComputeJvp": (pb.ComputeJvpRequest, compute_jvp),
    "ComputeJacobian": (pb.ComputeJacobianRequest, compute_jacobian),
    "ComputeHessian": (pb.ComputeHessianRequest, compute_hessian),
    "CheckGradients": (pb.CheckGradientsRequest, check_gradients),
    "InspectGraph": (pb.InspectGraphRequest, inspect_graph),
    "ListOperators": (pb.ListOperatorsRequest, list_operators),
}
"""By the names of frames.METHODS."""

"""What the tests of tracing share: a graph's answers from a worker in this process, held against eager torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

import gradoracle as go
from gradoracle import dtypes
from gradoracle.tracing import trace
from gradoracle.v1 import service_pb2, tensor_pb2
from gradoracle_server.frames import METHODS, Job
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker.main import Worker

OPTIONS = WorkerOptions(device="cpu", threads=1, max_graph_nodes=0, max_tensor_bytes=0, max_memory_bytes=0)
SEED = 11


@functools.cache
def worker() -> Worker:
    """One for all tests."""
    return Worker(OPTIONS)


def message(name: str, tensor: torch.Tensor) -> tensor_pb2.NamedTensor:
    """A tensor as a request carries it."""
    plain = tensor.detach().resolve_conj().contiguous()
    kind = dtypes.NUMBERS[str(plain.dtype).removeprefix("torch.")]
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return tensor_pb2.NamedTensor(name=name, tensor=tensor_pb2.Tensor(dtype=kind, shape=plain.shape, data=data))


def tensor(named: tensor_pb2.NamedTensor) -> torch.Tensor | None:
    """A tensor of an answer; None where it is unset."""
    if not named.HasField("tensor"):
        return None
    one = named.tensor
    found = torch.zeros(tuple(one.shape), dtype=getattr(torch, dtypes.NAMES[one.dtype]))
    if found.numel():
        found.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(one.data), dtype=torch.uint8))
    return found


def serve(
    graph: go.Graph, primals: Mapping[str, torch.Tensor], cotangents: Mapping[str, torch.Tensor], seed: int = SEED
) -> tuple[dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]:
    """Outputs and gradients, by the worker."""
    request = service_pb2.ComputeVjpRequest(
        graph=graph.message,
        primals=[message(*pair) for pair in primals.items()],
        cotangents=[message(*pair) for pair in cotangents.items()],
        seed=seed,
    )
    reply = worker().answer(Job(METHODS.index("ComputeVjp"), request.SerializeToString()))
    assert reply.code == 0, bytes(reply.payload)
    response = service_pb2.ComputeVjpResponse.FromString(reply.payload)
    return {one.name: tensor(one) for one in response.outputs}, {one.name: tensor(one) for one in response.gradients}


def same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Equal in dtype, shape and bits, or both None."""
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat, others = (each.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for each in (one, other))
    return not flat.numel() or torch.equal(flat.view(torch.uint8), others.view(torch.uint8))


def faithful(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> go.Graph:
    """Traces a function and asserts that a worker gives its outputs and gradients bit for bit, at the given arguments
    and at others. Returns the graph. The function's tensors must all stand in args and kwargs."""
    graph = trace(fn, *args, **kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    generator = torch.Generator().manual_seed(5)
    assert len(graph.inputs) == len(places)
    for step in (0.0, 0.2):
        values = [_moved(leaves[place], step, generator) for place in places]
        agree(
            graph,
            values,
            lambda copies: fn(*_filled(leaves, spec, places, copies)[0], **kwargs_of(leaves, spec, places, copies)),
        )
    return graph


def kwargs_of(leaves: list[Any], spec: Any, places: list[int], copies: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The keyword arguments with other tensors."""
    return dict(_filled(leaves, spec, places, copies)[1])


def _filled(leaves: list[Any], spec: Any, places: list[int], copies: Sequence[torch.Tensor]) -> Any:
    filled = list(leaves)
    for place, copy in zip(places, copies, strict=True):
        filled[place] = copy
    return pytree.tree_unflatten(filled, spec)


def _moved(one: torch.Tensor, step: float, generator: torch.Generator) -> torch.Tensor:
    one = one.detach()
    if not step or not (one.dtype.is_floating_point or one.dtype.is_complex):
        return one.clone()
    return (one * (1 + step * torch.rand(one.shape, generator=generator, dtype=torch.float64))).to(one.dtype)


def agree(graph: go.Graph, values: Sequence[torch.Tensor], run: Callable[[Sequence[torch.Tensor]], Any]) -> None:
    """Asserts that the worker gives, for the inputs in order, what `run` and autograd give."""
    tracked = [graph.requires_grad(name) for name in graph.inputs]
    fresh = [one.clone().requires_grad_(want) for one, want in zip(values, tracked, strict=True)]
    generator = torch.Generator().manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        outputs = [one for one in pytree.tree_leaves(run(fresh)) if isinstance(one, torch.Tensor)]
        live = {
            name: (one, torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype))
            for name, one in zip(graph.outputs, outputs, strict=True)
            if one.requires_grad
        }
        wanted = [one for one in fresh if one.requires_grad]
        roots = [one for one, _ in live.values()]
        along = [one for _, one in live.values()]
        gradients = (
            torch.autograd.grad(roots, wanted, along, allow_unused=True) if live and wanted else [None] * len(wanted)
        )
    primals = dict(zip(graph.inputs, values, strict=True))
    found, pulled = serve(graph, primals, {name: one for name, (_, one) in live.items()})
    for name, one in zip(graph.outputs, outputs, strict=True):
        assert same_bits(one, found[name]), f"output {name}: {one} and {found[name]}"
    names = [name for name, want in zip(graph.inputs, tracked, strict=True) if want]
    for name, one in zip(names, gradients, strict=True):
        assert same_bits(one, pulled.get(name)), f"gradient of {name}: {one} and {pulled.get(name)}"

"""Per-example gradients: the graph is written for one example, the caller sends many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gradoracle_server.engine import autodiff, selection, structure
from gradoracle_server.engine.autodiff import Gradients, Tensors
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import RandomState, bind, check_outputs, has_gradient, in_order
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan


def vjp(
    plan: Plan,
    primals: Tensors,
    phases: Phases,
    *,
    batched: Sequence[str],
    cotangents: Tensors,
    wrt: Sequence[str] = (),
    retain: Sequence[str] = (),
) -> Gradients:
    """Outputs and gradients of each example, stacked along a new first axis.

    The inputs named in `batched` carry that axis; the others are the same for each example, and their gradients come
    back per example too. A cotangent has one example's shape, and serves for all, or the batch axis in front.
    """
    inputs = in_order(plan, primals)
    size = _batch_size(plan, inputs, batched)
    for spec, tensor in zip(plan.spec.inputs, inputs, strict=True):
        structure.check(spec, tensor, batch_axes=1 if spec.name in batched else 0)
    if size == 0:
        message = "batched: expected at least one example, got a batch axis of size 0"
        raise Fault("INVALID_TENSOR", message, field="batched", expected="1 or more", got=0)
    if not retain:
        found: list[Gradients] = []
        state = RandomState(plan.device)

        def attempt() -> list[torch.Tensor | None]:
            found.append(_vectorised(plan, inputs, phases, size, batched, cotangents, wrt))
            return []

        if autodiff.without_batching_rules(attempt) is not None:
            return found[0]
        state.restore()
    return _looped(plan, primals, phases, size, batched, cotangents, wrt, retain)


def _batch_size(plan: Plan, inputs: Sequence[torch.Tensor], batched: Sequence[str]) -> int:
    names = [one.name for one in plan.spec.inputs]
    first, size = "", -1
    for name in batched:
        if name not in names:
            raise selection.unknown("batched", name, "input", names)
        tensor = inputs[names.index(name)]
        if tensor.dim() == 0:
            message = f'batched: input "{name}" is 0-dimensional and has no batch axis'
            raise Fault("INVALID_SELECTION", message, field="batched", name=name)
        if size >= 0 and tensor.shape[0] != size:
            message = (
                f'batched: inputs "{first}" and "{name}" must have the same first size, '
                f"got {size} and {tensor.shape[0]}"
            )
            raise Fault("INVALID_TENSOR", message, field="batched", name=name, expected=size, got=tensor.shape[0])
        if size < 0:
            first, size = name, tensor.shape[0]
    return size


def _vectorised(
    plan: Plan,
    inputs: Sequence[torch.Tensor],
    phases: Phases,
    size: int,
    batched: Sequence[str],
    cotangents: Tensors,
    wrt: Sequence[str],
) -> Gradients:
    """All examples in one run of the graph under vmap.

    Each example gets its own view of the shared inputs. Examples do not mix, so one ordinary pull-back through the
    whole run gives each example's gradient by each input.
    """
    per_example = []
    for spec, tensor in zip(plan.spec.inputs, inputs, strict=True):
        own = tensor if spec.name in batched else tensor.expand(size, *tensor.shape)
        per_example.append(own.detach().requires_grad_(spec.requires_grad and has_gradient(tensor)))
    program = plan.program()
    with phases.measure("forward"), torch.enable_grad():
        outputs = list(torch.func.vmap(lambda *one: program(one), randomness="different")(*per_example))
    check_outputs(plan, outputs)
    wanted = selection.wanted_inputs(plan, per_example, wrt)
    targets = [per_example[place] for place in wanted]
    with phases.measure("backward"):
        roots = _cotangents(plan, outputs, cotangents, size)
        pulled = autodiff.pull_back(outputs, roots, targets)
    gradients = dict(zip((plan.spec.inputs[place].name for place in wanted), pulled, strict=True))
    return Gradients([output.detach() for output in outputs], structure.project_named(gradients, plan.spec.structures))


def _cotangents(
    plan: Plan, outputs: Sequence[torch.Tensor], cotangents: Tensors, size: int
) -> list[torch.Tensor | None]:
    """As `selection.cotangents_for`, for outputs that carry the batch axis."""
    if not cotangents:
        ones = selection.cotangents_for(plan, [output[0] for output in outputs], {})
        return [None if one is None else one.expand(size, *one.shape) for one in ones]
    ranks = {name: output.dim() for (name, _), output in zip(plan.spec.outputs, outputs, strict=True)}
    stacked = {
        name: one.expand(size, *one.shape) if one.dim() + 1 == ranks.get(name) else one
        for name, one in cotangents.items()
    }
    return selection.cotangents_for(plan, outputs, stacked)


def _example(cotangents: Tensors, place: int, ranks: Mapping[str, int], size: int) -> dict[str, torch.Tensor]:
    """One example's cotangents: a slice where the batch axis is there, else the same for all."""
    return {
        name: one[place] if one.dim() == ranks.get(name, -2) + 1 and one.shape[0] == size else one
        for name, one in cotangents.items()
    }


def _looped(
    plan: Plan,
    primals: Tensors,
    phases: Phases,
    size: int,
    batched: Sequence[str],
    cotangents: Tensors,
    wrt: Sequence[str],
    retain: Sequence[str],
) -> Gradients:
    """One example after another: for graphs that vmap cannot batch, and where intermediate gradients are wanted."""
    ranks: dict[str, int] = {}
    if cotangents:
        ranks = _ranks(plan, _slice(primals, batched, 0))
    results = [
        autodiff.vjp(
            plan,
            _slice(primals, batched, place),
            phases,
            cotangents=_example(cotangents, place, ranks, size),
            wrt=wrt,
            retain=retain,
        )
        for place in range(size)
    ]
    outputs = [torch.stack(column) for column in zip(*(one.outputs for one in results), strict=True)]
    gradients = {}
    for name, first in results[0].gradients.items():
        column = [one.gradients[name] for one in results]
        gradients[name] = None if first is None else torch.stack(column)  # type: ignore[arg-type]
    return Gradients(outputs, gradients)


def _slice(primals: Tensors, batched: Sequence[str], place: int) -> dict[str, torch.Tensor]:
    return {name: tensor[place] if name in batched else tensor for name, tensor in primals.items()}


def _ranks(plan: Plan, primals: Tensors) -> dict[str, int]:
    """The rank of one example's outputs. Draws no random numbers as far as the examples can tell."""
    state = RandomState(plan.device)
    with torch.no_grad():
        outputs = plan.program()(bind(plan, primals))
    state.restore()
    return {name: value.dim() for (name, _), value in zip(plan.spec.outputs, outputs, strict=True)}

"""What a caller chose: inputs to differentiate by, values to retain, cotangents, tangents and vectors, each checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from gradoracle_server.engine.errors import Fault, listed, nearest, suggestion
from gradoracle_server.engine.evaluate import has_gradient
from gradoracle_server.engine.plan import Plan


def unknown(list_name: str, name: str, kind: str, known: Iterable[str]) -> Fault:
    """A name in a list of the request that is nothing of the kind."""
    known = list(known)
    near = nearest(name, known)
    hint = suggestion(near) or f"; there is {listed(known[:8])}"
    message = f'{list_name}: the graph has no {kind} "{name}"{hint}'
    return Fault("INVALID_SELECTION", message, field=list_name, name=name, nearest=", ".join(near))


def wanted_inputs(plan: Plan, inputs: Sequence[torch.Tensor], wrt: Sequence[str]) -> list[int]:
    """Positions of the inputs of `wrt` in the graph's order; with none, of all that require grad."""
    if not wrt:
        return [position for position, one in enumerate(plan.spec.inputs) if one.requires_grad]
    names = [one.name for one in plan.spec.inputs]
    for name in wrt:
        if name not in names:
            raise unknown("wrt", name, "input", names)
        position = names.index(name)
        if not plan.spec.inputs[position].requires_grad:
            message = f'wrt: input "{name}" was declared with requires_grad=False; declare it with True'
            raise Fault("INVALID_SELECTION", message, field="wrt", name=name)
        if not has_gradient(inputs[position]):
            message = (
                f'wrt: input "{name}" is {dtype_name(inputs[position].dtype)}; '
                "only tensors of floating point and complex dtype can require gradients"
            )
            raise Fault("INVALID_SELECTION", message, field="wrt", name=name)
    return [position for position, name in enumerate(names) if name in wrt]


def retained_values(plan: Plan, retain: Sequence[str]) -> list[str]:
    """The value behind each name of `retain`: a value of that name, else the value of the output of that name."""
    if not retain:
        return []
    values = {one.name for one in plan.spec.inputs} | {node.name for node in plan.spec.nodes}
    outputs = dict(plan.spec.outputs)
    found = []
    for name in retain:
        if name not in values and name not in outputs:
            raise unknown("retain", name, "value", [*values, *outputs])
        found.append(name if name in values else outputs[name])
    return found


def cotangents_for(
    plan: Plan,
    outputs: Sequence[torch.Tensor],
    cotangents: Mapping[str, torch.Tensor],
    counts: Sequence[bool] | None = None,
) -> list[torch.Tensor | None]:
    """A cotangent for each output, in its dtype, or None where the output contributes nothing: where it does not
    require grad, or, given `counts`, is not to count.

    With no cotangents at all: 1 for each output that counts, which must then be a real scalar, as in torch.
    """
    names = [name for name, _ in plan.spec.outputs]
    if counts is None:
        counts = [one.requires_grad for one in outputs]
    if not cotangents:
        pairs = zip(names, outputs, counts, strict=True)
        return [_implicit(name, output) if counted else None for name, output, counted in pairs]
    for name in cotangents:
        if name not in names:
            raise unknown("cotangents", name, "output", names)
    found: list[torch.Tensor | None] = []
    for name, output, counted in zip(names, outputs, counts, strict=True):
        given = cotangents.get(name)
        if given is None:
            found.append(None)
            continue
        fitted = fit("cotangents", "output", name, given, output)
        found.append(fitted if counted else None)
    return found


def _implicit(name: str, output: torch.Tensor) -> torch.Tensor:
    if output.numel() != 1:
        shape = tuple(output.shape)
        message = f'grad can be implicitly created only for scalar outputs, but output "{name}" has shape {shape}'
        raise _missing(name, f"{message}; give a cotangent of that shape", expected="a scalar", got=shape)
    if not output.dtype.is_floating_point:
        kind = dtype_name(output.dtype)
        message = f'grad can be implicitly created only for real scalar outputs, but output "{name}" is {kind}'
        raise _missing(name, f"{message}; give a cotangent", expected="a real scalar", got=kind)
    return torch.ones_like(output, memory_format=torch.preserve_format)


def _missing(name: str, message: str, *, expected: str, got: object) -> Fault:
    return Fault("INVALID_COTANGENT", message, field="cotangents", name=name, expected=expected, got=got)


def directions_for(
    list_name: str, plan: Plan, inputs: Sequence[torch.Tensor], given: Mapping[str, torch.Tensor]
) -> list[torch.Tensor | None]:
    """Tangents or vectors: one for each input, in its dtype, or None where the input stands still."""
    names = [one.name for one in plan.spec.inputs]
    for name in given:
        if name not in names:
            raise unknown(list_name, name, "input", names)
    if not given:
        message = f"{list_name}: expected a tensor for at least one input, got none"
        raise Fault("INVALID_COTANGENT", message, field=list_name, expected="one or more", got="none")
    return [
        fit(list_name, "input", name, given[name], tensor) if name in given else None
        for name, tensor in zip(names, inputs, strict=True)
    ]


def fit(list_name: str, kind: str, name: str, given: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The given tensor in the dtype of the one it belongs to. Raises Fault where shape or dtype cannot fit."""
    if not has_gradient(like):
        message = f'{list_name}: {kind} "{name}" is {dtype_name(like.dtype)} and has no derivative'
        raise Fault("INVALID_COTANGENT", message, field=list_name, name=name, got=dtype_name(like.dtype))
    if given.shape != like.shape:
        expected, got = list(like.shape), list(given.shape)
        message = f'{list_name}: {kind} "{name}" has shape {expected}, got a tensor of shape {got}'
        raise Fault("INVALID_COTANGENT", message, field=list_name, name=name, expected=expected, got=got)
    if given.dtype.is_complex and not like.dtype.is_complex:
        real, complex_kind = dtype_name(like.dtype), dtype_name(given.dtype)
        message = f'{list_name}: {kind} "{name}" is {real}, got a complex tensor ({complex_kind})'
        raise Fault("INVALID_COTANGENT", message, field=list_name, name=name, expected=real, got=complex_kind)
    return given.to(like.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float64" for torch.float64."""
    return str(dtype).removeprefix("torch.")

"""The gradient on trial where it is autograd's own, and the same in float64 as the reference where it is a claim."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from gradoracle_server.engine import autodiff, draws, selection, structure
from gradoracle_server.engine.errors import Fault, listed, nearest, suggestion
from gradoracle_server.engine.evaluate import check_outputs, has_gradient, leaves, seed_everything
from gradoracle_server.engine.plan import NOTHING_AROUND, Plan

_FINEST = 20  # bits of random cotangents after the point: sums of a few do not cancel, as those of eighths would


@dataclasses.dataclass(slots=True)
class Tape:
    """One run of a graph under autograd, and what it is differentiated by."""

    outputs: list[torch.Tensor]
    targets: list[torch.Tensor]  # the wanted inputs
    kinds: list[str]  # their structures
    guards: bool = False  # whether a backward writes into its cotangents, so that each pull-back needs copies
    around: AbstractContextManager[object] = NOTHING_AROUND  # what a backward runs in

    def pull(self, cotangents: Sequence[torch.Tensor | None], *, create_graph: bool = False) -> list[torch.Tensor]:
        """Gradients by the targets; zeros where there is no dependence."""
        given = copies(cotangents) if self.guards else cotangents
        with self.around:
            found = autodiff.pull_back(self.outputs, given, self.targets, create_graph=create_graph, retain_graph=True)
        full = [torch.zeros_like(one) if g is None else g for g, one in zip(found, self.targets, strict=True)]
        return self.projected(full)

    def projected(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each along the set in which its input may move."""
        return [structure.project(one, kind) for one, kind in zip(gradients, self.kinds, strict=True)]


def copies(cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The same numbers in memory of their own; as they are where their elements share some, for then nobody writes."""
    return [None if one is None else one.clone() if one.is_contiguous() else one for one in cotangents]


def gradient_tape(tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> Tape:
    """The tape whose outputs are the first gradients, which may be differentiated again."""
    return dataclasses.replace(tape, outputs=tape.pull(cotangents, create_graph=True))


def second_order(
    tape: Tape, cotangents: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Gradients of the sum of <weight, gradient>."""
    slopes = gradient_tape(tape, cotangents)
    return slopes.pull([None if w is None else w.to(one.dtype) for w, one in zip(weights, slopes.outputs, strict=True)])


@dataclasses.dataclass(slots=True)
class Subject:
    """A graph at a point: what every derivative of a check is taken of."""

    plan: Plan
    inputs: list[torch.Tensor]
    places: list[int]  # of the inputs to differentiate by
    seed: int
    guards: bool = False  # as a Tape's

    @property
    def names(self) -> list[str]:
        return [self.plan.spec.inputs[place].name for place in self.places]

    @property
    def kinds(self) -> list[str]:
        return [self.plan.spec.inputs[place].structure for place in self.places]

    def tape(self, inputs: Sequence[torch.Tensor] | None = None, only: Sequence[int] | None = None) -> Tape:
        """Runs the graph, with the random numbers that every run of this subject draws. `only`: of the places of the
        inputs to differentiate by, those that are not frozen."""
        tracked = leaves(self.plan, inputs if inputs is not None else self.inputs)
        if only is not None:
            for place in set(self.places).difference(only):
                tracked[place].requires_grad_(False)
        seed_everything(self.seed, self.plan.device)
        with torch.enable_grad():
            returned = self.plan.program()(tracked)
        check_outputs(self.plan, returned)
        targets = [tracked[place] for place in self.places]
        return Tape(list(returned), targets, self.kinds, self.guards, self.plan.around)


def wanted_places(plan: Plan, inputs: Sequence[torch.Tensor], wrt: Sequence[str]) -> tuple[list[int], list[int]]:
    """The inputs to differentiate by, and those that were wanted too but whose dtype has no gradient."""
    places = selection.wanted_inputs(plan, inputs, wrt)
    return [p for p in places if has_gradient(inputs[p])], [p for p in places if not has_gradient(inputs[p])]


def cotangents(
    plan: Plan, outputs: Sequence[torch.Tensor], given: Mapping[str, torch.Tensor], *, claimed: bool, seed: int
) -> tuple[list[torch.Tensor | None], bool]:
    """The cotangents of a check: those given; else 1 where every output that counts is a real scalar; else random
    signed ones, exact in every dtype, unless gradients are `claimed`, which are for some that are not known. And
    whether they are random. Raises Fault, torch's own, where there is none to be had."""
    counts = _counting(plan, outputs, given if claimed else {})
    live = [one for one, counted in zip(outputs, counts, strict=True) if counted]
    scalar = all(one.numel() == 1 and one.dtype.is_floating_point for one in live)
    if given or scalar or claimed:
        return selection.cotangents_for(plan, outputs, given, counts), False
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)
    pairs = zip(outputs, counts, strict=True)
    return [drawn_like(one, generator) if counted else None for one, counted in pairs], bool(live)


def _counting(plan: Plan, outputs: Sequence[torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[bool]:
    """Which outputs are part of what is differentiated: those that require grad, as for autograd, and others for which
    a claim has a cotangent. Where none requires grad, all that could: then autograd says that the gradient is 0."""
    tracked = [one.requires_grad for one in outputs]
    if not any(tracked):
        return [has_gradient(one) for one in outputs]
    named = [name in given and has_gradient(one) for (name, _), one in zip(plan.spec.outputs, outputs, strict=True)]
    return [a or b for a, b in zip(tracked, named, strict=True)]


def drawn_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random signed numbers of magnitude 1 to 2, exact in the tensor's dtype, real and imaginary parts alike."""
    bits = min(_FINEST, round(-math.log2(torch.finfo(tensor.dtype).eps)))
    values = draws.signed(tensor.shape, bits, generator)
    if tensor.dtype.is_complex:
        values = torch.complex(values, draws.signed(tensor.shape, bits, generator))
    return values.to(tensor.device, tensor.dtype)


def claims(
    plan: Plan, inputs: Sequence[torch.Tensor], claimed: Mapping[str, torch.Tensor], wrt: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """The claimed gradients, checked: each for an input that has one, of its shape and dtype, and one for each of `wrt`
    if there are any at all."""
    names = [one.name for one in plan.spec.inputs]
    lacking = [name for name in wrt if claimed and name not in claimed]
    if lacking:
        message = f"wrt: no gradient is claimed for {listed(lacking)}; claimed: {listed(list(claimed))}"
        raise Fault("INVALID_SELECTION", message, field="wrt", name=lacking[0])
    for name, tensor in claimed.items():
        if name not in names:
            near = nearest(name, names)
            hint = suggestion(near) or f"; inputs: {listed(names)}"
            message = f'claimed: the graph has no input "{name}"{hint}'
            raise Fault("INVALID_SELECTION", message, field="claimed", name=name, nearest=", ".join(near))
        place = names.index(name)
        like, kind = inputs[place], selection.dtype_name(inputs[place].dtype)
        if not plan.spec.inputs[place].requires_grad:
            message = f'claimed: input "{name}" was declared with requires_grad=False and has no gradient to claim'
            raise Fault("INVALID_SELECTION", message, field="claimed", name=name)
        if not has_gradient(like):
            message = f'claimed: input "{name}" is {kind} and has no gradient to claim'
            raise Fault("INVALID_SELECTION", message, field="claimed", name=name, got=kind)
        if tensor.shape != like.shape:
            expected, got = list(like.shape), list(tensor.shape)
            message = f'claimed: the gradient of input "{name}" has shape {expected}, got a tensor of shape {got}'
            raise Fault("INVALID_TENSOR", message, field="claimed", name=name, expected=expected, got=got)
        if tensor.dtype != like.dtype:
            got_kind = selection.dtype_name(tensor.dtype)
            message = f'claimed: the gradient of input "{name}" is {kind}, got {got_kind}'
            raise Fault("INVALID_TENSOR", message, field="claimed", name=name, expected=kind, got=got_kind)
    return dict(claimed)

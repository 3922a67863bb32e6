"""The float64 shadow: the same graph with every low-precision tensor and dtype raised, and what rounding may do.

A wrong formula and a gradient that is ill-conditioned here look the same in low precision. In the shadow they do not:
its gradient is judged against differences of the shadow's own values, and the low-precision gradient is then judged
against the shadow's, with the tolerance that rounding of inputs and cotangents to low precision explains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import RandomState, has_gradient, seed_everything
from gradoracle_server.engine.graph import Argument, GraphSpec, NodeSpec
from gradoracle_server.engine.plan import CHALF, Plan
from gradoracle_server.engine.program import is_refusal
from gradoracle_server.engine.raising import RAISED, raised
from gradoracle_server.engine.trial import Subject, Tape

_RUNS = 4  # of Monte Carlo arithmetic
_RUNS_AROUND = 16  # where each element's move decides on which side of an edge it is: one stays by accident in 65,536
_NEARBY = 64.0  # in float32 points nearby are up to 45 units in the last place away, in half precision 2
_FAITHFUL = 64.0  # units in the last place, of the typical value, by which a shadow's outputs may differ,
_RECOGNIZED = 0.1  # and of that value itself, where such units are as large as in bfloat16
_EXPLAINED = 4.0  # times as far as a few runs of Monte Carlo arithmetic move them
_CHOSEN = 0.8  # of the outputs that are not 0
_ROUNDED = 2.0  # units in the last place

_FLOAT32 = {torch.float64: torch.float32, torch.complex128: torch.complex64}

_TRIGAMMA = 7e-10
"""What torch's trigamma is off by at the most, and its slope, relative to themselves, where it is positive: measured
with mpmath between 0.3 and 50, 4.8e-10 and 6.7e-10 (torch 2.13)."""


def epsilon(plan: Plan, inputs: Sequence[torch.Tensor]) -> float:
    """The coarsest machine epsilon among inputs, constants and dtypes that the graph names."""
    dtypes = {one.dtype for one in inputs} | plan.dtypes(inputs)
    return max([torch.finfo(torch.float64).eps, *(torch.finfo(one).eps for one in dtypes if one in RAISED)])


def of(subject: Subject) -> Subject:
    """The shadow of a subject; the subject itself where all is in float64 already."""
    if epsilon(subject.plan, subject.inputs) <= torch.finfo(torch.float64).eps:
        return subject
    twin = subject.plan.rebuilt(raised_graph(subject.plan.spec))
    return dataclasses.replace(subject, plan=twin, inputs=[raised(one) for one in subject.inputs])


def raised_graph(spec: GraphSpec) -> GraphSpec:
    """The same with its constants raised, and the dtypes that it names; in its functions, too."""
    return dataclasses.replace(
        spec,
        nodes=tuple(_raised_node(node) for node in spec.nodes),
        constants=tuple((name, raised(value)) for name, value in spec.constants),
        functions=tuple(
            dataclasses.replace(one, forward=raised_graph(one.forward), backward=raised_graph(one.backward))
            for one in spec.functions
        ),
    )


def _raised_node(node: NodeSpec) -> NodeSpec:
    def lifted(argument: Argument) -> Argument:
        return RAISED.get(argument, argument) if isinstance(argument, torch.dtype) else argument

    args = tuple(lifted(one) for one in node.args)
    if node.target == CHALF:
        return dataclasses.replace(node, target="aten.to.dtype", args=(args[0], torch.complex128), kwargs={})
    return dataclasses.replace(node, args=args, kwargs={key: lifted(one) for key, one in node.kwargs.items()})


def recorded(subject: Subject, tape: Tape, coarse: float) -> tuple[Subject, Tape, float]:
    """The shadow, its run, and the `distance` of its outputs; the subject itself and its own run where it needs none.

    Infinitely far away is one that cannot be run. Operators may make tensors of a dtype of their own choice, which do
    not go with others in float64, or draw other random numbers in that: where a shadow is far away, so is one tried in
    which whatever they make is raised. Not far away at all is one whose outputs rounding moves so far, as it does those
    of polygamma beside its poles: they show no coarser kernel.
    """
    twin = of(subject)
    if twin is subject:
        return subject, tape, 0.0
    found = _run_beside(twin, tape, coarse)
    if is_faithful(found[2], coarse) or (raising := subject.plan.raising()) is None:
        return found
    again = _run_beside(dataclasses.replace(twin, plan=raising), tape, coarse)
    return again if is_faithful(again[2], coarse) else found


def _run_beside(twin: Subject, tape: Tape, coarse: float) -> tuple[Subject, Tape, float]:
    """A shadow and its run, and how far from that in low precision it is."""
    try:
        twin_tape = twin.tape()
    except (Fault, RuntimeError):
        return twin, tape, math.inf
    found = distance(tape.outputs, twin_tape.outputs, coarse)
    if found < math.inf and not is_faithful(found, coarse) and _is_rounding(tape, twin, twin_tape, coarse):
        found = 0.0
    return twin, twin_tape, found


def unrounded(subject: Subject, twin: Subject, tape: Tape, coarse: float) -> tuple[Subject, Tape, float] | None:
    """What `recorded` gives, of a shadow in which whatever operators get and make is raised; None where there is no
    such."""
    if (raising := subject.plan.raising()) is None:
        return None
    found = _run_beside(dataclasses.replace(twin, plan=raising), tape, coarse)
    return found if is_faithful(found[2], coarse) else None


def is_rounded(gradients: Sequence[torch.Tensor]) -> bool:
    """Whether gradients in float64 are numbers of float32, all of them: they were rounded to it on the way, or are as
    short as a cotangent."""
    return all(bool((one.to(_FLOAT32.get(one.dtype, one.dtype)).to(one.dtype) == one).all()) for one in gradients)


def distance(outputs: Sequence[torch.Tensor], shadowed: Sequence[torch.Tensor], coarse: float) -> float:
    """How far a shadow's outputs are from those in low precision, in units in the last place of that; infinite where
    they are others.

    Less than one is usual; more shows that a kernel rounds inside, as one does that keeps positions in low precision.
    """
    found = 0.0
    untracked = not any(one.requires_grad for one in shadowed)  # then none counts less than another
    for mine, theirs in zip(outputs, shadowed, strict=True):
        if not (mine.dtype.is_floating_point or mine.dtype.is_complex):  # embedding_bag's may have other shapes
            continue
        if mine.shape != theirs.shape or (theirs.dtype in RAISED and (theirs.requires_grad or untracked)):
            return math.inf
        if not mine.numel():
            continue
        low, high = raised(mine.detach()), theirs.detach()
        known = high.isfinite()
        if not bool(low[known].isfinite().all()):  # it overflows in low precision
            return math.inf
        off = torch.where(known, (low - high).abs(), 0.0)
        if _is_another_choice(off, high.abs(), coarse):
            return math.inf
        apart = float(off.square().mean().sqrt())
        size = float(torch.where(known, high.abs(), 0.0).square().mean().sqrt())
        if apart > torch.finfo(torch.float32).tiny:
            found = max(found, apart / (coarse * size) if size else math.inf)
    return found


def _is_another_choice(off: torch.Tensor, size: torch.Tensor, coarse: float) -> bool:
    """Whether outputs are not rounded but chosen, nearly all exactly alike, and some chosen otherwise: a pooling
    that makes its windows of random numbers in low precision takes others."""
    there = size > 0
    exact = int((there & (off == 0)).sum())
    return exact >= _CHOSEN * int(there.sum()) and bool((off > _ROUNDED * coarse * size).any())


def _is_rounding(tape: Tape, twin: Subject, twin_tape: Tape, coarse: float) -> bool:
    """Whether a shadow's outputs move as far as they are from those in low precision when what operators read and make
    is rounded to that; and where random numbers are drawn, which are others in another precision, not so far that it
    would be another function."""
    seed_everything(twin.seed, twin.plan.device)
    state = RandomState(twin.plan.device)
    runs: list[list[torch.Tensor]] = []
    for context in roundings(coarse, twin.seed):
        try:
            with context:
                runs.append(twin.tape().outputs)
        except (Fault, RuntimeError):  # it refuses moved numbers
            return False
    twin.tape()
    drawn = not state.is_current
    for place, (low, high) in enumerate(zip(tape.outputs, twin_tape.outputs, strict=True)):
        if not has_gradient(high) or not high.numel():
            continue
        apart = _typical(raised(low.detach()) - high)
        far = max(_typical(one[place] - high) for one in runs)
        if apart > _EXPLAINED * far or (drawn and apart > _RECOGNIZED * _typical(high)):
            return False
    return True


def _typical(tensor: torch.Tensor) -> float:
    """The root mean square of what is finite."""
    return float(tensor.detach().abs().nan_to_num(0.0, 0.0).square().mean().sqrt())


def is_faithful(distance: float, coarse: float) -> bool:
    """Whether a shadow so far away computes the same function: not where it draws other random numbers, say."""
    return distance <= min(_FAITHFUL, _RECOGNIZED / coarse)


def spread(
    subject: Subject,
    cotangents: Sequence[torch.Tensor | None],
    reference: Sequence[torch.Tensor],
    coarse: float,
    pull: Callable[[Tape, Sequence[torch.Tensor | None]], list[torch.Tensor]],
    *,
    inside: bool,
    around: bool = False,
) -> list[torch.Tensor]:
    """How far each gradient element moves when every number is rounded to a coarser precision.

    The largest of a few float64 runs of Monte Carlo arithmetic (D. S. Parker, "Monte Carlo arithmetic", 1997), of each
    input's shape: inputs and cotangents are moved by half a unit in the last place of the coarse precision, up or down
    at random; with `inside`, whatever an operator reads is, forward and backward; with `around`, inputs are moved by as
    much as the last place of their typical element: kernels that add to them, to make positions of coordinates, round
    to that. `pull` gives the gradients of a run for cotangents.
    """
    generator = torch.Generator().manual_seed(subject.seed ^ 0xC0A25E)
    widest = [torch.zeros_like(one.abs()) for one in reference]
    for _ in range(_RUNS_AROUND if around else _RUNS):
        rounding = _Rounding(coarse, generator)

        def run(cautiously: bool, rounding: _Rounding = rounding) -> list[torch.Tensor]:
            rounding.cautious = cautiously
            if inside:
                with rounding:
                    return pull(subject.tape(), cotangents)
            tape = subject.tape([rounding.shaken(one, around) for one in subject.inputs])
            return pull(tape, [None if one is None else rounding.shaken(one) for one in cotangents])

        for place, (one, true) in enumerate(zip(_allowed(run) or reference, reference, strict=True)):
            moved = (one.detach() - true).abs().nan_to_num(nan=0.0, posinf=0.0)
            widest[place] = torch.maximum(widest[place], moved)
    return widest


def _allowed(run: Callable[[bool], list[torch.Tensor]]) -> list[torch.Tensor] | None:
    """What a run gives whose numbers are moved; cautiously, where an operator refuses some of those; None where it
    refuses them still.

    A probability of 1 must not be moved up; and some operators keep flags among the numbers that they hand to their
    backward, as multilabel_margin_loss does.
    """
    for cautiously in (False, True):
        try:
            return run(cautiously)
        except Exception as error:
            if not is_refusal(error):
                raise
    return None


def inexactness(
    subject: Subject,
    cotangents: Sequence[torch.Tensor | None],
    reference: Sequence[torch.Tensor],
    pull: Callable[[Tape, Sequence[torch.Tensor | None]], list[torch.Tensor]],
) -> list[torch.Tensor]:
    """How far each gradient element moves when what torch computes to nine and a half digits only is off by that."""
    widest = [torch.zeros_like(one.abs()) for one in reference]
    inexact = _Inexact(torch.Generator().manual_seed(subject.seed ^ 0x731))
    for _ in range(_RUNS):
        with inexact:
            found = pull(subject.tape(), cotangents)
        if not inexact.met:
            break
        for place, (one, true) in enumerate(zip(found, reference, strict=True)):
            moved = (one.detach() - true).abs().nan_to_num(nan=0.0, posinf=0.0)
            widest[place] = torch.maximum(widest[place], moved)
    return widest


def jitter(
    subject: Subject,
    twin: Subject,
    cotangents: Sequence[torch.Tensor | None],
    pull: Callable[[Tape, Sequence[torch.Tensor | None]], list[torch.Tensor]],
) -> list[torch.Tensor]:
    """How far the low-precision gradient moves against its shadow's, in float64, at points nearby; against itself, at
    points that are one unit in the last place away, where it has no shadow of its own.

    It shows the rounding inside of kernels, which the shadow cannot see, and hides no fault: what is wrong in the same
    way at every point does not move. Points that are further away than the last place round anew.
    """
    generator = torch.Generator().manual_seed(subject.seed ^ 0x717)
    alone = twin is subject

    def moved(tensor: torch.Tensor, cautiously: bool) -> torch.Tensor:
        if not has_gradient(tensor):
            return tensor
        epsilon = torch.finfo(tensor.dtype).eps
        most = 1 if alone else max(2, round(epsilon**-0.5 / _NEARBY))
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        units = (-1 if cautiously else signs) * torch.randint(1, most + 1, tensor.shape, generator=generator)
        return (raised(tensor) * (1 + units.to(tensor.device, torch.float64) * epsilon)).to(tensor.dtype)

    def run(cautiously: bool) -> list[torch.Tensor]:
        point = [moved(one, cautiously) for one in subject.inputs]
        weights = list(cotangents) if alone else [None if u is None else moved(u, cautiously) for u in cotangents]
        low = [raised(one.detach()) for one in pull(subject.tape(point), weights)]
        if alone:
            return low
        wide = [None if one is None else raised(one) for one in weights]
        high = pull(twin.tape([raised(one) for one in point]), wide)
        return [one - other.detach() for one, other in zip(low, high, strict=True)]

    found = [low for low in (_allowed(run) for _ in range(2 * _RUNS)) if low is not None]
    if not found:
        return [torch.zeros_like(raised(subject.inputs[place]).abs()) for place in subject.places]
    columns = [torch.stack(several) for several in zip(*found, strict=True)]
    widest = [(one - one.mean(0)).abs().amax(0).nan_to_num(0.0, 0.0) for one in columns]
    # A few runs leave some elements by accident where they were: none moves less than is typical.
    return [one.clamp(min=float(one.square().mean().sqrt())) if one.numel() else one for one in widest]


def roundings(epsilon: float, seed: int) -> Iterator[contextlib.AbstractContextManager[object]]:
    """Contexts, for a few runs, in which whatever an operator reads and makes is moved by half a unit in the last place
    of a precision."""
    generator = torch.Generator().manual_seed(seed ^ 0x0FF)
    for _ in range(_RUNS):
        yield _Rounding(epsilon, generator)


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves what every operator reads, and makes, by half a unit in the last place of a precision.

    Views and operators that write are left alone: what they hand on is moved where it is read.
    """

    def __init__(self, coarse: float, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Half a unit in the last place of float64 itself would be rounded away.
        self._half, self._generator = max(coarse / 2, torch.finfo(torch.float64).eps), generator
        self.cautious = False  # moves towards 0 only, and not what holds nothing but 0 and 1

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema = function._schema
        if schema.is_mutable or any(one.alias_info is not None for one in schema.returns):
            return function(*args, **(kwargs or {}))
        args, named = pytree.tree_map_only(torch.Tensor, self.shaken, (tuple(args), dict(kwargs or {})))
        return pytree.tree_map_only(torch.Tensor, self.shaken, function(*args, **named))

    def shaken(self, tensor: torch.Tensor, around: bool = False) -> torch.Tensor:
        """A float64 or complex128 tensor moved; others as they are. With `around` by a unit of its typical element."""
        wide = tensor.dtype in (torch.float64, torch.complex128) and tensor.layout is torch.strided
        # A zero tensor has no memory, and below autograd arithmetic does not see that one is conjugated or negated.
        if not wide or tensor._is_zerotensor() or tensor.is_conj() or tensor.is_neg():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=self._generator).to(tensor.device, torch.float64) * 2 - 1
        if self.cautious:
            if bool(((tensor == 0) | (tensor == 1)).all()):
                return tensor
            signs = -signs.abs()
        if around and tensor.numel():
            return tensor + signs * (2 * self._half * float(tensor.abs().square().mean().sqrt()))
        return tensor * (1 + signs * self._half)


class _Inexact(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves the trigamma function, and its derivative, by what torch's is off by."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator
        self.met = False  # whether there was any

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is not torch.ops.aten.polygamma.default or args[0] not in (1, 2) or found.dtype != torch.float64:
            return found
        self.met = True
        signs = torch.randint(0, 2, found.shape, generator=self._generator).to(found.device, torch.float64) * 2 - 1
        return found * (1 + signs * _TRIGAMMA)

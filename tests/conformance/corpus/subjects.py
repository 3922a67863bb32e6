"""Where faults are planted: an operator of op_db as a function of its differentiable inputs, at one sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from conformance.samples import Case, cases, full_name, operators

LARGEST = 400  # elements of the inputs together, and of the output: gradcheck's slow mode moves each on its own
_MANY, _CROPPED = 60, 5  # beyond so many elements axes are cut to such a length where the operator allows it
_SAMPLES = 24  # looked at, for one that fits


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """One sample of one operator, as a function of the inputs that have a gradient."""

    operator: str
    index: int
    function: Callable[..., torch.Tensor]  # its first output that has a gradient
    inputs: tuple[torch.Tensor, ...]
    call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]  # of values in the inputs' places: args and kwargs

    @property
    def output(self) -> torch.Tensor:
        with torch.no_grad():
            return self.function(*self.inputs)

    def gradients(self, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Autograd's, of each input; zeros where there is no dependence."""
        tracked = tuple(one.detach().clone().requires_grad_() for one in self.inputs)
        return pulled(self.function, tracked, cotangent)


def pulled(
    function: Callable[..., torch.Tensor], tracked: Sequence[torch.Tensor], cotangent: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, ...]:
    """Autograd's gradients of a function by inputs; zeros where there is no dependence, or no grad is required."""
    live = [one for one in tracked if one.requires_grad]
    with torch.enable_grad():
        output = function(*tracked)
        if not output.requires_grad:  # it depends on none of those that do
            return tuple(torch.zeros_like(one) for one in tracked)
        slopes = iter(torch.autograd.grad(output, live, cotangent, allow_unused=True, **options))
    found = [next(slopes) if one.requires_grad else None for one in tracked]
    return tuple(torch.zeros_like(a) if b is None else b for a, b in zip(tracked, found, strict=True))


def subjects(name: str, dtype: torch.dtype, *, seeded: bool = True) -> Iterator[Subject]:
    """The samples of an operator that are dense and small, with a gradient, as functions.

    Each is called through the operator's own gradcheck_wrapper, as torch's gradient tests do: cholesky, say, reads one
    triangle, and the wrapper makes a function of all of the matrix of it. With `seeded`, each call draws the same
    random numbers. What has several elements comes first.
    """
    found = [
        one
        for operator in operators(dtype)
        if full_name(operator) == name
        for case in cases(operator, dtype, _SAMPLES)
        if (one := _subject(wrapped(operator, case), case, dtype, seeded)) is not None
    ]
    yield from sorted(found, key=lambda one: max(tensor.numel() for tensor in one.inputs) < 4)


def wrapped(operator: Any, case: Case) -> Callable[..., Any]:
    """A case's function through its operator's gradcheck_wrapper. That of masked operators asks for the name."""

    def named(*args: Any, **kwargs: Any) -> Any:
        return case.fn(*args, **kwargs)

    named.__name__ = getattr(operator.op, "__name__", named.__name__)

    def fn(*args: Any, **kwargs: Any) -> Any:
        return operator.gradcheck_wrapper(named, *args, **kwargs)

    return fn


def _subject(function: Callable[..., Any], case: Case, dtype: torch.dtype, seeded: bool) -> Subject | None:
    leaves, spec = pytree.tree_flatten((case.args, case.kwargs))
    tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
    places = [at for at, one in enumerate(leaves) if isinstance(one, torch.Tensor) and one.requires_grad]
    if not places or any(one.layout is not torch.strided for one in tensors):
        return None
    inputs = tuple(leaves[at].detach().clone(memory_format=torch.contiguous_format) for at in places)
    if any(one.dtype != dtype or not one.numel() for one in inputs):
        return None
    fixed = [one.detach() if isinstance(one, torch.Tensor) else one for one in leaves]

    def call(*values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(fixed)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return args, dict(kwargs)

    def outputs(*values: torch.Tensor) -> list[torch.Tensor]:
        args, kwargs = call(*values)
        if seeded:
            torch.default_generator.manual_seed(0)  # torch.manual_seed takes a millisecond
        return [one for one in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(one, torch.Tensor)]

    for some in (_cropped(inputs), inputs):
        found = _with_output(case, outputs, some, call, dtype)
        if found is not None:
            return found
    return None


def _cropped(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Large inputs cut down along every axis: operators that work element by element take any size."""
    if sum(one.numel() for one in inputs) <= _MANY:
        return inputs
    return tuple(one[tuple(slice(_CROPPED) for _ in one.shape)].contiguous() for one in inputs)


def _with_output(
    case: Case,
    outputs: Callable[..., list[torch.Tensor]],
    inputs: tuple[torch.Tensor, ...],
    call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]],
    dtype: torch.dtype,
) -> Subject | None:
    """The subject, if the operator takes these inputs and an output has a gradient."""
    if sum(one.numel() for one in inputs) > LARGEST:
        return None
    try:
        with torch.enable_grad():
            tracked = [one.requires_grad for one in outputs(*(one.clone().requires_grad_() for one in inputs))]
    except Exception:
        return None
    if not any(tracked):
        return None
    first = tracked.index(True)
    found = Subject(case.operator, case.index, lambda *values: outputs(*values)[first], inputs, call)
    output = found.output
    fits = output.dtype == dtype and 0 < output.numel() <= LARGEST and bool(output.isfinite().all())
    return found if fits else None


def cotangent_of(output: torch.Tensor, seed: int) -> torch.Tensor:
    """Random numbers of the output's shape and dtype."""
    return torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(seed))


def sensitivities(subject: Subject) -> list[torch.Tensor]:
    """How large each element of each input's gradient typically is: root mean square over random cotangents."""
    output = subject.output
    drawn = [subject.gradients(cotangent_of(output, seed)) for seed in range(6)]
    return [torch.stack(several).abs().square().mean(0).sqrt() for several in zip(*drawn, strict=True)]


def weighty(subject: Subject) -> list[torch.Tensor]:
    """The sensitivities of each input; those whose movement is not felt above the output's rounding are zeros.

    The gradient of corrcoef of two observations, say, is rounding: no fault of it is one.
    """
    size = float(subject.output.abs().max())
    found = []
    for one, tensor in zip(sensitivities(subject), subject.inputs, strict=True):
        moved = float((one * tensor.abs().clamp(min=1e-3)).max())
        felt = bool(one.isfinite().all()) and moved > 1e-6 * size and moved > 0
        found.append(one if felt else torch.zeros_like(one))
    return found

"""The ways in which backward formulas have been wrong in earnest, for a function at a point."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from conformance.corpus.planting import Wrong
from conformance.corpus.subjects import Subject, cotangent_of, pulled, weighty

NEGLIGIBLE = 1e-3
"""Of the largest element's sensitivity: elements below it are a class of their own."""

_ROUNDING = 1e-13  # of the largest element of a gradient

Change = Callable[[torch.Tensor], torch.Tensor]

FROZEN = "wrong while another input is frozen"

TINY = "negligible element * (1 + 1e-8)"
"""Reported, and not wanted."""

ELEMENTS: dict[str, Change] = {
    "element * (1 + 1e-8)": lambda g: g * (1 + 1e-8),
    "element * (1 + 1e-4)": lambda g: g * (1 + 1e-4),
    "element * 2": lambda g: g * 2,
    "element zeroed": lambda g: g * 0,
    "element's sign": torch.neg,
    "element NaN": lambda g: g * math.nan,
}
WHOLE: dict[str, Change] = {
    "sign": torch.neg,
    "factor 1 + 1e-8": lambda g: g * (1 + 1e-8),
    "factor 1.001": lambda g: g * 1.001,
    "factor 0.5": lambda g: g * 0.5,
    "zero": torch.zeros_like,
}


def target(subject: Subject) -> tuple[int, torch.Tensor] | None:
    """The input whose gradient is made wrong, the first of several elements or else of one, and its sensitivities."""
    found = [(at, one) for at, one in enumerate(weighty(subject)) if bool(one.any())]
    found.sort(key=lambda pair: pair[1].numel() == 1)
    return found[0] if found else None


def at_input(place: int, change: Change) -> Wrong:
    """The gradient of one input changed."""
    return lambda inputs, cotangent, right: (*right[:place], change(right[place]), *right[place + 1 :])


def at_element(place: int, like: torch.Tensor, element: int, change: Change) -> Wrong:
    """One element of the gradient of one input changed."""
    chosen = torch.zeros(like.numel(), dtype=torch.bool)
    chosen[element] = True
    chosen = chosen.view(like.shape)
    return at_input(place, lambda g: torch.where(chosen, change(g), g))


def elements(operator: str, sizes: torch.Tensor) -> tuple[int, int, int | None]:
    """Of an input's sensitivities: an element that is not negligible, chosen by the operator's name; the smallest of
    those; and the largest of the negligible ones, if any."""
    flat = sizes.reshape(-1)
    among = (flat >= NEGLIGIBLE * flat.max()).nonzero().flatten()
    chosen = int(among[zlib.crc32(operator.encode()) % len(among)])
    smallest = int(among[flat[among].argmin()])
    below = torch.where((flat < NEGLIGIBLE * flat.max()) & (flat > 1e-12 * flat.max()), flat, 0.0)
    return chosen, smallest, int(below.argmax()) if below.any() else None


def faults(subject: Subject) -> dict[str, Wrong]:
    """The wrong backwards that do change the gradient at this point."""
    found = target(subject)
    if found is None:
        return {}
    place, sizes = found
    wrongs = {name: one for name, one in _everywhere(subject, place, sizes) if name == TINY or bites(subject, one)}
    for name, wrong in _of_some(subject, place):
        if bites(subject, wrong):
            wrongs[name] = wrong
    if len(subject.inputs) > 1 and (half := wrongs.get("factor 0.5")) is not None:
        wrongs[FROZEN] = _frozen(half)
    return wrongs


def _frozen(wrong: Wrong) -> Wrong:
    """Only where not all inputs require grad."""

    def otherwise(inputs: Sequence[torch.Tensor], cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        return tuple(right) if all(one.requires_grad for one in inputs) else wrong(inputs, cotangent, right)

    return otherwise


def _everywhere(subject: Subject, place: int, sizes: torch.Tensor) -> Iterator[tuple[str, Wrong]]:
    chosen, smallest, tiny = elements(subject.operator, sizes)
    if sizes.numel() > 1:
        for name, change in ELEMENTS.items():
            yield name, at_element(place, sizes, chosen, change)
        if smallest != chosen:
            yield "smallest element * (1 + 1e-8)", at_element(place, sizes, smallest, ELEMENTS["element * (1 + 1e-8)"])
        if tiny is not None:
            yield TINY, at_element(place, sizes, tiny, ELEMENTS["element * (1 + 1e-8)"])
    for name, change in WHOLE.items():
        yield name, at_input(place, change)

    def ones(inputs: Any, cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        return pulled(subject.function, inputs, torch.ones_like(cotangent))

    def squared(inputs: Any, cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        return pulled(subject.function, inputs, cotangent * cotangent.abs())

    yield "cotangent ignored", ones
    yield "cotangent squared", squared


def _of_some(subject: Subject, place: int) -> Iterator[tuple[str, Wrong]]:
    """Faults that only some functions can have."""
    like, output = subject.inputs[place], subject.output

    def halved_where(happens: Callable[[torch.Tensor], bool]) -> Wrong:
        half = at_input(place, WHOLE["factor 0.5"])
        return lambda inputs, cotangent, right: half(inputs, cotangent, right) if happens(cotangent) else right

    if output.numel() > 1:
        yield "wrong for strided cotangents", halved_where(lambda u: not u.is_contiguous())
        yield "wrong for expanded cotangents", halved_where(_is_expanded)
    for name, change in _of_shape(like):
        yield name, at_input(place, change)
    for other, one in enumerate(subject.inputs):
        if other != place and one.shape == like.shape:
            yield "inputs swapped", _swapped(place, other)
            break
    lost = duplicates_lost(subject, place)
    if lost is not None:
        yield "duplicates lost", lost
    yield from unreduced(subject)


def _of_shape(like: torch.Tensor) -> Iterator[tuple[str, Change]]:
    """Faults that only gradients of some shapes and dtypes can have."""
    if like.is_complex():
        yield "conjugated", torch.conj_physical
    for axis in range(like.dim() - 1):
        if like.shape[axis] == like.shape[axis + 1] > 1:
            yield "transposed", functools.partial(torch.transpose, dim0=axis, dim1=axis + 1)
            break
    if like.dim() and like.shape[0] > 1:
        yield "rows reversed", lambda g: g.flip(0)
    if like.dim() >= 3 and like.shape[0] != like.shape[1]:
        ratio = like.shape[0] / like.shape[1]
        yield "divided by another axis's size", lambda g: g * ratio


def _is_expanded(cotangent: torch.Tensor) -> bool:
    pairs = zip(cotangent.stride(), cotangent.shape, strict=True)
    return any(stride == 0 and size > 1 for stride, size in pairs)


def _swapped(place: int, other: int) -> Wrong:
    def wrong(inputs: Any, cotangent: Any, right: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = list(right)
        changed[place], changed[other] = right[other], right[place]
        return tuple(changed)

    return wrong


def bites(subject: Subject, wrong: Wrong) -> bool:
    """Whether the gradient does change, by more than 5e-9 of some element that matters, for a cotangent that is plain,
    strided or expanded; and not where it is nothing but rounding, as a softmax's is for a constant cotangent."""
    output = subject.output
    plain = cotangent_of(output, 11)
    strided = torch.stack([plain, plain], -1)[..., 0]
    inputs = [one.detach().clone().requires_grad_() for one in subject.inputs]
    rounding = [_ROUNDING * float(one.abs().nan_to_num(0.0, 0.0).max()) for one in subject.gradients(plain)]
    for cotangent in (plain, strided, plain.new_ones(()).expand(plain.shape)):
        right = subject.gradients(cotangent)
        for a, b, nothing in zip(right, wrong(inputs, cotangent, right), rounding, strict=True):
            size = torch.maximum(a.abs(), b.abs())
            counts = size > 1e-4 * size[size.isfinite()].max() if size.isfinite().any() else size.isnan()
            if bool((~((a - b).abs() <= (5e-9 * size).clamp(min=nothing)) & (counts | b.isnan())).any()):
                return True
    return False


def duplicates_lost(subject: Subject, place: int) -> Wrong | None:
    """For what copies elements, as gather does: of the copies of an element only the last one's cotangent counts."""
    output, like = subject.output, subject.inputs[place]
    if like.is_complex():
        return None
    rows = []
    for element in range(output.numel()):
        unit = torch.zeros(output.numel(), dtype=output.dtype)
        unit[element] = 1
        rows.append(subject.gradients(unit.view(output.shape))[place].reshape(-1))
    jacobian = torch.stack(rows)
    used = jacobian != 0
    copies = bool((used.sum(1) <= 1).all()) and bool(((jacobian == 0) | (jacobian == 1)).all())
    if not copies or not bool((used.sum(0) > 1).any()):
        return None
    order = torch.arange(1, output.numel() + 1)[:, None]
    last = (used * order).amax(0)  # 0 where an element is not read
    reads, source = last > 0, (last - 1).clamp(min=0)

    def overwritten(inputs: Any, cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
        found = torch.where(reads, cotangent.reshape(-1)[source], 0.0).view(like.shape)
        return (*right[:place], found, *right[place + 1 :])

    return overwritten


def unreduced(subject: Subject) -> Iterator[tuple[str, Wrong]]:
    """For an input that is broadcast: its gradient is one row's contribution, or the mean of all instead of the sum."""
    output = subject.output
    for place, one in enumerate(subject.inputs):
        axes = _broadcast_axes(one.shape, output.shape)
        if not axes:
            continue

        def full(inputs: Sequence[torch.Tensor], cotangent: torch.Tensor, place: int = place) -> torch.Tensor:
            with torch.enable_grad():
                expanded = list(inputs)
                expanded[place] = inputs[place].detach().expand(cotangent.shape).contiguous().requires_grad_()
                return torch.autograd.grad(subject.function(*expanded), expanded[place], cotangent)[0]

        if not _sums_up(subject, place, full):
            continue

        def of(reduce: Change, place: int = place, full: Any = full, shape: Any = one.shape) -> Wrong:
            def wrong(inputs: Any, cotangent: torch.Tensor, right: Any) -> tuple[torch.Tensor, ...]:
                found = reduce(full(inputs, cotangent)).reshape(shape)
                return (*right[:place], found, *right[place + 1 :])

            return wrong

        def first_row(g: torch.Tensor, axes: list[int] = axes) -> torch.Tensor:
            for axis in axes:
                g = g.narrow(axis, 0, 1)
            return g

        def mean(g: torch.Tensor, axes: list[int] = axes) -> torch.Tensor:
            return g.mean(axes, keepdim=True)

        yield "broadcast not reduced: one row", of(first_row)
        yield "broadcast not reduced: mean", of(mean)
        return


def _sums_up(subject: Subject, place: int, full: Any) -> bool:
    """Whether the function takes that input expanded, and the gradient of this is what is summed for its own."""
    cotangent = cotangent_of(subject.output, 9)
    own = subject.gradients(cotangent)[place]
    try:
        return torch.allclose(full(subject.inputs, cotangent).sum_to_size(own.shape), own)
    except Exception:  # whatever an operator raises that does not
        return False


def _broadcast_axes(shape: Sequence[int], wide: Sequence[int]) -> list[int]:
    """The axes of `wide` along which `shape` is broadcast; none where it does not broadcast to it."""
    if len(shape) > len(wide):
        return []
    padded = [1] * (len(wide) - len(shape)) + list(shape)
    if any(a not in (1, b) for a, b in zip(padded, wide, strict=True)):
        return []
    return [axis for axis, (a, b) in enumerate(zip(padded, wide, strict=True)) if a != b]


def second(subject: Subject) -> dict[str, Wrong]:
    """Wrong second derivatives; none where the second derivative is zero."""
    found = target(subject)
    if found is None:
        return {}
    place, _ = found
    sizes = _curvature(subject, place)
    if sizes is None:
        return {}
    chosen, _, _ = elements(subject.operator, sizes)
    wrongs = {
        "lost": at_input(place, torch.zeros_like),
        "sign": at_input(place, torch.neg),
        "factor 1.001": at_input(place, lambda g: g * 1.001),
        "factor 1 + 1e-6": at_input(place, lambda g: g * (1 + 1e-6)),
        "factor 1 + 1e-8": at_input(place, lambda g: g * (1 + 1e-8)),
    }
    if sizes.numel() > 1:
        wrongs["element * (1 + 1e-8)"] = at_element(place, sizes, chosen, ELEMENTS["element * (1 + 1e-8)"])
    return {f"second derivative: {name}": one for name, one in wrongs.items()}


def _curvature(subject: Subject, place: int) -> torch.Tensor | None:
    """The typical size of each element of the second derivative by that input; None where it is nothing or unknown."""
    drawn = []
    for seed in range(4):
        tracked = [one.detach().clone().requires_grad_() for one in subject.inputs]
        try:
            slopes = pulled(subject.function, tracked, cotangent_of(subject.output, seed), create_graph=True)
        except RuntimeError:
            return None
        live = [one for one in slopes if one.requires_grad]
        if not live:
            return None
        weights = [cotangent_of(one, seed + 40) for one in live]
        try:
            found = torch.autograd.grad(live, tracked[place], weights, allow_unused=True)[0]
        except RuntimeError:  # no second derivative at all
            return None
        if found is None:
            return None
        drawn.append(found.detach())
        first = max(float(one.detach().abs().max()) for one in slopes)
    sizes = torch.stack(drawn).abs().square().mean(0).sqrt()
    size = subject.inputs[place].abs().clamp(min=1e-3)
    felt = bool(sizes.isfinite().all()) and float((sizes * size).max()) > 1e-6 * first
    return sizes if felt else None

"""The elements that a report names: each measured along its own axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import tolerances
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.gradients import Gradients
from gradoracle_server.engine.norms import norm, norms
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Mismatch, Number

NAMED = 10
"""Elements in a report, at most."""


def elements(examiner: Examiner, coordinates: Sequence[int]) -> list[int]:
    """The elements that coordinates belong to, each once, in order."""
    parts = 2 if examiner.space.base.dtype.is_complex else 1
    return list(dict.fromkeys(one // parts for one in coordinates))


def measured(
    examiner: Examiner,
    gradients: Gradients,
    chosen: Sequence[int],
    *,
    small: bool = False,
    inside: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> list[Mismatch]:
    """The first elements of those chosen, each along its own axis, or axes; `small`: where the whole is right, and what
    is looked for are small faults. `inside` is what rounding inside of the function may do to each
    coordinate, (C,), and to each output, (M,)."""
    chosen = chosen[:NAMED]
    if not chosen:
        return []
    rounding, unrest = (None, None) if inside is None else inside
    gradient = gradients.claimed if small else None
    along, lengths = examiner.element_slopes(coordinates(examiner, chosen), gradient, unrest)
    return _rows(examiner, gradients, chosen, along.value / lengths, along.bar / lengths, rounding)


def beside(
    examiner: Examiner, gradients: Gradients, chosen: Sequence[int], slopes: torch.Tensor, rounding: torch.Tensor
) -> list[Mismatch]:
    """The same beside slopes that are as good as exact, one a coordinate of the elements."""
    return _rows(examiner, gradients, chosen, slopes, torch.zeros_like(slopes), rounding)


def coordinates(examiner: Examiner, chosen: Sequence[int]) -> list[int]:
    """Those of elements: two of each complex one."""
    parts = 2 if examiner.space.base.dtype.is_complex else 1
    return [element * parts + part for element in chosen for part in range(parts)]


def _rows(
    examiner: Examiner,
    gradients: Gradients,
    chosen: Sequence[int],
    slopes: torch.Tensor,
    bars: torch.Tensor,
    rounding: torch.Tensor | None,
) -> list[Mismatch]:
    parts = 2 if examiner.space.base.dtype.is_complex else 1
    places = coordinates(examiner, chosen)
    allowance = torch.maximum(gradients.allowance[places], tolerances.RELATIVE * gradients.claimed[places].abs())
    allowance = allowance.nan_to_num(0.0, 0.0)
    if rounding is not None:
        allowance = allowance + rounding[places]
    numerical, bars = slopes.reshape(-1, parts), (bars + allowance).reshape(-1, parts)
    claimed = gradients.claimed[places].reshape(-1, parts)
    autograd = gradients.reference if gradients.autograd is None else gradients.autograd
    reference = autograd[places].reshape(-1, parts)
    errors = norms(torch.where(claimed == numerical, 0.0, claimed - numerical))  # infinities that agree
    return [
        Mismatch(
            index=index(examiner.space, element),
            claimed=_number(claimed[row]),
            reference=_number(reference[row]),
            numerical=_number(numerical[row]),
            error=float(errors[row]),
            error_bound=norm(bars[row]),
        )
        for row, element in enumerate(chosen)
    ]


def strict(rows: Sequence[Mismatch], examiner: Examiner, gradients: Gradients, chosen: Sequence[int]) -> list[Mismatch]:
    """Rows of those chosen, by the bounds that slopes along an element judge it by, where the usual ones, in which is
    what the typical element may be off by, hide that a small one is wrong."""
    along, lengths = examiner.element_slopes(coordinates(examiner, chosen))
    nothing = dataclasses.replace(gradients, allowance=torch.zeros_like(gradients.allowance))
    judged = _rows(examiner, nothing, chosen, along.value / lengths, along.bar / lengths, None)
    return [
        mine if usual.error <= usual.error_bound and mine.error > mine.error_bound else usual
        for usual, mine in zip(rows, judged, strict=True)
    ]


def mended(examiner: Examiner, gradients: Gradients, wrong: Sequence[Mismatch]) -> torch.Tensor:
    """The claim, (C,), with wrong elements as they were measured."""
    natural = examiner.space.unflat(gradients.claimed.clone())
    for one in wrong:
        natural[one.index] = torch.as_tensor(one.numerical, dtype=natural.dtype)
    return examiner.space.flat(natural)


def index(space: Space, element: int) -> tuple[int, ...]:
    """An element's place in its tensor."""
    found = []
    for size in reversed(space.base.shape):
        found.append(element % size)
        element //= size
    return tuple(reversed(found))


def _number(parts: torch.Tensor) -> Number:
    values = parts.tolist()
    return complex(*values) if len(values) == 2 else float(values[0])

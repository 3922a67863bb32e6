"""Gathers what the diagnosis of a wrong gradient needs to know of its graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradoracle_server.engine import diagnose, shadow
from gradoracle_server.engine.autodiff import pull_back
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.diagnose import Evidence, Finding
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import check_outputs, leaves, seed_everything
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.norms import norms
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.report import Mismatch

_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)
_CAST = 1e-6  # of an element, that rounding to float32 and a few sums in it may be
_UNITS = 8.0  # in the last place, that each element may be off by
_LARGEST = 1 << 22  # elements of an expanded input


def of(
    case: Case, place: int, space: Space, claimed: torch.Tensor, trusted: torch.Tensor, allowance: torch.Tensor
) -> Evidence:
    """The evidence on one input; gradients in real coordinates, (C,)."""
    size = trusted.abs().max()
    relative = float((allowance / torch.maximum(trusted.abs(), 1e-3 * size)).max()) if bool(size > 0) else 0.0
    values = (*case.subject.inputs, *case.subject.plan.constants.values())
    return Evidence(
        claimed=space.unflat(claimed),
        true=space.unflat(trusted),
        tolerance=min(0.1, max(1e-9, 2 * relative)),
        for_ones=_for_ones(case, place),
        unreduced=lambda: _unreduced(case, place),
        indices=[one for one in values if one.dtype in _INDEX_DTYPES and one.numel() > 1],
    )


def is_cast(case: Case, claimed: torch.Tensor, rows: Sequence[Mismatch]) -> bool:
    """Whether a float64 gradient, (C,), of which these are wrong elements, is off by no more than if it had been one of
    float32, and looks like one."""
    fine = case.epsilon <= torch.finfo(torch.float64).eps
    near = all(one.error <= _CAST * abs(one.claimed) for one in rows)
    return fine and near and shadow.is_rounded([claimed])


def along(
    examiner: Examiner, claimed: torch.Tensor, epsilon: float, wrong: Sequence[tuple[complex, complex]]
) -> Finding:
    """The diagnosis of a claim, (C,), computed with that machine epsilon, from the slopes along directions alone; some
    elements are known to be wrong, claimed and numerical."""
    terms = examiner.directions * claimed
    said = terms.sum(1)
    conjugate = None
    if examiner.space.base.dtype.is_complex:
        conjugate = (examiner.directions * (claimed.view(-1, 2) * claimed.new_tensor([1.0, -1.0])).view(-1)).sum(1)
    rounding = torch.maximum(1e-6 * said.abs(), _UNITS * epsilon * norms(terms))
    slopes = examiner.slopes
    return diagnose.by_slopes(said, slopes.value, slopes.bar, wrong, conjugate=conjugate, rounding=rounding)


@torch.inference_mode(False)
def _for_ones(case: Case, place: int) -> torch.Tensor | None:
    """The gradient for cotangents of 1, to hold a claim against.

    None where the cotangents on trial are constant, and it would look like a factor; and for autograd's own, which is
    asked in other ways (`opinions`), and whose answer here would be as wrong.
    """
    given = [one for one in case.twin_cotangents if one is not None]
    if (
        case.own
        or case.weights is not None
        or all(bool((one == one.flatten()[0]).all()) for one in given if one.numel())
    ):
        return None
    ones = [None if one is None else torch.ones_like(one) for one in case.twin_cotangents]
    return case.twin.tape().pull(ones)[place].detach()


@torch.inference_mode(False)
def _unreduced(case: Case, place: int) -> Sequence[tuple[int, list[torch.Tensor]]]:
    """The contributions of each broadcast axis to the gradient of an input: how many, and each of them.

    The graph is run on the input expanded to the shapes of the other tensors. Where the outputs stay the same, the
    expanded input's gradient is the gradient before it is summed along the axes that were broadcast.
    """
    if case.weights is not None:
        return []
    where = case.twin.places[place]
    own = case.twin.inputs[where]
    plain = case.twin.tape()
    shapes = {tuple(one.shape) for one in (*case.twin.inputs, *plain.outputs, *case.twin.plan.constants.values())}
    found = []
    for shape in sorted(shapes, key=len):
        if not _expands(tuple(own.shape), shape):
            continue
        inputs = list(case.twin.inputs)
        inputs[where] = own.expand(shape)
        tracked = leaves(case.twin.plan, inputs)
        seed_everything(case.twin.seed, case.twin.plan.device)
        try:
            with torch.enable_grad():
                outputs = case.twin.plan.program()(tracked)
            check_outputs(case.twin.plan, outputs)
            same = all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(outputs, plain.outputs, strict=True))
            (gradient,) = pull_back(outputs, case.twin_cotangents, [tracked[where]]) if same else (None,)
        except Fault:
            continue
        if gradient is not None:
            found.append(_contributions(gradient, tuple(own.shape)))
    return found


def _expands(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    count = 1
    for size in large:
        count *= size
    try:
        return small != large and count <= _LARGEST and tuple(torch.broadcast_shapes(small, large)) == large  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def _contributions(gradient: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, list[torch.Tensor]]:
    """An unreduced gradient taken apart along the axes that `shape` lacks: (their size, the slices)."""
    extra = gradient.dim() - len(shape)
    padded = (1,) * extra + shape
    axes = [axis for axis, size in enumerate(padded) if size == 1 and gradient.shape[axis] != 1]
    kept = [axis for axis in range(gradient.dim()) if axis not in axes]
    slices = gradient.permute(*axes, *kept).reshape(-1, *shape)
    return slices.shape[0], list(slices.detach())

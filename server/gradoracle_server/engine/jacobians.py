"""Full mode's own part: every element of the Jacobian, autograd's beside the numerical one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch

from gradoracle_server.engine import (
    autodiff,
    finite_difference,
    ladders,
    shadow,
    sparse_jacobian,
    tolerances,
    trial,
)
from gradoracle_server.engine.case import Case
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.measurement import FEW_UNITS
from gradoracle_server.engine.passes import Passes, real_coordinates
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.slopes import Slopes
from gradoracle_server.engine.sparse_jacobian import SparseJacobian
from gradoracle_server.engine.trial import Tape

MOST = 1 << 26
"""Elements of one input's Jacobian in full mode, 512 MiB of float64, and of the directions along all axes.

So an input has at most 8192 elements, one direction each.
"""

_OTHER = 0.75  # times the usual steps: what rounds by accident as it does there does not here
_CHUNK_BYTES = 64 * 1024 * 1024  # of cotangents and gradients that are pulled back together


def check_size(passes: Passes, spaces: Sequence[Space]) -> None:
    """Raises Fault where an input has too many elements, or a Jacobian of too many."""
    most = math.isqrt(MOST)
    for space in spaces:
        outputs = passes.centre.numel()
        what = f'input "{space.name}" has {space.size} real numbers'
        if space.size > most:
            text = f"moves every element alone: expected at most {most} in an input, but {what}"
            raise _too_large(text, most, space.size)
        asked = outputs * space.size
        if asked > MOST:
            measured = "measures every element of the Jacobian: expected at most"
            text = f"{measured} {MOST} products of outputs and inputs, got {asked}; {what}, and the outputs {outputs}"
            raise _too_large(text, MOST, asked)


def _too_large(text: str, allowed: int, asked: int) -> Fault:
    message = f"mode: full {text}; choose probe mode, which has no such limit, or fewer elements"
    return Fault("LIMIT_EXCEEDED", message, field="mode", limit="full mode", allowed=allowed, asked=asked)


@dataclasses.dataclass(frozen=True, slots=True)
class DenseJacobian:
    """All elements, in real coordinates."""

    rows: torch.Tensor  # (M, C)

    def claims(self, examiner: Examiner, columns: torch.Tensor) -> torch.Tensor:
        """What moving along some axes does to the outputs, (P, M)."""
        if examiner.space.kind:
            return examiner.directions[columns] @ self.rows.T
        return self.rows.T[columns] * examiner.space.lengths()[columns, None]

    def seen(self, found: Derivative, columns: torch.Tensor) -> Derivative:
        """Derivatives of all outputs, (P, M), as they are."""
        return found

    def output_of(self, column: int, place: int) -> int:
        """The output's coordinate that an element belongs to."""
        return place


Jacobian = DenseJacobian | SparseJacobian


@torch.inference_mode(False)
def of(case: Case, passes: Passes, spaces: Sequence[Space]) -> list[Jacobian]:
    """Autograd's Jacobians in float64, one an input.

    Rows are pulled back many at a time, or one after another where an operator has no batching rule.
    """
    tape = case.twin.tape()
    outputs = list(tape.outputs)
    weights: Sequence[torch.Tensor | None] = case.twin_cotangents
    if case.weights is not None:
        outputs, weights = tape.pull(case.twin_cotangents, create_graph=True), case.weights
    kept = [one for one, weight in zip(outputs, weights, strict=True) if weight is not None]

    def pulled(cotangents: torch.Tensor) -> list[torch.Tensor]:
        """(B, C) gradients of each input for cotangents in real coordinates, (B, M)."""
        with tape.around:
            found = _pulled(tape.targets, kept, _apart(cotangents, kept), guards=tape.guards)
        return [_rows(one, space) for one, space in zip(found, spaces, strict=True)]

    count = passes.centre.numel()
    answers = pulled(sparse_jacobian.codes(count, passes.centre.device))
    found: list[Jacobian | None] = []
    for place, space in enumerate(spaces):
        gradient = space.flat(case.reference[place])
        few = space.size <= FEW_UNITS or bool(space.kind)
        found.append(None if few else sparse_jacobian.decoded(answers[place], count, passes.weight, gradient))
    if all(one is not None for one in found):
        return [one for one in found if one is not None]
    together = max(1, _CHUNK_BYTES // (8 * (sum(space.size for space in spaces) + count)))
    pieces = [pulled(_units(count, start, min(count, start + together), passes.centre.device))
              for start in range(0, count, together)]  # fmt: skip
    dense = [torch.cat(rows) for rows in zip(*pieces, strict=True)]
    return [DenseJacobian(rows) if one is None else one for one, rows in zip(found, dense, strict=True)]


def _units(count: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Rows of the identity matrix."""
    units = torch.zeros((stop - start, count), dtype=torch.float64, device=device)
    units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return units


def _apart(cotangents: torch.Tensor, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(B, M) real coordinates as cotangents of each output, (B, *shape)."""
    found, start = [], 0
    for output in outputs:
        parts = 2 if output.dtype.is_complex else 1
        piece = cotangents[:, start : start + parts * output.numel()]
        start += parts * output.numel()
        if parts == 2:
            piece = torch.view_as_complex(piece.reshape(len(piece), *output.shape, 2).contiguous())
        found.append(piece.reshape(len(piece), *output.shape).to(output.dtype))
    return found


def _pulled(
    targets: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    *,
    guards: bool,
) -> list[torch.Tensor]:
    """Gradients for several cotangents at once, (B, *shape) for each target; `guards` as a Tape's."""

    def pulled(*row: torch.Tensor) -> list[torch.Tensor]:
        given = trial.copies(row) if guards else row
        found = autodiff.pull_back(outputs, given, targets, retain_graph=True)
        return [torch.zeros_like(one) if g is None else g.detach() for g, one in zip(found, targets, strict=True)]

    def attempt() -> list[torch.Tensor | None]:
        # Not autograd's own is_grads_batched, whose older batching rules make a matrix product fifty times slower.
        return list(torch.func.vmap(pulled)(*cotangents))

    found = autodiff.without_batching_rules(attempt)
    if found is not None and _adds_up(found, cotangents, pulled):
        return [one for one in found if one is not None]
    rows = [pulled(*(one[row] for one in cotangents)) for row in range(len(cotangents[0]))]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _adds_up(
    found: Sequence[torch.Tensor | None],
    cotangents: Sequence[torch.Tensor],
    pulled: Callable[..., list[torch.Tensor]],
) -> bool:
    """Whether what was pulled back together is what is pulled back alone, by one more pull-back, of a combination.

    Not every batching rule is right: that of cdist's backward gives other numbers in torch 2.13.
    """
    weights = torch.linspace(1.0, 2.0, len(cotangents[0]), dtype=torch.float64, device=cotangents[0].device)
    alone = pulled(*(torch.tensordot(weights.to(one.dtype), one, 1) for one in cotangents))
    for rows, one in zip(found, alone, strict=True):
        if rows is None or not rows.numel():
            continue
        together = torch.tensordot(weights.to(rows.dtype), rows, 1)
        size = float(torch.tensordot(weights.to(rows.real.dtype), rows.abs(), 1).max())
        room = 16 * math.sqrt(torch.finfo(rows.dtype).eps) * size  # a wrong rule differs in the first digits
        if not bool(((together - one).abs().nan_to_num(0.0, 0.0) <= room).all()):
            return False
    return True


def _rows(gradients: torch.Tensor, space: Space) -> torch.Tensor:
    """(B, *shape) gradients as (B, C) rows, along the set in which the input may move."""
    flat = real_coordinates(gradients)
    return space.along(flat) if space.kind else flat


def measure(passes: Passes, examiner: Examiner, jacobian: Jacobian) -> Slopes:
    """The slopes along every axis of an input."""
    if isinstance(jacobian, SparseJacobian):
        found = sparse_jacobian.measure(passes, examiner, jacobian)
        if found is not None:
            found.first = examiner.element_slopes([0])[0].first
            return found
    return ladders.measure(passes, examiner.question)


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """An element of the Jacobian that is wrong, by its real coordinates."""

    output: int
    column: int
    claimed: float
    numerical: float
    bar: float


def wrong(examiner: Examiner, jacobian: Jacobian, most: int) -> tuple[int, list[Element]]:
    """How many elements of a Jacobian the numerical one contradicts, beside kinks, and the worst of them."""
    everything = torch.arange(examiner.space.size, device=examiner.space.scale.device)
    found = jacobian.seen(examiner.slopes.coordinates, everything)
    suspects = _beyond(found, jacobian.claims(examiner, everything), examiner.slopes.kinked)
    columns = suspects.any(1).nonzero().flatten()[:most]
    if not len(columns):
        return 0, []
    # Twice more before it is believed, on whole ladders and without batches: a bar that holds nearly always does not
    # for some of thousands of elements, but then hardly for other steps as well.
    batching, examiner.passes.batching = examiner.passes.batching, False
    directions, _ = examiner.space.units(columns.tolist())
    again, other = examiner.measured(directions), examiner.measured(directions * _OTHER).scaled(1 / _OTHER)
    examiner.passes.batching = batching
    claimed, found = jacobian.claims(examiner, columns), jacobian.seen(again.coordinates, columns)
    sure = _beyond(found, claimed, again.kinked)
    sure &= _beyond(jacobian.seen(other.coordinates, columns), claimed, other.kinked)
    lengths = directions.abs().amax(1)
    error = (found.value - claimed).abs().nan_to_num(nan=torch.inf)
    excess = torch.where(sure, error / lengths[:, None], -1.0)
    worst = []
    for flat in excess.flatten().topk(min(most, int(sure.sum()))).indices.tolist():
        row, place = divmod(flat, excess.shape[1])
        column, length = int(columns[row]), float(lengths[row])
        figures = [float(one[row, place]) / length for one in (claimed, found.value, found.bar)]
        worst.append(Element(jacobian.output_of(column, place), column, *figures))
    return (int(suspects.sum()) if worst else 0), worst


@torch.inference_mode(False)
def is_rounding(case: Case, space: Space, place: int, element: Element, value: float) -> bool:
    """Whether rounding inside the backward formula, as 1 - tanh(x)^2 has where it is nearly 0, explains an element; or
    rounding inside the function, whose output has that value there: 0 may be what is left of 1 - 1."""
    off = abs(element.claimed - element.numerical) * float(space.scale[element.column])
    if value == 0 and off <= finite_difference.EPSILON:
        return True
    looked_at = case.twin_cotangents if case.weights is None else case.weights
    kept = [one for one in looked_at if one is not None]
    units = iter(_apart(_units_of(element.output, kept), kept))
    chosen = [None if one is None else next(units)[0] for one in looked_at]

    def pull(tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        return (tape if case.weights is None else trial.gradient_tape(tape, case.twin_cotangents)).pull(cotangents)

    reference = pull(case.twin.tape(), chosen)
    moved = shadow.spread(case.twin, chosen, reference, finite_difference.EPSILON, pull, inside=True)[place]
    spread = moved.reshape(-1)[element.column // (2 if space.base.dtype.is_complex else 1)]
    return abs(element.claimed - element.numerical) <= element.bar + tolerances.SPREADS * float(spread)


def _units_of(output: int, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    count = sum(one.numel() * (2 if one.dtype.is_complex else 1) for one in kept)
    return _units(count, output, output + 1, kept[0].device)


def outputs(case: Case) -> list[tuple[str, tuple[int, ...]]]:
    """Of each of the M real coordinates, the output's name and the position in it.

    At order 2 the outputs are the first gradients, and named so.
    """
    if case.weights is None:
        named = [(name, one) for (name, _), one in zip(case.twin.plan.spec.outputs, case.twin_cotangents, strict=True)]
    else:
        named = [(f"gradient of {name}", one) for name, one in zip(case.twin.names, case.weights, strict=True)]
    found = []
    for name, one in named:
        if one is not None:
            for position in itertools.product(*(range(size) for size in one.shape)):
                found += [(name, position)] * (2 if one.dtype.is_complex else 1)
    return found


def _beyond(found: Derivative, claimed: torch.Tensor, kinked: torch.Tensor) -> torch.Tensor:
    """(P, M) of bool: products of the Jacobian and directions that are not within their bounds."""
    size = claimed.abs().nan_to_num(0.0, 0.0)
    allowance = tolerances.RELATIVE * size + 16 * finite_difference.EPSILON * size.amax(1, keepdim=True)
    error = (found.value - claimed).abs()
    return ~(error <= found.bar + allowance) & ~found.bar.isinf() & ~kinked[:, None]

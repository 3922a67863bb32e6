"""Jacobians with one output, at most, for each input element, as of elementwise functions, gathers and permutations.

They are found, and measured, in a few passes, whatever their size.
"""

from __future__ import annotations

import dataclasses

import torch

from gradoracle_server.engine import ladders
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.slopes import Question, Slopes

_GROUPS = 32  # of columns that share no output, at most: then each is better moved alone
_SAME = 1e-12  # relative: gradients that differ by less are one


@dataclasses.dataclass(frozen=True, slots=True)
class SparseJacobian:
    """The one element of each column, in real coordinates: (C,) both."""

    output: torch.Tensor  # 0 where the column has none
    value: torch.Tensor  # 0 there

    def claims(self, examiner: Examiner, columns: torch.Tensor) -> torch.Tensor:
        """What moving along some axes does to the outputs that they have, (P, 1)."""
        return (self.value * examiner.space.lengths())[columns, None]

    def seen(self, found: Derivative, columns: torch.Tensor) -> Derivative:
        """Of derivatives of all outputs, (P, M), those that these columns have, (P, 1)."""
        if found.value.shape[1] == 1:
            return found
        where = self.output[columns, None]
        return Derivative(found.value.gather(1, where), found.bar.gather(1, where))

    def output_of(self, column: int, place: int) -> int:
        """The output's coordinate that an element belongs to."""
        return int(self.output[column])


def codes(count: int, device: torch.device) -> torch.Tensor:
    """Cotangents, (B, M), of which the first is 1 for each output and the others spell the outputs' numbers in bits."""
    numbers = torch.arange(count, device=device)
    bits = [torch.ones_like(numbers), *((numbers >> k) & 1 for k in range(max(1, (count - 1).bit_length())))]
    return torch.stack(bits).to(torch.float64)


def decoded(answers: torch.Tensor, count: int, weight: torch.Tensor, gradient: torch.Tensor) -> SparseJacobian | None:
    """The Jacobian from the gradients, (B, C), for those cotangents, where it is of this kind; else None.

    `gradient`, (C,), is the one for the cotangent `weight`, (M,), and must be what follows.
    """
    total, bits = answers[0], answers[1:]
    room = _SAME * total.abs()
    here, absent = (bits - total).abs() <= room, bits.abs() <= room
    if not bool((here | absent).all()):
        return None
    here = here & (total != 0)
    output = (here * (2 ** torch.arange(len(bits), device=answers.device))[:, None]).sum(0)
    if int(output.max()) >= count or int(torch.bincount(output[total != 0], minlength=1).max()) > _GROUPS:
        return None
    expected = weight[output] * total
    if not bool(((gradient - expected).abs() <= 1e-9 * expected.abs()).all()):
        return None
    return SparseJacobian(output, total)


def measure(passes: Passes, examiner: Examiner, jacobian: SparseJacobian) -> Slopes | None:
    """The slopes along every axis; None where that needs each to be moved alone.

    Columns that share no output are moved together (A. R. Curtis, M. J. D. Powell, J. K. Reid, "On the estimation of
    sparse Jacobian matrices", 1974): each output then shows the one column it depends on. A dependence that the
    Jacobian lacks shows as an error of that, or as a move of an output that should stand still, which gives None.
    """
    space, output = examiner.space, jacobian.output
    group = _groups(jacobian)
    members = torch.arange(int(group.max()) + 1, device=group.device)[:, None] == group
    mover = space.drawn(1, examiner.generator)
    moved = ladders.measure(passes, Question(space, mover * members, mover.new_zeros(len(members))))
    found = moved.coordinates
    owned = torch.zeros_like(found.value, dtype=torch.bool)
    live = jacobian.value != 0
    owned[group[live], output[live]] = True
    hidden = (found.value.abs() > found.bar) & ~owned & (passes.weight != 0)
    if not moved.smooth or bool(hidden.any()):
        return None
    longer = space.lengths() / mover[0]
    value = torch.where(live, found.value[group, output] * longer, 0.0)
    bar = torch.where(live, found.bar[group, output] * longer.abs(), 0.0)
    total = value * passes.weight[output]
    plain = torch.zeros_like(live)
    alone = Derivative(value[:, None], bar[:, None])
    return Slopes(total, bar * passes.weight[output].abs(), total, total, plain, alone, smooth=True)


def _groups(jacobian: SparseJacobian) -> torch.Tensor:
    """(C,): the group of each column, so that no two of a group share an output."""
    live = (jacobian.value != 0).nonzero().flatten()
    order = live[jacobian.output[live].argsort(stable=True)]
    _, counts = jacobian.output[order].unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    group = torch.zeros_like(jacobian.output)
    group[order] = torch.arange(len(order), device=order.device) - first
    return group

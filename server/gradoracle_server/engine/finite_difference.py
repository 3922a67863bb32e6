"""Derivatives from function values alone: central and one-sided differences on a ladder of steps, extrapolated.

Richardson's extrapolation to the limit (L. F. Richardson, 1911) in Romberg's triangle, with the choice of the best
entry by its own error estimate (C. J. F. Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", 1982). Three things
are added to the classic. The rounding of the function is a floor under every estimate. The even half of the same
values, (f(+h) + f(-h)) / 2, is extrapolated beside the odd half: its limit f(0) is *known*, so that the error of each
of its entries is known as well and not guessed, and it is the error of the derivative's entry times the step: a kink,
a step too long, a noise above rounding all show there, where agreement of two rungs of the odd half can be an accident.
And the finest rung has a say: longer steps that jump over whole periods agree among themselves, but not with it. Two
rungs alone are no witness, because their agreement can be an accident: entries are made of three or more.

Every output coordinate chooses its own entry, so that one output with a short scale does not spoil the others.

Measured on the float64 samples of PyTorch's operator database: see tests/bench/check_bars.md.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

import torch

from gradoracle_server.engine import derivatives, romberg
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.romberg import Triangle

RUNGS = 6
"""Steps of one ladder, each half the one before."""

LADDERS = (2.0**-4, 2.0**-10, 2.0**-17, 2.0**-25)
"""The longest step of each ladder, relative to the input: the next is climbed down only where one does not do."""

SAFETY = 8.0
"""What an error estimate is multiplied by to become a bar that holds."""

FLOOR = SAFETY / (0.5**RUNGS * LADDERS[0])
"""What the shortest steps of the first ladder make, about, of the rounding of a value."""

EPSILON = torch.finfo(torch.float64).eps

Epsilon: TypeAlias = float | torch.Tensor
_JUMP = 1e-9  # relative to the largest output, from which on a difference is not rounding
_FAINT = 1024.0  # units in the last place, of what may have been summed up on the way
_LASTING = 0.97  # of a change of quotients, from which on the next one says that there is no limit
_DOUBLING = 1.9  # likewise, that there is a jump
_LARGE = 1e290  # from which on differences over steps may overflow
_FEW = 1 << 14  # numbers, of which to leave some out costs more than it saves
_MANY = 0.25  # of all, likewise
_SLICE = 1 << 16  # output coordinates times directions worked on together: what a core's cache holds


def steps(longest: float, rungs: int = RUNGS) -> list[float]:
    """The ladder from the longest step down; powers of two, so that moving by them is exact."""
    return [longest * 0.5**rung for rung in range(rungs)]


@dataclasses.dataclass(frozen=True, slots=True)
class Rounding:
    """What values of M outputs are off by."""

    epsilon: Epsilon = EPSILON
    """The machine epsilon of the precision in which they were computed; (M,) where outputs differ."""
    noise: torch.Tensor | None = None
    """(M,): what is known of them beside that."""

    def of(self, outputs: slice | torch.Tensor) -> Rounding:
        """That of some outputs, by their places."""
        epsilon = self.epsilon[outputs] if isinstance(self.epsilon, torch.Tensor) else self.epsilon
        return Rounding(epsilon, None if self.noise is None else self.noise[outputs])

    def at(self, size: torch.Tensor) -> torch.Tensor:
        """That of values of such sizes, (…, M)."""
        found = size * self.epsilon
        return found if self.noise is None else torch.maximum(found, self.noise)


def central(
    values: torch.Tensor,
    centre: torch.Tensor,
    ladder: list[float],
    epsilon: Epsilon = EPSILON,
    noise: torch.Tensor | None = None,
) -> Derivative:
    """The derivative at 0 from values at +h and at -h, of shape (P, 2, K, M), and at 0, of shape (M,), in float64.

    `epsilon` and `noise` as in `Rounding`.
    """
    triangle = romberg.central(tuple(ladder), values.device)
    return _in_slices(values.flatten(1, 2), centre, Rounding(epsilon, noise), triangle)


def one_sided(
    values: torch.Tensor,
    centre: torch.Tensor,
    ladder: list[float],
    side: torch.Tensor,
    epsilon: Epsilon = EPSILON,
    noise: torch.Tensor | None = None,
) -> Derivative:
    """The one-sided derivative at 0 from values at side * h alone, of shape (P, K, M), side being +1 or -1, (P, 1)."""
    triangle = romberg.one_sided(tuple(ladder), values.device)
    found = _in_slices(values, centre, Rounding(epsilon, noise), triangle)
    found.value *= side
    return found


def least_change(values: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """(P, M): the smallest change that the values of a ladder, (P, 2, K, M), show; infinite where a side shows none, as
    beside the kink of a function that is flat here: that is no grain."""
    change = (values - centre).abs()
    sides = torch.where(change > 0, change, torch.inf).amin(2)
    return torch.where(sides.isinf().any(1), torch.inf, sides.amin(1))


def loud(centre: torch.Tensor) -> float:
    """What a difference of values must be above, for it not to be rounding."""
    return _JUMP * float(torch.where(centre.isfinite(), centre.abs(), 0.0).max())


def faint(centre: torch.Tensor, rounding: Rounding) -> float:
    """What a difference of values must be above, for it not to be rounding on the way to the largest of them."""
    return _FAINT * float(torch.where(centre.isfinite(), rounding.at(centre.abs()), 0.0).max())


def diverges(
    values: torch.Tensor, centre: torch.Tensor, ladder: list[float], loud: float, faint: float
) -> torch.Tensor:
    """The limits from the right and from the left, +inf or -inf, of difference quotients whose changes do not get
    smaller from rung to rung; 0 where they do. From values at +h and at -h, (2, K, N), (2, N).

    The changes of a square root's quotients grow by a factor of 1.41 a rung, a jump's by 2, and those of x log(x) stay
    the same; a smooth function's are halved. A jump as small as rounding beside the largest output, `loud` at most, is
    none, and neither is what is `faint`. What looks like a jump may be a kink that is nearer than the shortest step.
    """
    lengths = torch.tensor(ladder, dtype=torch.float64, device=values.device)[:, None]
    moves = values - centre
    quotients = moves / lengths * values.new_tensor([1.0, -1.0])[:, None, None]
    changes = quotients.diff(dim=1)
    growth = changes[:, 1:] / changes[:, :-1]
    grows = (growth >= _LASTING).all(1) & quotients.isfinite().all(1)
    jumps = (growth >= _DOUBLING).all(1)
    jump = 2 * ladder[-1] * changes[:, -1]
    slopes = (quotients[:, 0] - torch.where(jumps, jump, 0.0) / ladder[0]).nan_to_num(0.0, 0.0, 0.0)
    near = jumps & (jump.abs() <= (slopes[0] - slopes[1]).abs() * ladder[-1])  # slopes so far apart make as much of it
    least = torch.full_like(quotients[:, 0], faint).masked_fill_(jumps, loud)  # numbers alone would be of float32
    shows = moves.abs().amin(1) > least
    limit = torch.copysign(torch.full_like(jump, torch.inf), jump)
    return torch.where(grows & shows & ~near, limit, 0.0)


def _in_slices(values: torch.Tensor, centre: torch.Tensor, rounding: Rounding, triangle: Triangle) -> Derivative:
    """Output coordinates are worked on in slices that a core's cache holds."""
    width = max(1, _SLICE // max(1, values.shape[0]))
    if centre.shape[0] <= width:
        return _extrapolated(triangle, values, centre, rounding)
    pieces = []
    for start in range(0, centre.shape[0], width):
        cut = slice(start, start + width)
        pieces.append(_extrapolated(triangle, values[..., cut], centre[cut], rounding.of(cut)))
    return derivatives.joined(pieces, 1)


def _extrapolated(triangle: Triangle, values: torch.Tensor, centre: torch.Tensor, rounding: Rounding) -> Derivative:
    """The derivative of each coordinate, from values of shape (P, columns, M).

    Where no step moves a value, its derivative is below what the longest would have shown: most outputs depend on few
    of the elements that are moved alone, so that the rest is worth being left out.
    """
    shape = values.shape[0], values.shape[2]
    moves = values - centre
    nonzero = int(moves.count_nonzero())
    if nonzero == moves.numel():
        return Derivative(*_best_of_all(triangle, values, moves, centre, rounding, stepwise=False))
    live = moves.any(1)  # NaN, too
    count = int(live.count_nonzero())
    still = (rounding.at(centre.abs()) * (SAFETY * triangle.still)).expand(shape)
    stepwise = triangle.sides == 2 and nonzero < count * values.shape[1]
    if moves.numel() <= _FEW and count > _MANY * live.numel():
        value, bar, _, settled = _best_of_all(triangle, values, moves, centre, rounding, stepwise=stepwise)
        return Derivative(torch.where(live, value, 0.0), torch.where(live, bar, still), ~live, settled | ~live)
    value, settled, bar = values.new_zeros(shape), torch.ones_like(live), still.clone()
    row, place = live.nonzero(as_tuple=True)
    if count:
        columns, part = values[row, :, place].t().contiguous(), centre[place]
        best = _best(triangle, columns, columns - part, part, rounding.of(place), stepwise=stepwise)
        value[row, place], bar[row, place], settled[row, place] = best.value, best.bar, best.settled
    return Derivative(value, bar, ~live, settled)


def _best_of_all(
    triangle: Triangle,
    values: torch.Tensor,
    moves: torch.Tensor,
    centre: torch.Tensor,
    rounding: Rounding,
    *,
    stepwise: bool,
) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor]:
    """The parts of a Derivative in which no coordinate is left out."""
    # The axis that all is reduced along comes first, and N = P * M last.
    columns, flat = values.transpose(0, 1), moves.transpose(0, 1).reshape(values.shape[1], -1)
    best = _best(triangle, columns, flat, centre, rounding, stepwise=stepwise)
    shape = values.shape[0], values.shape[2]
    return best.value.view(shape), best.bar.view(shape), None, best.settled.view(shape)


class _Best(NamedTuple):
    """Of N coordinates, all of shape (N,), as in Derivative."""

    value: torch.Tensor
    bar: torch.Tensor
    settled: torch.Tensor


def _best(
    triangle: Triangle,
    columns: torch.Tensor,
    moves: torch.Tensor,
    centre: torch.Tensor,
    rounding: Rounding,
    *,
    stepwise: bool,
) -> _Best:
    """The best entry of each coordinate, from values of shape (columns, …), and their differences from the centre,
    (columns, N); `stepwise`: some of those may be 0.

    The best entry at the finest rung must not contradict it: where it does, as where longer steps jump over whole
    periods, neither is believed beyond the distance between them.
    """
    size = torch.maximum(columns.abs().amax(0), centre.abs())
    finite = None
    if size.numel() and not float(size.max()) < _LARGE:
        finite = moves.isfinite()
        moves = torch.where(finite, moves, 0.0)
        size = torch.maximum(torch.where(columns.isfinite(), columns, 0.0).abs().amax(0), centre.abs())
    rounded = rounding.at(size).reshape(-1)
    found = triangle.rows @ moves
    entries, spreads = found[: triangle.count], found[triangle.count :]
    estimates = spreads.abs_().view(spreads.shape[0] // triangle.count, triangle.count, moves.shape[1]).amax(0)
    floor = triangle.rounding * rounded
    errors = torch.maximum(estimates, _above_quanta(triangle, moves, floor) if stepwise else floor)
    if finite is not None:
        unusable = triangle.uses @ (~finite).to(torch.float64) > 0
        errors = torch.where(unusable, torch.inf, errors.nan_to_num(nan=torch.inf, posinf=torch.inf))
    value, error, place = _smallest(entries, errors)
    if triangle.finest:
        last, last_error, _ = _smallest(entries[triangle.finest :], errors[triangle.finest :])
        distance = (value - last).abs_()
        apart = distance > SAFETY * (error + last_error)
        if bool(apart.any()):
            error = torch.where(apart, distance, error)
    if finite is not None:
        value = torch.where(error.isinf(), torch.nan, value)
    return _Best(value, SAFETY * error, place < triangle.finest)


def _smallest(values: torch.Tensor, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each coordinate, the entry with the smallest error estimate, that, and its place among the entries; (N,)."""
    smallest, place = errors.min(0)
    return values.gather(0, place[None])[0], smallest, place


def _above_quanta(triangle: Triangle, moves: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """What rounding of the values does to each entry, (E, N), where only the longer steps move some of them.

    Then the function moves in quanta, as rounding to decimals does, and the smallest change seen is one: a few quanta
    can lie on a straight line by accident.
    """
    steps = moves.view(2, moves.shape[0] // 2, moves.shape[1])
    still = ~steps.any(0)
    stepwise = still.any(0)
    quantum = torch.where(still, torch.inf, steps.abs().amax(0)).amin(0)
    return torch.where(stepwise, torch.maximum(floor, quantum / triangle.steps[triangle.rung]), floor)

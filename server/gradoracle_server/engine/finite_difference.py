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
import functools
from typing import TypeAlias

import torch

RUNGS = 6
"""Steps of one ladder, each half the one before."""

LADDERS = (2.0**-4, 2.0**-10, 2.0**-17, 2.0**-25)
"""The longest step of each ladder, relative to the input: the next is climbed down only where one does not do."""

SAFETY = 8.0
"""What an error estimate is multiplied by to become a bar that holds."""

EPSILON = torch.finfo(torch.float64).eps

Epsilon: TypeAlias = float | torch.Tensor
_JUMP = 1e-9  # relative to the largest output, from which on a difference is not rounding
_SLICE = 1 << 16  # output coordinates times directions worked on together: what a core's cache holds


@dataclasses.dataclass(slots=True)
class Derivative:
    """Directional derivatives of M real output coordinates along P directions, with bars; all of shape (P, M)."""

    value: torch.Tensor
    bar: torch.Tensor  # infinite where nothing is known

    def with_longer(self, longer: Derivative) -> Derivative:
        """Of each coordinate, this or what longer steps gave, whichever has the narrower bar.

        Where the two contradict each other this stands, and their distance is the bar.
        """
        distance = (self.value - longer.value).abs()
        contradicted = distance > self.bar + longer.bar
        closer = (longer.bar < self.bar) & ~contradicted
        value, bar = torch.where(closer, longer.value, self.value), torch.where(closer, longer.bar, self.bar)
        return Derivative(value, torch.where(contradicted, torch.maximum(bar, distance), bar))


def steps(longest: float) -> list[float]:
    """The ladder from the longest step down; powers of two, so that moving by them is exact."""
    return [longest * 0.5**rung for rung in range(RUNGS)]


def central(
    plus: torch.Tensor, minus: torch.Tensor, centre: torch.Tensor, ladder: list[float], epsilon: Epsilon = EPSILON
) -> Derivative:
    """The derivative at 0 from values at +h and -h, each of shape (P, K, M), and at 0, of shape (M,), in float64.

    `epsilon` is the machine epsilon of the precision in which the values were computed; (M,) where outputs differ.
    """
    pieces = []
    width = max(1, _SLICE // max(1, plus.shape[0]))
    for start in range(0, max(1, plus.shape[2]), width):
        cut = slice(start, start + width)
        pieces.append(_central(plus[..., cut], minus[..., cut], centre[cut], ladder, _cut(epsilon, cut)))
    return _joined(pieces)


def one_sided(
    values: torch.Tensor, centre: torch.Tensor, ladder: list[float], side: float, epsilon: Epsilon = EPSILON
) -> Derivative:
    """The one-sided derivative at 0 from values at side * h alone, side being +1 or -1; shapes as in `central`."""
    pieces = []
    width = max(1, _SLICE // max(1, values.shape[0]))
    for start in range(0, max(1, values.shape[2]), width):
        cut = slice(start, start + width)
        pieces.append(_one_sided(values[..., cut], centre[cut], ladder, side, _cut(epsilon, cut)))
    return _joined(pieces)


def diverges(values: torch.Tensor, centre: torch.Tensor, ladder: list[float], side: float) -> torch.Tensor:
    """The limit, +inf or -inf, of difference quotients that grow at every rung; 0 where they do not. Shape (P, M).

    A square root's quotients grow by a factor of 1.41 a rung, a jump's by 2; a smooth function's tend to a constant. A
    jump as small as rounding beside the largest output is none.
    """
    lengths = torch.tensor(ladder, dtype=torch.float64, device=values.device)[:, None]
    quotients = side * (values - centre) / lengths
    growth = quotients[:, 1:] / quotients[:, :-1]
    loud = (values - centre).abs().amin(1) > _JUMP * torch.where(centre.isfinite(), centre.abs(), 0.0).max()
    growing = (growth > 1.05).all(1) & quotients.isfinite().all(1) & loud
    return torch.where(growing, torch.copysign(torch.full_like(quotients[:, -1], torch.inf), quotients[:, -1]), 0.0)


def _cut(epsilon: Epsilon, cut: slice) -> Epsilon:
    return epsilon[cut] if isinstance(epsilon, torch.Tensor) else epsilon


def _joined(pieces: list[Derivative]) -> Derivative:
    if len(pieces) == 1:
        return pieces[0]
    return Derivative(torch.cat([one.value for one in pieces], 1), torch.cat([one.bar for one in pieces], 1))


@dataclasses.dataclass(frozen=True, slots=True)
class _Triangle:
    """Romberg's triangle as linear maps from the K values of a ladder to its E entries of three rungs or more.

    `entries` gives the entries, `spreads` their distances from the two entries that each is made of, (2 E, K) stacked;
    `uses` tells which rungs an entry is made of, `last` which entries reach the finest rung, `rung` each one's finest,
    and `amplified` how much more rounding an entry has than its finest rung.
    """

    entries: torch.Tensor
    spreads: torch.Tensor
    uses: torch.Tensor
    last: torch.Tensor
    rung: torch.Tensor
    amplified: torch.Tensor


@functools.lru_cache(maxsize=16)
def _triangle(count: int, base: float, device: torch.device) -> _Triangle:
    """For expansions in powers of the step (base 2) or of its square (base 4), each step half the one before."""
    rows = torch.eye(count, dtype=torch.float64)
    kept: list[torch.Tensor] = []
    nearer: list[torch.Tensor] = []
    farther: list[torch.Tensor] = []
    rung: list[int] = []
    amplified: list[float] = []
    growth = 1.0
    for level in range(1, count):
        power = base**level - 1
        growth *= (power + 2) / power
        finer, coarser = rows[1:], rows[:-1]
        rows = finer + (finer - coarser) / power
        if level > 1:
            kept.append(rows)
            nearer.append(rows - finer)
            farther.append(rows - coarser)
            rung += range(level, count)
            amplified += [growth if base == 2 else 1.0] * (count - level)
    entries = torch.cat(kept)
    places = torch.tensor(rung)
    return _Triangle(
        entries.to(device),
        torch.cat([*nearer, *farther]).to(device),
        (entries != 0).to(torch.float64).to(device),
        (places == count - 1).nonzero().flatten().to(device),
        places.to(device),
        torch.tensor(amplified, dtype=torch.float64)[:, None].to(device),
    )


def _central(
    plus: torch.Tensor, minus: torch.Tensor, centre: torch.Tensor, ladder: list[float], epsilon: Epsilon
) -> Derivative:
    triangle = _triangle(len(ladder), 4.0, plus.device)
    lengths = torch.tensor(ladder, dtype=torch.float64, device=plus.device)[:, None]
    odd = (plus - minus) / (2 * lengths)
    even = (plus + minus) / 2 - centre
    floor = torch.maximum(torch.maximum(plus.abs(), minus.abs()), centre.abs()) * (epsilon / lengths)
    still = (plus == centre) & (minus == centre)
    if bool(still.any()):
        floor = _floor_of_steps(floor, still, torch.maximum((plus - centre).abs(), (minus - centre).abs()), lengths)
    return _extrapolated(
        triangle, odd, floor, (triangle.entries @ even.nan_to_num(0.0, 0.0, 0.0)) / lengths[triangle.rung]
    )


def _one_sided(
    values: torch.Tensor, centre: torch.Tensor, ladder: list[float], side: float, epsilon: Epsilon
) -> Derivative:
    triangle = _triangle(len(ladder), 2.0, values.device)
    lengths = torch.tensor(ladder, dtype=torch.float64, device=values.device)[:, None]
    quotients = side * (values - centre) / lengths
    floor = torch.maximum(values.abs(), centre.abs()) * (epsilon / lengths)
    floor = torch.where((values == centre).all(1, keepdim=True), floor * (lengths / lengths[0]), floor)
    return _extrapolated(triangle, quotients, floor, None)


def _extrapolated(
    triangle: _Triangle, quotients: torch.Tensor, floor: torch.Tensor, known: torch.Tensor | None
) -> Derivative:
    """The best entry of each coordinate, from difference quotients, their rounding, both of shape (P, K, M), and the
    errors that are known, (P, E, M).

    The best entry at the finest rung must not contradict it: where it does, as where longer steps jump over whole
    periods, neither is believed beyond the distance between them.
    """
    finite = quotients.isfinite()
    whole = bool(finite.all())
    if not whole:
        unusable = triangle.uses @ (~finite).to(torch.float64) > 0
        quotients = torch.where(finite, quotients, 0.0)
    entries = triangle.entries @ quotients
    nearer, farther = (triangle.spreads @ quotients).abs().chunk(2, dim=1)
    errors = torch.maximum(torch.maximum(nearer, farther), triangle.amplified * floor[:, triangle.rung])
    if known is not None:
        errors = torch.maximum(errors, known.abs())
    errors = (
        errors.nan_to_num(nan=torch.inf, posinf=torch.inf)
        if whole
        else torch.where(unusable, torch.inf, errors.nan_to_num(nan=torch.inf, posinf=torch.inf))
    )
    value, error = _smallest(entries, errors)
    last, last_error = _smallest(entries[:, triangle.last], errors[:, triangle.last])
    distance = (value - last).abs()
    error = torch.where(distance > SAFETY * (error + last_error), distance, error)
    return Derivative(torch.where(error.isinf(), torch.nan, value), SAFETY * error)


def _smallest(values: torch.Tensor, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each coordinate, the entry with the smallest error estimate, and that."""
    smallest, place = errors.min(1)
    return values.gather(1, place[:, None])[:, 0], smallest


def _floor_of_steps(
    floor: torch.Tensor, still: torch.Tensor, change: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """The floor where some steps, `still`, do not change the value at all.

    Where not even the longest does, the derivative is below what would have. Where only the longer ones do, the
    function moves in quanta, as rounding to decimals does, and the smallest change seen is one: a few quanta can lie on
    a straight line by accident.
    """
    never = still.all(1, keepdim=True)
    quantum = torch.where(still, torch.inf, change).amin(1, keepdim=True)
    stepwise = still.any(1, keepdim=True) & ~never
    floor = torch.where(never, floor * (lengths / lengths[0]), floor)
    return torch.where(stepwise, torch.maximum(floor, quantum / lengths), floor)

"""Derivatives along directions, with bars: what of those by longer steps and by shorter ones is believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import overload

import torch

_GOOD = 1e-6  # relative to the derivative: a bar that is good enough not to look for a better one
_GROWTH = 2.0**-1  # of noise from a good step of the first ladder to one of length 1, about


@dataclasses.dataclass(slots=True)
class Derivative:
    """Directional derivatives of M real output coordinates along P directions, with bars; all of shape (P, M)."""

    value: torch.Tensor
    bar: torch.Tensor  # infinite where nothing is known
    still: torch.Tensor | None = None  # bool: no step moved the value; None where every value moved
    settled: torch.Tensor | None = None  # bool: the shortest steps were not the best, so that shorter ones are worse
    doubt: torch.Tensor | None = None  # what no later bar is less than; None where there is no doubt
    alone: torch.Tensor | None = None  # the bar by itself, without what contradicts it; None where nothing does
    apart: torch.Tensor | None = None  # how far outside of what contradicts it the value is; 0 where nothing does

    def with_longer(
        self,
        longer: Derivative,
        least: Callable[[], torch.Tensor],
        longest: float,
        loud: float,
        faint: float,
        *,
        quiet: bool = False,
        flat: bool = False,
    ) -> Derivative:
        """Of each coordinate, this or what longer steps gave, whichever has the narrower bar.

        Where the two contradict each other this stands, with a bar that holds what longer steps had for possible, too.
        Not so where longer steps were good and limited by noise: that grows with every shorter step, though the bar
        here may not tell. `least` gives the smallest change, (P, M), that the longer steps saw. A value that they move,
        and these steps, up to `longest`, do not, may have such a grain. That is rounding inside of the function; or,
        where it is more than `loud`, stairs, and then the slope is nothing between 0 and what the longer steps made of
        them.

        A contradiction that is too faint in the values to be anything but rounding, `faint` at most, stays a doubt:
        steps that are shorter still see the same rounding, and agree with it. Any other is settled where these agree
        with the longer ones, and contradict those that the longer ones contradicted: two ladders outvote a third, whose
        steps went over a kink or a period.

        `quiet`: bars tell of all noise, so that what shorter steps contradict is no matter of it. `flat`: values have
        no grain, and where these steps do not move one it is constant there, whatever longer ones made of its jumps.
        """
        own, stopped, still = self.bar, None, None
        if self.still is not None and not flat:
            still = self.still & longer.still if longer.still is not None else None
            stopped = self.still if longer.still is None else self.still & ~longer.still
            if not bool(stopped.any()):
                stopped = None
        if stopped is not None:
            change = least()
            grain = torch.where(change.isfinite(), change, 0.0)  # infinite where only one side moved the value
            own = torch.where(stopped, torch.maximum(own, grain / longest), own)
        distance = (self.value - longer.value).abs()
        before = longer.bar
        if longer.alone is not None and longer.apart is not None:
            agreed = (distance <= own + longer.alone) & (distance + own < longer.apart)
            before = torch.where(agreed, longer.alone, before)
        noise, closer = before, before < own
        if longer.settled is not None and not quiet:
            good = longer.settled & (before <= _GOOD * longer.value.abs())
            growth = _GROWTH / longest
            noise, closer = torch.where(good, noise * growth, noise), closer | good
        contradicted = distance > own + noise
        closer = closer & ~contradicted
        value, alone = torch.where(closer, longer.value, self.value), torch.where(closer, before, own)
        both = distance + torch.where(contradicted, before, 0.0)
        bar = torch.where(contradicted, torch.maximum(alone, both), alone)
        apart = torch.where(contradicted, distance - noise, 0.0)
        doubt = torch.where(contradicted & (distance * longest <= faint), both, 0.0)
        if longer.doubt is not None:
            doubt = torch.maximum(doubt, longer.doubt)
        bar = torch.maximum(bar, doubt)
        if stopped is not None:
            stairs = stopped & (grain > loud)
            value = torch.where(stairs, self.value, value)
            bar = torch.where(stairs, distance + longer.bar, bar)
            apart = torch.where(stairs, 0.0, apart)
        settled = self.settled
        if settled is not None and longer.settled is not None:
            settled = torch.where(closer, longer.settled, settled)
        return Derivative(value, bar, still, settled, doubt, alone, apart)

    def scaled(self, factor: float) -> Derivative:
        """Those along directions so many times as long."""
        doubt, alone, apart = (None if one is None else one * factor for one in (self.doubt, self.alone, self.apart))
        value, bar = self.value * factor, self.bar * factor
        return dataclasses.replace(self, value=value, bar=bar, doubt=doubt, alone=alone, apart=apart)

    def of(self, rows: torch.Tensor | slice) -> Derivative:
        """Those of some directions, as for `places`."""
        rows = places(rows)
        return Derivative(*(None if one is None else one[rows] for one in self._parts()))  # type: ignore[arg-type]

    def replaced(self, rows: torch.Tensor, others: Derivative) -> Derivative:
        """These with some directions', as for `places`, taken from others, which has one for each such direction."""
        index = places(rows)

        def mixed(mine: torch.Tensor | None, theirs: torch.Tensor | None) -> torch.Tensor | None:
            known = theirs if mine is None else mine
            if known is None:
                return None
            mine = torch.zeros_like(self.value, dtype=known.dtype) if mine is None else mine
            return mine.index_fill(0, index, 0) if theirs is None else mine.index_copy(0, index, theirs)

        pairs = zip(self._parts(), others._parts(), strict=True)
        return Derivative(*(mixed(mine, theirs) for mine, theirs in pairs))  # type: ignore[arg-type]

    def _parts(self) -> tuple[torch.Tensor | None, ...]:
        return self.value, self.bar, self.still, self.settled, self.doubt, self.alone, self.apart


@overload
def places(rows: torch.Tensor) -> torch.Tensor: ...
@overload
def places(rows: torch.Tensor | slice) -> torch.Tensor | slice: ...
def places(rows: torch.Tensor | slice) -> torch.Tensor | slice:
    """Of directions, (P,) of bool, those that are meant, by their places: several tensors are taken apart more quickly
    by these than by a mask. Places, and a slice, as they are."""
    return rows.nonzero().view(-1) if isinstance(rows, torch.Tensor) and rows.dtype is torch.bool else rows


def joined(pieces: Sequence[Derivative], dim: int) -> Derivative:
    """Those of several lists of directions, `dim` 0, or of outputs, `dim` 1."""
    value, bar = torch.cat([one.value for one in pieces], dim), torch.cat([one.bar for one in pieces], dim)
    like = [one.value for one in pieces]
    still, settled = ([one.still for one in pieces], [one.settled for one in pieces])
    doubt = _joined([one.doubt for one in pieces], like, dim)
    return Derivative(value, bar, _joined(still, like, dim), _joined(settled, like, dim), doubt)


def _joined(parts: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor], dim: int) -> torch.Tensor | None:
    dtype = next((one.dtype for one in parts if one is not None), None)
    if dtype is None:
        return None
    pairs = zip(parts, like, strict=True)
    return torch.cat([torch.zeros_like(x, dtype=dtype) if one is None else one for one, x in pairs], dim)

"""Finds the single elements of an input whose gradient is wrong, or along which the function has a kink."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from gradoracle_server.engine.examine import Examiner
from gradoracle_server.engine.products import Assessment
from gradoracle_server.engine.refinement import ALL_UNITS
from gradoracle_server.engine.slopes import Slopes

_FOUND = 10  # wrong elements named, and blocks followed, at most
_TRIED = 8  # of many elements that are to be moved alone, to see whether that tells more
_JOINT = 2  # directions, each of which must have the kink


class Suspects(NamedTuple):
    """Coordinates whose gradient is wrong, the worst first."""

    found: list[int]
    are_all: bool
    """Whether there are no others: where there are too many, they are not followed to the end."""


def suspects(
    examiner: Examiner, gradient: torch.Tensor, row: int | None = None, among: list[int] | None = None
) -> Suspects:
    """Coordinates whose gradient, (C,), is wrong.

    With `row`, those that make the error along that direction of the examiner's, were it as small as rounding: whether
    they are wrong is for the caller to measure. `among`: those that can be, where it is known and they are few.
    """
    if examiner.space.size <= ALL_UNITS:  # small faults where there are no loud ones
        loud = _by_units(examiner, gradient) if row is None else []
        return Suspects(loud or _by_units(examiner, gradient, small=True, among=among), are_all=True)
    if examiner.units:
        wrong = _by_units(examiner, gradient)
        return Suspects(wrong[:_FOUND], len(wrong) <= _FOUND)
    if row is None:
        return _by_halves(examiner, gradient, examiner.space.drawn(1, examiner.generator), loudly=True)
    return _by_halves(examiner, gradient, examiner.directions[row : row + 1], loudly=False)


def _by_halves(examiner: Examiner, gradient: torch.Tensor, mover: torch.Tensor, *, loudly: bool) -> Suspects:
    """A single direction's residual is split between halves of the index set, level by level (D. Dorfman's group
    testing, 1943, in its adaptive form): a level costs one ladder for each block that is still wrong. `loudly`: wrong
    is what is beyond the tolerance, and not what is above the noise."""

    def residual(start: int, stop: int, enough: float) -> tuple[float, float]:
        """Claimed minus numerical slope along one block of the direction, and its bound."""
        part = _part(examiner, mover, start, stop)
        return examiner.doubts(part, gradient, examiner.measured(part, enough), loudly=loudly)

    size, are_all = examiner.space.size, True
    blocks = [(0, size, *residual(0, size, 0.0))]
    while any(stop - start > 1 for start, stop, _, _ in blocks):
        halves = []
        for start, stop, whole, bound in blocks:
            if stop - start == 1:
                halves.append((start, stop, whole, bound))
                continue
            middle = (start + stop) // 2
            enough = abs(whole) / 256 if math.isfinite(whole) else 0.0
            left, left_bound = residual(start, middle, enough)
            right, right_bound = whole - left, bound + left_bound
            # Too near to tell by subtraction.
            if not math.isfinite(right) or right_bound / 8 < abs(right) <= 8 * right_bound:
                right, right_bound = residual(middle, stop, enough)
            halves += [(start, middle, left, left_bound), (middle, stop, right, right_bound)]
        blocks = [one for one in halves if not abs(one[2]) <= one[3]]
        if len(blocks) > _FOUND:
            are_all = False
            blocks = sorted(blocks, key=_residual, reverse=True)[:_FOUND]
    blocks.sort(key=_residual, reverse=True)
    return Suspects([start for start, _, _, _ in blocks], are_all)


def _residual(block: tuple[int, int, float, float]) -> float:
    """How large it is, the largest where it is no number."""
    return math.inf if math.isnan(block[2]) else abs(block[2])


def _part(examiner: Examiner, mover: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    part = torch.zeros_like(mover)
    part[:, start:stop] = mover[:, start:stop]
    return examiner.space.along(part)


def _by_units(
    examiner: Examiner, gradient: torch.Tensor, *, small: bool = False, among: list[int] | None = None
) -> list[int]:
    looked_at = list(range(examiner.space.size))
    if examiner.units:
        return _worst(functools.partial(examiner.assess, gradient), looked_at)
    if among is None:
        found, _ = examiner.element_slopes(looked_at, gradient if small else None)
    else:
        looked_at, found = _alone(examiner, gradient, among)
    directions, _ = examiner.space.units(looked_at)
    return _worst(functools.partial(examiner.assessed, gradient, directions, found), looked_at)


def _alone(examiner: Examiner, gradient: torch.Tensor, among: list[int]) -> tuple[list[int], Slopes]:
    """Elements in which a fault would not show, and the slopes along each; of many only a few where kinks are near to
    some of these, or most tell no more: those of a network of rectifiers are as near to one element as to many."""
    if len(among) > 2 * _TRIED:
        some = among[:: len(among) // _TRIED][:_TRIED]
        found, lengths = examiner.element_slopes(some, gradient)
        shows = 2 * found.bar <= examiner.fault * gradient[some].abs() * lengths
        if 4 * int(examiner.blurred(some, gradient).sum()) > len(some) or 2 * int(shows.sum()) < len(some):
            return some, found
    return among, examiner.element_slopes(among, gradient)[0]


def _worst(judge: Callable[..., Assessment], looked_at: list[int]) -> list[int]:
    """Those that fail, the worst first."""
    if not bool(judge(generous=False).judgements.failed.any()):
        return []  # what rounding does need not be known
    judged = judge(generous=True).judgements
    wrong = judged.failed.nonzero().flatten()
    return [looked_at[place] for place in wrong[judged.excess[wrong].argsort(descending=True)].tolist()]


def kinks(examiner: Examiner) -> list[int] | None:
    """Coordinates along which an output has a kink; None where they were not found."""
    size = examiner.space.size
    if size <= ALL_UNITS or examiner.units:
        directions, _ = examiner.space.units(range(size))
        found = examiner.slopes if examiner.units else examiner.measured(directions)
        return found.kinked.nonzero().flatten().tolist() or None
    mover = examiner.space.drawn(1, examiner.generator)
    blocks = [(0, size)]
    while any(stop - start > 1 for start, stop in blocks):
        halves = []
        for start, stop in blocks:
            middle = (start + stop) // 2
            halves += [(start, middle), (middle, stop)] if stop - start > 1 else [(start, stop)]
        blocks = [one for one in halves if bool(examiner.measured(_part(examiner, mover, *one)).kinked.any())]
        if len(blocks) > _FOUND or not blocks:
            return None
    return [start for start, _ in blocks]


def joint_kink(examiner: Examiner, coordinates: list[int]) -> tuple[torch.Tensor, Slopes] | None:
    """A direction, (1, C), that moves all of those coordinates at once, and the slopes along it, where these have a
    kink though each axis is smooth: the least singular value of a matrix of zeros stays 0 along every axis."""
    among = torch.zeros(examiner.space.size, dtype=torch.bool, device=examiner.space.base.device)
    among[coordinates] = True
    directions = examiner.space.drawn(_JOINT, examiner.generator, among)
    found = examiner.measured(directions)
    if not bool(found.kinked.all()):
        return None
    return directions[:1], found.of(slice(0, 1))

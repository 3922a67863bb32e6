"""Romberg's triangle: the extrapolations to the limit that a ladder of steps allows, as one linear map."""

from __future__ import annotations

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Triangle:
    """Romberg's triangle as one linear map from the differences f(x + h) - f(x) of a ladder to all that is wanted.

    Of its E entries, those of three rungs or more, `rows`, of shape (E + S E, columns), gives the values first, then S
    error estimates each: the distance from the farther of the two entries that each is made of, and what the even half
    knows.
    """

    rows: torch.Tensor
    count: int  # E
    finest: int  # the first of the entries that reach the finest rung, which stand last
    uses: torch.Tensor  # (E, columns), 1 for the values that an entry is made of, and else 0
    rounding: torch.Tensor  # (E, 1): what an entry makes of the values' rounding, if that is 1
    still: float  # what the best of them makes of it where no step moves the value
    steps: torch.Tensor  # (K, 1)
    rung: list[int]  # the finest rung of each entry
    sides: int  # 2 where the columns are those of +h and then those of -h


@functools.lru_cache(maxsize=16)
def central(ladder: tuple[float, ...], device: torch.device) -> Triangle:
    """For the odd half, whose error is a series in the square of the step; the even half's limit, 0, is known."""
    lengths = torch.tensor(ladder, dtype=torch.float64)
    odd = torch.cat([torch.diag(0.5 / lengths), torch.diag(-0.5 / lengths)], 1)
    weights, farther, rung, amplified = _romberg(len(ladder), 4.0)
    even = torch.cat([weights, weights], 1) / (2 * lengths[rung])[:, None]
    rows = torch.cat([weights @ odd, farther @ odd, even])
    uses = torch.cat([weights, weights], 1) != 0
    return _finished(rows, lengths, uses, rung, amplified, 2, device)


@functools.lru_cache(maxsize=16)
def one_sided(ladder: tuple[float, ...], device: torch.device) -> Triangle:
    """For quotients of one side, as if it were that of +h, whose error is a series in the step itself."""
    lengths = torch.tensor(ladder, dtype=torch.float64)
    quotients = torch.diag(1 / lengths)
    weights, farther, rung, amplified = _romberg(len(ladder), 2.0)
    rows = torch.cat([weights @ quotients, farther @ quotients])
    return _finished(rows, lengths, weights != 0, rung, amplified, 1, device)


def _finished(
    rows: torch.Tensor,
    lengths: torch.Tensor,
    uses: torch.Tensor,
    rung: list[int],
    amplified: list[float],
    sides: int,
    device: torch.device,
) -> Triangle:
    rounding = torch.tensor(amplified, dtype=torch.float64)[:, None] / lengths[rung][:, None]
    return Triangle(
        rows.to(device),
        len(rung),
        rung.index(len(lengths) - 1),
        uses.to(device, torch.float64),
        rounding.to(device),
        min(amplified) / float(lengths[0]),
        lengths[:, None].to(device),
        rung,
        sides,
    )


def _romberg(count: int, base: float) -> tuple[torch.Tensor, torch.Tensor, list[int], list[float]]:
    """For expansions in powers of the step (base 2) or of its square (base 4), each step half the one before.

    Of each entry: its weights of the rungs, its distance from the coarser of the two entries that it is made of (that
    from the finer is always less), its finest rung, and how much more rounding than that it has; by their finest rungs.
    """
    rows = torch.eye(count, dtype=torch.float64)
    kept: list[torch.Tensor] = []
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
            farther.append(rows - coarser)
            rung += range(level, count)
            amplified += [growth if base == 2 else 1.0] * (count - level)
    order = sorted(range(len(rung)), key=lambda entry: rung[entry])
    return (
        torch.cat(kept)[order],
        torch.cat(farther)[order],
        [rung[entry] for entry in order],
        [amplified[entry] for entry in order],
    )

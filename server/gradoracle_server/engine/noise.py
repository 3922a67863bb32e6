"""How far the values of a function are off, where that is more than rounding of its outputs explains.

Large numbers that cancel on the way, or a large multiple of the input inside of a sine, leave a noise in the values of
which nothing in their size tells. It shows in a difference table of values at equal distances: differences of a smooth
function get smaller from column to column, those of noise do not (R. W. Hamming, "Numerical Methods for Scientists and
Engineers", 1962; J. J. Moré, S. M. Wild, "Estimating Computational Noise", SIAM J. Sci. Comput. 33, 2011). Distances
that are too short leave most values as they are, and longer ones see the function bend, so that several are tried.
"""

from __future__ import annotations

import math

import torch

from gradoracle_server.engine import finite_difference, sampling
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

_DISTANCES = tuple(2.0**power for power in (4, 10, 16, 22, 28, 34))  # relative to the input, in units in the last place
_LONGEST = 2.0**-7
_SIDE = 8  # values on either side of the point
_COLUMNS = (4, 5, 6)  # of the difference table, which have to agree
_APART = 4.0  # times, that their levels may differ by
_LASTS = 8.0  # times, by which a level may be less at a distance of a 64th
_LEVELS = 2.0  # standard deviations that a value is taken to be off by
_LEAST = 4096.0  # units in the last place of an output
_FAR = 2.0**-4  # relative to the input
_MOST = 1e-3  # of what that moves an output by: more is chaos, which moves as far whatever the step
_MOST_LOW = 0.05  # the same in lower precision
_ROUNDED = 16.0  # units in the last place of an output
_CARRIED = 4.0  # roundings
_NUMBERS = 1 << 22  # that values may be for this to be worth it


def heard(passes: Passes, space: Space, generator: torch.Generator) -> torch.Tensor | None:
    """(M,): the noise of the outputs near the base point; infinite where values are noise above all. None where it is
    no more, all in all, than bars hold as they are, or cannot be heard."""
    unit = max(finite_difference.EPSILON, passes.unsteady)
    distances = [one * unit for one in _DISTANCES if one * unit <= _LONGEST]
    if len(distances) < 2 or 2 * _SIDE * len(distances) * (passes.centre.numel() + space.size) > _NUMBERS:
        return None
    lengths = [_FAR, *(distance * place for distance in distances for place in range(1, _SIDE + 1))]
    found = sampling.sample(passes, space, space.drawn(1, generator), lengths).found[0]
    moved = (found[:, 0] - passes.centre).abs().nan_to_num(0.0, 0.0)  # a long step may leave the domain
    far = torch.maximum(moved.amax(0), _FAR * passes.centre.abs())
    ahead, behind = (side[1:].view(len(distances), _SIDE, -1) for side in found.unbind())
    centre = passes.centre.expand(len(distances), 1, -1)
    noise = _LEVELS * level(torch.cat([behind.flip(1), centre, ahead], 1))
    least = _LEAST * passes.epsilon * torch.maximum(passes.centre.abs(), far)
    # What is left of numbers that cancel is noise above all, and as nothing beside the other outputs.
    most = ((_MOST_LOW if passes.unsteady else _MOST) * far).clamp(min=float(least.max()) if least.numel() else 0.0)
    noise = torch.where(noise > most, torch.inf, noise)
    loud = torch.where(passes.weight == 0, 0.0, passes.strength * noise).sum() > passes.strength @ least
    return noise if bool(loud) else None


def carried(passes: Passes, space: Space, directions: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(P,): what a gradient that was computed at such a machine epsilon is off by along directions, (P, C), because the
    input is rounded, or what is computed from it first: so many second derivatives along them, as values show them."""
    lengths = [2.0**-power for power in range(4, 13)]
    found = sampling.sample(passes, space, directions, lengths).found
    squares = found.new_tensor(lengths)[:, None].square()
    rounded = _ROUNDED * passes.epsilon * passes.centre.abs()
    bends = ((found.sum(1) - 2 * passes.centre).abs() - rounded).clamp(min=0.0) / squares
    return _CARRIED * epsilon * (bends.nan_to_num(0.0, 0.0).amax(1) @ passes.strength)


def level(values: torch.Tensor) -> torch.Tensor:
    """(M,): the standard deviation of the noise in values at equal distances, (D, N, M) for D distances, the shortest
    first; 0 where none tells. What a kink leaves in the table gets smaller with the distance, and noise does not."""
    found = []
    _, power = torch.frexp(values.abs().nan_to_num(0.0, 0.0).amax((0, 1)))
    unit = torch.ldexp(torch.ones_like(values[0, 0]), power - 1)  # squares of large values would overflow
    differences = (values / unit).diff(dim=1)
    moving = (differences != 0).sum(1) * 2 >= differences.shape[1]
    for column in range(2, _COLUMNS[-1] + 1):
        differences = differences.diff(dim=1)
        if column in _COLUMNS:
            both = (differences > 0).any(1) & (differences < 0).any(1)
            size = differences.square().mean(1).sqrt() / math.sqrt(math.comb(2 * column, column))
            found.append(torch.where(both & moving, size, torch.nan))
    levels = torch.stack(found)  # (columns, D, M)
    least, most = levels.amin(0), levels.amax(0)  # NaN where one is
    sure = (most <= _APART * least)[1:] & (~moving[:-1] | (_LASTS * most[:-1] >= most[1:]))
    return torch.where(sure, most[1:], 0.0).amax(0) * unit

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

from gradoracle_server.engine import finite_difference, ladders
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

_DISTANCES = tuple(2.0**-power for power in (48, 42, 36, 30, 24))  # relative to the input
_SIDE = 8  # values on either side of the point
_COLUMNS = (4, 5, 6)  # of the difference table, which have to agree
_APART = 4.0  # times, that their levels may differ by
_LASTS = 8.0  # times, by which a level may be less at a distance of a 64th
_LEVELS = 2.0  # standard deviations that a value is taken to be off by
_LEAST = 1e-12  # of an output: less is what is allowed for anyway
_MOST = 1e-3  # likewise: more is chaos, which moves about as far whatever the step, but has slopes beyond all measure
_NUMBERS = 1 << 22  # that values may be for this to be worth it


def heard(passes: Passes, space: Space, generator: torch.Generator) -> bool:
    """Measures the noise of the outputs near the base point, which bars of slopes allow for from now on. Whether there
    is any."""
    numbers = 2 * _SIDE * len(_DISTANCES) * (passes.centre.numel() + space.size)
    if numbers > _NUMBERS or not bool((passes.epsilon <= finite_difference.EPSILON).all()):
        return False
    lengths = [distance * place for distance in _DISTANCES for place in range(1, _SIDE + 1)]
    found = ladders.sample(passes, space, space.drawn(1, generator), lengths).found[0]
    ahead, behind = (side.view(len(_DISTANCES), _SIDE, -1) for side in found.unbind())
    centre = passes.centre.expand(len(_DISTANCES), 1, -1)
    noise = _LEVELS * level(torch.cat([behind.flip(1), centre, ahead], 1))
    size = passes.centre.abs()
    return passes.roughen(torch.where((noise > _LEAST * size) & (noise <= _MOST * size), noise, 0.0))


def level(values: torch.Tensor) -> torch.Tensor:
    """(M,): the standard deviation of the noise in values at equal distances, (D, N, M) for D distances, the shortest
    first; 0 where none tells. What a kink leaves in the table gets smaller with the distance, and noise does not."""
    found = []
    differences = values.diff(dim=1)
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
    return torch.where(sure, most[1:], 0.0).amax(0)

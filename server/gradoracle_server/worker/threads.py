"""How many threads the operators of a request may use.

torch leaves small elementwise work to one thread, but the matrix product of its library does not: it wakes another
thread for a few thousand multiplications, and a core that slept takes longer to wake than those do.
"""

from __future__ import annotations

import torch

from gradoracle_server.engine.limits import Need, Work

_SMALL = 1 << 18
"""Bytes of all values of a request for which one thread is enough: 100 by 100 times 100 by 100 in float64 takes it less
than 0.1 ms. torch's elementwise operators use no other below 32,768 elements."""

_PASSES = 8  # a check goes through its graph some fifty times, in batches


def suit(most: int, need: Need | None, work: Work) -> None:
    """Lets torch's operators use `most` threads, or one where the work is small. How many a request gets depends on
    shapes alone, and so do the bits of its answer."""
    if most > 1:
        torch.set_num_threads(1 if _is_small(need, work) else most)


def _is_small(need: Need | None, work: Work) -> bool:
    if need is None or need.values is None:
        return False
    size = need.values * _PASSES if work is Work.CHECK else need.values
    return max(size, need.bytes) <= _SMALL

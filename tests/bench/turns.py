"""Timing things against one another: taken in turn, so that a slow moment of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Work = Mapping[str, Callable[[], Any]]
Seen = Mapping[str, Callable[[Any], None]]
"""What is done with results, where their time does not count: to look whether they are right."""

Seconds = dict[str, npt.NDArray[np.float64]]


def seconds(work: Work, repeats: int, *, warm: int | None = None, seen: Seen | None = None) -> Seconds:
    """Seconds of each call, (repeats,) by name. The first `warm` rounds (a tenth, 20 at least) do not count."""
    before = max(20, repeats // 10) if warm is None else warm
    found = {name: np.empty(repeats) for name in work}
    for place in range(-before, repeats):
        for name, call in work.items():
            start = time.perf_counter()
            result = call()
            taken = time.perf_counter() - start
            if seen is not None and name in seen:
                seen[name](result)
            del result
            if place >= 0:
                found[name][place] = taken
    return found


def median(work: Work, repeats: int, *, warm: int = 1, seen: Seen | None = None) -> dict[str, float]:
    """The median seconds of each."""
    return {name: float(np.median(taken)) for name, taken in seconds(work, repeats, warm=warm, seen=seen).items()}


def rates(work: Mapping[str, Callable[[float], float]], window: float, repeats: int) -> dict[str, float]:
    """The median of some figures a second; each call works for about `window` seconds and returns one."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for place in range(repeats + 1):
        for name, call in work.items():
            rate = call(window if place else min(window, 0.3))
            if place:  # the first round warms up
                found[name].append(rate)
    return {name: statistics.median(one) for name, one in found.items()}

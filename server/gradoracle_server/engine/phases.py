"""Where a request's time goes."""

from __future__ import annotations

import time
from types import TracebackType

import torch


class Phases:
    """Seconds by phase. On a GPU each phase ends with a synchronisation, so that it owns the work it launched."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._measures: dict[str, _Measure] = {}
        self._cuda = device if device.type == "cuda" else None

    def begin(self) -> None:
        """Forgets what was measured, before the next request."""
        self.seconds.clear()

    def measure(self, phase: str) -> _Measure:
        """A context that adds the time of its block to the phase, also where the block raises. A phase is not measured
        inside of itself."""
        found = self._measures.get(phase)
        if found is None:
            found = self._measures[phase] = _Measure(self.seconds, phase, self._cuda)
        return found


class _Measure:
    """A class and not a generator, because a small request has eight of them and a generator costs 3 us more."""

    __slots__ = ("_cuda", "_phase", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], phase: str, cuda: torch.device | None) -> None:
        self._seconds, self._phase, self._cuda = seconds, phase, cuda

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda is not None and error is None:
            torch.cuda.synchronize(self._cuda)
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + time.perf_counter() - self._start

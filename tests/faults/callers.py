"""Callers whose answers are known, to see whether what happens to others reaches them."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

import gradoracle as go

QUICK = go.Graph.parse("9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1")
LONG = go.Graph.parse("(x @ x).sin().sum()")
_SIDE = 300  # a square matrix of such a side takes some milliseconds


class Callers:
    """Threads that call a server again and again, and check every answer."""

    def __init__(self, address: str, threads: int = 1, *, pause: float = 0.0, timeout: float = 60.0) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self.failed: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._address = address
        self._pause = pause
        self._timeout = timeout
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._matrix = np.random.default_rng(0).normal(size=(_SIDE, _SIDE))
        self._expected: bytes | None = None
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(threads)]

    def start(self) -> None:
        """Begins to call."""
        with go.Client(self._address) as client:
            self._expected = self._gradient(client)
        for each in self._threads:
            each.start()

    def finish(self) -> None:
        """Waits for the calls under way, and calls no more."""
        self._done.set()
        for each in self._threads:
            each.join()

    @property
    def lost(self) -> int:
        """Calls that were not answered with a result."""
        return sum(self.failed.values())

    def _gradient(self, client: go.Client) -> bytes:
        found = client.vjp(LONG, {"x": self._matrix}, timeout=self._timeout).gradients["x"]
        assert found is not None
        return found.tobytes()

    def _call(self, seed: int) -> None:
        chosen = random.Random(seed)  # noqa: S311
        with go.Client(self._address) as client:
            while not self._done.is_set():
                before = time.perf_counter()
                try:
                    wrong = self._long(client) if chosen.random() < 0.5 else self._quick(client, chosen.uniform(-2, 2))
                except go.GradOracleError as error:
                    with self._lock:
                        self.failed[f"{error.reason}: {error}"[:200]] += 1
                    continue
                with self._lock:
                    self.answered += 1
                    self.seconds.append(time.perf_counter() - before)
                    self.wrong += wrong
                if self._pause:
                    time.sleep(self._pause)

    def _long(self, client: go.Client) -> list[str]:
        same = self._gradient(client) == self._expected
        return [] if same else ["the gradient of a matrix has other bits than before"]

    def _quick(self, client: go.Client, x: float) -> list[str]:
        found = client.vjp(QUICK, {"x": x}, timeout=self._timeout).gradients["x"]
        wanted = 36 * x**3 + 6 * x**2 + 6 * x + 6
        return [] if abs(float(found) - wanted) < 1e-9 else [f"the derivative at {x} is {wanted}, got {found}"]  # type: ignore[arg-type]


@contextlib.contextmanager
def calling(address: str, threads: int = 1, *, pause: float = 0.0, timeout: float = 60.0) -> Iterator[Callers]:
    """Callers at work."""
    made = Callers(address, threads, pause=pause, timeout=timeout)
    made.start()
    try:
        yield made
    finally:
        made.finish()

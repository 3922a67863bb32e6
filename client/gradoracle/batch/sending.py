"""Requests over one stream, through restarts of the server: what was sent and not answered is sent again."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gradoracle.batch.cases import Case
from gradoracle.batch.packing import Kind
from gradoracle.client import Client
from gradoracle.errors import GradOracleError, OverloadedError, ServerUnavailableError
from gradoracle.requests import Request

_TRIES = 10  # after which a request is to blame for the loss of the server
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before it is tried again, the last for good


@dataclasses.dataclass(slots=True, eq=False)
class Parcel:
    """One request, of one case or of a pack of them."""

    cases: list[Case]
    request: Request[Any]
    kind: Kind | None = None
    parts: list[Request[Any]] = dataclasses.field(default_factory=list)
    """The requests of the cases of a pack."""
    tries: int = 0


class Sender:
    """Sends parcels and yields them with their results, as they come.

    `patience` is for how many seconds a server may be away; `timeout` is for the whole, in seconds. `notice` is told
    in a sentence when the server is lost and found.
    """

    def __init__(
        self,
        client: Client,
        *,
        window: int,
        patience: float,
        timeout: float | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._window = window
        self._patience = patience
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._notice = notice
        self._again: deque[Parcel] = deque()
        self._under_way: dict[int, Parcel] = {}
        self._source: Iterator[Parcel] = iter(())
        self._exhausted = False
        self._stopped = False
        self._last_answer = time.monotonic()
        self._losses = 0  # since the last answer

    def stop(self) -> None:
        """Sends nothing more. What is under way is still answered."""
        self._stopped = True

    def again(self, parcel: Parcel) -> None:
        """Sends a parcel before the others that wait."""
        self._again.append(parcel)

    def run(self, parcels: Iterator[Parcel]) -> Iterator[tuple[Parcel, Any]]:
        """Every parcel with its result or GradOracleError. Raises what ends the whole: no server, no credentials."""
        self._source = parcels
        self._last_answer = time.monotonic()
        while self._has_more():
            try:
                yield from self._stream()
            except ServerUnavailableError as error:
                self._lost(error)

    def _has_more(self) -> bool:
        return bool(self._under_way) or (not self._stopped and (bool(self._again) or not self._exhausted))

    def _stream(self) -> Iterator[tuple[Parcel, Any]]:
        """One stream, to its end."""
        self._again.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        remaining = None if self._ends is None else max(0.001, self._ends - time.monotonic())
        results = self._client.map(
            self._feed(), window=self._window, ordered=False, return_exceptions=True, timeout=remaining
        )
        for result in results:
            parcel = self._under_way.pop(id(result.tag))
            if isinstance(result, OverloadedError | ServerUnavailableError) and parcel.tries < _TRIES:
                self._put_off(parcel, result)
                continue
            self._answered()
            yield parcel, result

    def _feed(self) -> Iterator[Request[Any]]:
        while not self._stopped:
            parcel = self._again.popleft() if self._again else self._next()
            if parcel is None:
                return
            parcel.request.tag = parcel
            self._under_way[id(parcel)] = parcel
            yield parcel.request

    def _next(self) -> Parcel | None:
        parcel = next(self._source, None)
        self._exhausted = parcel is None
        return parcel

    def _put_off(self, parcel: Parcel, error: GradOracleError) -> None:
        """Sends a parcel again that the server had no room for, or that it refused because it is going down."""
        self._again.append(parcel)
        if isinstance(error, OverloadedError):
            if time.monotonic() - self._last_answer > self._patience:
                raise error
            time.sleep(min(error.retry_after or 0.05, 1.0))
            return
        parcel.tries += 1
        raise error  # the next stream finds another server, or this one when it is back

    def _answered(self) -> None:
        if self._losses:
            self._notice("the server is back")
        self._losses = 0
        self._last_answer = time.monotonic()

    def _lost(self, error: ServerUnavailableError) -> None:
        """Waits for the server; raises where it was away for too long."""
        away = time.monotonic() - self._last_answer
        if away > self._patience:
            raise error
        if not self._losses:
            self._notice(f"{error}; trying again for {self._patience:g} s")
        for parcel in self._under_way.values():
            parcel.tries += 1
        time.sleep(_PAUSES[min(self._losses, len(_PAUSES) - 1)])
        self._losses += 1

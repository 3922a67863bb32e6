"""What callers on the same machine may use beside gRPC: a socket for memory files, and one for calls."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

from gradoracle_server.addresses import Address
from gradoracle_server.front.auth import Tokens
from gradoracle_server.front.direct import DirectCalls
from gradoracle_server.front.places import Place, by_port
from gradoracle_server.front.service import Service
from gradoracle_server.front.shared_memory import SharedMemory
from gradoracle_server.front.streams import Streams
from gradoracle_server.settings import Settings

MEMORY = ".memory"
"""Behind the place of gRPC's socket: where memory files are offered, unless another place is named."""

CALLS = ".calls"
"""Behind the place for memory files: where calls are taken without gRPC."""

_OWN_USER = 0o600

_log = logging.getLogger(__name__)


def asked_for(settings: Settings) -> Iterator[Place]:
    """The places that have to be free: those that were asked for. What is offered unasked may fail."""
    if settings.shared_memory is True:
        yield from _both(settings, Place(settings.listen.path + MEMORY))
    elif isinstance(settings.shared_memory, Path):
        yield from _both(settings, Place(str(settings.shared_memory)))


def _both(settings: Settings, memory: Place) -> Iterator[Place]:
    """A place for memory, and the one for calls, which then have neither a certificate nor a span."""
    yield memory
    calls = memory.beside(CALLS)
    if not settings.tls_cert and settings.otlp_endpoint is None and calls.fits:
        yield calls


def _unasked(settings: Settings, listen: Address) -> Iterator[Place]:
    """Where this user's own processes look, who know no more than the port. Who has a certificate shows it to gRPC."""
    place = by_port(listen)
    if settings.shared_memory == "auto" and place is not None and not settings.tls_cert:
        yield from _both(settings, place.beside(MEMORY))


class Neighbours:
    """The sockets. None is there before `open`."""

    def __init__(self, settings: Settings, service: Service, streams: Streams, tokens: Tokens | None) -> None:
        self._settings = settings
        self._service = service
        self._streams = streams
        self._tokens = tokens
        self._memory: SharedMemory | None = None
        self._calls: DirectCalls | None = None

    async def open(self, listen: Address) -> None:
        """Listens, beside gRPC, which does at that address. Raises OSError, whose filename is the place."""
        permissions = stat.S_IMODE(Path(listen.path).stat().st_mode) if listen.path else _OWN_USER
        await self._open(asked_for(self._settings), permissions)
        try:
            await self._open(_unasked(self._settings, listen), _OWN_USER)
        except OSError as error:
            self.close()
            _log.warning("callers on this machine have to go through gRPC: %s: %s", error.filename, error.strerror)

    async def _open(self, places: Iterator[Place], permissions: int) -> None:
        for place in places:
            try:
                if self._memory is None:
                    memory = SharedMemory(place, self._service.budget)
                    memory.open(permissions)
                    self._memory = self._service.memory = memory
                else:
                    calls = DirectCalls(place, self._streams, self._tokens)
                    await calls.open(permissions)
                    self._calls = calls
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(place)) from error

    def check_credentials(self) -> None:
        """Ends the connections whose credentials are not good enough any more."""
        if self._calls is not None:
            self._calls.check_credentials()

    def refuse(self) -> None:
        """Takes no more callers: whoever serves here next may have the places."""
        for one in (self._calls, self._memory):
            if one is not None:
                one.refuse()

    async def drain(self, seconds: float) -> None:
        """Waits, so many seconds at most, until the connections for calls have ended."""
        if self._calls is not None:
            await self._calls.drain(seconds)

    def close(self) -> None:
        """Ends everything. May be called again."""
        for one in (self._calls, self._memory):
            if one is not None:
                one.close()
        self._calls = self._memory = self._service.memory = None

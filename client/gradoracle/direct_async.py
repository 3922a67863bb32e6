"""The same for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TypeVar

from google.protobuf.message import DecodeError

from gradoracle.answers import Incoming
from gradoracle.channel import Target
from gradoracle.direct import AWAY, IDLE_AT_MOST, LENGTH, PATIENCE, framed, greeting, message_of, path_to
from gradoracle.errors import GradOracleError
from gradoracle.gathering import Answer, late, result_of
from gradoracle.requests import Request
from gradoracle.shared_memory import Use

R = TypeVar("R")


class AsyncDirect:
    """The connections of an asynchronous client. Belongs to the event loop that runs."""

    def __init__(self, target: Target) -> None:
        """Connects to nothing yet."""
        self._target = target
        self._path = path_to(target)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._process = os.getpid()
        self._next_attempt = 0.0
        self._closed = False

    async def result(self, request: Request[R], timeout: float | None, use: Use | None = None) -> R | None:
        """As `Direct.result`."""
        if self._path is None or self._closed or os.getpid() != self._process:
            return None
        if (message := message_of(request, timeout, use)) is None:
            return None
        answer = await self._ask(self._path, message, timeout)
        found: R | GradOracleError | None = result_of(answer, request, use)
        if isinstance(found, GradOracleError):
            raise found
        return found

    async def close(self) -> None:
        """Ends all connections; calls that are still running learn that they are gone."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    async def _ask(self, path: str, message: bytes, timeout: float | None) -> Answer | None:
        if (connection := await self._connected(path)) is None:
            return None
        answered = False
        self._busy.add(connection)
        try:
            async with asyncio.timeout(timeout):
                found = await connection.asked(message)
            answered = True
        except TimeoutError:
            raise late(self._target, timeout) from None
        except (OSError, EOFError, DecodeError):
            self._next_attempt = time.monotonic() + AWAY
            return None
        finally:
            self._busy.discard(connection)
            if answered and not self._closed and len(self._idle) < IDLE_AT_MOST:
                self._idle.append(connection)
            else:
                connection.close()
        return found

    async def _connected(self, path: str) -> _Connection | None:
        if self._idle:
            return self._idle.pop()
        if time.monotonic() < self._next_attempt:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                connection = _Connection(*await asyncio.open_unix_connection(path))
        except (OSError, TimeoutError):
            self._next_attempt = time.monotonic() + AWAY
            return None
        connection.send(greeting(self._target))
        return connection


class _Connection:
    """One of them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        """Sends bytes, soon."""
        self._writer.write(data)

    async def asked(self, message: bytes) -> Answer:
        """The answer to a call. Raises OSError, EOFError, or DecodeError."""
        self.send(framed(message))
        await self._writer.drain()
        incoming = Incoming()
        while True:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            for found in incoming.take(await self._reader.readexactly(length)):
                return found

    def close(self) -> None:
        """Ends it, at once: what is not sent yet is for nobody."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._writer.transport.abort()

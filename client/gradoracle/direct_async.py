"""The same for asyncio."""

from __future__ import annotations

import asyncio
import socket
from typing import TypeVar

from gradoracle import neighbours
from gradoracle.direct import PATIENCE, Connections, Reader, framed, greeting, is_connected
from gradoracle.errors import GradOracleError
from gradoracle.gathering import Answer, result_of
from gradoracle.requests import Request
from gradoracle.shared_memory import Use

R = TypeVar("R")


class AsyncDirect(Connections):
    """The connections of an asynchronous client. They belong to no event loop but while a call waits: asyncio's own
    transports would, and a child that is forked off would take them from its parent's."""

    async def result(
        self, request: Request[R], timeout: float | None, left: float | None, use: Use | None = None
    ) -> R | None:
        """As `Direct.result`."""
        if (message := self.message(request, left, use)) is None:
            return None
        found: R | GradOracleError | None = result_of(await self._ask(message, timeout, left), request, use)
        if isinstance(found, GradOracleError):
            raise found
        return found

    async def _ask(self, message: bytes, timeout: float | None, left: float | None) -> Answer | None:
        if (connection := self.take()) is None:
            return None
        with self.asking(connection, timeout) as call:
            async with asyncio.timeout(left):
                if await self._connected(connection) and self.may:  # the client may have been closed meanwhile
                    call.answer = await _asked(connection, message)
        return call.answer

    async def _connected(self, connection: socket.socket) -> bool:
        if is_connected(connection):
            return True
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(connection, self.place or "")
                neighbours.admit(connection, self.place or "")
                await loop.sock_sendall(connection, greeting(self.target))
        except (OSError, TimeoutError):
            self.failed()
            return False
        return True


async def _asked(connection: socket.socket, message: bytes) -> Answer:
    """Raises OSError or DecodeError."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, framed(message))
    reader = Reader()
    while True:
        if (found := reader.add(await loop.sock_recv(connection, reader.wants))) is not None:
            return found

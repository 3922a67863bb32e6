"""Calls of clients on this machine without gRPC: a Unix socket over which the messages of Stream go as they are.

A small call through gRPC's Python takes half a millisecond, nearly all of it inside of gRPC at both ends; the same
messages over a plain socket take a tenth of that. Each message, in both directions, is its length in four bytes, the
least significant one first, and then itself. The first one of a connection is no StreamRequest but what a call's
metadata would have as "authorization", empty where the client has none; where that is not good enough the connection is
closed without a word, and the client learns why when it asks through gRPC. So it does whenever a connection ends.
"""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc

from gradoracle_server.front import statuses
from gradoracle_server.front.auth import Tokens
from gradoracle_server.front.places import Place, peer
from gradoracle_server.front.streams import Streams

MESSAGE_AT_MOST = 1024 * 1024
"""Bytes of a message from a client; what is longer is gRPC's."""

_LENGTH = struct.Struct("<I")
_BACKLOG = 1024  # connections that wait to be taken; who finds no place there asks through gRPC
_SMALL = 16 * 1024  # bytes of a message that is sent in one piece with its length
_LOOKS_AFTER = 1.0  # seconds, again and again, while nothing is read
_WAITING_AT_MOST = 4  # messages that have come and are not yet taken, from which on no more are read


class DirectCalls:
    """The socket, and the connections to it."""

    def __init__(self, place: Place, streams: Streams, tokens: Tokens | None) -> None:
        self.place = place
        self._streams = streams
        self._tokens = tokens
        self._room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4  # the rest is for calls
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._look: asyncio.TimerHandle | None = None  # until connections are next looked at that are to end

    async def open(self, permissions: int) -> None:
        """Listens. Raises OSError."""
        sock = self.place.listening(socket.SOCK_STREAM, _BACKLOG, permissions)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=sock, backlog=_BACKLOG)

    async def drain(self, seconds: float) -> None:
        """Waits, so many seconds at most, until all connections have ended, as they do when their streams are drained
        and all that was answered is sent."""
        end = time.monotonic() + seconds
        for connection in list(self._connections):
            if not connection.is_served:
                connection.close()
        while self._connections and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Ends all connections. May be called again."""
        self.refuse()
        if self._look is not None:
            self._look.cancel()
        for connection in list(self._connections):
            connection.abort()

    def refuse(self) -> None:
        """Takes no more connections. May be called again."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.place.remove()

    def check_credentials(self) -> None:
        """Ends the connections whose credentials are not good enough any more, once their calls are answered; their
        streams refuse new ones."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        unwelcome = [one for one in self._connections if not one.is_welcome and not one.is_closing]
        for connection in unwelcome:
            if connection.has_nothing_more and self._streams.is_idle(connection):
                connection.close()
            elif self._look is None:
                self._look = asyncio.get_running_loop().call_later(_LOOKS_AFTER, self.check_credentials)

    def is_welcome(self, authorization: bytes) -> bool:
        """Whether calls that bring this are served."""
        if self._tokens is None:
            return True
        return not self._tokens.problem(_metadata(authorization))

    def add(self, connection: _Connection) -> bool:
        """A connection has come; False where there is no room, or none for this caller."""
        if len(self._connections) >= self._room or not self.place.admits(connection.socket):
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    async def serve(self, connection: _Connection) -> None:
        """The calls of a connection, to its end."""
        try:
            await self._streams.serve(connection)
        except (statuses.Failure, ConnectionError):
            pass  # gRPC tells the client, who may have gone
        except Exception as error:
            statuses.internal(error, "Stream")  # which writes it down
        finally:
            connection.close()


class _Connection(asyncio.Protocol):
    """One client's: what a Stream sees of it is what it would see of gRPC's context."""

    def __init__(self, calls: DirectCalls) -> None:
        self._calls = calls
        self._transport: asyncio.Transport | None = None
        self._authorization: bytes | None = None
        self._peer = ""
        self._came = bytearray()
        self._messages: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None  # who waits for a message
        self._writer: asyncio.Future[None] | None = None  # who waits for room
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._look: asyncio.TimerHandle | None = None
        self.on_message: Callable[[bytes], bool] | None = None

    # ---- As the loop sees it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no such class
        process, user = peer(self.socket)
        # What waits is served by process in turn, as if it had one connection.
        self._peer = f"direct:{user}:{process or -self.socket.fileno()}"
        if not self._calls.add(self):
            self.close()

    def data_received(self, data: bytes) -> None:
        if not self._came and _is_whole(data) and not self.is_closing:  # as nearly all come
            self._take(data[_LENGTH.size :])
            return
        self._came += data
        while len(self._came) >= _LENGTH.size and not self.is_closing:
            (length,) = _LENGTH.unpack_from(self._came)
            end = _LENGTH.size + length
            if length > MESSAGE_AT_MOST:
                self.close()
                return
            if len(self._came) < end:
                return
            message = bytes(memoryview(self._came)[_LENGTH.size : end])
            del self._came[:end]
            self._take(message)

    def _take(self, message: bytes) -> None:
        if self._authorization is None:
            self._authorization = message
            if not self.is_welcome:
                self.close()
                return
            self._task = asyncio.get_running_loop().create_task(self._calls.serve(self))
            return
        waits = self._reader is not None and not self._reader.done()
        if waits and self.on_message is not None and self.on_message(message):
            return
        self._messages.append(message)
        _wake(self._reader)
        if len(self._messages) == _WAITING_AT_MOST and self._transport is not None:
            self._transport.pause_reading()
            self._look_again()

    def _look_again(self) -> None:
        """While nothing is read, nothing tells that the client has gone."""
        self._look = asyncio.get_running_loop().call_later(_LOOKS_AFTER, self._looked)

    def _looked(self) -> None:
        if self._transport is None or self.is_closing:
            return
        poll = select.poll()
        poll.register(self.socket.fileno(), 0)
        if poll.poll(0):  # it is hung up: what is not read yet is for nobody
            self.abort()
        else:
            self._look_again()

    def _look_no_more(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._calls.forget(self)
        self._look_no_more()
        _wake(self._reader)
        if self._task is not None:
            self._task.cancel()  # who waits for room learns of it, too

    def pause_writing(self) -> None:
        self._writer = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        _wake(self._writer)
        self._writer = None

    # ---- As its calls see it

    @property
    def socket(self) -> socket.socket:
        """What it goes over."""
        return cast(socket.socket, None if self._transport is None else self._transport.get_extra_info("socket"))

    @property
    def is_welcome(self) -> bool:
        """Whether its credentials are good enough."""
        return self._authorization is None or self._calls.is_welcome(self._authorization)

    @property
    def is_served(self) -> bool:
        """Whether it has been greeted."""
        return self._task is not None

    @property
    def has_nothing_more(self) -> bool:
        """Whether all messages that have come are taken."""
        return not self._messages

    @property
    def is_closing(self) -> bool:
        """Whether it is ending, or has ended."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Ends it, once all is sent. May be called again."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it at once: what is not sent yet is for nobody."""
        if self._transport is not None:
            self._transport.abort()

    async def read(self) -> Any:
        """The next message, or gRPC's EOF."""
        while not self._messages:
            if self._ended:
                return grpc.aio.EOF
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if len(self._messages) == _WAITING_AT_MOST and self._transport is not None:
            self._look_no_more()
            self._transport.resume_reading()
        return self._messages.popleft()

    async def write(self, message: bytes) -> None:
        """Sends a message, once there is room for it. Raises ConnectionError where there is nobody to read it."""
        if self._writer is not None:
            await self._writer
        if self.is_closing:
            raise ConnectionResetError
        self.send(message)

    @property
    def has_room(self) -> bool:
        """Whether a message can be sent at once."""
        return self._writer is None and not self.is_closing

    def send(self, message: bytes) -> None:
        """Sends a message, where there is room for it."""
        assert self._transport is not None  # noqa: S101 - who calls has looked
        head = _LENGTH.pack(len(message))
        if len(message) <= _SMALL:
            self._transport.write(head + message)
        else:
            self._transport.write(head)
            self._transport.write(message)

    def time_remaining(self) -> float | None:
        """None: a connection has no deadline."""
        return None

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What gRPC's would be."""
        return _metadata(self._authorization or b"")

    def peer(self) -> str:
        """Whose it is."""
        return self._peer


def _is_whole(data: bytes) -> bool:
    """Whether it is one message, and no more."""
    size = len(data) - _LENGTH.size
    return 0 <= size <= MESSAGE_AT_MOST and _LENGTH.unpack_from(data)[0] == size


def _metadata(authorization: bytes) -> list[tuple[str, str | bytes]]:
    return [("authorization", authorization.decode("utf-8", "surrogateescape"))] if authorization else []


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)

"""Calls to a server on this machine without gRPC, over a Unix socket on which the messages of Stream go as they are.

Each call has a connection to itself while it runs, so that nobody waits for anybody, and giving one up closes it, which
cancels the call. What cannot be answered this way, because there is no such socket, or the server has no room or has
gone, is asked for through gRPC as if there had been none, which then says what is the matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from gradoracle import spans, stream
from gradoracle.answers import Incoming
from gradoracle.channel import CALLS, Target
from gradoracle.errors import GradOracleError
from gradoracle.gathering import Answer, late, result_of
from gradoracle.requests import Request
from gradoracle.shared_memory import Use

AT_MOST = 1024 * 1024
"""Bytes of a message; larger ones are gRPC's."""

PATIENCE = 5.0
"""Seconds for the server to take a connection."""

AWAY = 1.0
"""Seconds before the next attempt where it took none."""

IDLE_AT_MOST = 64
"""Connections that are kept for later calls."""

LENGTH = struct.Struct("<I")
"""What stands before each message."""

_PIECE = 64 * 1024  # bytes that are received at once, or more where more are known to come
_ID = 1  # of a connection's only call

R = TypeVar("R")


class Direct:
    """The connections of a client. Any number of threads may use it at once."""

    def __init__(self, target: Target) -> None:
        """Connects to nothing yet."""
        self._target = target
        self._path = path_to(target)
        # Adding one, and taking one out, are single steps of Python's.
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self._process = os.getpid()
        self._next_attempt = 0.0
        self._closed = False

    def result(self, request: Request[R], timeout: float | None, use: Use | None = None) -> R | None:
        """A call's result; None where it is to be asked for through gRPC. `use` is the memory that the request was put
        into, if it was. Raises GradOracleError."""
        # A child that was forked off has its parent's connections.
        if self._path is None or self._closed or os.getpid() != self._process:
            return None
        if (message := message_of(request, timeout, use)) is None:
            return None
        found: R | GradOracleError | None = result_of(self._ask(self._path, message, timeout), request, use)
        if isinstance(found, GradOracleError):
            raise found
        return found

    def close(self) -> None:
        """Ends all connections; calls that are still running learn that they are gone."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        if os.getpid() == self._process:
            for connection in tuple(self._busy):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        """A client that was forgotten, not closed, is no cause for warnings of its sockets."""
        for connection in self._idle:
            connection.close()

    def _ask(self, path: str, message: bytes, timeout: float | None) -> Answer | None:
        if (connection := self._connected(path)) is None:
            return None
        answered = False
        self._busy.add(connection)
        try:
            found = _asked(connection, message, timeout)
            answered = True
        except TimeoutError:
            raise late(self._target, timeout) from None
        except (OSError, DecodeError):
            self._next_attempt = time.monotonic() + AWAY
            return None
        finally:
            self._busy.discard(connection)
            if answered and not self._closed and len(self._idle) < IDLE_AT_MOST:
                self._idle.append(connection)
            else:
                connection.close()
        return found

    def _connected(self, path: str) -> socket.socket | None:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        if time.monotonic() < self._next_attempt:
            return None
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            connection.sendall(greeting(self._target))
        except OSError:
            connection.close()
            self._next_attempt = time.monotonic() + AWAY
            return None
        return connection


def path_to(target: Target) -> str | None:
    """The path of the socket; None where the server has none for this client. A certificate is gRPC's to show."""
    return f"{target.memory}{CALLS}" if target.memory is not None and target.credentials is None else None


def greeting(target: Target) -> bytes:
    """The first bytes of a connection."""
    return framed(dict(target.metadata).get("authorization", "").encode())


def framed(message: bytes) -> bytes:
    """A message as it goes over the socket."""
    return LENGTH.pack(len(message)) + message


def message_of(request: Request[Any], timeout: float | None, use: Use | None) -> bytes | None:
    """A call's message; None where it is gRPC's: it is large, or the program traces, and gRPC's have a span each."""
    if spans.are_made():
        return None
    if use is not None:
        message = stream.whole(_ID, request, use, timeout)
    elif len(request.graph) + request.tensor_bytes > AT_MOST:
        return None
    else:
        message = b"".join(stream.parts(_ID, request, timeout))
    return message if len(message) <= AT_MOST else None


def _asked(connection: socket.socket, message: bytes, timeout: float | None) -> Answer:
    """Raises TimeoutError, OSError, or DecodeError."""
    end = None if timeout is None else time.monotonic() + timeout
    connection.settimeout(timeout)
    connection.sendall(framed(message))
    incoming, came = Incoming(), bytearray()
    while True:
        _receive(connection, came, LENGTH.size, end)
        stop = LENGTH.size + LENGTH.unpack_from(came)[0]
        _receive(connection, came, stop, end)
        data, came = bytes(memoryview(came)[LENGTH.size : stop]), came[stop:]
        for found in incoming.take(data):
            return found


def _receive(connection: socket.socket, came: bytearray, until: int, end: float | None) -> None:
    """Adds to what has come until it is so many bytes, or more. Raises TimeoutError and OSError."""
    while len(came) < until:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        if not (data := connection.recv(max(_PIECE, until - len(came)))):
            raise ConnectionResetError("the server has closed the connection")
        came += data

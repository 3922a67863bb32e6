"""Calls to a server on this machine without gRPC, over a Unix socket on which the messages of Stream go as they are.

Each call has a connection to itself while it runs, so that nobody waits for anybody, and giving one up ends it, which
cancels the call. What cannot be answered this way, because there is no such socket, or the server has no room or has
gone, is asked for through gRPC as if there had been none, which then says what is the matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from gradoracle import neighbours, quiet, spans, stream
from gradoracle.answers import Incoming
from gradoracle.channel import Target
from gradoracle.errors import GradOracleError
from gradoracle.gathering import Answer, result_of
from gradoracle.requests import Request
from gradoracle.shared_memory import Use

AT_MOST = 1024 * 1024
"""Bytes of a message; larger ones are gRPC's."""

PATIENCE = 5.0
"""Seconds for the server to take a connection."""

LENGTH = struct.Struct("<I")
"""What stands before each message."""

_AWAY = 1.0  # seconds before the next attempt where it took none
_IDLE_AT_MOST = 64  # connections that are kept for later calls
_PIECE = 64 * 1024  # bytes that are received at once, or more where more are known to come
_ID = 1  # of a connection's only call

R = TypeVar("R")


class Call:
    """What becomes of a call."""

    answer: Answer | None = None
    """None where it is to be asked for through gRPC."""


class Connections:
    """Those of a client, whether it blocks or not; each belongs to the call that has taken it."""

    def __init__(self, target: Target) -> None:
        """Connects to nothing yet."""
        self.target = target
        self.place = place_of(target)
        """Where the server takes calls; None where it does not, or not from this client."""
        # Adding one, and taking one out, are single steps of Python's.
        self.idle: list[socket.socket] = []
        self.busy: set[socket.socket] = set()
        self._process = os.getpid()
        self._next_attempt = 0.0
        self._closed = False

    @property
    def may(self) -> bool:
        """Whether a call may go this way. A child that was forked off has its parent's connections."""
        return self.place is not None and not self._closed and os.getpid() == self._process

    def message(self, request: Request[Any], left: float | None, use: Use | None) -> bytes | None:
        """A call's message; None where it is gRPC's."""
        return message_of(request, left, use) if self.may else None

    def take(self) -> socket.socket | None:
        """A connection that is there already, now busy; or a new one, to be connected; None where it is too early."""
        try:
            connection = self.idle.pop()
        except IndexError:
            if time.monotonic() < self._next_attempt:
                return None
            try:
                connection = quiet.Socket(socket.AF_UNIX)
            except OSError:  # there are no descriptors left
                return None
        self.busy.add(connection)
        return connection

    def give_back(self, connection: socket.socket, *, answered: bool) -> None:
        """A call is over; where it was not answered, nobody waits for it any more, and the server is to know."""
        self.busy.discard(connection)
        if answered and self.may and len(self.idle) < _IDLE_AT_MOST:
            self.idle.append(connection)
            if self._closed:  # in this very moment
                self.close()
        else:
            self._end(connection)

    @contextlib.contextmanager
    def asking(self, connection: socket.socket, timeout: float | None) -> Iterator[Call]:
        """Around the asking over a connection that was taken, which is given back. A call that the connection failed
        has no answer; one that took too long raises DeadlineExceededError."""
        call = Call()
        try:
            yield call
        except TimeoutError:
            raise self.target.late(timeout) from None
        except (OSError, DecodeError):
            self.failed()
        finally:
            self.give_back(connection, answered=call.answer is not None)

    def failed(self) -> None:
        """The server took no connection, or ended one."""
        self._next_attempt = time.monotonic() + _AWAY

    def close(self) -> None:
        """Ends all connections; calls that are still running learn that they are gone."""
        self._closed = True
        while self.idle:
            with contextlib.suppress(IndexError):
                self._end(self.idle.pop())
        for connection in tuple(self.busy):
            self._end(connection, whole=False)

    def _end(self, connection: socket.socket, *, whole: bool = True) -> None:
        """Tells the server, which the end of one of several copies of a descriptor does not: a child that was forked
        off has copies of all. `whole`: nobody uses it any more."""
        if os.getpid() == self._process:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if whole:
            connection.close()


class Direct(Connections):
    """The connections of a blocking client. Any number of threads may use it at once."""

    def result(
        self, request: Request[R], timeout: float | None, left: float | None, use: Use | None = None
    ) -> R | None:
        """A call's result; None where it is to be asked for through gRPC. `left` is what is left of the timeout, and
        `use` the memory that the request was put into, if it was. Raises GradOracleError."""
        if (message := self.message(request, left, use)) is None:
            return None
        found: R | GradOracleError | None = result_of(self._ask(message, timeout, left), request, use)
        if isinstance(found, GradOracleError):
            raise found
        return found

    def _ask(self, message: bytes, timeout: float | None, left: float | None) -> Answer | None:
        if (connection := self.take()) is None:
            return None
        end = None if left is None else time.monotonic() + left
        with self.asking(connection, timeout) as call:
            if self._connected(connection, end) and self.may:  # the client may have been closed meanwhile
                call.answer = _asked(connection, message, end)
        return call.answer

    def _connected(self, connection: socket.socket, end: float | None) -> bool:
        """Raises TimeoutError where there is no time left for it."""
        if is_connected(connection):
            return True
        patience = time.monotonic() + PATIENCE
        try:
            _limit(connection, patience if end is None else min(end, patience))
            connection.connect(self.place or "")
            neighbours.admit(connection, self.place or "")
            connection.sendall(greeting(self.target))
        except OSError:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError from None
            self.failed()
            return False
        return True


def place_of(target: Target) -> str | None:
    """Where the socket is; None where the server has none for this client. A certificate is gRPC's to show."""
    return f"{target.memory}{neighbours.CALLS}" if target.memory is not None and target.credentials is None else None


def is_connected(connection: socket.socket) -> bool:
    """Whether a connection has been made."""
    try:
        return bool(connection.getpeername())
    except OSError:
        return False


def greeting(target: Target) -> bytes:
    """The first bytes of a connection."""
    return framed(dict(target.metadata).get("authorization", "").encode())


def framed(message: bytes) -> bytes:
    """A message as it goes over the socket."""
    return LENGTH.pack(len(message)) + message


def message_of(request: Request[Any], left: float | None, use: Use | None) -> bytes | None:
    """A call's message; None where it is gRPC's: it is large, or the program traces, and gRPC's have a span each."""
    if spans.are_made():
        return None
    if use is not None:
        message = stream.whole(_ID, request, use, left)
    elif len(request.graph) + request.tensor_bytes > AT_MOST:
        return None
    else:
        message = b"".join(stream.parts(_ID, request, left))
    return message if len(message) <= AT_MOST else None


class Reader:
    """Puts an answer together from the bytes that come."""

    def __init__(self) -> None:
        self._incoming, self._came = Incoming(), bytearray()

    @property
    def wants(self) -> int:
        """How many bytes may be received next."""
        return max(_PIECE, self._end - len(self._came))

    @property
    def _end(self) -> int:
        """Where the message ends that is coming; that of its length, where that is not known yet."""
        return LENGTH.size + (LENGTH.unpack_from(self._came)[0] if len(self._came) >= LENGTH.size else 0)

    def add(self, data: bytes) -> Answer | None:
        """The answer, once all of it has come. Raises ConnectionError at the end of all bytes, and DecodeError."""
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        if not self._came and len(data) > LENGTH.size and len(data) == LENGTH.size + LENGTH.unpack_from(data)[0]:
            return next(self._incoming.take(data[LENGTH.size :]), None)  # as nearly all come
        self._came += data
        while len(self._came) >= LENGTH.size and len(self._came) >= (end := self._end):
            message, self._came = bytes(memoryview(self._came)[LENGTH.size : end]), self._came[end:]
            for found in self._incoming.take(message):
                return found
        return None


def _asked(connection: socket.socket, message: bytes, end: float | None) -> Answer:
    """Raises TimeoutError, OSError, or DecodeError."""
    _limit(connection, end)
    connection.sendall(framed(message))
    reader = Reader()
    while True:
        _limit(connection, end)
        if (found := reader.add(connection.recv(reader.wants))) is not None:
            return found


def _limit(connection: socket.socket, end: float | None) -> None:
    """Lets the next step take no longer than until then. Raises TimeoutError where that is over."""
    left = None if end is None else min(end - time.monotonic(), threading.TIMEOUT_MAX)
    if left is not None and not left > 0:
        raise TimeoutError
    connection.settimeout(left)

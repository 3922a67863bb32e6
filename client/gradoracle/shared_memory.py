"""Large tensors to a server on the same machine, and back, through memory files instead of gRPC.

A file goes to the server once (SharedMemory in service.proto tells how), and then serves one call after another: a copy
in, which the worker maps, and the answer behind it in the same file, which the arrays of the result are views of. When
the last of them dies, the file is free for the next call. Fresh memory costs several times what a copy does.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from gradoracle import tensors, wire
from gradoracle.channel import MEMORY, Target
from gradoracle.errors import GradOracleError
from gradoracle.requests import Request
from gradoracle.tensors import Bytes, WireTensor

FROM = 256 * 1024
"""Bytes of a tensor from which on its request goes this way."""

_ATTACHED_FROM = 64 * 1024  # bytes; smaller tensors of such a request travel inside it
_ALIGNMENT = 64  # bytes
_FILES_AT_MOST = 32  # what finds none goes through gRPC
_VIEWED_AT_MOST = 8  # files that hold results which somebody still has; beyond, results are copied out
_IDLE = 256 * 1024 * 1024  # bytes of files that are kept for later calls
_PATIENCE = 60.0  # seconds for the server to take a file
_OFFER, _TAKE_BACK = b"\1", b"\2"
_TAKEN, _REFUSED = 0, 1
_MEMORY = 16  # the field of requests
_TOKEN, _USE, _SPANS = 1, 2, 3  # fields of SharedMemory
_OFFSET, _LENGTH = 1, 2  # fields of Span


class _Held(np.ndarray[Any, np.dtype[np.uint8]]):
    """The bytes of a file. Of a type of its own, so that every array made of them keeps it, and not what it views."""


class _Place(Protocol):
    """A Span."""

    offset: int
    length: int


class _File:
    """A memory file, and how much of it is mapped."""

    def __init__(self) -> None:
        self.token = b""
        self.uses = 0
        self.descriptor = os.memfd_create("gradoracle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._mapped: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)

    @property
    def size(self) -> int:
        """Bytes that it has become."""
        return os.fstat(self.descriptor).st_size if self.descriptor >= 0 else 0

    def write(self, data: wire.Piece, offset: int) -> None:
        """Through the mapping where there is one; else not, because that would cost a page fault every 4 kB."""
        if self._mapped is not None and offset + len(data) <= len(self._mapped):
            np.copyto(self._mapped[offset : offset + len(data)], np.frombuffer(data, np.uint8))
            return
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]

    def grow(self, end: int) -> None:
        """Sees to it that it has so many bytes, where no write has: spans of nothing may stand at its end."""
        if self.size < end:
            os.ftruncate(self.descriptor, end)

    def contents(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """All of it, mapped. The mapping lives as long as the array."""
        size = self.size
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        return self._mapped

    def close(self) -> None:
        """Gives the memory back, but for what arrays are still made of. May be called again."""
        self._mapped = None
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Connection:
    """A connection to the server's second socket, and the files that went over it.

    `release` and `drop` may be called at any moment, in the middle of anything, as arrays die. So they take no lock,
    and change sets and lists by single operations only.
    """

    def __init__(self, path: str, end: float) -> None:
        """Raises OSError; TimeoutError where that is not done until then."""
        self.files: set[_File] = set()
        self.viewed: set[_File] = set()  # of those: what results are made of
        self._idle: list[_File] = []
        self._offered: _File | None = None  # the server has not said whether it takes it; one at a time
        self._process = os.getpid()
        self._asking = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.closed = False
        try:
            self._socket.settimeout(_patience(end))
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def take(self, size: int, end: float) -> _File | None:
        """A file, best one that has `size` bytes already; None where there are too many. Raises OSError; TimeoutError
        where there is none until then."""
        with _held(self._asking, end):
            if self._idle:
                found = min(self._idle, key=lambda one: (one.size < size, abs(one.size - size)))
                self._idle.remove(found)
                return found
            return None if len(self.files) >= _FILES_AT_MOST else self._another(end)

    def _another(self, end: float) -> _File | None:
        """One that the server did not have. Who has no time left to wait for its answer leaves that to the next."""
        self._socket.settimeout(_patience(end))
        if self._offered is None:
            file = _File()
            try:
                socket.send_fds(self._socket, [_OFFER], [file.descriptor])
            except BaseException:
                file.close()
                raise
            self._offered = file
        answer = self._socket.recv(4096)
        file, self._offered = self._offered, None
        try:
            if not answer:
                raise ConnectionResetError("the server has closed the connection")
            if answer[0] == _TAKEN:
                file.token = answer[1:]
                self.files.add(file)
                return file
            if answer[0] == _REFUSED:
                text = f"the server does not take this client's memory: {answer[1:].decode(errors='replace')}"
                raise GradOracleError(text, reason="INTERNAL")
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def release(self, file: _File) -> None:
        """A file is free."""
        self.viewed.discard(file)
        if self.closed or sum(one.size for one in tuple(self._idle)) + file.size > _IDLE:
            self.drop(file)
        else:
            self._idle.append(file)

    def drop(self, file: _File) -> None:
        """A file is not to be used again."""
        self.viewed.discard(file)
        self.files.discard(file)
        file.close()
        if os.getpid() == self._process:  # else it is the parent's to use
            with contextlib.suppress(OSError):  # the server has gone, and knows
                os.write(self._socket.fileno(), _TAKE_BACK + file.token)

    def close(self) -> None:
        """Takes back all files. What results are made of lives on."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # who waits for the server hears no more
        with self._asking:
            self._socket.close()
            if self._offered is not None:
                self._offered.close()
        while self._idle:
            self._idle.pop().close()


class Use:
    """A request put into a file, for one call. To be entered while the call runs.

    A call that fails in whatever way may still be running in some worker, which would write into the file: so that is
    dropped. Only what MEMORY_UNKNOWN says is no failure but the end of the connection, and is not raised.
    """

    def __init__(self, connection: _Connection, file: _File, pieces: list[wire.Piece]) -> None:
        self.pieces = pieces
        """The request's message, to be joined."""
        self._connection = connection
        self._file: _File | None = file

    def __enter__(self) -> Use:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        return error is not None and self.failed(error)

    def __del__(self) -> None:
        self.drop()

    def failed(self, error: BaseException) -> bool:
        """The call has failed. Gives whether it may be made again at once, over another connection or without one."""
        unknown = isinstance(error, GradOracleError) and error.reason == "MEMORY_UNKNOWN"
        if unknown:
            self._connection.close()
        self.drop()
        return unknown

    def answered(self, response: object) -> Sequence[Bytes]:
        """The attachments of the answer, to be made into arrays."""
        spans: Sequence[_Place] = getattr(response, "spans", ())
        file, self._file = self._file, None
        assert file is not None  # noqa: S101 - a call is answered once
        try:
            return self._attachments(file, spans)
        except BaseException:
            self._connection.drop(file)
            raise

    def _attachments(self, file: _File, spans: Sequence[_Place]) -> Sequence[Bytes]:
        if not spans:
            self._connection.release(file)
            return ()
        contents = file.contents()
        for span in spans:
            if span.offset + span.length > len(contents):
                text = f"expected an attachment within the {len(contents)} bytes of shared memory"
                raise GradOracleError(f"{text}, got {span.length} bytes at {span.offset}", reason="INTERNAL")
        small = 4 * sum(span.length for span in spans) < len(contents)
        if small or len(self._connection.viewed) >= _VIEWED_AT_MOST:
            found = [contents[span.offset : span.offset + span.length].copy() for span in spans]
            self._connection.release(file)
            return found
        held = contents.view(_Held)
        self._connection.viewed.add(file)
        weakref.finalize(held, self._connection.release, file).atexit = False
        return [held[span.offset : span.offset + span.length] for span in spans]

    def refused(self) -> None:
        """The call was never begun: the file is free."""
        file, self._file = self._file, None
        if file is not None:
            self._connection.release(file)

    def drop(self) -> None:
        """Nobody knows what becomes of the call."""
        file, self._file = self._file, None
        if file is not None:
            self._connection.drop(file)


class Memory:
    """What a client shares with its server. Any number of threads may use it at once."""

    def __init__(self, path: str, beside: str = "") -> None:
        """`path` is where descriptors are handed over; `beside` is gRPC's, if a socket. Connects to nothing yet."""
        self._path = path
        self._beside = beside
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._offered = False  # whether this server has ever had it
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def at(cls, target: Target) -> Memory | None:
        """What a client shares with a server; None where it is not to."""
        if target.memory is None:
            return None
        return cls(target.memory, target.memory.removesuffix(MEMORY) if target.address.startswith("unix:") else "")

    @staticmethod
    def suits(request: Request[Any]) -> bool:
        """Whether a request is large enough."""
        return any(tensor.nbytes >= FROM for _, _, tensor in request.tensors)

    def attempts(self, request: Request[Any], end: float = math.inf) -> Iterator[Use]:
        """The request in shared memory, and again over another connection where the first one turns out to be gone.

        None at all where there is no room. Raises GradOracleError where the server offers no such thing, and
        TimeoutError where it has not taken the request's memory at the time.monotonic() of `end`.
        """
        for _ in range(2):
            if (use := self.put(request, end)) is None:
                return
            yield use

    def put(self, request: Request[Any], end: float = math.inf) -> Use | None:
        """The request in shared memory, or None where there is no room. Raises as `attempts` does."""
        if os.getpid() != self._process:  # a child, forked off: its parent may be writing into the same files
            return None
        placed, size = _placed(request)
        connection, file = self._file(size, end)
        if connection is None or file is None:
            return None
        file.uses += 1
        try:
            for offset, data in placed:
                file.write(data, offset)
            file.grow(size)
        except OSError:  # no memory: gRPC needs less of it
            connection.drop(file)
            return None
        return Use(connection, file, _pieces(request, file, placed))

    def _file(self, size: int, end: float) -> tuple[_Connection | None, _File | None]:
        """A file, over another connection where the one that there was has broken."""
        for _ in range(2):
            if (connection := self.connect(end)) is None:
                break
            try:
                return connection, connection.take(size, end)
            except TimeoutError:
                if time.monotonic() >= end:
                    raise
                connection.close()  # it has had its time; gRPC may be quicker
                break
            except OSError:
                connection.close()
        return None, None

    def connect(self, end: float = math.inf) -> _Connection | None:
        """The connection; None where the server is away. Raises GradOracleError where it is there, but not for this,
        and TimeoutError where that is not known until then."""
        if os.getpid() != self._process:
            return None
        with _held(self._lock, end):
            if self._connection is None or self._connection.closed:
                try:
                    self._connection = _Connection(self._path, end)
                    self._offered = True
                except OSError as error:
                    if time.monotonic() >= end:
                        raise TimeoutError from error
                    if not self._offered and self._beside and _listens(self._beside, end):
                        raise GradOracleError(
                            f"the server at unix:{self._beside} offers no shared memory to this client "
                            f"({error.strerror or error}); start it with --shared-memory, or make the client without"
                        ) from error
                    return None
            if self._closed:  # in the middle of a call, which then fails of that
                self._connection.close()
                return None
            return self._connection

    def close(self) -> None:
        """Gives back what no result is made of."""
        if os.getpid() != self._process:  # that is the parent's
            return
        self._closed = True
        if (connection := self._connection) is not None:
            connection.close()


@contextlib.contextmanager
def _held(lock: threading.Lock, end: float) -> Iterator[None]:
    """A lock whose holder may be waiting for the server: nobody waits for him longer than he has time himself."""
    if not lock.acquire(timeout=_left(end)):
        raise TimeoutError
    try:
        yield
    finally:
        lock.release()


def _left(end: float) -> float:
    """Seconds until then, as many as waiting takes. Raises TimeoutError where there are none."""
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError
    return min(left, threading.TIMEOUT_MAX)


def _patience(end: float) -> float:
    """Seconds for the server to answer. Raises TimeoutError where that is over."""
    return min(_left(end), _PATIENCE)


def _listens(path: str, end: float) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_patience(end))
        return sock.connect_ex(path) == 0


def _is_attached(tensor: WireTensor) -> bool:
    return tensor.nbytes >= _ATTACHED_FROM


def _placed(request: Request[Any]) -> tuple[list[tuple[int, wire.Piece]], int]:
    """Where each of the large tensors goes, and where the last one ends."""
    end = 0
    placed: list[tuple[int, wire.Piece]] = []
    for _, _, tensor in request.tensors:
        if tensor.data is not None and _is_attached(tensor):
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            placed.append((start, tensor.data))
            end = start + len(tensor.data)
    return placed, end


def _pieces(request: Request[Any], file: _File, placed: Sequence[tuple[int, wire.Piece]]) -> list[wire.Piece]:
    """The request's message, its large tensors in a file."""
    pieces: list[wire.Piece] = [request.graph, request.head]
    attachments = 0
    for field, name, tensor in request.tensors:
        if _is_attached(tensor):
            pieces += tensors.attached_field(field, name, tensor, attachments)
            attachments += 1
        else:
            pieces += tensors.named_field(field, name, tensor)
    memory = wire.bytes_field(_TOKEN, file.token) + wire.number_field(_USE, file.uses)
    for start, data in placed:
        span = wire.number_field(_OFFSET, start) + wire.number_field(_LENGTH, len(data))
        memory += wire.bytes_field(_SPANS, span)
    pieces.append(wire.bytes_field(_MEMORY, memory))
    return pieces

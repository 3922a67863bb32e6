"""Memory files, and the connection over which they are offered to a server on this machine.

What passes over it is told at SharedMemory in service.proto. All waiting has an end: that of the call that waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradoracle import neighbours, wire
from gradoracle.errors import GradOracleError

_FILES_AT_MOST = 32  # what finds none goes through gRPC
_IDLE = 256 * 1024 * 1024  # bytes of files that are kept for later calls
_PATIENCE = 60.0  # seconds for the server to take a file
_OFFER, _TAKE_BACK = b"\1", b"\2"
_TAKEN, _REFUSED = 0, 1


class File:
    """A memory file, and how much of it is mapped."""

    descriptor = -1

    def __init__(self) -> None:
        self.token = b""
        self.uses = 0
        self.size = 0
        """Bytes that it is known to have; the server may have made it larger."""
        self._mapped: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self.descriptor = os.memfd_create("gradoracle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)

    def __del__(self) -> None:
        """A client may be forgotten, not closed."""
        self.close()

    def write(self, data: wire.Piece, offset: int) -> None:
        """Through the mapping where there is one; else not, because that would cost a page fault every 4 kB."""
        if self._mapped is not None and offset + len(data) <= len(self._mapped):
            np.copyto(self._mapped[offset : offset + len(data)], np.frombuffer(data, np.uint8))
            return
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]
        self.size = max(self.size, offset)

    def contents(self, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """All of it, mapped, and so many bytes at the least, if it has as many. The mapping lives as long as the
        array."""
        if self._mapped is None or len(self._mapped) < end:
            self.size = os.fstat(self.descriptor).st_size
            self._mapped = np.frombuffer(mmap.mmap(self.descriptor, self.size), np.uint8)
        return self._mapped

    def close(self) -> None:
        """Gives the memory back, but for what arrays are still made of. May be called again."""
        self._mapped = None
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Connection:
    """A connection to the server's second socket, and the files that went over it.

    `release` and `drop` may be called at any moment, in the middle of anything, as arrays die. So they take no lock,
    and change sets and lists by single operations only.
    """

    def __init__(self, place: str, end: float) -> None:
        """Raises OSError; TimeoutError where that is not done until then."""
        self.files: set[File] = set()
        self.viewed: dict[File, object] = {}  # of those: what results are made of, each with what tells of their death
        self._idle: list[File] = []
        self._offered: File | None = None  # the server has not said whether it takes it; one at a time
        self._process = os.getpid()
        self._asking = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.closed = False
        try:
            self._socket.settimeout(patience(end))
            self._socket.connect(place)
            neighbours.admit(self._socket, place)
        except BaseException:
            self._socket.close()
            raise

    def __del__(self) -> None:
        """A client that was forgotten, not closed, is no cause for warnings of its socket."""
        with contextlib.suppress(AttributeError):  # there never was one
            self._socket.close()

    def take(self, size: int, end: float) -> File | None:
        """A file, best one that has `size` bytes already; None where there are too many. Raises OSError; TimeoutError
        where there is none until then."""
        with held(self._asking, end):
            if self._idle:
                found = min(self._idle, key=lambda one: (one.size < size, abs(one.size - size)))
                self._idle.remove(found)
                return found
            return None if len(self.files) >= _FILES_AT_MOST else self._another(end)

    def _another(self, end: float) -> File | None:
        """One that the server did not have. Who has no time left to wait for its answer leaves that to the next."""
        self._socket.settimeout(patience(end))
        if self._offered is None:
            file = File()
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

    def release(self, file: File) -> None:
        """A file is free."""
        self.viewed.pop(file, None)
        if self.closed or sum([one.size for one in tuple(self._idle)]) + file.size > _IDLE:
            self.drop(file)
        else:
            self._idle.append(file)

    def drop(self, file: File) -> None:
        """A file is not to be used again."""
        self.viewed.pop(file, None)
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


@contextlib.contextmanager
def held(lock: threading.Lock, end: float) -> Iterator[None]:
    """A lock whose holder may be waiting for the server: nobody waits for it longer than there is time."""
    if not lock.acquire(timeout=left(end)):
        raise TimeoutError
    try:
        yield
    finally:
        lock.release()


def left(end: float) -> float:
    """Seconds until then, as many as waiting takes. Raises TimeoutError where there are none."""
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return min(seconds, threading.TIMEOUT_MAX)


def patience(end: float) -> float:
    """Seconds for the server to answer. Raises TimeoutError where that is over."""
    return min(left(end), _PATIENCE)


def listens(path: str, end: float) -> bool:
    """Whether a server is at a socket. Raises TimeoutError where that is not known until then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience(end))
        return sock.connect_ex(path) == 0

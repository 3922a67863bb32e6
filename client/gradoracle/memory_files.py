"""Memory files, and the connection over which they are offered to a server on this machine.

What passes over it is told at SharedMemory in service.proto. All waiting has an end: that of the call that waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradoracle import forks, neighbours, quiet, wire
from gradoracle.errors import GradOracleError

_FILES_AT_MOST = 32  # what finds none goes through gRPC
_IDLE = 256 * 1024 * 1024  # bytes of files that are kept for later calls
_PATIENCE = 60.0  # seconds for the server to take a file
_OFFER, _TAKE_BACK = b"\1", b"\2"
_TAKEN, _REFUSED = b"\0", b"\1"


class _Link:
    """The socket that files went over. They keep it, not the connection, which so is gone when it is forgotten."""

    def __init__(self) -> None:
        self.socket = quiet.Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = os.getpid()

    def take_back(self, token: bytes) -> None:
        """Tells the server that a file is its no more."""
        if os.getpid() == self.process:  # else it is the parent's to use
            with contextlib.suppress(OSError):  # the server has gone, and knows
                self.socket.send(_TAKE_BACK + token)


class File:
    """A memory file, and how much of it is mapped. One that is lost, whatever the cause, is taken back."""

    descriptor = -1
    link: _Link | None = None
    """Where it is to be taken back, once the server has it."""

    def __init__(self) -> None:
        self.token = b""
        self.uses = 0
        self.size = 0
        """Bytes that it is known to have; the server may have made it larger."""
        self.is_final = False
        """Whether it is not to be used again, because another process may have what is in it."""
        self._mapped: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._shown: weakref.ref[np.ndarray[Any, np.dtype[np.uint8]]] | None = None
        self.descriptor = os.memfd_create("gradoracle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        forks.watch(self)

    def __del__(self) -> None:
        """A client may be forgotten, not closed, and a signal's exception may come between any two steps."""
        self.close()
        if self.link is not None:
            self.link.take_back(self.token)

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

    def read(self, offset: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A copy of bytes that it has, which takes no mapping."""
        found = np.empty(length, np.uint8)
        rest = found.data
        while rest and (count := os.preadv(self.descriptor, [rest], offset)):
            offset, rest = offset + count, rest[count:]
        return found

    def contents(self, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """All of it, mapped, and so many bytes at the least, if it has as many. The mapping lives as long as the
        array. Raises OSError where there is no descriptor or room for one; `size` is right even then."""
        if self._mapped is None or len(self._mapped) < end:
            self.size = os.fstat(self.descriptor).st_size
            self._mapped = np.frombuffer(mmap.mmap(self.descriptor, self.size), np.uint8)
        return self._mapped

    def show(self, view: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
        """A view of all that is mapped is to be shown to the caller; False where it must not, nor the file be used
        again."""
        self._shown = weakref.ref(view)  # first: either a thread that forks finds this, or it is found forking
        if forks.are_under_way():
            self.is_final = True  # it may be about to part this moment
            return False
        return True

    def part(self) -> None:
        """What is shown becomes the own of this process, and of the child that is about to be forked off, once: what
        either writes is not in the file. Raises OSError."""
        view = None if self._shown is None else self._shown()
        if view is not None and self.descriptor >= 0 and not self.is_final:
            self.is_final = True
            forks.map_privately(self.descriptor, view.ctypes.data, len(view))

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
        self.viewed: dict[File, object] = {}  # what results are made of, each with what tells of their death
        # Not kept: a file belongs to who uses it, so that it goes where an exception takes it out of his hands.
        self._files: weakref.WeakSet[File] = weakref.WeakSet()
        self._idle: list[File] = []
        self._offered: File | None = None  # the server has not said whether it takes it; one at a time
        self._asking = threading.RLock()
        self._link = _Link()
        self._process = self._link.process
        self.closed = False
        try:
            self._link.socket.settimeout(patience(end))
            self._link.socket.connect(place)
            neighbours.admit(self._link.socket, place)
            self._link.socket.setblocking(False)  # files are taken back by whoever is about, who must not wait
        except BaseException:
            self._link.socket.close()
            raise

    def __del__(self) -> None:
        """A client that was forgotten, not closed, gives all of its files back; what results are made of lives on."""
        with contextlib.suppress(AttributeError):  # there never was one
            self._link.socket.close()

    @property
    def files(self) -> set[File]:
        """Those that the server has."""
        return set(self._files)

    def take(self, size: int, end: float) -> File | None:
        """A file, best one that has `size` bytes already; None where there are too many. Raises OSError; TimeoutError
        where there is none until then."""
        with held(self._asking, end):
            if self._idle:
                found = min(self._idle, key=lambda one: (one.size < size, abs(one.size - size)))
                self._idle.remove(found)
                return found
            return None if len(self._files) >= _FILES_AT_MOST else self._another(end)

    def _another(self, end: float) -> File | None:
        """One that the server did not have. Who has no time left to wait for its answer leaves that to the next."""
        until = time.monotonic() + patience(end)
        try:
            file, answer = self._offer(until)
            if answer[:1] == _TAKEN and file is not None:
                file.token, file.link = answer[1:], self._link
                self._files.add(file)
                return file
        except BaseException:  # nobody knows which answer is the next one
            self._end()
            raise
        if file is None:
            raise TimeoutError
        file.close()
        if answer[:1] == _REFUSED:
            text = f"the server does not take this client's memory: {answer[1:].decode(errors='replace')}"
            raise GradOracleError(text, reason="INTERNAL")
        return None

    def _offer(self, until: float) -> tuple[File | None, bytes]:
        """A file that was offered, and the server's answer; none where there was no answer until then. Raises OSError
        where there will be none."""
        link = self._link.socket
        if self.closed:
            raise ConnectionResetError("the connection is closed")
        if self._offered is None:
            file = File()
            if not _waited(link, select.POLLOUT, until):
                return None, b""
            self._offered = file  # before, so that an exception in between leaves none that is forgotten
            descriptor = struct.pack("i", file.descriptor)
            link.sendmsg([_OFFER], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        if not _waited(link, select.POLLIN, until):
            return None, b""
        if not (answer := link.recv(4096)):
            raise ConnectionResetError("the server has closed the connection")
        found, self._offered = self._offered, None
        return found, answer

    def release(self, file: File) -> None:
        """A file is free."""
        self.viewed.pop(file, None)
        if self.closed or file.is_final or sum([one.size for one in tuple(self._idle)]) + file.size > _IDLE:
            self.drop(file)
        else:
            self._idle.append(file)

    def drop(self, file: File) -> None:
        """A file is not to be used again."""
        self.viewed.pop(file, None)
        self._files.discard(file)
        file.close()
        file.link = None
        self._link.take_back(file.token)

    def close(self) -> None:
        """Takes back all files. What results are made of lives on."""
        self._end()
        with self._asking:
            self._link.socket.close()
            if self._offered is not None:
                self._offered.close()
        while self._idle:
            self._idle.pop().close()

    def _end(self) -> None:
        """It is not to be used again; who waits for the server hears no more."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._link.socket.shutdown(socket.SHUT_RDWR)


def _waited(link: socket.socket, event: int, until: float) -> bool:
    """Waits until a socket may be written or read, or has ended; False where it is none of it until then."""
    poll = select.poll()
    poll.register(link, event)
    return bool(poll.poll(1000 * max(0.0, until - time.monotonic())))


@contextlib.contextmanager
def held(lock: threading.RLock, end: float) -> Iterator[None]:
    """A lock whose holder may be waiting for the server: nobody waits for it longer than there is time."""
    try:
        if not lock.acquire(timeout=left(end)):
            raise TimeoutError
        yield
    finally:
        # Whatever a signal's exception came between, only the lock itself knows surely whether this thread has it.
        with contextlib.suppress(RuntimeError):
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

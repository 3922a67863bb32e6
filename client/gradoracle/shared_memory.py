"""Large tensors to a server on the same machine, and back, through memory files instead of gRPC.

A file goes to the server once (SharedMemory in service.proto tells how), and then serves one call after another: a copy
in, which the worker maps, and the answer behind it in the same file, which the arrays of the result are views of. When
the last of them dies, the file is free for the next call, unless the process has forked meanwhile. Fresh memory costs
several times what a copy does.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from gradoracle import neighbours, tensors, wire
from gradoracle.channel import Target
from gradoracle.errors import GradOracleError
from gradoracle.memory_files import Connection, File, held, listens
from gradoracle.requests import Request
from gradoracle.tensors import Bytes, WireTensor

FROM = 256 * 1024
"""Bytes of a tensor from which on its request goes this way."""

_ATTACHED_FROM = 64 * 1024  # bytes; smaller tensors of such a request travel inside it
_ALIGNMENT = 64  # bytes
_ATTACHED_AT_MOST = 3000  # tensors of a request; the server takes 64 KiB of places, of 20 bytes each
_VIEWED_AT_MOST = 8  # files that hold results which somebody still has; beyond, results are copied out
_MEMORY = 16  # the field of requests
_TOKEN, _USE, _SPANS = 1, 2, 3  # fields of SharedMemory
_OFFSET, _LENGTH = 1, 2  # fields of Span


class _Held(np.ndarray[Any, np.dtype[np.uint8]]):
    """The bytes of a file. Of a type of its own, so that every array made of them keeps it, and not what it views."""

    file: File
    """Kept, because a process that forks maps it again, however long ago the client was closed."""


class _Place(Protocol):
    """A Span."""

    offset: int
    length: int


class Use:
    """A request put into a file, for one call. To be entered while the call runs.

    A call that fails in whatever way may still be running in some worker, which would write into the file: so that is
    dropped. Only what MEMORY_UNKNOWN says is no failure but the end of the connection, and is not raised.
    """

    _file: File | None = None

    def __init__(self, connection: Connection, file: File, pieces: list[wire.Piece]) -> None:
        self.pieces = pieces
        """The request's message, to be joined."""
        self._connection = connection
        self._file = file

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
            found, is_free = self._attachments(file, [(span.offset, span.length) for span in spans])
        except MemoryError:
            self._connection.drop(file)
            size = sum([span.length for span in spans])
            raise GradOracleError(f"the answer has come, but there is no memory here for its {size} bytes") from None
        except BaseException:
            self._connection.drop(file)
            raise
        if is_free:
            self._connection.release(file)
        return found

    def _attachments(self, file: File, places: Sequence[tuple[int, int]]) -> tuple[Sequence[Bytes], bool]:
        """What is in a file, and whether that is free."""
        if not places:
            return (), True
        try:
            contents = file.contents(max([offset + length for offset, length in places]))
        except OSError:  # to copy takes neither a descriptor nor room for all of the file
            _check(places, file.size)
            return [file.read(offset, length) for offset, length in places], True
        _check(places, len(contents))
        small = 4 * sum([length for _, length in places]) < len(contents)
        if not small and len(self._connection.viewed) < _VIEWED_AT_MOST:
            held = contents.view(_Held)
            held.file = file
            if file.show(held):
                release = self._connection.release
                # Not weakref.finalize, which keeps a book of all that live, and takes ten times as long.
                self._connection.viewed[file] = weakref.ref(held, lambda _: release(file))
                return [held[offset : offset + length] for offset, length in places], False
        return [contents[offset : offset + length].copy() for offset, length in places], True

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

    def __init__(self, place: str, beside: str = "") -> None:
        """`place` is where descriptors are handed over; `beside` is gRPC's socket, where its server has to offer that.
        Connects to nothing yet."""
        self._place = place
        self._beside = beside
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._offered = False  # whether this server has ever had it
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def at(cls, target: Target) -> Memory | None:
        """What a client shares with a server; None where it is not to."""
        if target.memory is None:
            return None
        insists = target.insists and target.address.startswith("unix:")
        return cls(target.memory, neighbours.path(target.address) if insists else "")

    @staticmethod
    def suits(request: Request[Any]) -> bool:
        """Whether a request is large enough, and its places no more than the server takes."""
        if len(request.tensors) > _ATTACHED_AT_MOST:
            attached = sum(_is_attached(tensor) for _, _, tensor in request.tensors)
            if attached > _ATTACHED_AT_MOST:
                return False
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
            return Use(connection, file, _pieces(request, file, placed))
        except OSError:  # no memory: gRPC needs less of it
            connection.drop(file)
            return None
        except BaseException:  # a signal's: whoever has caught it may keep this frame, and with it the file
            connection.drop(file)
            raise

    def _file(self, size: int, end: float) -> tuple[Connection | None, File | None]:
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

    def connect(self, end: float = math.inf) -> Connection | None:
        """The connection; None where the server is away. Raises GradOracleError where it is there, but not for this,
        and TimeoutError where that is not known until then."""
        if os.getpid() != self._process:
            return None
        there = self._connection
        if there is not None and not there.closed and not self._closed:
            return there
        with held(self._lock, end):
            if self._connection is None or self._connection.closed:
                try:
                    self._connection = Connection(self._place, end)
                    self._offered = True
                except OSError as error:
                    if time.monotonic() >= end:
                        raise TimeoutError from error
                    if not self._offered and self._beside and listens(self._beside, end):
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


def _check(places: Sequence[tuple[int, int]], size: int) -> None:
    """Raises GradOracleError where some place is not within a file of that size."""
    for offset, length in places:
        if offset + length > size:
            text = f"expected an attachment within the {size} bytes of shared memory"
            raise GradOracleError(f"{text}, got {length} bytes at {offset}", reason="INTERNAL")


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


def _pieces(request: Request[Any], file: File, placed: Sequence[tuple[int, wire.Piece]]) -> list[wire.Piece]:
    """The request's message, its large tensors in a file."""
    spans = _spans(tuple([(start, len(data)) for start, data in placed]))
    memory = b"".join((wire.bytes_field(_TOKEN, file.token), wire.number_field(_USE, file.uses), spans))
    # First, because the server looks for it among the first fields only, and names and tensors may be thousands.
    pieces: list[wire.Piece] = [wire.bytes_field(_MEMORY, memory), request.graph, request.head]
    attachments = 0
    for field, name, tensor in request.tensors:
        if _is_attached(tensor):
            pieces.append(tensors.attached_field(field, name, tensor, attachments))
            attachments += 1
        else:
            pieces += tensors.named_field(field, name, tensor)
    return pieces


@functools.lru_cache(maxsize=256)
def _spans(placed: tuple[tuple[int, int], ...]) -> bytes:
    """The fields that say where in a file tensors are."""
    found = [wire.number_field(_OFFSET, start) + wire.number_field(_LENGTH, length) for start, length in placed]
    return b"".join([wire.bytes_field(_SPANS, one) for one in found])

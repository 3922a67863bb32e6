"""Memory that one side of a socket writes payloads into, and the other reads them from, again and again.

A fresh memory file costs its pages: a megabyte takes 0.4 ms to write and 0.15 ms to map and read, where one that both
sides have written and mapped before takes 0.06 ms and nothing. Whoever writes may do so only when the other side has
done with what was there before, and must be told so: until `free`, nobody may write over what is there. Each direction
of each socket has a lane of its own: what one worker can see of other requests is no more than what it was sent.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Sequence

from gradoracle_server.mapping import mapped

MOST = 8 * 1024 * 1024
"""Bytes of a payload that goes this way, and so of memory that a lane keeps; larger ones have a file of their own."""

_LEAST = 1024 * 1024  # bytes, so that a lane does not grow in small steps

Piece = bytes | memoryview


def memory_file(pieces: Iterable[Piece], size: int = 0, name: str = "gradoracle") -> int:
    """A new memory file that holds the pieces one after another, of so many bytes at least, and never shrinks; returns
    its descriptor. The name is for those who look into /proc."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if size:
            os.ftruncate(descriptor, size)
        _write(descriptor, pieces)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def empty_file() -> int:
    """An empty memory file, by its descriptor, which whoever has it may grow and cut."""
    return os.memfd_create("gradoracle", os.MFD_CLOEXEC)


def _write(descriptor: int, pieces: Iterable[Piece]) -> None:
    place = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            written = os.pwrite(descriptor, rest, place)
            place, rest = place + written, rest[written:]


class Outlet:
    """The end that writes."""

    def __init__(self) -> None:
        self.is_free = True
        """Whether the other side has done with what was put last."""
        self._descriptor = -1
        self._size = 0
        self._written = 0  # bytes whose pages are there
        self._room: mmap.mmap | None = None  # the memory, mapped, once it is used again

    def free(self) -> None:
        """The other side has done with what was put last."""
        self.is_free = True

    def put(self, pieces: Sequence[Piece], size: int) -> int | None:
        """Writes a payload of `size` bytes. Returns the descriptor that the other side is to be passed, where it has
        not got it. Raises OSError where there is no memory for it."""
        is_new = size > self._size
        try:
            if is_new:
                self.close()
                self._size = max(_LEAST, 1 << (size - 1).bit_length())
                self._descriptor = memory_file(pieces, self._size, "gradoracle-lane")
            elif size > self._written:  # not through a mapping, where no memory for a page is the end of the process
                _write(self._descriptor, pieces)
            else:
                self._write_over(pieces)
        except BaseException:
            self.close()
            raise
        self._written = max(self._written, size)
        self.is_free = False
        return self._descriptor if is_new else None

    def _write_over(self, pieces: Sequence[Piece]) -> None:
        if self._room is None:
            self._room = mmap.mmap(self._descriptor, self._size)
        place = 0
        for piece in pieces:
            self._room[place : place + len(piece)] = piece
            place += len(piece)

    def close(self) -> None:
        """Gives the memory back; the next payload gets a new file. May be called again."""
        if self._room is not None:
            self._room.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._size, self.is_free = -1, 0, True
        self._written, self._room = 0, None


class Inlet:
    """The end that reads."""

    def __init__(self) -> None:
        self._room = memoryview(b"")
        self._unmapped = -1  # the descriptor of a new file

    def renew(self, descriptor: int) -> None:
        """Takes a new file, whose descriptor it closes. Raises ValueError for one that could end who reads from it, and
        OSError where it cannot be mapped, which `take` tries again: the file is not passed another time."""
        self.close()
        self._room = memoryview(b"")
        self._unmapped = descriptor
        self._map()

    def take(self, size: int) -> memoryview:
        """The payload, until the other side writes the next one. Raises ValueError where it cannot be there, OSError as
        `renew` does."""
        if self._unmapped >= 0:
            self._map()
        if size > len(self._room):
            raise ValueError(f"expected a payload of {len(self._room)} bytes at most in the lane, got {size}")
        return self._room[:size]

    def _map(self) -> None:
        try:
            self._room = mapped(os.dup(self._unmapped), 2 * MOST, mmap.MAP_SHARED, mmap.PROT_READ)
        except ValueError:
            self.close()
            raise
        self.close()

    def close(self) -> None:
        """Gives up a file that could not be mapped. May be called again."""
        if self._unmapped >= 0:
            os.close(self._unmapped)
            self._unmapped = -1

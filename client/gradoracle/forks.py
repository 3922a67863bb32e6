"""What a process that forks has of shared memory: from then on its own, as all of its other memory is.

A mapping that others write to is shared with a child, too, whereas a result belongs to who has it, on both sides. So
before a process forks, everything that results are views of is mapped again in the same place, privately: what either
side writes is its own. Pages that neither has written still are those of the file, which nobody may write any more.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Protocol

_MAYMOVE, _FIXED = 1, 2  # flags of mremap, from <linux/mman.h>
_FAILED = 2**64 - 1 if sys.maxsize > 2**32 else 2**32 - 1  # what both return then

_watched: dict[int, weakref.ref[Watched]] = {}
_under_way: list[None] = []  # one for each thread that is forking; adding and taking out are single steps of Python's


class Watched(Protocol):
    """A file whose mapping may be seen by results."""

    def part(self) -> None:
        """The process is about to fork. Raises OSError."""


def watch(file: Watched) -> None:
    """Tells a file, as long as it lives, of each time that the process forks."""
    key = id(file)
    _watched[key] = weakref.ref(file, lambda _: _watched.pop(key, None))


def are_under_way() -> bool:
    """Whether the process is forking, in some other thread: who shows a mapping now may be too late to be told."""
    return bool(_under_way)


def map_privately(descriptor: int, address: int, size: int) -> None:
    """Puts a private mapping of a file in the place of a shared one, in one step for whoever uses it. Raises OSError,
    and leaves the other there, where the system has no room."""
    # Not CDLL, which would let other threads run meanwhile.
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    # Elsewhere first: some kernels take away what was in a place before they find that there is no room.
    found = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, descriptor, 0)
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.mremap(found, size, size, _MAYMOVE | _FIXED, address) == _FAILED:
        number = ctypes.get_errno()
        libc.munmap(found, size)
        raise OSError(number, os.strerror(number))


def _before() -> None:
    """What this raises is written to the standard error, and the process forks all the same."""
    _under_way.append(None)
    failure: OSError | None = None
    for reference in tuple(_watched.values()):
        try:
            if (file := reference()) is not None:
                file.part()
        except OSError as error:
            failure = error.with_traceback(None)  # whose frames have the results
    if failure is not None:
        raise RuntimeError("results of gradoracle stay shared with the process that is forked off") from failure


def _after_in_parent() -> None:
    _under_way.pop()


def _after_in_child() -> None:
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)

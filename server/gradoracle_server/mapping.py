"""Memory files, mapped, and those that were used last kept mapped, for as long as they are used again.

To map a file and to look at each of its pages for the first time costs as much as several copies of it: a megabyte is
read in 0.06 ms and unmapped in 0.03 where it has to be mapped first, in 0.02 where it is. To write it takes 0.07 ms by
`pwrite` and 0.02 through a mapping.
"""

from __future__ import annotations

import fcntl
import mmap
import os

_NOTHING = memoryview(b"")
_FILES = 4  # of one owner


def mapped(descriptor: int, most: int, flags: int, access: int) -> memoryview:
    """The bytes of a memory file, `most` at most; the mapping lives as long as the view. Closes the descriptor.

    Only of a file that is sealed against shrinking: to read beyond the end of a shrunk file would be the end of the
    process that reads, and the front must survive whatever a worker does.
    """
    try:
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise ValueError("expected a memory file sealed against shrinking")
        size = min(os.fstat(descriptor).st_size, most)
        return memoryview(mmap.mmap(descriptor, size, flags=flags, prot=access))
    finally:
        os.close(descriptor)


class KeptMapping:
    """The shared mapping of one file, as far as the file went when it was mapped."""

    def __init__(self, most: int, access: int = mmap.PROT_READ | mmap.PROT_WRITE) -> None:
        """Of files of `most` bytes at most."""
        self._most = most
        self._access = access
        self._which: tuple[int, int] | None = None
        self._room = _NOTHING

    def room(self, descriptor: int, end: int) -> memoryview | None:
        """The first `end` bytes of a file; None where it has fewer, too many, or might shrink.

        What is in them may change for as long as somebody else has the file.
        """
        about = os.fstat(descriptor)
        which = (about.st_dev, about.st_ino)  # nobody else's while we have it mapped
        if which != self._which or end > len(self._room):
            self.drop()
            if not 0 < end <= about.st_size <= self._most:
                return None
            try:
                self._room = mapped(os.dup(descriptor), self._most, mmap.MAP_SHARED, self._access)
            except (OSError, ValueError):
                return None
            self._which = which
        return self._room[:end]

    @property
    def size(self) -> int:
        """Bytes that are mapped."""
        return len(self._room)

    def drop(self) -> None:
        """Unmaps it, once nobody has a view of it. May be called again."""
        self._room, self._which = _NOTHING, None


class OwnersMappings:
    """Those of some files of one owner, who uses them in turn: a caller who holds a result while the next one is
    computed needs two. Nothing of another owner's is mapped at the same time."""

    def __init__(self, most: int) -> None:
        """Of files of `most` bytes at most, together."""
        self._most = most
        self._owner = 0
        self._kept: dict[tuple[int, int], KeptMapping] = {}  # by file; the last one last

    def turn_to(self, owner: int, descriptor: int) -> None:
        """Keeps what is this owner's; of one who is not known, 0, only this file."""
        if owner and owner == self._owner:
            return
        which = _which(descriptor)
        kept = None if self._owner or owner else self._kept.get(which)
        self._kept = {} if kept is None else {which: kept}
        self._owner = owner

    def room(self, descriptor: int, end: int) -> memoryview | None:
        """As KeptMapping's."""
        which = _which(descriptor)
        mapping = self._kept.pop(which, None) or KeptMapping(self._most)
        found = mapping.room(descriptor, end)
        if found is None:
            return None
        self._kept[which] = mapping
        while len(self._kept) > _FILES or (len(self._kept) > 1 and self._size > self._most):
            del self._kept[next(iter(self._kept))]
        return found

    @property
    def _size(self) -> int:
        return sum([one.size for one in self._kept.values()])

    def drop(self) -> None:
        """As KeptMapping's."""
        self._kept.clear()
        self._owner = 0


Kept = KeptMapping | OwnersMappings
"""What keeps files mapped."""


def _which(descriptor: int) -> tuple[int, int]:
    """Tells files apart; nobody else's as long as we have it mapped."""
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino

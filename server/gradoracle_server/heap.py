"""How the C library of this process keeps memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MMAP_MAX = -3, -1, -4  # <malloc.h>
_LARGEST = 32 * 1024 * 1024  # bytes of a block; the library takes no more
_MAPPINGS = 65536  # at once; the library's default


def keep_freed_memory(most: int, *, large_blocks: bool = False) -> None:
    """Lets freed memory be used again, so many bytes at most at the end of the heap, instead of giving it back and
    fetching it anew, page by page, with every tensor.

    Fetching is dear: of a gradient of 16 MiB it is half of a worker's time, of one of 64 MiB two thirds, and of 64 MiB
    there and back 0.05 of the 0.17 s of processor time that the front takes. Blocks of more than 32 MiB are mapped each
    on its own, unless `large_blocks`: that is for blocks of some bound, because one that is freed between others leaves
    a hole of its size.
    """
    with contextlib.suppress(AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_MMAP_MAX, 0 if large_blocks else _MAPPINGS)
        library.mallopt(_TRIM_THRESHOLD, most)


def give_back() -> None:
    """Gives back what is kept, for blocks that do not fit into it."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

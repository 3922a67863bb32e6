"""Sets of ids that take little memory: 16 bytes an id."""

from __future__ import annotations

import hashlib

import numpy as np

_BYTES = 16  # of a digest: ids of as many cases as fit a disk do not share one
_END = b"\x01"  # its last byte: numpy takes zeros at the end of bytes for none


class Ids:
    """A set of ids, first filled, then frozen, then asked."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._sorted = np.empty(0, f"S{_BYTES}")

    def add(self, name: str) -> None:
        """Adds an id, which may be there already."""
        self._digests += _digest(name)

    def freeze(self) -> None:
        """Sorts what was added."""
        self._sorted = np.sort(np.frombuffer(bytes(self._digests), f"S{_BYTES}"))
        self._digests = bytearray()

    def __contains__(self, name: str) -> bool:
        if not len(self._sorted):
            return False
        digest = np.bytes_(_digest(name))
        place = int(np.searchsorted(self._sorted, digest))
        return place < len(self._sorted) and bool(self._sorted[place] == digest)

    def __len__(self) -> int:
        return len(self._sorted)

    def twice(self) -> Ids:
        """Those that were added more than once."""
        found = Ids()
        found._sorted = np.unique(self._sorted[1:][self._sorted[1:] == self._sorted[:-1]])
        return found


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=_BYTES - len(_END)).digest() + _END

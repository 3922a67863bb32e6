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


class Index:
    """Ids of cases, or of results, each with the digest of its case where that is known; filled, frozen, asked."""

    def __init__(self) -> None:
        self._ids = Ids()
        self._keys = Ids()

    def add(self, name: str, digest: str | None = None) -> None:
        """Adds an id. Results of older versions tell no digest."""
        self._ids.add(name)
        self._keys.add(_key(name, digest))

    def freeze(self) -> None:
        """Sorts what was added."""
        self._ids.freeze()
        self._keys.freeze()

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def matches(self, name: str, digest: str | None) -> bool:
        """Whether the id is there with that digest; where one of the two is not known, the id alone tells."""
        if digest is None:
            return name in self._ids
        return _key(name, digest) in self._keys or _key(name, None) in self._keys

    def __len__(self) -> int:
        return len(self._ids)


def _key(name: str, digest: str | None) -> str:
    return name if digest is None else f"{name}\0{digest}"


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=_BYTES - len(_END)).digest() + _END

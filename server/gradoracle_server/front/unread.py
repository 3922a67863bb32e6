"""Answers that callers have yet to read: bounded by bytes over all streams, by not reading more of their calls.

How large an answer is shows when it is there, so that calls that are still to be answered count as well, each as much
as the larger answers of its stream of late. The less room is left, the less a stream may have of it: streams whose
callers do not read share the room among themselves, and one whose caller does read goes on beside them.
"""

from __future__ import annotations

ALWAYS = 4 * 1024 * 1024
"""Bytes that a stream may have, however little room there is: so small calls are never held up by other callers."""

_UNKNOWN = 1024 * 1024  # bytes that an answer is taken for before a stream has had any
_FADES = 16  # after about so many small answers a large one is forgotten


class Unread:
    """What all streams have together. A limit of 0 is none."""

    def __init__(self, limit: int, workers: int) -> None:
        """`workers` is how many calls can run at once; a stream may have as many whatever their answers."""
        self.limit = limit
        self.workers = workers
        self.bytes = 0


class Share:
    """What one stream has."""

    __slots__ = ("_all", "_calls", "_counted", "_ended", "_unread", "_usual")

    def __init__(self, unread: Unread) -> None:
        self._all = unread
        self._calls = 0  # that are to be answered
        self._unread = 0  # bytes of answers
        self._usual = _UNKNOWN  # bytes of an answer to come
        self._counted = 0  # bytes of all that
        self._ended = False

    @property
    def is_full(self) -> bool:
        """Whether no more calls are to be read."""
        limit = self._all.limit
        return bool(limit) and self._counted >= max(ALWAYS, limit - self._all.bytes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is unanswered or unread."""
        return not self._calls and not self._unread

    def begin(self) -> None:
        """A call is to be answered."""
        self._calls += 1
        self._count()

    def end(self) -> None:
        """It is not any more."""
        self._calls -= 1
        self._count()

    def add(self, size: int) -> None:
        """An answer of so many bytes is to be read."""
        self._unread += size
        self._usual = max(size, self._usual - self._usual // _FADES)
        self._count()

    def take(self, size: int) -> None:
        """So many bytes were read, or will be soon."""
        self._unread -= size
        self._count()

    def close(self) -> None:
        """The stream has ended: nothing of it is to be read."""
        self._ended = True
        self._count()

    def _count(self) -> None:
        counted = 0
        if not self._ended:
            counted = self._unread + max(0, self._calls - self._all.workers) * self._usual
        self._all.bytes += counted - self._counted
        self._counted = counted

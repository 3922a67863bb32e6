"""Requests that end the processes that run them are refused for a while, so that one caller cannot burn the workers.

Two deaths are enough. A request whose process was killed from outside, and again at the second try, counts as having
one: somebody may be killing processes, and the same request may be many callers'. What runs to its end is forgiven.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable

from gradoracle_server.frames import Job

_LARGEST = 64 * 1024 * 1024  # bytes; to know a larger request again would keep the event loop for too long
_ENTRIES = 1024
_PIECE = 1024 * 1024


@dataclasses.dataclass(slots=True)
class _Entry:
    deaths: int
    exit_code: int | None
    until: float


class Quarantine:
    """The requests that ended a worker lately, known by a hash of their bytes.

    Costs nothing while there are none; and then one look-up by method and size, unless that matches.
    """

    def __init__(self, deaths: int = 2, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Refuses requests that ended `deaths` workers, for `seconds` since the last."""
        self._deaths = deaths
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[tuple[int, int], dict[bytes, _Entry]] = {}  # by method and size, then by hash

    def __bool__(self) -> bool:
        return bool(self._entries)

    def record(self, job: Job, exit_code: int | None) -> None:
        """Notes that a request ended a worker, and how."""
        key = (job.method, _size(job))
        if key[1] > _LARGEST or (job.attachments is not None and job.attachments.descriptor < 0):
            return
        self._forget()
        entry = self._entries.setdefault(key, {}).setdefault(_hash(job), _Entry(0, exit_code, 0.0))
        entry.deaths += 1
        entry.exit_code = exit_code
        entry.until = self._clock() + self._seconds

    def suspects(self, job: Job) -> bool:
        """Whether a request has ended a worker lately."""
        entry = self._find(job)
        return entry is not None and entry.until > self._clock()

    def forgive(self, job: Job) -> None:
        """A worker has withstood a request: forgets what it did before."""
        if self._find(job) is not None:
            key = (job.method, _size(job))
            del self._entries[key][_hash(job)]
            if not self._entries[key]:
                del self._entries[key]

    def refused(self, job: Job) -> tuple[int | None, float] | None:
        """Whether a request is refused: the exit code of the last worker that it ended, and the seconds left."""
        entry = self._find(job)
        if entry is None or entry.deaths < self._deaths or (left := entry.until - self._clock()) <= 0:
            return None
        return entry.exit_code, left

    def _find(self, job: Job) -> _Entry | None:
        entries = self._entries.get((job.method, _size(job)))
        if not entries or (job.attachments is not None and job.attachments.descriptor < 0):
            return None
        return entries.get(_hash(job))

    def _forget(self) -> None:
        """Drops what is over, and the oldest where there are too many."""
        now = self._clock()
        for key, entries in list(self._entries.items()):
            for digest in [digest for digest, entry in entries.items() if entry.until <= now]:
                del entries[digest]
            if not entries:
                del self._entries[key]
        if sum(len(entries) for entries in self._entries.values()) >= _ENTRIES:
            del self._entries[next(iter(self._entries))]


def _size(job: Job) -> int:
    attached = 0 if job.attachments is None else sum(length for _, length in job.attachments.spans)
    return len(job.payload) + attached


def _hash(job: Job) -> bytes:
    made = hashlib.blake2b(job.payload, digest_size=16)
    if job.attachments is not None:
        for start, length in job.attachments.spans:
            for offset in range(start, start + length, _PIECE):
                made.update(os.pread(job.attachments.descriptor, min(_PIECE, start + length - offset), offset))
    return made.digest()

"""The memory that a worker keeps: of what was freed a little always, and more for a while after large requests, the
file of the last large answer for the next one, and, mapped, those of a caller who uses them again and again."""

from __future__ import annotations

import os
import select
import socket
import time

from gradoracle_server import heap, lanes
from gradoracle_server.frames import Attachments
from gradoracle_server.mapping import Kept, KeptMapping, OwnersMappings

_MOST, _ALWAYS = 256 * 1024 * 1024, 64 * 1024 * 1024  # bytes
_SHARE = 16  # of what the process may have in all, it keeps no more than one in so many
_LARGE, _TOO_LARGE = 8 * 1024 * 1024, 128 * 1024 * 1024
"""Bytes of a request from which on memory is kept for the next one like it, and from which on it is not."""

_LARGEST_FILE = 64 * 1024 * 1024  # bytes
_IDLE = 1.0  # seconds after the last large request, in which another may come


class KeptMemory:
    """Of one process, which may have `limit` bytes; 0: no limit."""

    def __init__(self, limit: int) -> None:
        self.most = min(_MOST, limit // _SHARE) if limit else _MOST
        """Bytes of freed memory that are kept at most."""
        self._until = 0.0  # when more than a little is given back; 0 where no more is kept
        self._is_much = False
        self._file = -1
        self._is_read = True
        self._poll: select.poll | None = None
        self._own = KeptMapping(_LARGEST_FILE)
        self._callers = OwnersMappings(_LARGEST_FILE)
        self._set_heap()

    def mapping(self, attachments: Attachments | None) -> Kept:
        """Of the file that the answer to a request with these attachments goes into."""
        return self._callers if attachments is not None and attachments.callers else self._own

    def prepare(self, size: int, *, all_read: bool = False, attachments: Attachments | None = None) -> None:
        """Before a request of so many bytes; `all_read`: nobody reads any more what was written into files before.

        What another caller has shared is not mapped while it runs.
        """
        self._is_read |= all_read
        if attachments is not None and attachments.callers:
            self._callers.turn_to(attachments.owner, attachments.descriptor)
            self._until = max(self._until, time.monotonic() + _IDLE)
        else:
            self._callers.drop()
        if _LARGE <= size < _TOO_LARGE:
            self._keep(True)
            self._until = time.monotonic() + _IDLE
        elif self._until and (size >= _TOO_LARGE or time.monotonic() > self._until):
            self.give_back()

    def file(self) -> int:
        """A descriptor, to be closed, of a memory file for an answer. It may hold what was in another one."""
        if not self._is_read:
            return lanes.empty_file()
        if self._file >= 0 and os.fstat(self._file).st_size > _LARGEST_FILE:
            self._close()
        if self._file < 0:
            self._file = lanes.memory_file(())
        self._is_read = False
        self._until = time.monotonic() + _IDLE
        return os.dup(self._file)

    def rest(self, sock: socket.socket) -> None:
        """Waits for the next request as long as memory is kept for it, and then gives it back. It comes over the same
        socket each time."""
        if self._until:
            if self._poll is None:
                self._poll = select.poll()
                self._poll.register(sock, select.POLLIN)
            if not self._poll.poll(max(0.0, self._until - time.monotonic()) * 1e3):
                self.give_back()

    def give_back(self) -> None:
        """Gives back all that is free."""
        self._until = 0.0
        self._keep(False)
        self._close()
        self._callers.drop()
        heap.give_back()

    def _keep(self, much: bool) -> None:
        if much != self._is_much:
            self._is_much = much
            self._set_heap()

    def _set_heap(self) -> None:
        most = self.most if self._is_much else min(self.most, _ALWAYS)
        heap.keep_freed_memory(most, large_blocks=self._is_much)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._own.drop()
        self._is_read = True

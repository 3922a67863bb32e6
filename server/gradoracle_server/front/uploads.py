"""Attachments of a stream's calls while they arrive: raw tensor bytes, put into a memory file piece by piece."""

from __future__ import annotations

import os

from gradoracle_server.frames import Attachments
from gradoracle_server.front import statuses

_ALIGNMENT = 64  # bytes; what the widest vector instructions like
_RETRY_AFTER = 1.0  # seconds; how soon other calls' attachments are done with is anyone's guess


class Budget:
    """The bytes of attachments that the front holds, for all streams together. A limit of 0 is none."""

    def __init__(self, limit: int, tensor_limit: int) -> None:
        self.limit = limit
        self.tensor_limit = tensor_limit
        self.held = 0


class Upload:
    """The attachments of one call.

    A fault does not raise but stays in `failure`, to be answered when the call itself comes; what still arrives of the
    attachments then is dropped.
    """

    def __init__(self, budget: Budget, call_id: int) -> None:
        self.failure: statuses.Failure | None = None
        self.spans: list[tuple[int, int]] = []
        self.held = 0  # bytes counted against the budget
        self._budget = budget
        self._call_id = call_id
        self._descriptor = -1

    def add(self, attachment: int, data: memoryview) -> None:
        """Appends a piece to an attachment, the last one or the next."""
        if self.failure is not None:
            return
        try:
            self.failure = self._add(attachment, data)
        except OSError as error:  # no memory or no descriptors left
            self.failure = statuses.internal(error, "keeping an attachment")
        if self.failure is not None:
            self.close()

    def attachments(self) -> Attachments | None:
        """All of them. The caller owns the memory file; `close` still gives the bytes back to the budget."""
        if self._descriptor < 0:
            return None
        os.ftruncate(self._descriptor, max(self._end(), _ALIGNMENT))  # an empty file could not be mapped
        made = Attachments(self._descriptor, self.spans)
        self._descriptor = -1
        return made

    def close(self) -> None:
        """Gives everything back. May be called again."""
        self._budget.held -= self.held
        self.held = 0
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, attachment: int, data: memoryview) -> statuses.Failure | None:
        if attachment == len(self.spans):
            self.spans.append((-(-self._end() // _ALIGNMENT) * _ALIGNMENT, 0))
        elif attachment != len(self.spans) - 1:
            text = f"chunks: expected attachment {max(0, len(self.spans) - 1)} or {len(self.spans)} of call"
            return statuses.malformed("Stream", f"{text} {self._call_id}, got {attachment}")
        if self._descriptor < 0:
            self._descriptor = os.memfd_create("gradoracle", os.MFD_CLOEXEC)
        start, length = self.spans[-1]
        if (failure := self._over(attachment, length + len(data), len(data))) is not None:
            return failure
        self._budget.held += len(data)
        self.held += len(data)
        offset = start + length
        self.spans[-1] = (start, length + len(data))
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written
        return None

    def _over(self, attachment: int, length: int, more: int) -> statuses.Failure | None:
        budget = self._budget
        if budget.tensor_limit and length > budget.tensor_limit:
            what = f"attachment {attachment} of call {self._call_id}"
            return statuses.limit_exceeded(what, "--max-tensor-bytes", budget.tensor_limit, length)
        if budget.limit and self.held + more > budget.limit:
            what = f"the attachments of call {self._call_id}"
            return statuses.limit_exceeded(what, "--max-queue-bytes", budget.limit, self.held + more)
        if budget.limit and budget.held + more > budget.limit:
            return statuses.overloaded("attachments", "--max-queue-bytes", budget.limit, _RETRY_AFTER)
        return None

    def _end(self) -> int:
        return sum(self.spans[-1]) if self.spans else 0

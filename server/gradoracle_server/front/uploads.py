"""Attachments of a stream's calls while they arrive: raw tensor bytes, put into a memory file piece by piece."""

from __future__ import annotations

import os

from gradoracle_server.frames import Attachments
from gradoracle_server.front import statuses
from gradoracle_server.front.attached import tensor_of
from gradoracle_server.front.files import LARGE, File, Files, Holder

_ALIGNMENT = 64  # bytes; what the widest vector instructions like
_RETRY_AFTER = 1.0  # seconds; how soon other calls' attachments are done with is anyone's guess


class Budget:
    """The bytes of attachments that the front holds, for all streams together. A limit of 0 is none."""

    def __init__(self, limit: int, tensor_limit: int, *, again: bool = False) -> None:
        """`again`: files are used again, because one worker runs all requests."""
        self.limit = limit
        self.tensor_limit = tensor_limit
        self.held = 0
        self.files = Files(again=again)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be held beside what is held already."""
        return not self.limit or self.held + size <= self.limit

    def over_tensor(self, what: str, length: int, *, field: str = "") -> statuses.Failure | None:
        """The failure of an attachment that is larger than a tensor may be; `field` as in `limit_exceeded`."""
        if self.tensor_limit and length > self.tensor_limit:
            return statuses.limit_exceeded(what, "--max-tensor-bytes", self.tensor_limit, length, field=field)
        return None

    def over(self, what: str, size: int, more: int, *, field: str = "") -> statuses.Failure | None:
        """The failure of a call whose attachments, `size` bytes with `more` that have just come, find no room."""
        if self.limit and size > self.limit:
            return statuses.limit_exceeded(what, "--max-queue-bytes", self.limit, size, field=field)
        if self.limit and self.held + more > self.limit:
            return statuses.overloaded("attachments", "--max-queue-bytes", self.limit, _RETRY_AFTER)
        return None


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
        self._too_large: tuple[int, int] | None = None  # the attachment over a limit, and the bytes that came of it
        self._file: File | None = None
        self._given: File | None = None  # the same, once a worker may have it: nothing is written into it any more

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

    def fail(self, failure: statuses.Failure) -> None:
        """The call will be answered with this."""
        self.failure = failure
        self.close()

    def failure_of(self, request: bytes | memoryview, method: str, attachments: int) -> statuses.Failure | None:
        """The failure, once the call has come: with the name of the tensor that is over a limit, where it tells that.

        `attachments` is their number: of one alone, all are over where it is.
        """
        if self._too_large is None:
            return self.failure
        place, size = self._too_large
        field = tensor_of(request, method, place)
        failure = self._budget.over_tensor("", size, field=field) if field else None
        if field and failure is None and attachments == 1:
            failure = self._budget.over("", size, 0, field=field)
        return failure or self.failure

    def attachments(self) -> Attachments | None:
        """All of them. The caller owns the memory file; `close` still gives the bytes back to the budget."""
        file, self._file = self._file, None
        if file is None:
            return None
        if max(file.size, self._end()) < _ALIGNMENT:
            os.ftruncate(file.descriptor, _ALIGNMENT)  # an empty file could not be mapped
        if max(file.size, self.held) < LARGE:
            return Attachments(file.descriptor, self.spans)
        if self._budget.has_room(self.held):
            self._budget.files.make_ready(self.held)
        # The file is kept as well: whoever closes it last gives its pages back, and that is to be another thread.
        self._given = file
        return Attachments(os.dup(file.descriptor), self.spans, on_give=self._give)

    def close(self, *, answered: bool = False) -> None:
        """Gives everything back. May be called again. `answered`: by whoever was given it, who is done with it."""
        given, self._given = self._given, None
        file, self._file = self._file, None
        held, self.held = self.held, 0
        self._budget.held -= held
        if file is not None:
            self._budget.files.discard(file, max(file.size, held))
        if given is not None:
            size = max(given.size, self._end())
            again = answered and self._budget.has_room(self._budget.files.ready + size)
            self._budget.files.discard(given, size, again=again)

    def _give(self, attachments: Attachments, holder: Holder) -> None:
        """A worker is about to be passed the file. Another than the one that may see what else is in it gets a copy."""
        file = self._given
        if file is None or file.holder is holder:
            return
        if file.is_used and file.holder is not None:
            own, attachments.descriptor = attachments.descriptor, file.copied(attachments.end)
            os.close(own)
        else:
            file.holder = holder

    def _add(self, attachment: int, data: memoryview) -> statuses.Failure | None:
        if attachment == len(self.spans):
            self.spans.append((-(-self._end() // _ALIGNMENT) * _ALIGNMENT, 0))
        elif attachment != len(self.spans) - 1:
            text = f"chunks: expected attachment {max(0, len(self.spans) - 1)} or {len(self.spans)} of call"
            return statuses.malformed("Stream", f"{text} {self._call_id}, got {attachment}")
        if self._file is None:
            self._file = self._budget.files.take(len(data))
        start, length = self.spans[-1]
        if (failure := self._over(attachment, length + len(data), len(data))) is not None:
            return failure
        self._budget.held += len(data)
        self.held += len(data)
        offset = start + length
        self.spans[-1] = (start, length + len(data))
        self._file.write(data, offset)
        return None

    def _over(self, attachment: int, length: int, more: int) -> statuses.Failure | None:
        failure = self._budget.over_tensor(f"attachment {attachment} of call {self._call_id}", length)
        failure = failure or self._budget.over(f"the attachments of call {self._call_id}", self.held + more, more)
        if failure is not None:
            self._too_large = attachment, length
        return failure

    def _end(self) -> int:
        return sum(self.spans[-1]) if self.spans else 0

"""What passes between the front and a worker, over one Unix stream socket.

    front  -- Job -->   worker      small ones may be sent before the reply to the one that it has; it answers in turn
    front  <-- Reply -- worker      the first reply, unasked, is the worker's greeting

The front may take back a small one (`withdrawal`) that the worker has not begun with; it is answered too, by `NOT_RUN`.

A message is an envelope, a fixed-size head, a table of attachments, and a payload. A payload of `SHARED_FROM` bytes or
more does not go through the socket but lies in an anonymous memory file (memfd): a megabyte through a socket costs two
copies and a wake-up for each 200 kB, through a memory file one copy. Up to `lanes.MOST` bytes it is the file of the
side's own lane, whose descriptor is passed once; beyond, one of the payload's own, whose descriptor goes along. The
memory has no name and belongs to whoever holds a descriptor, so nothing is left behind however either side dies.

Attachments are the raw bytes of large tensors (`Tensor.attachment`), one after another in a memory file of their own.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradoracle_server import lanes
from gradoracle_server.envelope import (
    AHEAD,
    ALL_READ,
    ATTACHMENTS_WELCOME,
    CALLERS_MEMORY,
    ENVELOPE,
    HAS_ATTACHMENTS,
    IN_LANE,
    NEW_LANE,
    PAYLOAD_IN_MEMORY,
    SHARED_FROM,
    SPAN,
    WITHOUT_DESCRIPTOR,
)
from gradoracle_server.lanes import Outlet

METHODS = (
    "Evaluate",
    "ComputeVjp",
    "ComputeJvp",
    "ComputeJacobian",
    "ComputeHessian",
    "CheckGradients",
    "InspectGraph",
    "ListOperators",
)
"""The methods that workers answer; a job carries the index."""

_WITHDRAWAL = len(METHODS)

PHASES = ("queue", "decode", "plan", "forward", "backward", "check", "encode")
"""In the order of `Timing`'s fields. A worker leaves queue at 0; the front fills it in."""


@dataclasses.dataclass(slots=True)
class Attachments:
    """Raw tensor bytes in a memory file: `spans[i]` is the offset and length of attachment i.

    Whoever receives an instance owns the descriptor and closes it. Where `callers` holds, the file is the caller's own,
    who may change its bytes at any time and wants the answer's attachments in it too, behind these; then the reply's
    have no descriptor (-1). `owner` tells callers apart, for a worker that keeps their files mapped; 0: somebody.
    """

    descriptor: int
    spans: Sequence[tuple[int, int]]
    callers: bool = False
    owner: int = dataclasses.field(default=0, compare=False)
    on_close: Callable[[], None] | None = dataclasses.field(default=None, compare=False, repr=False)
    on_give: Callable[[Attachments, Any], None] | None = dataclasses.field(default=None, compare=False, repr=False)
    """Called before a worker is passed the file, with the connection to it; may put another in its place."""
    room: memoryview | None = dataclasses.field(default=None, compare=False, repr=False)
    """The file up to the end of the attachments, where it is mapped already."""

    @property
    def end(self) -> int:
        """Where the last of them ends."""
        return max((start + length for start, length in self.spans), default=0)

    def map(self) -> mmap.mmap:
        """The file up to the end of the attachments, mapped writable and private: writes stay in this process."""
        return mmap.mmap(self.descriptor, self.end, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Some of the file's bytes, until `close`."""
        return os.pread(self.descriptor, length, start) if self.room is None else self.room[start : start + length]

    def close(self) -> None:
        """Gives the memory back as far as this process is concerned. May be called again."""
        self.room = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            if self.on_close is not None:
                self.on_close()


@dataclasses.dataclass(slots=True)
class Job:
    """A request for a worker."""

    method: int  # index into METHODS
    payload: bytes | memoryview  # the serialized request, as the client sent it
    attachments: Attachments | None = None
    attachments_welcome: bool = False  # whether the reply may hold tensors in attachments
    ahead: bool = False  # whether it was sent while the worker had others, whose replies the front may not have read
    all_read: bool = False  # whether the front has done with the attachments of every reply

    HEAD = struct.Struct("<Q")
    """The owner of attachments, where that is known; else a job has none."""

    def head(self) -> bytes:
        owner = self.attachments.owner if self.attachments is not None else 0
        return self.HEAD.pack(owner) if owner else b""

    @classmethod
    def received(
        cls, kind: int, flags: int, head: memoryview, payload: bytes | memoryview, attachments: Attachments | None
    ) -> Job:
        """Made of the parts of a message."""
        if attachments is not None and len(head):
            (attachments.owner,) = cls.HEAD.unpack(head)
        welcome, ahead = bool(flags & ATTACHMENTS_WELCOME), bool(flags & AHEAD)
        return cls(kind, payload, attachments, welcome, ahead, bool(flags & ALL_READ))

    @property
    def flags(self) -> int:
        """What a message says of it."""
        return (ATTACHMENTS_WELCOME if self.attachments_welcome else 0) | (ALL_READ if self.all_read else 0)


@dataclasses.dataclass(slots=True)
class Reply:
    """A worker's answer.

    `code` is a gRPC status code as an int. With 0 the payload is the serialized response without its timing; else it is
    a serialized google.rpc.Status. A greeting has code 0 and a payload of JSON.
    """

    code: int
    payload: bytes | memoryview
    attachments: Attachments | None = None
    phases: tuple[float, ...] = (0.0,) * len(PHASES)  # seconds, in the order of PHASES
    plan_cache: int = 0  # 0 not asked, 1 hit, 2 miss
    verdict: int = 0  # gradoracle.v1.Verdict, 0 where none
    tensor_bytes_in: int = 0
    tensor_bytes_out: int = 0
    memory_allocated: int = 0  # bytes: a CPU worker's resident set, a GPU worker's allocated tensors
    memory_reserved: int = 0  # bytes: a GPU worker's reserved pool, else 0
    tail: Sequence[bytes | memoryview] = ()  # more of the payload, in pieces, where it is sent; what arrives is whole
    is_timed: bool = False  # whether the front has put the timing behind the payload

    HEAD = struct.Struct("<iBB2x7d4Q")

    def head(self) -> bytes:
        return self.HEAD.pack(
            self.code,
            self.plan_cache,
            self.verdict,
            *self.phases,
            self.tensor_bytes_in,
            self.tensor_bytes_out,
            self.memory_allocated,
            self.memory_reserved,
        )

    @classmethod
    def received(
        cls, _kind: int, _flags: int, head: memoryview, payload: bytes | memoryview, attachments: Attachments | None
    ) -> Reply:
        """Made of the parts of a message."""
        values = cls.HEAD.unpack(head)
        code, plan_cache, verdict = values[:3]
        return cls(code, payload, attachments, values[3:10], plan_cache, verdict, *values[10:])


NOT_RUN = Reply(1, b"")  # gRPC's CANCELLED
"""The reply to a job that was taken back in time."""


def is_not_run(reply: Reply) -> bool:
    """Whether this is the reply to a job that was taken back in time. Errors have a payload."""
    return reply.code == NOT_RUN.code and not reply.payload


def withdrawal(numbers: Sequence[int]) -> Job:
    """What takes back jobs, by their numbers: 1 is the first that the worker was sent."""
    return Job(_WITHDRAWAL, struct.pack(f"<{len(numbers)}Q", *numbers))


def withdrawn_jobs(job: Job) -> tuple[int, ...] | None:
    """The numbers of the jobs that this message takes back; None where it is a job itself."""
    return struct.unpack(f"<{len(job.payload) // 8}Q", job.payload) if job.method == _WITHDRAWAL else None


Message = TypeVar("Message", Job, Reply)


class PayloadError(OSError):
    """There is no memory, or no descriptor, for a payload. Of a message that was to be sent nothing has gone; one that
    came is taken off the socket, and those behind it can be read."""


def parts(message: Job | Reply, outlet: Outlet | None = None) -> tuple[list[bytes | memoryview], list[int], int | None]:
    """What to send for a message: buffers in order, descriptors to pass, and of those the one to close afterwards.

    Of a message that is not sent then, the outlet must be closed, for the other side does not know it.
    """
    flags = 0
    descriptors: list[int] = []
    own = None
    pieces = [message.payload, *_tail(message)]
    size = sum(map(len, pieces))
    if size >= SHARED_FROM:
        flags |= PAYLOAD_IN_MEMORY
        if outlet is None or size > lanes.MOST or not outlet.is_free:
            own = lanes.memory_file(pieces)
            descriptors.append(own)
        else:
            flags |= IN_LANE
            if (fresh := outlet.put(pieces, size)) is not None:
                flags |= NEW_LANE
                descriptors.append(fresh)
        pieces = []
    table = b""
    count = 0
    if message.attachments is not None:
        flags |= HAS_ATTACHMENTS
        if message.attachments.callers:
            flags |= CALLERS_MEMORY
        if message.attachments.descriptor >= 0:
            descriptors.append(message.attachments.descriptor)
        else:
            flags |= WITHOUT_DESCRIPTOR
        count = len(message.attachments.spans)
        table = b"".join(SPAN.pack(*span) for span in message.attachments.spans)
    if isinstance(message, Job):
        kind = message.method
        flags |= message.flags
    else:
        kind = 0
    head = message.head()
    envelope = ENVELOPE.pack(flags, kind, len(head), count, size)
    return [envelope + head + table, *pieces], descriptors, own


def _tail(message: Job | Reply) -> Sequence[bytes | memoryview]:
    return message.tail if isinstance(message, Reply) else ()


def whole(message: Job | Reply, *, ahead: bool = False) -> bytes | None:
    """A message in one piece, as nearly all are; None where there is more to pass than bytes through the socket. A job
    is sent `ahead` where the worker has others."""
    size = len(message.payload)
    if size >= SHARED_FROM or message.attachments is not None:
        return None
    if isinstance(message, Job):
        flags = message.flags & ~ALL_READ | AHEAD if ahead else message.flags
        return ENVELOPE.pack(flags, message.method, 0, 0, size) + message.payload
    if message.tail:
        return None
    head = message.head()
    return b"".join((ENVELOPE.pack(0, 0, len(head), 0, size), head, message.payload))


def send(sock: socket.socket, message: Job | Reply, outlet: Outlet | None = None) -> None:
    """Sends a message over a blocking socket, a large payload through the outlet where there is one. Raises
    PayloadError."""
    if (data := whole(message)) is not None:
        sock.sendall(data)
        return
    try:
        buffers, descriptors, own = parts(message, outlet)
    except OSError as error:
        raise PayloadError(*error.args) from None
    try:
        sent = socket.send_fds(sock, buffers, descriptors) if descriptors else sock.sendmsg(buffers)
        for buffer in buffers:
            if sent >= len(buffer):
                sent -= len(buffer)
            else:
                sock.sendall(memoryview(buffer)[sent:])
                sent = 0
    finally:
        if own is not None:
            os.close(own)

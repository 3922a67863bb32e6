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
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from gradoracle_server import lanes
from gradoracle_server.lanes import Inlet, Outlet
from gradoracle_server.mapping import mapped

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

SHARED_FROM = 256 * 1024
"""Payloads of this many bytes or more go through a memory file."""

_ENVELOPE = struct.Struct("<HBBIQ")  # flags, kind, length of the head, attachments, bytes of payload
_SPAN = struct.Struct("<QQ")  # offset and length of one attachment
_PAYLOAD_IN_MEMORY = 1
_HAS_ATTACHMENTS = 2
_ATTACHMENTS_WELCOME = 4
_CALLERS_MEMORY = 8
_WITHOUT_DESCRIPTOR = 16
_IN_LANE = 32
_NEW_LANE = 64
_AHEAD = 128
_ALL_READ = 256
_HEAD_AT_MOST = 128  # bytes
_ANCILLARY = socket.CMSG_SPACE(2 * struct.calcsize("i"))  # room for two descriptors
_RECEIVED = int(socket.MSG_CMSG_CLOEXEC)  # a plain number: to combine Python's flags takes longer than the system call
_CUT = int(socket.MSG_CTRUNC)
_READ = 256 * 1024 + 4096  # one read takes the largest inline message that a default socket buffer can hold


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
        welcome, ahead = bool(flags & _ATTACHMENTS_WELCOME), bool(flags & _AHEAD)
        return cls(kind, payload, attachments, welcome, ahead, bool(flags & _ALL_READ))

    @property
    def flags(self) -> int:
        """What a message says of it."""
        return (_ATTACHMENTS_WELCOME if self.attachments_welcome else 0) | (_ALL_READ if self.all_read else 0)


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
        flags |= _PAYLOAD_IN_MEMORY
        if outlet is None or size > lanes.MOST or not outlet.is_free:
            own = lanes.memory_file(pieces)
            descriptors.append(own)
        else:
            flags |= _IN_LANE
            if (fresh := outlet.put(pieces, size)) is not None:
                flags |= _NEW_LANE
                descriptors.append(fresh)
        pieces = []
    table = b""
    count = 0
    if message.attachments is not None:
        flags |= _HAS_ATTACHMENTS
        if message.attachments.callers:
            flags |= _CALLERS_MEMORY
        if message.attachments.descriptor >= 0:
            descriptors.append(message.attachments.descriptor)
        else:
            flags |= _WITHOUT_DESCRIPTOR
        count = len(message.attachments.spans)
        table = b"".join(_SPAN.pack(*span) for span in message.attachments.spans)
    if isinstance(message, Job):
        kind = message.method
        flags |= message.flags
    else:
        kind = 0
    head = message.head()
    envelope = _ENVELOPE.pack(flags, kind, len(head), count, size)
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
        flags = message.flags & ~_ALL_READ | _AHEAD if ahead else message.flags
        return _ENVELOPE.pack(flags, message.method, 0, 0, size) + message.payload
    if message.tail:
        return None
    head = message.head()
    return b"".join((_ENVELOPE.pack(0, 0, len(head), 0, size), head, message.payload))


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


class Inbox(Generic[Message]):
    """Puts the messages of one kind together again from what arrives on a socket.

    Nearly every message arrives whole in one read, and is then taken from the read buffer, which is allocated once. A
    payload that is a memoryview may be written over once the other side may send the next message.
    """

    def __init__(self, kind: type[Message]) -> None:
        self._received: Callable[..., Message] = kind.received
        self._inlet = Inlet()
        self._room = memoryview(bytearray(_READ))
        self._pending = bytearray()  # the beginning of a message that has not arrived whole
        self._descriptors: list[int] = []
        self._is_cut = False  # whether descriptors came for which this process had no room

    def read(self, sock: socket.socket, flags: int = 0) -> Message | None:
        """Reads once, with `flags` of recvmsg. Returns a message when one is complete, else None.

        Raises EOFError when the other side has gone, BlockingIOError when the socket is empty and must not block,
        PayloadError, and ValueError when what arrived is no message.
        """
        size, ancillary, how, _ = sock.recvmsg_into([self._room], _ANCILLARY, _RECEIVED | flags)
        if how & _CUT:
            self._is_cut = True
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += memoryview(data[: len(data) - len(data) % 4]).cast("i")
        if not size:
            raise EOFError("the other side closed the socket")
        if not self._pending:
            message, end = self._take(self._room, size)
            if end < size:
                self._pending += self._room[end:size]
            return _readable(message)
        self._pending += self._room[:size]
        return self.next()

    def next(self) -> Message | None:
        """A message that has arrived whole with another one, if there is any. Raises PayloadError and ValueError as
        `read` does."""
        if not self._pending:
            return None
        with memoryview(self._pending) as pending:
            message, end = self._take(pending, len(pending))
        del self._pending[:end]
        return _readable(message)

    def wait(self, sock: socket.socket) -> Message:
        """Reads a blocking socket until a message is complete. Raises as `read` does."""
        message = self.next()
        while message is None:
            message = self.read(sock)
        return message

    def close(self) -> None:
        """Closes descriptors that came with a message that never became complete, and of a lane never read."""
        self._inlet.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _take(self, buffer: memoryview, filled: int) -> tuple[Message | PayloadError | None, int]:
        """The message at the start of the buffer, or why it cannot be read, and where it ends; None and 0 while it is
        not complete."""
        if filled < _ENVELOPE.size:
            return None, 0
        flags, kind, head_size, count, size = _ENVELOPE.unpack_from(buffer)
        in_memory = flags & _PAYLOAD_IN_MEMORY
        if head_size > _HEAD_AT_MOST or (size >= SHARED_FROM and not in_memory):
            raise ValueError(f"expected an envelope, got {bytes(buffer[: _ENVELOPE.size]).hex()}")
        head_end = _ENVELOPE.size + head_size
        table_end = head_end + count * _SPAN.size
        end = table_end + (0 if in_memory else size)
        if filled < end:
            return None, 0
        wanted = 1 if in_memory and (flags & _NEW_LANE or not flags & _IN_LANE) else 0
        wanted += 1 if flags & _HAS_ATTACHMENTS and not flags & _WITHOUT_DESCRIPTOR else 0
        if len(self._descriptors) < wanted:
            if self._is_cut:
                self._is_cut = False
                self.close()  # what came of them
                return PayloadError(errno.EMFILE, os.strerror(errno.EMFILE)), end
            raise ValueError(f"expected {wanted} descriptors with the message, got {len(self._descriptors)}")
        spans = list(_SPAN.iter_unpack(buffer[head_end:table_end])) if count else []
        payload: bytes | memoryview
        try:
            payload = self._from_memory(flags, size) if in_memory else bytes(buffer[table_end:end])
        except OSError as error:
            if flags & _HAS_ATTACHMENTS and not flags & _WITHOUT_DESCRIPTOR:
                os.close(self._descriptors.pop(0))
            return PayloadError(*error.args), end
        attachments = None
        if flags & _HAS_ATTACHMENTS:
            descriptor = -1 if flags & _WITHOUT_DESCRIPTOR else self._descriptors.pop(0)
            attachments = Attachments(descriptor, spans, bool(flags & _CALLERS_MEMORY))
        head = buffer[_ENVELOPE.size : head_end]
        try:
            return self._received(kind, flags, head, payload, attachments), end
        except struct.error as error:
            raise ValueError(f"expected another head: {error}") from None

    def _from_memory(self, flags: int, size: int) -> bytes | memoryview:
        """A payload that lies in a memory file. Raises ValueError where it does not, OSError where it cannot be mapped;
        its descriptor is taken in any case."""
        if not flags & _IN_LANE:
            room = mapped(self._descriptors.pop(0), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            if len(room) != size:
                raise ValueError(f"expected a memory file of {size} bytes, got one of {len(room)}")
            return room
        if flags & _NEW_LANE:
            self._inlet.renew(self._descriptors.pop(0))
        return self._inlet.take(size)


def _readable(message: Message | PayloadError | None) -> Message | None:
    """The message. Raises what it is instead."""
    if isinstance(message, PayloadError):
        raise message
    return message

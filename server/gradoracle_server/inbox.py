"""What has arrived of the messages between the front and a worker (`frames`)."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import Generic

from gradoracle_server.envelope import (
    CALLERS_MEMORY,
    ENVELOPE,
    HAS_ATTACHMENTS,
    HEAD_AT_MOST,
    IN_LANE,
    NEW_LANE,
    PAYLOAD_IN_MEMORY,
    SHARED_FROM,
    SPAN,
    WITHOUT_DESCRIPTOR,
)
from gradoracle_server.frames import Attachments, Message, PayloadError
from gradoracle_server.lanes import Inlet
from gradoracle_server.mapping import mapped

_ANCILLARY = socket.CMSG_SPACE(2 * struct.calcsize("i"))  # room for two descriptors
_RECEIVED = int(socket.MSG_CMSG_CLOEXEC)  # a plain number: to combine Python's flags takes longer than the system call
_CUT = int(socket.MSG_CTRUNC)
_READ = 256 * 1024 + 4096  # one read takes the largest inline message that a default socket buffer can hold


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
        if filled < ENVELOPE.size:
            return None, 0
        flags, kind, head_size, count, size = ENVELOPE.unpack_from(buffer)
        in_memory = flags & PAYLOAD_IN_MEMORY
        if head_size > HEAD_AT_MOST or (size >= SHARED_FROM and not in_memory):
            raise ValueError(f"expected an envelope, got {bytes(buffer[: ENVELOPE.size]).hex()}")
        head_end = ENVELOPE.size + head_size
        table_end = head_end + count * SPAN.size
        end = table_end + (0 if in_memory else size)
        if filled < end:
            return None, 0
        wanted = 1 if in_memory and (flags & NEW_LANE or not flags & IN_LANE) else 0
        wanted += 1 if flags & HAS_ATTACHMENTS and not flags & WITHOUT_DESCRIPTOR else 0
        if len(self._descriptors) < wanted:
            if self._is_cut:
                self._is_cut = False
                self.close()  # what came of them
                return PayloadError(errno.EMFILE, os.strerror(errno.EMFILE)), end
            raise ValueError(f"expected {wanted} descriptors with the message, got {len(self._descriptors)}")
        spans = list(SPAN.iter_unpack(buffer[head_end:table_end])) if count else []
        payload: bytes | memoryview
        try:
            payload = self._from_memory(flags, size) if in_memory else bytes(buffer[table_end:end])
        except OSError as error:
            if flags & HAS_ATTACHMENTS and not flags & WITHOUT_DESCRIPTOR:
                os.close(self._descriptors.pop(0))
            return PayloadError(*error.args), end
        attachments = None
        if flags & HAS_ATTACHMENTS:
            descriptor = -1 if flags & WITHOUT_DESCRIPTOR else self._descriptors.pop(0)
            attachments = Attachments(descriptor, spans, bool(flags & CALLERS_MEMORY))
        head = buffer[ENVELOPE.size : head_end]
        try:
            return self._received(kind, flags, head, payload, attachments), end
        except struct.error as error:
            raise ValueError(f"expected another head: {error}") from None

    def _from_memory(self, flags: int, size: int) -> bytes | memoryview:
        """A payload that lies in a memory file. Raises ValueError where it does not, OSError where it cannot be mapped;
        its descriptor is taken in any case."""
        if not flags & IN_LANE:
            room = mapped(self._descriptors.pop(0), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            if len(room) != size:
                raise ValueError(f"expected a memory file of {size} bytes, got one of {len(room)}")
            return room
        if flags & NEW_LANE:
            self._inlet.renew(self._descriptors.pop(0))
        return self._inlet.take(size)


def _readable(message: Message | PayloadError | None) -> Message | None:
    """The message. Raises what it is instead."""
    if isinstance(message, PayloadError):
        raise message
    return message

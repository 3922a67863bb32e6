"""Memory files that callers on this machine share: a Unix socket beside gRPC's, over which they hand their descriptors.

What passes over it, and how a request names a file, is told at SharedMemory in service.proto. Whoever may open the
socket may offer files; a file is then used by calls that bring the server's credentials, as all do, and its token,
which only the connection that offered it was told. The front passes descriptors on and never maps a file: it reads
sizes, which cannot shrink, and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import logging
import os
import resource
import secrets
import socket
import threading

from google.protobuf.message import DecodeError

from gradoracle.v1 import service_pb2
from gradoracle_server.frames import Attachments
from gradoracle_server.front import statuses, wire
from gradoracle_server.front.attached import tensor_of
from gradoracle_server.front.places import Place
from gradoracle_server.front.uploads import Budget

FILES_AT_MOST = 64
"""Files of one connection."""

OFFER, TAKE_BACK = 1, 2
"""The first byte of a message from a caller."""

TAKEN, REFUSED, NO_ROOM = 0, 1, 2
"""The first byte of an answer to an offer."""

_BACKLOG = 128  # connections that wait to be taken
_TOKEN = 16  # bytes
_MESSAGE_AT_MOST = 64  # bytes of a message from a caller
_FIELD_AT_MOST = 64 * 1024  # bytes of a request's field `memory`
_NEEDED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_NONE_LEFT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_REST = 1.0  # seconds in which nobody is taken after there was no descriptor or memory for one
_UNWELCOME = fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | 0x10  # the last is F_SEAL_FUTURE_WRITE of <linux/fcntl.h>

_log = logging.getLogger(__name__)


_numbers = itertools.count(1)  # of connections


class _File:
    """A file that a connection has offered."""

    def __init__(self, descriptor: int, owner: int) -> None:
        self.descriptor = descriptor
        self.owner = owner  # the number of the connection
        self.uses = 0  # the number of the last one


class Use:
    """What one call takes of a file. Its bytes count against the budget until `close`."""

    def __init__(self, budget: Budget, file: _File, number: int, attachments: Attachments, size: int) -> None:
        self.attachments = attachments
        self._budget = budget
        self._file = file
        self._number = number
        self._held = size
        budget.held += size

    def begin(self) -> None:
        """The call was let in: this use is no other call's any more."""
        self._file.uses = self._number

    def close(self) -> None:
        """Gives everything back. May be called again."""
        self._budget.held -= self._held
        self._held = 0
        self.attachments.close()


class SharedMemory:
    """The socket, the connections to it, and the files that they have offered."""

    def __init__(self, place: Place, budget: Budget) -> None:
        self.place = place
        self.files: dict[bytes, _File] = {}  # by token
        self._budget = budget
        # The rest of the descriptors that the process may have are for calls.
        self._room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._connections: set[_Connection] = set()
        self._socket: socket.socket | None = None
        self._rest: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether it takes no more connections or files."""
        return len(self._connections) + len(self.files) >= self._room

    def open(self, permissions: int) -> None:
        """Listens. Raises OSError."""
        self._socket = self.place.listening(socket.SOCK_SEQPACKET, _BACKLOG, permissions)
        self._listen()

    def close(self) -> None:
        """Ends all connections. May be called again."""
        self.refuse()
        for connection in list(self._connections):
            connection.close()

    def refuse(self) -> None:
        """Takes no more connections. May be called again."""
        if self._rest is not None:
            self._rest.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self.place.remove()

    def take(self, request: bytes | memoryview, method: str) -> tuple[bytes | memoryview, Use | None]:
        """The request without its field `memory`, and what that names; the field as a part of the request would make
        each call another one. Raises Failure where it names what is not there, or too much."""
        place = wire.memory(request)
        if place is None:
            return request, None
        start, contents, end = place
        rest = b"".join((request[:start], request[end:]))
        return rest, self._use(request[contents:end], method, rest)

    def _use(self, field: bytes | memoryview, method: str, rest: bytes) -> Use:
        if len(field) > _FIELD_AT_MOST:
            text = f"memory: expected at most {_FIELD_AT_MOST} bytes, which name thousands of spans, got {len(field)}"
            raise statuses.malformed(method, text)
        try:
            named = service_pb2.SharedMemory.FromString(bytes(field))
        except DecodeError:
            raise statuses.malformed(method, "memory: the bytes are no SharedMemory") from None
        file = self.files.get(named.token)
        if file is None:
            text = "expected the token of a file, got another: it was taken back, or the server has started anew"
            raise statuses.memory_unknown(f"{text}; offer the file again")
        if named.use <= file.uses:
            raise statuses.memory_unknown(f"expected use {file.uses + 1} of the file, or a later one, got {named.use}")
        spans = [(span.offset, span.length) for span in named.spans]
        size = os.fstat(file.descriptor).st_size  # which only grows
        for place, (offset, length) in enumerate(spans):
            if offset + length > size:
                text = f"memory: expected span {place} to end by byte {size}, where the file does"
                raise statuses.malformed(method, f"{text}, got {offset} + {length}")
        held = self._within_limits(spans, method, rest)
        try:
            descriptor = os.dup(file.descriptor)
        except OSError:  # none left; this caller's are free once it has given up the connection for this
            text = "the server has no descriptor left to take the file; send the bytes"
            raise statuses.memory_unknown(text) from None
        return Use(self._budget, file, named.use, Attachments(descriptor, spans, callers=True, owner=file.owner), held)

    def _within_limits(self, spans: list[tuple[int, int]], method: str, request: bytes) -> int:
        """The bytes of all spans. Raises Failure where they are too many, with the name of the tensor at fault, where
        the request tells it."""
        for place, (_, length) in enumerate(spans):
            if (failure := self._budget.over_tensor(f"attachment {place}", length)) is not None:
                field = tensor_of(request, method, place)
                raise (self._budget.over_tensor("", length, field=field) if field else None) or failure
        size = sum(length for _, length in spans)
        if (failure := self._budget.over("the attachments of the request", size, size)) is not None:
            field = tensor_of(request, method, 0) if len(spans) == 1 else ""
            raise (self._budget.over("", size, size, field=field) if field else None) or failure
        return size

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        if self._socket is None:
            return
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in _NONE_LEFT:  # the loop would call again and again
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket)
                self._rest = loop.call_later(_REST, self._listen)
            return  # else it has gone again
        if self.is_full or not self.place.admits(sock):
            sock.close()
            return
        sock.setblocking(False)
        self._connections.add(_Connection(self, sock))

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)


class _Connection:
    """One caller's."""

    def __init__(self, memory: SharedMemory, sock: socket.socket) -> None:
        self._memory = memory
        self._socket = sock
        self._tokens: set[bytes] = set()
        self._number = next(_numbers)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Takes back what it has offered."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for token in self._tokens:
            os.close(self._memory.files.pop(token).descriptor)
        self._tokens.clear()
        self._memory.forget(self)

    def _readable(self) -> None:
        try:
            data, descriptors, how, _ = socket.recv_fds(self._socket, _MESSAGE_AT_MOST, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, how = b"", [], 0
        kind, token = data[:1], data[1:]
        if kind == bytes((OFFER,)) and not token:
            if not descriptors and how & socket.MSG_CTRUNC:  # there was one, but this process has no room for it
                self._answer(NO_ROOM)
            else:
                self._offered(descriptors[0] if descriptors else -1)
            return
        for descriptor in descriptors:
            _give_away(descriptor)
        if kind == bytes((TAKE_BACK,)) and token in self._tokens:
            self._tokens.discard(token)
            os.close(self._memory.files.pop(token).descriptor)
        elif kind != bytes((TAKE_BACK,)):  # the end, or nothing that was agreed
            self.close()

    def _offered(self, descriptor: int) -> None:
        why = _unfit(descriptor)
        if why:
            if descriptor >= 0:
                _give_away(descriptor)
            self._answer(REFUSED, why.encode())
        elif len(self._tokens) >= FILES_AT_MOST or self._memory.is_full:
            os.close(descriptor)
            self._answer(NO_ROOM)
        else:
            token = secrets.token_bytes(_TOKEN)
            self._tokens.add(token)
            self._memory.files[token] = _File(descriptor, self._number)
            self._answer(TAKEN, token)

    def _answer(self, kind: int, contents: bytes = b"") -> None:
        try:
            self._socket.send(bytes((kind,)) + contents)
        except OSError:  # it has gone, or does not read what it asks for
            self.close()


def _unfit(descriptor: int) -> str:
    """Why a descriptor is not taken; empty where it is. Asks nothing of a file that could keep the front waiting."""
    expected = "expected the descriptor of a memory file"
    if descriptor < 0:
        return f"{expected}, got none"
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # what is no memory file has no seals
        return f"{expected}, got one of something else"
    if seals & _NEEDED != _NEEDED:
        return "expected a memory file sealed by F_SEAL_SHRINK and F_SEAL_SEAL, got one that is not"
    if seals & _UNWELCOME or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        return "expected a memory file that may be written and may grow, got one that may not"
    return ""


def _give_away(descriptor: int) -> None:
    """Closes what may be anything: some files keep whoever closes them waiting."""
    threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()

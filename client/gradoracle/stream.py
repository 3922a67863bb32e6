"""The client's side of Stream, but for the sending and receiving: what goes out and what came in, as bytes.

`Conversation` holds the calls of one stream. Whoever drives it, blocking or not, sends what `add` gives, hands it what
comes, and takes results out of `ready`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from google.rpc import status_pb2

from gradoracle import results, status, tensors, wire
from gradoracle.errors import GradOracleError, ServerUnavailableError
from gradoracle.requests import SERVICE, Request
from gradoracle.v1 import service_pb2

PATH = f"{SERVICE}Stream"

CHUNK = 1024 * 1024
"""Bytes of a tensor from which on it travels in chunks, and of such a chunk."""

UNARY_AT_MOST = 4 * 1024 * 1024
"""Bytes of tensors up to which a request goes in one message; above, no limit on messages would hold it.

Nor is one message quicker: median seconds of a vjp over loopback, as one message and in chunks, on 2 cores: 1 MiB 0.045
and 0.049, 4 MiB 0.033 and 0.021, 16 MiB 0.130 and 0.055, 64 MiB 1.16 and 0.32.
"""

# Field numbers of StreamRequest, StreamCall and Chunk.
_CALLS, _CHUNKS = 1, 2
_ID, _ATTACHMENTS = 1, 2
_CALL_ID, _ATTACHMENT, _DATA = 1, 2, 3


def parts(call_id: int, request: Request[Any]) -> Iterator[bytes]:
    """A call as StreamRequest messages, in order. Such messages joined are one, of all their calls and chunks."""
    pieces: list[wire.Piece] = [request.graph, request.head]
    attachments = 0
    for field, name, tensor in request.tensors:
        if tensor.data is None or len(tensor.data) < CHUNK:
            pieces += tensors.named_field(field, name, tensor)
            continue
        pieces += tensors.attached_field(field, name, tensor, attachments)
        for start in range(0, len(tensor.data), CHUNK):
            yield _chunk(call_id, attachments, tensor.data[start : start + CHUNK])
        attachments += 1
    head = wire.number_field(_ID, call_id)
    if attachments:
        head += wire.number_field(_ATTACHMENTS, attachments)
    length = wire.size(pieces)
    head += wire.prefix(request.method.stream_number, length)
    yield b"".join((wire.prefix(_CALLS, len(head) + length), head, *pieces))


def _chunk(call_id: int, attachment: int, data: wire.Piece) -> bytes:
    head = wire.number_field(_CALL_ID, call_id) + wire.number_field(_ATTACHMENT, attachment)
    head += wire.prefix(_DATA, len(data))
    return b"".join((wire.prefix(_CHUNKS, len(head) + len(data)), head, data))


class Bundle:
    """Puts messages that are ready together into one, up to the size of a chunk."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> bool:
        """Adds a message. Gives whether there is room for another."""
        self._parts.append(part)
        self._size += len(part)
        return self._size < CHUNK

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._parts

    def take(self) -> bytes:
        """The messages as one."""
        taken = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        return taken


def ended_early() -> GradOracleError:
    """The server ended a stream before it had answered every call."""
    return ServerUnavailableError("the server ended the stream before it had answered every call")


class Conversation:
    """The calls of one stream."""

    def __init__(self, *, window: int, ordered: bool, return_exceptions: bool) -> None:
        if window < 1:
            raise ValueError(f"window: expected 1 or more, got {window}")
        self._window = window
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._next = 0  # id of the next call, and its place among the requests
        self._waiting: dict[int, Request[Any]] = {}  # sent, not answered
        self._chunks: dict[int, list[list[bytes]]] = {}  # by call and attachment
        self._answers: dict[int, Any] = {}  # answered, not yet its turn
        self._turn = 0  # whose turn it is
        self._ready: deque[Any] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another call may be sent: results that nobody has taken count too, so that they cannot pile up."""
        return len(self._waiting) + len(self._answers) + len(self._ready) < self._window

    @property
    def is_waiting(self) -> bool:
        """Whether answers are to come."""
        return bool(self._waiting)

    def add(self, request: Request[Any]) -> Iterator[bytes]:
        """Takes up a call. Gives its messages, to be sent in order."""
        if not isinstance(request, Request):
            raise TypeError(
                f"expected requests as gradoracle.request(method, graph, primals, …) makes them, "
                f"got {type(request).__name__}"
            )
        call_id = self._next
        self._next += 1
        self._waiting[call_id] = request
        return parts(call_id, request)

    def receive(self, data: bytes) -> None:
        """Takes in a message from the server."""
        message = service_pb2.StreamResponse.FromString(data)
        for chunk in message.chunks:
            attachments = self._chunks.setdefault(chunk.call_id, [])
            while len(attachments) <= chunk.attachment:
                attachments.append([])
            attachments[chunk.attachment].append(chunk.data)
        for answer in message.answers:
            request = self._waiting.pop(answer.id, None)
            attached = [bytearray().join(one) for one in self._chunks.pop(answer.id, ())]
            if request is not None:
                self._answered(answer.id, request, _read(answer, request, attached))

    def _answered(self, call_id: int, request: Request[Any], result: Any) -> None:
        if isinstance(result, results.Result | results.Inspection | GradOracleError):
            result.tag = call_id if request.tag is None else request.tag
        if not self._ordered:
            self._ready.append(result)
            return
        self._answers[call_id] = result
        while self._turn in self._answers:
            self._ready.append(self._answers.pop(self._turn))
            self._turn += 1

    def ready(self) -> Iterator[Any]:
        """Results whose turn it is, each once. Raises what a call failed with, unless exceptions are results."""
        while self._ready:
            result = self._ready.popleft()
            if isinstance(result, GradOracleError) and not self._return_exceptions:
                raise result
            yield result


def _read(answer: service_pb2.StreamAnswer, request: Request[Any], attached: results.Attachments) -> Any:
    kind = answer.WhichOneof("response")
    if kind == "status":
        return status.from_status(status_pb2.Status.FromString(answer.status))
    if kind != request.method.stream_field:
        return GradOracleError(f"the server answered {request.method.rpc} with {kind or 'nothing'}", reason="INTERNAL")
    return request.method.read(getattr(answer, kind), attached)

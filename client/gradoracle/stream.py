"""The client's side of Stream, but for the sending and receiving: what goes out and what came in, as bytes.

`Conversation` holds the calls, which outlive a stream that breaks: they are pure, so those that are not answered may be
sent again over the next one. Whoever drives it, blocking or not, sends what `add` and `again` give, hands it what comes
to `receive`, tells it of the end of a stream by `broken`, and takes results out of `ready`.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from google.rpc import status_pb2

from gradoracle import results, status, tensors, wire
from gradoracle.answers import Incoming
from gradoracle.channel import ATTEMPTS, FIRST_PAUSE
from gradoracle.errors import GradOracleError, OverloadedError, ResourceLimitError, ServerUnavailableError
from gradoracle.outbox import Waiting
from gradoracle.requests import SERVICE, Request
from gradoracle.shared_memory import Memory, Use
from gradoracle.v1 import service_pb2

PATH = f"{SERVICE}Stream"

NO_MORE: Any = object()
"""What stands where requests end; None is no request, and an error."""

CHUNK = 1024 * 1024
"""Bytes of a tensor from which on it travels in chunks, and of such a chunk."""

UNARY_AT_MOST = 4 * 1024 * 1024
"""Bytes of tensors up to which a request goes in one message; above, no limit on messages would hold it.

Nor is one message quicker: median seconds of a vjp over loopback, as one message and in chunks, on 2 cores: 1 MiB 0.045
and 0.049, 4 MiB 0.033 and 0.021, 16 MiB 0.130 and 0.055, 64 MiB 1.16 and 0.32.
"""

BYTES = 64 * 1024 * 1024
"""Bytes of tensors at which nothing more is sent: of calls that are not answered, and of attachments of their answers
that nobody has taken. The call that reaches it is sent whole, so that a larger one is sent by itself."""

RESUMPTIONS = 10
"""How many streams in a row may break without an answer, where the server has answered before: it may be restarting."""

_LONGEST_PAUSE = 5.0  # seconds before another stream

PATIENCE = 600.0
"""Seconds without any answer but refusals, after which a refusal counts as an answer."""

# Field numbers of StreamRequest, StreamCall and Chunk.
_CALLS, _CHUNKS, _CANCELLED = 1, 2, 3
_ID, _ATTACHMENTS, _TIMEOUT = 1, 2, 12
_CALL_ID, _ATTACHMENT, _DATA = 1, 2, 3


def parts(call_id: int, request: Request[Any], timeout: float | None = None) -> Iterator[bytes]:
    """A call as StreamRequest messages, in order. Such messages joined are one, of all their calls and chunks.

    `timeout` is in seconds, where the call has one of its own.
    """
    pieces: list[wire.Piece] = [request.graph, request.head]
    attachments = 0
    for field, name, tensor in request.tensors:
        if tensor.data is None or len(tensor.data) < CHUNK:
            pieces += tensors.named_field(field, name, tensor)
            continue
        pieces.append(tensors.attached_field(field, name, tensor, attachments))
        for start in range(0, len(tensor.data), CHUNK):
            yield _chunk(call_id, attachments, tensor.data[start : start + CHUNK])
        attachments += 1
    yield _call(call_id, request, pieces, attachments, timeout)


def whole(call_id: int, request: Request[Any], use: Use, timeout: float | None = None) -> bytes:
    """A call as one message, of a request that has been put into memory."""
    return _call(call_id, request, use.pieces, 0, timeout)


def cancelled(call_id: int) -> bytes:
    """A message that says that nobody waits for a call any more."""
    return wire.number_field(_CANCELLED, call_id)


def _call(
    call_id: int, request: Request[Any], pieces: Sequence[wire.Piece], attachments: int, timeout: float | None = None
) -> bytes:
    head = wire.number_field(_ID, call_id)
    if attachments:
        head += wire.number_field(_ATTACHMENTS, attachments)
    if timeout is not None:
        head += wire.double_field(_TIMEOUT, timeout)
    length = wire.size(pieces)
    head += wire.prefix(request.method.stream_number, length)
    return b"".join((wire.prefix(_CALLS, len(head) + length), head, *pieces))


def _chunk(call_id: int, attachment: int, data: wire.Piece) -> bytes:
    head = wire.number_field(_CALL_ID, call_id) + wire.number_field(_ATTACHMENT, attachment)
    head += wire.prefix(_DATA, len(data))
    return b"".join((wire.prefix(_CHUNKS, len(head) + len(data)), head, data))


class Broken(Exception):  # noqa: N818 - not the caller's business: another stream goes on
    """A stream has ended before every call was answered; `failure` is why."""

    def __init__(self, failure: GradOracleError) -> None:
        super().__init__(failure)
        self.failure = failure


def ended_early() -> Broken:
    """The server ended a stream in order, but before it had answered every call."""
    return Broken(ServerUnavailableError("the server ended the stream before it had answered every call"))


class Conversation:
    """Calls over streams.

    A call that the server has no room for, or does not take any more because it shuts down, is sent again when the
    server says, and not before one that it has taken is answered: what it refuses is how it tells how much it takes.
    """

    def __init__(
        self, window: int, ordered: bool = True, return_exceptions: bool = False, memory: Memory | None = None
    ) -> None:
        if window < 1:
            raise ValueError(f"window: expected 1 or more, got {window}")
        self._window = window
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._memory = memory
        self._end = math.inf
        self._stream = 0  # how many have broken
        # Uses of memory, by stream and call. By stream, because whoever sends for one that has broken may not know yet.
        self._uses: dict[tuple[int, int], Use] = {}
        self._without: set[int] = set()  # calls whose use of memory was in vain
        self._next = 0  # id of the next call, and its place among the requests
        self._waiting: dict[int, Request[Any]] = {}  # not answered
        self._refused: deque[tuple[float, int]] = deque()  # of those, to be sent again: when at the earliest, and id
        self._taken = 0  # of those, how many are with the server or on the way there
        self._bytes = 0  # of those, and of the results that nobody has taken
        self._takes = float(window)  # how many it takes, as far as is known
        self._heard = 0.0  # when it last answered other than with a refusal
        self._breaks = 0  # streams in a row that broke without an answer
        self._may_break = ATTEMPTS  # so many of them, less one
        self._incoming = Incoming()
        self._answers: dict[int, tuple[Any, int]] = {}  # answered, not yet its turn: the result and its bytes
        self._turn = 0  # whose turn it is
        self._ready: deque[tuple[Any, int]] = deque()

    def begin(self, left: float | None) -> None:
        """Starts its time, so many seconds, which goes on over all of its streams; None where it has all the time."""
        self._end = math.inf if left is None else time.monotonic() + left

    @property
    def left(self) -> float | None:
        """The seconds that are left, 0 or fewer where it is late; None where it has all the time."""
        return None if self._end == math.inf else self._end - time.monotonic()

    def pause_before_another(self, broken: Broken, *, closed: bool) -> float:
        """The seconds after which another stream may go on. Raises what broke the last one where none may, as where
        the client was closed."""
        if closed:
            raise broken.failure from broken.__cause__
        return min(self.broken(broken.failure), max(0.0, self._end - time.monotonic()))

    @property
    def has_room(self) -> bool:
        """Whether another call may be sent: results that nobody has taken count too, so that they cannot pile up."""
        if self._refused or self._taken + 1 > self._takes or self._bytes >= BYTES:
            return False
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
        if not self._waiting:
            self._heard = time.monotonic()
        self._waiting[call_id] = request
        self._taken += 1
        self._bytes += request.tensor_bytes
        return self._messages(call_id, request)

    def connect(self, request: Request[Any]) -> None:
        """Comes before a call is taken up, because what it raises must not come out of the sending. May take a while
        where the call `shares`."""
        if self._memory is not None and self.shares(request):
            with contextlib.suppress(TimeoutError):  # the stream says so
                self._memory.connect(self._end)

    def shares(self, request: Request[Any]) -> bool:
        """Whether a call is to go through memory, for which the server may have to be waited for."""
        return self._memory is not None and isinstance(request, Request) and self._memory.suits(request)

    def _messages(self, call_id: int, request: Request[Any]) -> Iterator[bytes]:
        parts = self._parts(self._stream, call_id, request)
        return Waiting(parts) if self.shares(request) else parts

    def _parts(self, stream: int, call_id: int, request: Request[Any]) -> Iterator[bytes]:
        use = None
        if self._memory is not None and call_id not in self._without and self._memory.suits(request):
            # What is raised here would come out of gRPC's sending, without its text; chunks need no memory file.
            with contextlib.suppress(TimeoutError, GradOracleError):
                use = self._memory.put(request, self._end)
        if use is None:
            yield from parts(call_id, request)
        else:
            self._uses[stream, call_id] = use
            yield whole(call_id, request, use)

    def receive(self, data: bytes) -> None:
        """Takes in a message from the server."""
        for answer, attached in self._incoming.take(data):
            request = self._waiting.get(answer.id)
            if request is None:
                continue
            self._taken -= 1
            use = self._uses.pop((self._stream, answer.id), None)
            result = result_of(answer, request, attached if use is None else use)
            pause = pause_after(result)
            if use is not None and isinstance(result, GradOracleError):
                pause = self._in_vain(answer.id, use, result, pause)
            if pause is not None and time.monotonic() - self._heard < PATIENCE:
                self._takes = max(1.0, min(self._takes, self._taken))
                self._refused.append((time.monotonic() + pause, answer.id))
                continue
            del self._waiting[answer.id]
            self._takes = min(float(self._window), self._takes + 1 / self._takes)
            self._heard = time.monotonic()
            self._breaks, self._may_break = 0, RESUMPTIONS
            self._answered(answer.id, request, result, _size(answer, attached) if attached or use is not None else 0)

    def _in_vain(self, call_id: int, use: Use, error: GradOracleError, pause: float | None) -> float | None:
        """A call has failed that used memory. Gives the pause before it may be sent again, if it may."""
        if isinstance(error, OverloadedError):
            use.refused()
        elif use.failed(error):
            self._without.add(call_id)
            return 0.0
        return pause

    def again(self) -> Iterator[tuple[Iterator[bytes], float]]:
        """What is to be sent again: the messages of a call, and the seconds to wait before."""
        while self._refused and self._taken + 1 <= self._takes:
            due, call_id = self._refused.popleft()
            self._taken += 1
            yield self._messages(call_id, self._waiting[call_id]), max(0.0, due - time.monotonic())

    def broken(self, failure: GradOracleError) -> float:
        """The stream has ended. Gives the seconds after which another may go on; raises the failure where none may."""
        self._breaks += 1
        if not isinstance(failure, ServerUnavailableError) or self._breaks >= self._may_break:
            raise failure
        self._incoming.clear()
        self._stream += 1
        while self._uses:
            self._uses.popitem()[1].drop()
        self._refused = deque((0.0, call_id) for call_id in sorted(self._waiting))
        self._taken = 0
        return min(_LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._breaks - 1)) * _jitter()

    def _answered(self, call_id: int, request: Request[Any], result: Any, size: int) -> None:
        self._bytes += size - request.tensor_bytes
        if isinstance(result, results.Result | results.Inspection | GradOracleError):
            result.tag = call_id if request.tag is None else request.tag
        if not self._ordered:
            self._ready.append((result, size))
            return
        self._answers[call_id] = result, size
        while self._turn in self._answers:
            self._ready.append(self._answers.pop(self._turn))
            self._turn += 1

    def ready(self) -> Iterator[Any]:
        """Results whose turn it is, each once. Raises what a call failed with, unless exceptions are results."""
        while self._ready:
            result, size = self._ready.popleft()
            self._bytes -= size
            if isinstance(result, GradOracleError) and not self._return_exceptions:
                raise result
            yield result


def result_of(answer: service_pb2.StreamAnswer, request: Request[Any], attached: results.Attachments | Use) -> Any:
    """What a call was answered with: its result, or an error, which is not raised."""
    kind = answer.WhichOneof("response")
    if kind == "status":
        return status.from_status(status_pb2.Status.FromString(answer.status))
    if kind != request.method.stream_field:
        return GradOracleError(f"the server answered {request.method.rpc} with {kind or 'nothing'}", reason="INTERNAL")
    response = getattr(answer, kind)
    if isinstance(attached, Use):
        try:
            attached = attached.answered(response)
        except GradOracleError as error:
            return error
    return request.method.read(response, attached)


def bears(error: ResourceLimitError) -> bool:
    """Whether what was refused as one message is no trouble over a stream, where large tensors are no part of one."""
    return error.reason == "LIMIT_EXCEEDED" and error.metadata.get("limit") == "--max-message-bytes"


def _size(answer: service_pb2.StreamAnswer, attached: results.Attachments) -> int:
    """Bytes of an answer's attachments."""
    shared = getattr(getattr(answer, answer.WhichOneof("response") or "", None), "spans", ())
    return sum(map(len, attached), start=sum(int(span.length) for span in shared))


def pause_after(result: Any) -> float | None:
    """The seconds after which a call may be sent again that was answered so; None where that is its answer."""
    if isinstance(result, OverloadedError):
        return (result.retry_after or FIRST_PAUSE) * _jitter()
    if isinstance(result, ServerUnavailableError):
        return FIRST_PAUSE * _jitter()
    return None


def _jitter() -> float:
    """A factor, so that those who were refused together do not come again together."""
    return random.uniform(1.0, 1.5)  # noqa: S311 - no secret

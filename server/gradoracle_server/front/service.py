"""The gRPC service: bytes in, a worker's bytes out.

A request is not parsed here, nor is its answer: the device is found by looking at the request's outline, and the timing
is appended to the answer's bytes, which protobuf reads as one more field.
"""

from __future__ import annotations

import asyncio
import functools
import platform
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from gradoracle.v1 import service_pb2
from gradoracle_server.frames import METHODS, Attachments, Job, Reply
from gradoracle_server.front import statuses, wire
from gradoracle_server.front.admission import Outcome, Ticket
from gradoracle_server.front.metrics import SERVICE, Metrics
from gradoracle_server.front.pool import Lane, Pool
from gradoracle_server.front.shared_memory import SharedMemory, Use
from gradoracle_server.front.unread import Unread
from gradoracle_server.front.uploads import Budget
from gradoracle_server.settings import Settings

if TYPE_CHECKING:
    from gradoracle_server.front.tracing import Tracing

Context = grpc.aio.ServicerContext[Any, Any]

_FOREVER = 1e9  # seconds
_LIST_OPERATORS = METHODS.index("ListOperators")
_UNREAD = 8  # answers that callers do not read may take one byte for so many that requests may


class Connection(Protocol):
    """What calls come over, gRPC's context or another."""

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""

    async def write(self, message: bytes) -> None:
        """Sends a message, once there is room for it."""

    def time_remaining(self) -> float | None:
        """Seconds until its deadline; None where it has none."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """What its caller said when it began, credentials among it."""

    def peer(self) -> str:
        """Whose it is: what waits is served in turn by this."""


class Immediate(Connection, Protocol):
    """One over which a lone call, and its answer, may go without a turn of the event loop for each task in between."""

    on_message: Callable[[bytes], bool] | None
    """Called with a message that comes while `read` waits for one; where it returns True, it has taken it."""

    @property
    def has_room(self) -> bool:
        """Whether `send` may be called."""

    def send(self, message: bytes) -> None:
        """Sends a message at once."""


class Service:
    """Answers every method but Stream, and admits requests for that too."""

    def __init__(
        self, pool: Pool, metrics: Metrics, settings: Settings, version: str, tracing: Tracing | None = None
    ) -> None:
        self.metrics = metrics
        self.settings = settings
        self.tracing = tracing
        self.draining = False  # whether new calls are refused
        workers = sum(lane.size for lane in pool.lanes.values())
        queue_bytes = settings.max_queue_bytes or 0
        self.budget = Budget(queue_bytes, settings.max_tensor_bytes or 0, again=workers == 1)
        self.unread = Unread(-(-queue_bytes // _UNREAD), workers)
        self.memory: SharedMemory | None = None  # what callers share, where that is wanted
        self._pool = pool
        self._version = version

    @property
    def active(self) -> int:
        """Calls that have begun and not ended."""
        calls = self.metrics.calls.values()
        return sum(call.started for call in calls) - sum(sum(call.handled.values()) for call in calls)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """A handler for each unary method, without serializers: bytes come and go as they are."""
        made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for index, name in enumerate(METHODS):
            made[name] = grpc.unary_unary_rpc_method_handler(self._unary(index))
        made["DescribeServer"] = grpc.unary_unary_rpc_method_handler(self._describe)
        return made

    def describe(self) -> bytes:
        """A serialized DescribeServerResponse."""
        settings = self.settings
        return service_pb2.DescribeServerResponse(
            version=self._version,
            torch_version=self._pool.default.torch_version,
            python_version=platform.python_version(),
            default_device=self._pool.default.device,
            devices=[
                service_pb2.DeviceInfo(
                    name=name,
                    description=lane.description,
                    workers=lane.size,
                    workers_alive=lane.alive,
                    memory_bytes=lane.memory_bytes,
                )
                for name, lane in self._pool.lanes.items()
            ],
            limits=service_pb2.Limits(
                queue=settings.max_queue,
                queue_bytes=settings.max_queue_bytes,
                message_bytes=settings.max_message_bytes,
                graph_nodes=settings.max_graph_nodes,
                tensor_bytes=settings.max_tensor_bytes,
                memory_bytes=settings.max_memory_bytes,
                request_seconds=settings.request_timeout,
            ),
        ).SerializeToString()

    def seconds(self, context: Connection, timeout: float = 0.0) -> float | None:
        """What is left to a call's deadline, to its own timeout, or to the server's, whichever is sooner; None where
        there is none. A timeout of 0 is none."""
        remaining = context.time_remaining()
        longest = self.settings.request_timeout
        if longest and (not timeout or longest < timeout):
            timeout = longest
        if not 0 < timeout < _FOREVER:  # no timer takes them
            return remaining
        return timeout if remaining is None or timeout < remaining else remaining

    async def device(self, request: bytes | memoryview) -> str:
        """The device that a request names. Where finding it takes long, others have a go meanwhile."""
        position, device = wire.peek(request)
        while position < len(request):
            await asyncio.sleep(0)
            position, device = wire.peek(request, position, device)
        return device

    def admit(
        self,
        method: int,
        request: bytes | memoryview,
        device: str,
        context: Connection,
        arrived: float,
        future: asyncio.Future[Reply] | Outcome,
        attachments: Attachments | None = None,
        attachments_welcome: bool = False,
        timeout: float = 0.0,
    ) -> tuple[Lane, Ticket]:
        """Gives a request to a worker or makes it wait; what becomes of it goes to `future`. `timeout`, in seconds,
        where the request has one beside the call's. Raises Failure where it can do neither."""
        if self.draining:
            raise statuses.shutting_down()
        lane = self._pool.lane("" if method == _LIST_OPERATORS else device)
        use = None
        if attachments is None:
            request, use = self._from_memory(request, method)
            if use is not None:
                attachments, attachments_welcome = use.attachments, True
        ticket = Ticket(Job(method, request, attachments, attachments_welcome), context.peer, future, arrived)
        if use is None:
            lane.submit(ticket, self.seconds(context, timeout))
            return lane, ticket
        try:
            lane.submit(ticket, self.seconds(context, timeout))
        except BaseException:
            use.close()
            raise
        use.begin()
        future.add_done_callback(functools.partial(_used, lane, ticket.job, use))
        return lane, ticket

    def _from_memory(self, request: bytes | memoryview, method: int) -> tuple[bytes | memoryview, Use | None]:
        """As SharedMemory.take, whether there is any or not: who asks may have shared it with a server before this."""
        if self.memory is not None:
            return self.memory.take(request, METHODS[method])
        if wire.memory(request) is not None:
            text = "expected a request that holds its bytes, for this server shares no memory, got one that names some"
            raise statuses.memory_unknown(f"{text}; the server may have started anew: send the bytes")
        return request, None

    def note(self, lane: Lane, ticket: Ticket, reply: Reply) -> None:
        """Takes note of a worker's reply."""
        lane.withstood(ticket.job, time.perf_counter() - ticket.begun)
        self.metrics.replied(lane, ticket.job.method, reply, ticket.queue_seconds)

    def response(self, ticket: Ticket, reply: Reply) -> tuple[bytes | memoryview, bytes]:
        """The bytes of a response, in two parts. Raises Failure where the reply is an error."""
        failure = None
        timing = b"" if reply.is_timed else wire.timing(ticket.queue_seconds, reply.phases)
        size = len(reply.payload) + len(timing)
        if reply.code:
            failure = statuses.from_worker(reply)
        elif size > self.settings.max_message_bytes:
            failure = _too_long("the answer", self.settings.max_message_bytes, size)
        elif _is_misplaced(ticket.job.attachments, reply.attachments):
            failure = statuses.internal(ValueError("attachments are not where they should be"), "a worker's reply")
        if failure is not None:
            if reply.attachments is not None:
                reply.attachments.close()
            raise failure
        if reply.attachments is not None and reply.attachments.callers:  # they are where the caller will look for them
            where, reply.attachments = reply.attachments.spans, None
            return reply.payload, timing + wire.spans(where)
        return reply.payload, timing

    def _unary(self, method: int) -> Callable[[bytes, Context], Awaitable[bytes]]:
        name = METHODS[method]
        calls = self.metrics.calls[name]
        longest = self.settings.max_message_bytes

        async def handle(request: bytes, context: Context) -> bytes:
            arrived = time.perf_counter()
            calls.started += 1
            lane = ticket = None
            try:
                if len(request) > longest:
                    raise _too_long("the request", longest, len(request))
                device = "" if wire.names_no_device(request) else await self.device(request)
                future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
                lane, ticket = self.admit(method, request, device, context, arrived, future)
                reply = await future
                self.note(lane, ticket, reply)
                first, rest = self.response(ticket, reply)
                answer = b"".join((first, rest)) if rest else bytes(first)
            except asyncio.CancelledError:  # the caller went away, or gRPC saw the deadline pass before we did
                code = gone(context)
                if lane is not None and ticket is not None:
                    lane.abandon(ticket, "deadline" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "cancelled")
                calls.finished(code, time.perf_counter() - arrived)
                if self.tracing is not None:
                    self.tracing.call(name, context, arrived, code, lane, ticket)
                raise
            except Exception as error:
                failure = error if isinstance(error, statuses.Failure) else statuses.internal(error, name)
                calls.finished(failure.code, time.perf_counter() - arrived)
                if self.tracing is not None:
                    self.tracing.call(name, context, arrived, failure.code, lane, ticket, failure)
                # gRPC keeps where a call was aborted, and this frame with it, until the next full collection.
                request, lane, ticket = b"", None, None
                await failure.abort(context)
            calls.finished(grpc.StatusCode.OK, time.perf_counter() - arrived)
            if self.tracing is not None:
                self.tracing.call(name, context, arrived, grpc.StatusCode.OK, lane, ticket)
            return answer

        return handle

    async def _describe(self, request: bytes, context: Context) -> bytes:
        arrived = time.perf_counter()
        calls = self.metrics.calls["DescribeServer"]
        calls.started += 1
        if self.draining:
            failure = statuses.shutting_down()
            calls.finished(failure.code, time.perf_counter() - arrived)
            if self.tracing is not None:
                self.tracing.call("DescribeServer", context, arrived, failure.code, failure=failure)
            await failure.abort(context)
        answer = self.describe()
        calls.finished(grpc.StatusCode.OK, time.perf_counter() - arrived)
        if self.tracing is not None:
            self.tracing.call("DescribeServer", context, arrived, grpc.StatusCode.OK)
        return answer


def _used(lane: Lane, job: Job, use: Use, outcome: asyncio.Future[Reply] | Outcome) -> None:
    """A request in shared memory is over. What it was is looked at for the last time before its file is given back."""
    try:
        if not outcome.cancelled() and outcome.exception() is None:
            lane.forgive(job)
    finally:
        use.close()


def _is_misplaced(came: Attachments | None, gone: Attachments | None) -> bool:
    """Whether an answer's attachments are not in the caller's memory where the request's were, or the other way."""
    return gone is not None and gone.callers != (came is not None and came.callers)


def gone(context: Connection) -> grpc.StatusCode:
    """What a call that gRPC cancelled ended with."""
    remaining = context.time_remaining()
    return grpc.StatusCode.CANCELLED if remaining is None or remaining > 0 else grpc.StatusCode.DEADLINE_EXCEEDED


class _Others(grpc.GenericRpcHandler):
    """Methods of GradientService that are not served: a later version's, or a caller's mistake."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """gRPC's hook: the handler of a call that no handler before this one took."""
        _, service, method = ("/" + handler_call_details.method).rsplit("/", 2)
        return statuses.refusal(statuses.not_served(method)) if service == SERVICE else None


def register(server: grpc.aio.Server, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """Makes a server serve the handlers as GradientService."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers), _Others()))


def _too_long(what: str, allowed: int, asked: int) -> statuses.Failure:
    hint = "; in a Stream, large tensors travel as attachments, which messages do not bound"
    return statuses.limit_exceeded(what, "--max-message-bytes", allowed, asked, hint)

"""Traces for OpenTelemetry: a span for each call, below its caller's, and below that one for each phase of it.

Only the front knows OpenTelemetry, and imports it only where --otlp-endpoint is given: workers have no network to send
spans over. So a call's spans are made here, all of them when it has ended. Its phases are as long as the worker's reply
says (`Reply.phases`); when each began is not known, so they are laid one after another from the moment at which the
request was handed to the worker. What passes between them is seen as a gap behind the last one.

A thread sends the spans, in batches, as OTLP over HTTP. What cannot be sent is dropped; no call waits for it. Sampling,
resource, headers, propagators and batches are set by OpenTelemetry's own environment variables.

A span tells method, device, status and reason, never the text of an error, which may quote names and figures of the
request. Calls without valid credentials and of unknown methods leave no span: else anyone could write into the traces.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode

from gradoracle.v1 import errors_pb2
from gradoracle_server.frames import PHASES
from gradoracle_server.front.metrics import SERVICE

if TYPE_CHECKING:
    from gradoracle_server.front.admission import Ticket
    from gradoracle_server.front.pool import Lane
    from gradoracle_server.front.statuses import Failure

Call = grpc.aio.ServicerContext[Any, Any]

_FLUSH = 1.0  # seconds that the end of the server waits for the last spans to leave
_QUIET = 60.0  # seconds between two lines in the log about a collector that takes no spans
_PATH = "/v1/traces"
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""What is an error of a server's span, by OpenTelemetry's conventions for gRPC; the rest are the callers' errors."""

_log = logging.getLogger(__name__)


class Tracing:
    """Makes and sends spans."""

    def __init__(self, endpoint: str, version: str) -> None:
        """`endpoint` is the URL of a collector, to which /v1/traces is added. Raises ValueError for bad variables."""
        with _refusing():
            exporter = OTLPSpanExporter(endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH)
            # Not at the interpreter's exit: that would wait for a collector that is not there.
            self._provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
        self._tracer = self._provider.get_tracer("gradoracle_server", version)
        self._headers = propagate.get_global_textmap().fields

    def call(
        self,
        method: str,
        context: Call,
        arrived: float,
        code: grpc.StatusCode,
        lane: Lane | None = None,
        ticket: Ticket | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Makes the spans of a call that has just ended. `arrived` is a time.perf_counter(); the rest as known."""
        try:
            self._call(self._caller(context), method, arrived, code, lane, ticket, failure)
        except Exception:
            _log.exception("the spans of a call are lost")  # the call is not

    def stream(self, context: Call, arrived: float) -> StreamTrace | None:
        """Begins the span of a Stream, below which those of its calls come."""
        try:
            attributes = _attributes("Stream")
            now = _clock()
            span = self._tracer.start_span(
                f"{SERVICE}/Stream", self._caller(context), SpanKind.SERVER, attributes, start_time=now(arrived)
            )
            return StreamTrace(self, span)
        except Exception:
            _log.exception("the spans of a stream are lost")
            return None

    def close(self) -> None:
        """Sends what is left. A collector that does not answer is not waited for."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH)

    def _caller(self, context: Call) -> Context:
        """The span that the caller named, in the metadata that propagators read."""
        metadata = context.invocation_metadata() or ()
        carrier = {key: value for key, value in metadata if key in self._headers and isinstance(value, str)}
        return propagate.extract(carrier, Context())

    def _call(
        self,
        parent: Context,
        method: str,
        arrived: float,
        code: grpc.StatusCode,
        lane: Lane | None,
        ticket: Ticket | None,
        failure: Failure | None,
    ) -> None:
        at, ended = _clock(), time.perf_counter()
        attributes = _attributes(method)
        if lane is not None:
            attributes["gradoracle.device"] = lane.device
        span = self._tracer.start_span(
            f"{SERVICE}/{method}", parent, SpanKind.SERVER, attributes, start_time=at(arrived)
        )
        if not span.is_recording():
            return
        _conclude(span, code, failure)
        if ticket is not None:
            below = trace.set_span_in_context(span, Context())
            for name, start, end in _phases(ticket, ended):
                self._tracer.start_span(name, below, start_time=at(start)).end(at(end))
        span.end(at(ended))


class StreamTrace:
    """The span of a Stream that is open."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self._below = trace.set_span_in_context(span, Context())

    def call(
        self,
        method: str,
        arrived: float,
        code: grpc.StatusCode,
        lane: Lane | None = None,
        ticket: Ticket | None = None,
        failure: Failure | None = None,
    ) -> None:
        """As `Tracing.call`, for a call of this stream."""
        try:
            self._tracing._call(self._below, method, arrived, code, lane, ticket, failure)
        except Exception:
            _log.exception("the spans of a call are lost")

    def end(self, code: grpc.StatusCode, failure: Failure | None = None) -> None:
        """The stream has ended."""
        _conclude(self._span, code, failure)
        self._span.end()


def _phases(ticket: Ticket, ended: float) -> list[tuple[str, float, float]]:
    """Name, start and end of what a request went through, by time.perf_counter()."""
    if not ticket.attempts:
        return [("queue", ticket.arrived, ended)]
    start = ticket.begun
    made = [("queue", ticket.arrived, start)]
    if not ticket.future.done() or ticket.future.cancelled() or ticket.future.exception() is not None:
        return [*made, ("run", start, ended)]  # it was stopped, or its worker died: nobody knows where
    for name, seconds in zip(PHASES[1:], ticket.future.result().phases[1:], strict=True):
        if seconds > 0:  # a phase that did not happen has none
            end = min(start + seconds, ended)
            made.append((name, start, end))
            start = end
    return made


def _attributes(method: str) -> dict[str, str | int]:
    return {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method}


def _conclude(span: Span, code: grpc.StatusCode, failure: Failure | None) -> None:
    reason = "" if failure is None else _reason(failure)
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if reason:
        span.set_attribute("gradoracle.error_reason", reason)
    if code in _FAULTS:
        span.set_status(StatusCode.ERROR, reason or code.name)


def _reason(failure: Failure) -> str:
    """The ErrorReason of a failure, less its prefix; empty where it has none that the proto knows."""
    info = error_details_pb2.ErrorInfo()
    for detail in failure.status.details:
        if detail.Unpack(info) and f"ERROR_REASON_{info.reason}" in errors_pb2.ErrorReason.keys():  # noqa: SIM118
            return str(info.reason)
    return ""


def _clock() -> Callable[[float], int]:
    """Turns a time.perf_counter() into nanoseconds since 1970."""
    offset = time.time_ns() - round(time.perf_counter() * 1e9)
    return lambda seconds: offset + round(seconds * 1e9)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """OpenTelemetry warns of a variable that it cannot use, and takes its default; here that is a ValueError."""
    said = _Said()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(said)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(said)
    if said.lines:
        raise ValueError(said.lines[0])


def _resource(version: str) -> Resource:
    """What sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our own name and version."""
    told = Resource.create().attributes
    ours: dict[str, str] = {}
    if str(told.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = "gradoracle"
    if SERVICE_VERSION not in told:
        ours[SERVICE_VERSION] = version
    return Resource.create(ours)


class _Said(logging.Handler):
    """Keeps what is said, a line for each record."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


class _Seldom(logging.Filter):
    """Lets a line through once in a while: a collector that is away is told of with every batch otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < _QUIET:
            return False
        self._last = now
        return True

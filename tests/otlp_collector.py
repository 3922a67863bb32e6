"""A collector of OpenTelemetry's traces in this process: takes OTLP over HTTP on loopback and keeps what came."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

SERVER, CLIENT, INTERNAL = (
    trace_pb2.Span.SPAN_KIND_SERVER,
    trace_pb2.Span.SPAN_KIND_CLIENT,
    trace_pb2.Span.SPAN_KIND_INTERNAL,
)
ERROR = trace_pb2.Status.STATUS_CODE_ERROR
UNSET = trace_pb2.Status.STATUS_CODE_UNSET


@dataclasses.dataclass
class Span:
    """A span as it came."""

    name: str
    kind: int
    trace: str  # hexadecimal
    id: str
    parent: str  # empty at a root
    state: str  # the tracestate
    start: int  # nanoseconds
    end: int
    status: int
    message: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """What came."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []  # of each request, by names in lower case
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.reached = threading.Event()  # something came
        self.answers = threading.Event()  # requests are answered from now on
        self.answers.set()
        self.endpoint = ""

    @property
    def spans(self) -> list[Span]:
        """All spans so far, in the order of their beginnings."""
        found = []
        for body in list(self.bodies):
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _plain(group.resource.attributes)
                found += [_span(span, resource) for scope in group.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: span.start)

    def named(self, name: str, kind: int = SERVER) -> list[Span]:
        """Spans of a name, or of a method of GradientService."""
        return [span for span in self.spans if span.kind == kind and name in (span.name, span.name.rpartition("/")[2])]

    def below(self, parent: Span) -> list[Span]:
        """The children of a span."""
        return [span for span in self.spans if (span.trace, span.parent) == (parent.trace, parent.id)]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.reached.set()
            collector.answers.wait()
            collector.headers.append({key.lower(): text for key, text in self.headers.items()})
            collector.paths.append(self.path)
            collector.bodies.append(body)
            try:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:  # whoever sent it is gone
                pass

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections that are cut off are no news

    with Server(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.answers.set()
            server.shutdown()
            thread.join()


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        span.status.message,
        _plain(span.attributes),
        resource,
    )

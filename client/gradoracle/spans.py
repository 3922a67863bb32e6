"""Spans of calls for OpenTelemetry, where the caller's program traces; who does not pays for one look at `sys.modules`.

A program that traces has imported OpenTelemetry's API, so that nothing here imports it first. A call's span is of the
kind CLIENT, below the one that is current where the call is made, and the server's spans come below it: by the
`traceparent`, or what else the global propagator writes, in the call's metadata. Where the program has no tracer
provider but a current span, that one is the parent of the server's. `map`, and what is too large for one message, goes
over a stream, whose calls share its span.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from gradoracle import status
from gradoracle.channel import Metadata, Target
from gradoracle.errors import GradOracleError
from gradoracle.stream import Broken

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

API = "opentelemetry.trace"
"""The module that is loaded where the program traces."""


def are_made() -> bool:
    """Whether the program traces."""
    return API in sys.modules


def traced(call: Callable[..., bytes], path: str, target: Target) -> Callable[..., bytes]:
    """The call of a blocking channel, with a span around it where the program traces."""
    if not are_made():
        return call

    def run(request: bytes, *, timeout: float | None, metadata: Metadata) -> bytes:
        with _span(path, target) as headers:
            return call(request, timeout=timeout, metadata=(*metadata, *headers))

    return run


def traced_async(call: Callable[..., Any], path: str, target: Target) -> Callable[..., Any]:
    """The same for asyncio."""
    if not are_made():
        return call

    async def run(request: bytes, *, timeout: float | None, metadata: Metadata) -> bytes:
        with _span(path, target) as headers:
            answer: bytes = await call(request, timeout=timeout, metadata=(*metadata, *headers))
            return answer

    return run


@contextlib.contextmanager
def of_stream(path: str, target: Target) -> Iterator[Metadata]:
    """Around a stream, with a span where the program traces. Gives the stream's metadata."""
    if not are_made():
        yield target.metadata
        return
    with _span(path, target) as headers:
        yield (*target.metadata, *headers)


@contextlib.contextmanager
def _span(path: str, target: Target) -> Iterator[Metadata]:
    """A span until the end of the block, whose error it has. Gives what the server must be told to go on with it."""
    from opentelemetry import propagate, trace

    span = _tracer().start_span(path[1:], kind=trace.SpanKind.CLIENT, attributes=_attributes(path, target))
    headers: dict[str, str] = {}
    made = span.get_span_context().is_valid
    propagate.inject(headers, trace.set_span_in_context(span) if made else None)  # None: what is current goes on
    try:
        # What gRPC would refuse must not be what a call fails of.
        yield tuple(
            (key.lower(), text) for key, text in headers.items() if text and text.isascii() and text.isprintable()
        )
    except GeneratorExit:  # whoever took results wants no more of them
        raise
    except BaseException as error:
        _failed(span, error)
        raise
    else:
        span.set_attribute("rpc.grpc.status_code", 0)
    finally:
        span.end()


@functools.cache
def _tracer() -> Tracer:
    from opentelemetry import trace

    return trace.get_tracer("gradoracle", importlib.metadata.version("gradoracle"))


def _attributes(path: str, target: Target) -> dict[str, str | int]:
    _, service, method = path.rsplit("/", 2)
    host, _, port = target.address.rpartition(":")
    made: dict[str, str | int] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    if port.isdecimal():
        made |= {"server.address": host.strip("[]"), "server.port": int(port)}
    else:
        made["server.address"] = target.address.removeprefix("unix:")
    return made


def _failed(span: Span, error: BaseException) -> None:
    """Marks a span as failed: by status and reason, never by the error's text, which may quote the request."""
    from opentelemetry.trace import StatusCode

    name = type(error).__name__
    if isinstance(error, grpc.RpcError):
        code: grpc.StatusCode = error.code()
        name = code.name
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        error = status.from_call(error, "", None)
    if isinstance(error, Broken):
        error = error.failure
    if isinstance(error, GradOracleError) and error.reason != "UNSPECIFIED":
        name = error.reason
        span.set_attribute("gradoracle.error_reason", name)
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR, name)

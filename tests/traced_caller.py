"""A program that traces and calls a server with every kind of call: `python traced_caller.py ADDRESS`.

It sends its spans to OTEL_EXPORTER_OTLP_ENDPOINT. With --no-provider it has a span of its own and nothing that could
make others, as where some other process makes the spans.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import gradoracle as go

TOKEN = "sesame-of-the-caller"  # noqa: S105 - of a test
INPUT = "salary_of_alice"
FIGURE = 31415.92653
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
GOOD, BAD = f"{INPUT} * {INPUT}", f"{INPUT} @ {INPUT}"  # a scalar has no matrix product
REQUESTS = 3


@contextlib.contextmanager
def below(name: str) -> Iterator[None]:
    """A span of the program's own around some calls."""
    with trace.get_tracer("caller").start_as_current_span(name):
        yield


def requests() -> list[go.Request[go.VjpResult]]:
    return [go.request("vjp", GOOD, {INPUT: FIGURE}) for _ in range(REQUESTS)]


def blocking(address: str) -> None:
    """Calls by the blocking client."""
    with go.Client(address, token=TOKEN) as client:
        with below("one"):
            client.vjp(GOOD, {INPUT: FIGURE})
        with below("judged"):
            client.check(GOOD, {INPUT: FIGURE})
        with below("bad"), contextlib.suppress(go.InvalidRequestError, go.ComputationError):
            client.vjp(BAD, {INPUT: FIGURE})
        with below("many"):
            list(client.map(requests()))
        with below("first of many"):
            next(iter(client.map(requests())))


async def awaited(address: str) -> None:
    """The same by the asyncio client."""
    async with go.AsyncClient(address, token=TOKEN) as client:
        with below("one awaited"):
            await client.vjp(GOOD, {INPUT: FIGURE})
        with below("many awaited"):
            async for _ in client.map(requests()):
                pass


def main(address: str, *flags: str) -> None:
    if "--no-provider" in flags:
        context = trace.SpanContext(TRACE, SPAN, is_remote=False, trace_flags=trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(context)), go.Client(address, token=TOKEN) as client:
            client.inspect(GOOD, {INPUT: FIGURE})
        return
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    blocking(address)
    asyncio.run(awaited(address))
    provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The streams that are open: those of gRPC's Stream, and of what carries the same messages without gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc

from gradoracle_server.front import statuses
from gradoracle_server.front.auth import Tokens
from gradoracle_server.front.service import Connection, Context, Immediate, Service, gone
from gradoracle_server.front.stream import Stream

if TYPE_CHECKING:
    from gradoracle_server.front.tracing import StreamTrace


class Streams:
    """The handler of Stream, and the streams that are open."""

    def __init__(self, service: Service, tokens: Tokens | None = None) -> None:
        """`tokens`: those of which calls must bring one."""
        self._service = service
        self._tokens = tokens
        self._open: dict[Connection, Stream] = {}

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._handle)

    def drain(self) -> None:
        """Lets every stream finish what it has and end."""
        for stream in self._open.values():
            stream.drain()

    def check_credentials(self) -> None:
        """Refuses the calls from now on of streams whose credentials are not good any more."""
        for stream in self._open.values():
            stream.check_credentials()

    def is_idle(self, connection: Connection) -> bool:
        """Whether all calls that were read from a connection are answered."""
        stream = self._open.get(connection)
        return stream is None or stream.is_idle

    async def serve(self, connection: Immediate) -> None:
        """Serves a stream that is not gRPC's, to its end. Raises Failure where that is not the client's regular end."""
        if self._service.draining:
            raise statuses.shutting_down()
        stream = self._begin(connection, None, connection)
        try:
            await stream.run()
        finally:
            del self._open[connection]
            connection.on_message = None  # in a ring, both would live until the next collection

    def _begin(self, connection: Connection, trace: StreamTrace | None, immediate: Immediate | None = None) -> Stream:
        service = self._service
        stream = Stream(service, service.budget, service.unread, connection, trace, self._tokens, immediate)
        stream.check_credentials()  # the tokens may have changed since they were looked at
        self._open[connection] = stream
        return stream

    async def _handle(self, _: object, context: Context) -> None:
        arrived = time.perf_counter()
        calls = self._service.metrics.calls["Stream"]
        calls.started += 1
        tracing = self._service.tracing
        trace = None if tracing is None else tracing.stream(context, arrived)
        stream = self._begin(context, trace)
        try:
            if self._service.draining:
                raise statuses.shutting_down()
            await stream.run()
        except asyncio.CancelledError:
            code = gone(context)
            calls.finished(code, time.perf_counter() - arrived)
            if trace is not None:
                trace.end(code)
            raise
        except Exception as error:
            failure = error if isinstance(error, statuses.Failure) else statuses.internal(error, "Stream")
            calls.finished(failure.code, time.perf_counter() - arrived)
            if trace is not None:
                trace.end(failure.code, failure)
            await failure.abort(context)
        finally:
            del self._open[context]
        calls.finished(grpc.StatusCode.OK, time.perf_counter() - arrived)
        if trace is not None:
            trace.end(grpc.StatusCode.OK)

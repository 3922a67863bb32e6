"""The streams that are open: those of gRPC's Stream, and of what carries the same messages without gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from gradoracle_server.front import statuses
from gradoracle_server.front.service import Connection, Context, Service, gone
from gradoracle_server.front.stream import Stream


class Streams:
    """The handler of Stream, and the streams that are open."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._budget = service.budget
        self._open: set[Stream] = set()

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._handle)

    def drain(self) -> None:
        """Lets every stream finish what it has and end."""
        for stream in self._open:
            stream.drain()

    async def serve(self, connection: Connection) -> None:
        """Serves a stream that is not gRPC's, to its end. Raises Failure where that is not the client's regular end."""
        if self._service.draining:
            raise statuses.shutting_down()
        stream = Stream(self._service, self._budget, self._service.unread, connection, None)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    async def _handle(self, _: object, context: Context) -> None:
        arrived = time.perf_counter()
        calls = self._service.metrics.calls["Stream"]
        calls.started += 1
        tracing = self._service.tracing
        trace = None if tracing is None else tracing.stream(context, arrived)
        stream = Stream(self._service, self._budget, self._service.unread, context, trace)
        self._open.add(stream)
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
            self._open.discard(stream)
        calls.finished(grpc.StatusCode.OK, time.perf_counter() - arrived)
        if trace is not None:
            trace.end(grpc.StatusCode.OK)

"""Calls through gRPC: one message each way, or a conversation over streams.

Any call can go this way; `gradoracle.direct` and `gradoracle.gathering` are quicker ones for those that they suit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import grpc

from gradoracle import channel, requests, spans, status, stream
from gradoracle.errors import ServerUnavailableError
from gradoracle.outbox import Outbox
from gradoracle.requests import Method, Request

R = TypeVar("R")


class Channels:
    """The channels of a blocking client, which take calls in turn. Any number of threads may use them at once."""

    def __init__(self, target: channel.Target) -> None:
        """Connects to nothing yet."""
        self.closed = False
        self._target = target
        self._channels = [target.connect() for _ in range(target.channels)]
        self._calls = channel.unary_calls(self._channels, [method.path for method in requests.METHODS])
        self._streams = channel.stream_calls(self._channels, stream.PATH)

    def check_open(self) -> None:
        """Raises RuntimeError where the client was closed."""
        if self.closed:
            raise RuntimeError("this client is closed; make a new one")

    def refuse(self) -> None:
        """Takes no more calls, nor those that come here because the client ends the other ways."""
        self.closed = True

    def close(self) -> None:
        """Ends the calls that are still running, after `refuse`."""
        for one in self._channels:
            one.close()

    def next_stream(self) -> channel.StreamCall:
        """What begins a stream."""
        return next(self._streams)

    def unary(self, method: Method[Any], data: bytes, timeout: float | None, left: float | None) -> bytes:
        """The answer to one message. `left` is what is left of the timeout, where some of it is over."""
        if self.closed:  # meanwhile
            raise ServerUnavailableError(status.cut_off(self._target.address, "the client was closed"))
        call = spans.traced(next(self._calls[method.path]), method.path, self._target)
        try:
            return call(data, timeout=timeout if left is None else left, metadata=self._target.metadata)
        except grpc.RpcError as error:
            raise status.from_call(error, self._target.address, timeout) from error

    def converse(
        self, waiting: Iterator[Request[R]], conversation: stream.Conversation, timeout: float | None
    ) -> Iterator[R]:
        """The results of calls over a stream, and over another where it breaks."""
        self.check_open()
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                with spans.of_stream(stream.PATH, self._target) as metadata:
                    yield from self._over_stream(waiting, conversation, end, metadata)
                return
            except stream.Broken as broken:
                if self.closed:
                    raise broken.failure from broken.__cause__
                pause = conversation.broken(broken.failure)
            time.sleep(min(pause, max(0.0, end - time.monotonic())))

    def _over_stream(
        self, waiting: Iterator[Request[R]], conversation: stream.Conversation, end: float, metadata: channel.Metadata
    ) -> Iterator[R]:
        """Drives a stream: sends what there is room for, hands on what comes. Raises Broken when it breaks."""
        outbox = Outbox()
        left = None if end == math.inf else max(0.0, end - time.monotonic())
        call = self.next_stream()(outbox.messages(), timeout=left, metadata=metadata)
        try:
            while True:
                yield from conversation.ready()
                for parts, pause in conversation.again():
                    outbox.put(parts, pause)
                while conversation.has_room and (request := next(waiting, None)) is not None:
                    outbox.put(conversation.add(request))
                if not conversation.is_waiting:
                    break
                try:
                    if (data := next(call, None)) is None:
                        raise stream.ended_early()
                except grpc.RpcError as error:
                    raise stream.Broken(status.from_call(error, self._target.address, left)) from error
                conversation.receive(data)
            outbox.close()
            # To the end of the stream, so that the server sees a regular one.
            with contextlib.suppress(grpc.RpcError):
                next(call, None)
        finally:
            outbox.close()
            call.cancel()

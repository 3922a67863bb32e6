"""Calls through gRPC: one message each way, or a conversation over streams.

Any call can go this way; `gradoracle.direct` and `gradoracle.gathering` are quicker ones for those that they suit.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import queue
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import grpc

from gradoracle import channel, requests, spans, stream
from gradoracle.errors import GradOracleError, ServerUnavailableError
from gradoracle.heard import Heard
from gradoracle.outbox import Outbox
from gradoracle.requests import Method, Request

R = TypeVar("R")

_CLOSING = 2.0  # seconds that a channel may take

_of_others: list[object] = []  # streams of the process that forked, which end where nobody holds them


class _Opened:
    """The channels of one process."""

    def __init__(self, target: channel.Target) -> None:
        self.process = os.getpid()
        self.channels = [target.connect() for _ in range(target.channels)]
        self.calls = channel.unary_calls(self.channels, [method.path for method in requests.METHODS])
        # Of their own: a call that a signal interrupts may leave a lock behind (`heard`), which others do without, and
        # streams do not. They connect when they are used.
        apart = [target.connect() for _ in range(target.channels)]
        self.channels += apart
        self.streams = channel.stream_calls(apart, stream.PATH)


class Channels:
    """The channels of a blocking client, which take calls in turn. Any number of threads may use them at once.

    A child that was forked off has its parent's as they were in the middle of whatever gRPC was doing, and without the
    threads that would go on with it: it leaves them alone, and has some of its own.
    """

    def __init__(self, target: channel.Target) -> None:
        """Connects to nothing yet."""
        self.closed = False
        self._target = target
        self._opened = [_Opened(target)]  # the last are this process's own, if any are; none is ever let go

    def _own(self) -> _Opened:
        """Those of this process. Should two threads of a child come here at once, both are kept, and closed."""
        opened = self._opened[-1]
        if opened.process != os.getpid():
            opened = _Opened(self._target)
            self._opened.append(opened)
        return opened

    def check_open(self) -> None:
        """Raises RuntimeError where the client was closed."""
        if self.closed:
            raise RuntimeError("this client is closed; make a new one")

    def refuse(self) -> None:
        """Takes no more calls, nor those that come here because the client ends the other ways."""
        self.closed = True

    def close(self) -> None:
        """Ends the calls that are still running, after `refuse`."""
        own = [one for opened in self._opened if opened.process == os.getpid() for one in opened.channels]
        closed: queue.SimpleQueue[None] = queue.SimpleQueue()

        def close(one: grpc.Channel) -> None:
            try:
                one.close()
            finally:
                closed.put(None)

        for one in own:
            _thread.start_new_thread(close, (one,))
        with contextlib.suppress(queue.Empty):  # a call that a signal interrupted may have left a lock behind
            for _ in own:
                closed.get(timeout=_CLOSING)

    def next_stream(self) -> channel.Begin:
        """What begins a stream. Raises ServerUnavailableError where the client was closed, as the stream does."""
        if self.closed:
            raise self._target.closed()
        begin = next(self._own().streams)

        def run(*given: Any, **options: Any) -> Any:
            try:
                return begin(*given, **options)
            except ValueError:
                if self.closed:  # in this very moment
                    raise self._target.closed() from None
                raise

        return run

    def unary(self, method: Method[Any], data: bytes, timeout: float | None, left: float | None) -> bytes:
        """The answer to one message. `left` is what is left of the timeout, where some of it is over."""
        if self.closed:  # meanwhile
            raise self._target.closed()
        if left is not None and left <= 0:  # gRPC would leave to chance which is first, the end or the answer
            raise self._target.late(timeout)
        call = spans.traced(next(self._own().calls[method.path]), method.path, self._target)
        try:
            return call(data, timeout=timeout if left is None else left, metadata=self._target.metadata)
        except grpc.RpcError as error:
            raise self._failure(error, timeout) from error
        except ValueError:
            if self.closed:  # in this very moment
                raise self._target.closed() from None
            raise

    def _failure(self, error: grpc.RpcError, timeout: float | None) -> GradOracleError:
        if self.closed and error.code() is grpc.StatusCode.CANCELLED:
            return self._target.closed()
        return self._target.failure(error, timeout)

    def converse(
        self,
        waiting: Iterator[Request[R]],
        conversation: stream.Conversation,
        timeout: float | None,
        left: float | None,
    ) -> Iterator[R]:
        """The results of calls over a stream, and over another where it breaks. `left` as in `unary`."""
        self.check_open()
        conversation.begin(left)
        while True:
            try:
                with spans.of_stream(stream.PATH, self._target) as metadata:
                    yield from self._over_stream(waiting, conversation, timeout, metadata)
                return
            except stream.Broken as broken:
                pause = conversation.pause_before_another(broken, closed=self.closed)
            time.sleep(pause)

    def _over_stream(
        self,
        waiting: Iterator[Request[R]],
        conversation: stream.Conversation,
        timeout: float | None,
        metadata: channel.Metadata,
    ) -> Iterator[R]:
        """Drives a stream: sends what there is room for, hands on what comes. Raises Broken when it breaks."""
        outbox, process = Outbox(), os.getpid()
        left = conversation.left
        if left is not None and left <= 0:
            raise self._target.late(timeout)
        call = Heard()
        try:
            call.begin(lambda: self.next_stream()(outbox.messages(), timeout=left, metadata=metadata))
            while True:
                yield from conversation.ready()
                if os.getpid() != process:
                    raise stream.Broken(ServerUnavailableError("the stream is that of the process that forked"))
                for parts, pause in conversation.again():
                    outbox.put(parts, pause)
                while conversation.has_room and (request := next(waiting, stream.NO_MORE)) is not stream.NO_MORE:
                    conversation.connect(request)
                    outbox.put(conversation.add(request))
                if not conversation.is_waiting:
                    break
                try:
                    if (data := call.next()) is None:
                        raise stream.ended_early()
                except grpc.RpcError as error:
                    raise stream.Broken(self._failure(error, timeout)) from error
                conversation.receive(data)
            outbox.close()
            # To the end of the stream, so that the server sees a regular one.
            with contextlib.suppress(grpc.RpcError):
                call.next()
        finally:
            if os.getpid() == process:
                outbox.close()
                call.cancel()
            else:
                _of_others.append(call)

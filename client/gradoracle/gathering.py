"""Small calls that many callers make at the same time go over one stream together.

A message costs as much as several small calls, at either end. So a call that finds `BUSY` others of its client under
way joins the stream that those share: what is asked while a message is sent goes into the next one, and answers come
back the same way. Nothing else changes: each call has its own timeout, and one that is given up is cancelled by itself.

What a stream cannot answer, because it broke or the server has no room, its caller asks for by itself, as if there had
been no stream. One that nobody has used for a second ends.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from gradoracle import spans, stream
from gradoracle.answers import Incoming
from gradoracle.channel import Begin, Target
from gradoracle.errors import GradOracleError
from gradoracle.outbox import Bundle
from gradoracle.requests import Request
from gradoracle.shared_memory import Use
from gradoracle.tensors import Bytes
from gradoracle.v1 import service_pb2

BUSY = 3
"""Other calls under way, from which on a small one joins them: a stream of one call is slower than a call."""

SMALL = 64 * 1024
"""Bytes of a request's graph and tensors, up to which it is small."""

IDLE = 1.0
"""Seconds after which a stream ends that nobody uses."""

_SHARE = 4  # what is to be sent waits for company while it is fewer than one in so many of the calls under way
_PATIENCE = 0.001  # seconds that it waits at most
_FRUITLESS = 16  # messages that do not wait after one that waited in vain

R = TypeVar("R")

Alone: TypeAlias = Callable[[Request[R], float | None, float | None], R]
"""Makes a call by itself: the request, its timeout, and what is left of that, in seconds."""

Answer: TypeAlias = tuple[service_pb2.StreamAnswer, list[Bytes]]
"""An answer and its attachments."""


def may_gather(target: Target) -> bool:
    """Whether all calls go to the same server over the same connection. A name may stand for several, among which gRPC
    spreads calls, and would not those of one stream."""
    if target.channels > 1:
        return False
    if target.address.startswith(("unix:", "localhost:")):
        return True
    try:
        ipaddress.ip_address(target.address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def is_small(request: Request[Any]) -> bool:
    """Whether a call may join others. Where the program traces, each has a span and metadata of its own instead."""
    return len(request.graph) + request.tensor_bytes <= SMALL and not spans.are_made()


def result_of(answer: Answer | None, request: Request[Any], use: Use | None = None) -> Any:
    """A call's result, or an error, which is not raised; None where it is to be asked for by itself. `use` is the
    memory that its request was put into."""
    if answer is None:
        return None
    found = stream.result_of(answer[0], request, answer[1] if use is None else use)
    return None if stream.pause_after(found) is not None else found


class Gathering:
    """The calls of a blocking client that go together."""

    def __init__(self, target: Target, next_stream: Callable[[], Begin]) -> None:
        """`next_stream` gives what begins a stream."""
        self._target, self._next_stream = target, next_stream
        self._ids = itertools.count(1)
        self._may = may_gather(target)
        self._begin()

    def _begin(self) -> None:
        """As if nothing had been asked: a child that was forked off has neither its parent's threads, nor its stream,
        nor locks that anybody would release. Should two threads come here at once, one has a stream to itself."""
        self._under_way: set[int] = set()  # threads; adding to a set, and taking out of it, is one step of Python's
        self._shared: _Shared | None = None
        self._starting = threading.Lock()
        self._process = os.getpid()

    def answer(self, request: Request[R], timeout: float | None, left: float | None, alone: Alone[R]) -> R:
        """A call's result: over the stream that others share, or as `alone` gives it, in what is left of the timeout,
        of which `left` was left before. Raises GradOracleError."""
        if os.getpid() != self._process:
            self._begin()
        mine = threading.get_ident()
        self._under_way.add(mine)
        try:
            if self._may and len(self._under_way) > BUSY and is_small(request):
                end = None if left is None else time.monotonic() + left
                found: R | GradOracleError | None = result_of(self._together(request, timeout, left), request)
                if isinstance(found, GradOracleError):
                    raise found
                if found is not None:
                    return found
                left = None if end is None else max(0.0, end - time.monotonic())
            return alone(request, timeout, left)
        finally:
            self._under_way.discard(mine)

    def _together(self, request: Request[Any], timeout: float | None, left: float | None) -> Answer | None:
        call_id, waiter = next(self._ids), _Waiter()
        message = b"".join(stream.parts(call_id, request, left))
        while not (shared := self._current()).ask(call_id, waiter, message):
            pass  # it has ended just now
        try:
            if waiter.wait(left):
                return waiter.found
        except BaseException:  # Ctrl-C
            shared.forget(call_id)
            raise
        if not shared.forget(call_id):  # it is answered this very moment
            waiter.wait(None)
            return waiter.found
        raise self._target.late(timeout)

    def _current(self) -> _Shared:
        shared = self._shared
        if shared is None or not shared.open:
            with self._starting:
                shared = self._shared
                if shared is None or not shared.open:
                    call = self._next_stream()
                    shared = self._shared = _Shared(lambda messages: call(messages, metadata=self._target.metadata))
        return shared


class _Waiter:
    """One caller, until there is an answer."""

    __slots__ = ("_lock", "found")

    def __init__(self) -> None:
        self.found: Answer | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float | None) -> bool:
        """Whether there was an answer in time."""
        return self._lock.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def tell(self, found: Answer | None) -> None:
        self.found = found
        self._lock.release()


class _Shared:
    """A stream that callers share. A thread of gRPC's sends, and one of its own hears the answers."""

    def __init__(self, begin: Callable[[Iterator[bytes]], Any]) -> None:
        self.open = True
        self._changing = threading.Lock()
        self._waiting: dict[int, _Waiter] = {}
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Begun in that thread as well, where no signal arrives (`heard`).
        threading.Thread(target=self._hear, args=(begin,), name="gradoracle-answers", daemon=True).start()

    def ask(self, call_id: int, waiter: _Waiter, message: bytes) -> bool:
        """Sends a call; False where the stream has ended."""
        with self._changing:
            if not self.open:
                return False
            self._waiting[call_id] = waiter
            self._queue.put(message)
            return True

    def forget(self, call_id: int) -> bool:
        """Nobody waits for a call any more; False where it was answered already."""
        if self._waiting.pop(call_id, None) is None:
            return False
        self._queue.put(stream.cancelled(call_id))
        return True

    def _messages(self) -> Iterator[bytes]:
        """What is sent. What has waited in vain for company is a sign that those under way take long, and that their
        callers ask nothing meanwhile: then nothing waits for a while."""
        bundle, hurried = Bundle(), 0
        while True:
            try:
                part = self._queue.get(timeout=IDLE)
            except queue.Empty:
                if self._ends():
                    return
                continue
            is_last, in_vain = self._bundled(bundle, part, 0.0 if hurried else _PATIENCE)
            hurried = _FRUITLESS if in_vain else max(0, hurried - 1)
            if not bundle.is_empty:
                yield bundle.take()
            if is_last:
                return

    def _bundled(self, bundle: Bundle, part: bytes | None, patience: float) -> tuple[bool, bool]:
        """Bundles a part with what comes in so many seconds, where many calls are under way. Gives whether nothing is
        to be sent after it, and whether it has waited in vain."""
        count, waited, end = 0, False, time.monotonic() + patience
        while part is not None:
            count += 1
            if not bundle.add(part):
                break
            left = end - time.monotonic() if count * _SHARE < len(self._waiting) else 0.0
            waited = waited or left > 0
            try:
                part = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
        return part is None, waited and count == 1

    def _ends(self) -> bool:
        with self._changing:
            if self._waiting or not self._queue.empty():
                return False
            self.open = False
            return True

    def _hear(self, begin: Callable[[Iterator[bytes]], Any]) -> None:
        incoming, call = Incoming(), None
        try:
            call = begin(self._messages())
            for data in call:
                for answer, attached in incoming.take(data):
                    waiter = self._waiting.pop(answer.id, None)
                    if waiter is not None:
                        waiter.tell((answer, attached))
        except (grpc.RpcError, DecodeError, GradOracleError, ValueError):
            pass  # who waits asks by himself, and learns what is the matter
        finally:
            with self._changing:
                self.open = False
            self._queue.put(None)
            if call is not None:
                call.cancel()
            for call_id in list(self._waiting):
                if (waiter := self._waiting.pop(call_id, None)) is not None:  # else its caller has just given up
                    waiter.tell(None)

"""Streaming calls in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from gradoracle.heard import Heard


class Call:
    """One of gRPC's, as far as it is used: gives messages as they are put into it, and ends with an error or None."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self.read = 0
        self.cancelled = threading.Event()
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.threads.add(threading.get_ident())
        found = self.messages.get(timeout=30)
        self.read += 1
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise StopIteration
        return found

    def cancel(self) -> None:
        self.threads.add(threading.get_ident())
        self.cancelled.set()
        self.messages.put(RuntimeError("cancelled"))


def test_messages_come_in_order_and_to_an_end() -> None:
    call, heard = Call(), Heard()
    heard.begin(lambda: call)
    for part in (b"a", b"b", b"c", None):
        call.messages.put(part)
    assert [heard.next() for _ in range(5)] == [b"a", b"b", b"c", None, None]
    heard.cancel()
    assert not call.cancelled.is_set()  # it has ended
    assert call.threads
    assert threading.get_ident() not in call.threads


def test_errors_come_out_where_it_is_asked() -> None:
    call, heard = Call(), Heard()
    heard.begin(lambda: call)
    call.messages.put(b"a")
    call.messages.put(ValueError("it broke"))
    assert heard.next() == b"a"
    with pytest.raises(ValueError, match="it broke"):
        heard.next()
    assert heard.next() is None


def test_what_beginning_raises() -> None:
    def refuse() -> Call:
        raise ValueError("the channel is closed")

    heard = Heard()
    heard.begin(refuse)
    with pytest.raises(ValueError, match="the channel is closed"):
        heard.next()
    heard.cancel()


def test_what_nobody_has_asked_for_is_not_read() -> None:
    """But for two messages."""
    call, heard = Call(), Heard()
    heard.begin(lambda: call)
    for _ in range(9):
        call.messages.put(b"a")
    for asked in range(4):
        reached = threading.Event()
        while call.read < asked + 2:
            reached.wait(0.01)
        reached.wait(0.05)
        assert call.read == asked + 2
        heard.next()
    heard.cancel()
    assert call.cancelled.wait(30)
    assert threading.get_ident() not in call.threads


def test_a_call_that_is_cancelled_before_it_has_begun() -> None:
    call, heard, go = Call(), Heard(), threading.Event()

    def begin() -> Call:
        go.wait(30)
        return call

    heard.begin(begin)
    heard.cancel()
    go.set()
    assert call.cancelled.wait(30)


def test_a_call_that_begins_after_its_end_is_cancelled_at_once() -> None:
    call, heard = Call(), Heard()
    heard.cancel()
    heard.begin(lambda: call)
    assert call.cancelled.wait(30)

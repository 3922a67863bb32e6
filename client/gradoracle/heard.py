"""A streaming call of gRPC in a thread of its own.

Signals arrive in the main thread, between any two steps of Python's. Where one, as Ctrl-C does, raises while gRPC holds
a lock there, that is never released, and with it stands still the whole channel: all of its calls, their timeouts and
its end. What waits for a queue of Python's own can be interrupted.
"""

from __future__ import annotations

import _thread
import queue
from collections.abc import Callable
from typing import Any

_AHEAD = 2  # messages that are read before anybody has asked for them: gRPC holds back what is further behind


class Heard:
    """One call. For one thread to ask."""

    def __init__(self) -> None:
        """Begins nothing yet, so that whoever has it can end what `begin` began, wherever he is interrupted."""
        self._found: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._call: Any = None
        self._cancelled = self._over = False
        for _ in range(_AHEAD):
            self._asked.put(True)

    def begin(self, begin: Callable[[], Any]) -> None:
        """`begin` begins it. What that raises, and what the call ends with, `next` raises."""
        # Not by way of threading, which waits for it in Python, where it can be interrupted.
        _thread.start_new_thread(self._hear, (begin,))

    def next(self) -> bytes | None:
        """The next message; None at the end. Raises what gRPC does."""
        if self._over:
            return None
        found = self._found.get()
        if isinstance(found, bytes):
            self._asked.put(True)
            return found
        self._over = True
        if found is not None:
            raise found
        return None

    def cancel(self) -> None:
        """Ends the call, if it has not ended, without waiting for that."""
        if self._over:
            return
        self._cancelled = True
        self._asked.put(False)
        _thread.start_new_thread(self._end, ())

    def _end(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def _hear(self, begin: Callable[[], Any]) -> None:
        try:
            self._call = begin()
            if self._cancelled:  # meanwhile
                self._call.cancel()
            while self._asked.get():
                data = next(self._call, None)
                self._found.put(data)
                if data is None:
                    return
            self._call.cancel()
        except BaseException as error:
            self._found.put(error)
        finally:
            self._call = None  # which asks for a lock, too, where it is the last reference

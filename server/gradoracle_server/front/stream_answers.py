"""The answers of one stream on their way to its caller: several in a message where many are to come, large ones in
chunks, and a lone one at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sized

from gradoracle_server.front import stream_wire
from gradoracle_server.front.service import Connection, Immediate
from gradoracle_server.front.stream_wire import Answer
from gradoracle_server.front.unread import Share

_SHARE = 4  # answers wait for company while they are fewer than one in so many of the calls that are unanswered
_PATIENCE = 0.002  # seconds that they wait at most: a message costs what several answers do

_CHUNK = 512 * 1024  # bytes; of an attachment, and of answers that go into one message together


class Answers:
    """Those that are ready, in the order in which they became so."""

    def __init__(
        self,
        connection: Connection,
        share: Share,
        unanswered: Sized,
        is_needed: Callable[[], bool],
        on_sent: Callable[[], object],
        immediate: Immediate | None = None,
    ) -> None:
        """`unanswered` are the calls that have no answer yet; `is_needed` tells whether an answer is not to wait for
        others, because a worker may wait for what its caller sends next; `on_sent` is called when something was sent.
        `immediate` is the connection once more, where it is one."""
        self.held = 0  # bytes that are not yet sent
        self._connection = connection
        self._share = share
        self._unanswered = unanswered
        self._is_needed = is_needed
        self._on_sent = on_sent
        self._immediate = immediate
        self._ready: deque[Answer] = deque()
        self._sending: tuple[Answer, Iterator[list[bytes | memoryview]]] | None = None  # the one that goes in chunks
        self._leaving = 0  # bytes of the answers that end with the message that is being sent
        self._is_last = False  # whether no more calls come
        self._closed = False
        self._changed = asyncio.Event()  # for the writer: there are answers, or there will be none
        self._rests = False  # whether the writer waits for that, with nothing to send
        self._waited = False  # whether the answers that are ready have waited long enough
        self._timer: asyncio.TimerHandle | None = None  # until they have

    @property
    def count(self) -> int:
        """How many are not yet sent."""
        return len(self._ready) + (0 if self._sending is None else 1)

    def add(self, answer: Answer) -> None:
        """One is ready."""
        if self._closed:
            answer.close()
            return
        self._ready.append(answer)
        self.held += answer.size
        self._share.add(answer.whole_size)
        if self._sending is not None or not (self._sends_at_once() or self._gathers()):
            self._changed.set()

    def end(self) -> None:
        """No more calls come: with the last answer, `send` ends."""
        self._is_last = True
        self._changed.set()

    def close(self) -> None:
        """Nobody waits for any answer any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for answer in self._ready:
            answer.close()
        if self._sending is not None:
            self._sending[0].close()
        self._ready.clear()
        self._sending = None

    async def send(self) -> None:
        """Sends them as they become ready, to the last one."""
        while True:
            if self._sending is None and self._gathers():
                self._changed.clear()
                await self._changed.wait()
            elif message := self._next():
                self._waited = False
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                await self._connection.write(message)
                self._have_sent()
            elif self._leaving or self._ready or self._sending is not None:
                self._have_sent()  # the last part of a large answer, with the message before; the next one may wait
            elif self._is_last and not self._unanswered:
                return
            else:
                self._changed.clear()
                self._rests = True
                await self._changed.wait()
                self._rests = False

    def _sends_at_once(self) -> bool:
        """Sends a lone answer, where nothing is in its way. Whether it did."""
        immediate = self._immediate
        if immediate is None or self._unanswered or len(self._ready) > 1 or not self._rests or not immediate.has_room:
            return False
        if self._is_last:  # the writer ends with it
            return False
        if self._ready[0].attachments is not None:  # they go in chunks, each once the one before has gone
            return False
        immediate.send(self._next())
        self._have_sent()
        return True

    def _gathers(self) -> bool:
        """Whether answers that are ready wait for others, which are soon to come, to share a message with them."""
        if self._waited or not self._ready or len(self._ready) * _SHARE >= len(self._unanswered):
            return False
        if self._is_needed():
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._have_waited)
        return True

    def _have_waited(self) -> None:
        self._timer = None
        self._waited = True
        self._changed.set()

    def _have_sent(self) -> None:
        self._share.take(self._leaving)
        self._leaving = 0
        self._on_sent()

    def _next(self) -> bytes:
        """The next message: answers that are ready, and a chunk of one that is larger."""
        parts: list[bytes | memoryview] = []
        size = 0
        while self._ready and size < _CHUNK:
            if self._ready[0].attachments is not None:
                if self._sending is not None:
                    break
                answer = self._ready.popleft()
                self._sending = answer, stream_wire.chunks(answer, _CHUNK)
                continue
            answer = self._ready.popleft()
            self.held -= answer.size
            self._leaving += answer.whole_size
            size += answer.size
            parts += stream_wire.answer(answer)
        if self._sending is not None and size < _CHUNK:
            answer, chunks = self._sending
            if (chunk := next(chunks, None)) is not None:
                parts += chunk
            else:
                self._sending = None
                self.held -= answer.size
                self._leaving += answer.whole_size
                answer.close()
        return b"".join(parts)

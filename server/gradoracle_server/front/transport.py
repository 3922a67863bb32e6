"""The front's end of the socket to one worker, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Sequence

from gradoracle_server.frames import Job, PayloadError, Reply, parts, whole
from gradoracle_server.front import statuses
from gradoracle_server.inbox import Inbox
from gradoracle_server.lanes import Outlet
from gradoracle_server.mapping import KeptMapping

_LARGEST_KEPT = 64 * 1024 * 1024  # bytes of a file of attachments that stays mapped for the next reply
_IDLE = 1.0  # seconds in which there may be one


class Connection:
    """Sends jobs to a worker and hands its replies to `on_reply`, both without waiting and without tasks.

    The payload of a reply that is a memoryview may be written over once the worker is sent another job.

    `on_lost` is called once, with False when the worker has closed its end, with True when it sends what is no reply.
    Where it is called because a reply could not be read, for want of memory or descriptors, `failure` is to be told to
    who waits for it.
    """

    def __init__(self, sock: socket.socket, on_reply: Callable[[Reply], None], on_lost: Callable[[bool], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._inbox: Inbox[Reply] = Inbox(Reply)
        self._outlet = Outlet()
        self._unread = 0  # replies whose attachments are still in use
        self._attached = KeptMapping(_LARGEST_KEPT, mmap.PROT_READ)
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: list[memoryview] = []
        self._closed = False
        self.failure: statuses.Failure | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    @property
    def is_closed(self) -> bool:
        """Whether the worker has gone, or is to go."""
        return self._closed

    def send(self, job: Job) -> bool:
        """Sends a job to a worker that has none; what the socket does not take at once follows when it can.

        Returns False when the worker has gone, which `on_lost` will report too. Raises OSError when there is no memory
        for the job.
        """
        self._outlet.free()  # it has answered what it had
        job.all_read = not self._unread
        buffers: Sequence[bytes | memoryview]
        descriptors: list[int] = []
        own = None
        data = whole(job)
        if data is None:
            buffers, descriptors, own = parts(job, self._outlet)
        else:
            buffers = (data,)
        try:
            sent = socket.send_fds(self._sock, buffers, descriptors) if descriptors else self._sock.send(buffers[0])
        except BlockingIOError:  # not even its first byte, with which the descriptors go
            self._outlet.close()
            raise OSError("the socket to the worker is full although it has nothing to do") from None
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            if own is not None:
                os.close(own)
        self._send_later(buffers, sent)
        return True

    def send_ahead(self, jobs: Sequence[Job]) -> None:
        """Sends small jobs, without attachments, to a worker that has others; if it has gone, `on_lost` tells."""
        if self._closed:
            return
        data, sent = b"".join(filter(None, (whole(job, ahead=True) for job in jobs))), 0
        if not self._unsent:
            with contextlib.suppress(OSError):  # a full socket, or none any more
                sent = self._sock.send(data)
        self._send_later((data,), sent)

    def _send_later(self, buffers: Sequence[bytes | memoryview], sent: int) -> None:
        for buffer in buffers:
            if sent < len(buffer):
                self._unsent.append(memoryview(buffer)[sent:])
            sent = max(0, sent - len(buffer))
        if self._unsent:
            self._loop.add_writer(self._sock, self._writable)

    def close(self) -> None:
        """Closes the socket, which tells an idle worker to end. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._unsent.clear()
        self._inbox.close()
        self._outlet.close()
        self._sock.close()

    def _readable(self) -> None:
        reply = self._arrived(self._read)
        while reply is not None:
            self._on_reply(reply)
            reply = None if self._closed else self._arrived(self._inbox.next)

    def _read(self) -> Reply | None:
        return self._inbox.read(self._sock)

    def _arrived(self, look: Callable[[], Reply | None]) -> Reply | None:
        try:
            reply = look()
            if reply is not None and reply.attachments is not None and reply.attachments.descriptor >= 0:
                self._unread += 1
                reply.attachments.on_close = self._have_read
                reply.attachments.room = self._attached.room(reply.attachments.descriptor, reply.attachments.end)
                self._forget_later()
            return reply
        except BlockingIOError:
            return None
        except PayloadError as error:
            self.failure = statuses.internal(error, "reading a worker's reply")
            self._lost(garbled=False)
        except (EOFError, OSError):
            self._lost(garbled=False)
        except ValueError:
            self._lost(garbled=True)
        return None

    def _forget_later(self) -> None:
        """The worker gives up its file after a while, and mapped here its memory would live on."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_IDLE, self._forget)

    def _forget(self) -> None:
        self._attached.drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _have_read(self) -> None:
        self._unread -= 1

    def _writable(self) -> None:
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:  # it has gone, which the reading side reports
                self._unsent.clear()
                break
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                del self._unsent[0]
        self._loop.remove_writer(self._sock)

    def _lost(self, *, garbled: bool) -> None:
        self.close()
        self._on_lost(garbled)


async def first_reply(sock: socket.socket, timeout: float) -> Reply:
    """The one reply of a process that sends one and ends. Closes the socket.

    Raises EOFError when it ends without one, TimeoutError when it does neither.
    """
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def on_reply(reply: Reply) -> None:
        if not future.done():
            future.set_result(reply)

    def on_lost(_: bool) -> None:
        if not future.done():
            future.set_exception(EOFError("the process ended without an answer"))

    with contextlib.closing(Connection(sock, on_reply, on_lost)):
        async with asyncio.timeout(timeout):
            return await future

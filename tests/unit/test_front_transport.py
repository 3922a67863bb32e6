"""The socket to a worker on the event loop: partial writes, partial reads, and ends of all kinds."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradoracle_server import frames, lanes
from gradoracle_server.envelope import SHARED_FROM
from gradoracle_server.frames import Attachments, Job, Reply
from gradoracle_server.front import transport
from gradoracle_server.front.transport import Connection, first_reply
from gradoracle_server.inbox import Inbox


class Front:
    """A connection, and what it was told."""

    def __init__(self, sock: socket.socket) -> None:
        self.replies: list[Reply] = []
        self.lost: list[bool] = []
        self.connection = Connection(sock, self.replies.append, self.lost.append)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket with small buffers."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        yield ours, theirs


async def until(condition: object) -> None:
    """Lets the event loop run until something is so."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_large_job_is_sent_in_parts(pair: tuple[socket.socket, socket.socket]) -> None:
    """A job that the socket does not take at once follows as the worker reads, without anyone waiting for it."""
    front = Front(pair[0])
    payload = os.urandom(SHARED_FROM - 1)

    assert front.connection.send(Job(2, payload))

    job = await asyncio.to_thread(Inbox(Job).wait, pair[1])
    assert (2, payload) == (job.method, job.payload)
    assert front.connection.send(Job(3, b"next"))
    assert b"next" == (await asyncio.to_thread(Inbox(Job).wait, pair[1])).payload
    front.connection.close()


async def test_large_reply_arrives_in_parts(pair: tuple[socket.socket, socket.socket]) -> None:
    """A reply that comes in many pieces is handed on once, whole."""
    front = Front(pair[0])
    payload = os.urandom(SHARED_FROM - 1)

    await asyncio.to_thread(frames.send, pair[1], Reply(0, payload))

    await until(lambda: front.replies)
    assert [payload] == [reply.payload for reply in front.replies]
    front.connection.close()


@pytest.mark.parametrize(("last_words", "garbled"), [(b"", False), (b"half", False), (b"\xff" * 64, True)])
async def test_end_is_told_once(pair: tuple[socket.socket, socket.socket], last_words: bytes, garbled: bool) -> None:
    """When the worker goes, or sends what is no reply, that is told once, and which of the two it was."""
    front = Front(pair[0])
    pair[1].sendall(last_words)
    pair[1].close()

    await until(lambda: front.lost)
    await asyncio.sleep(0.01)

    assert ([garbled], []) == (front.lost, front.replies)


@pytest.mark.parametrize("size", [1, SHARED_FROM])
async def test_sending_to_one_that_has_gone(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    """A job that cannot reach its worker is told apart from one that may have run."""
    front = Front(pair[0])
    pair[1].close()

    assert not front.connection.send(Job(0, bytes(size)))
    await until(lambda: front.lost)


async def test_first_reply(pair: tuple[socket.socket, socket.socket]) -> None:
    """A process that answers once and ends is heard."""
    frames.send(pair[1], Reply(0, b"{}"))
    pair[1].close()

    assert b"{}" == (await first_reply(pair[0], 10.0)).payload


async def test_first_reply_that_does_not_come(pair: tuple[socket.socket, socket.socket]) -> None:
    """One that ends without a word, or never does, is an error."""
    with pytest.raises(TimeoutError):
        await first_reply(pair[0], 0.01)
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(EOFError, match="the process ended without an answer"):
        await first_reply(ours, 10.0)


async def test_a_job_says_whether_every_answers_file_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """Until all attachments of replies are closed, the worker must not write over them. One that is sent ahead never
    says so: what comes before it has yet to be read."""
    front = Front(pair[0])
    inbox = Inbox(Job)

    async def told(ahead: bool = False) -> bool:
        job = Job(1, b"x")
        if ahead:
            front.connection.send_ahead([job])
        else:
            assert front.connection.send(job)
        return (await asyncio.to_thread(inbox.wait, pair[1])).all_read

    assert await told()
    for number in range(2):
        descriptor = lanes.memory_file([b"abc"])
        frames.send(pair[1], Reply(0, b"", Attachments(descriptor, [(0, 3)])))
        os.close(descriptor)
        await until(lambda number=number: len(front.replies) == number + 1)
    first, second = (reply.attachments for reply in front.replies)
    assert first is not None
    assert second is not None
    assert not await told()
    first.close()
    first.close()
    assert not await told()
    second.close()
    assert not await told(ahead=True)
    assert await told()
    frames.send(pair[1], Reply(0, b"", Attachments(-1, [(0, 3)], callers=True)))  # no file of the worker's
    await until(lambda: len(front.replies) == 3)
    assert await told()
    front.connection.close()


def mapped(descriptor: int) -> bool:
    """Whether this process has a file mapped."""
    return f" {os.fstat(descriptor).st_ino} " in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK], ids=["might shrink", "cannot"])
async def test_a_file_of_attachments_stays_mapped_for_a_while(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, seals: int
) -> None:
    """Where it cannot shrink, which would be the end of the front; what is in it is read either way."""
    monkeypatch.setattr(transport, "_IDLE", 0.05)
    front = Front(pair[0])
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    for text in (b"abc", b"def"):
        os.pwrite(descriptor, bytes(64) + text, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        frames.send(pair[1], Reply(0, b"", Attachments(descriptor, [(64, 3)])))
        await until(lambda: bool(front.replies))
        attachments = front.replies.pop().attachments
        assert attachments is not None
        assert mapped(descriptor) == bool(seals)
        assert [text, text[1:2]] == [bytes(attachments.read(64, 3)), bytes(attachments.read(65, 1))]
        attachments.close()
        assert mapped(descriptor) == bool(seals)
    await until(lambda: not mapped(descriptor))
    os.close(descriptor)
    front.connection.close()


async def test_a_worker_that_goes_leaves_no_file_mapped(pair: tuple[socket.socket, socket.socket]) -> None:
    """Its memory goes with it."""
    front = Front(pair[0])
    descriptor = lanes.memory_file([b"abc"])
    frames.send(pair[1], Reply(0, b"", Attachments(descriptor, [(0, 3)])))
    await until(lambda: bool(front.replies))
    (attachments,) = (reply.attachments for reply in front.replies)
    assert attachments is not None
    front.connection.close()
    assert b"abc" == bytes(attachments.read(0, 3))
    attachments.close()
    assert not mapped(descriptor)
    os.close(descriptor)

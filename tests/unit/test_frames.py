"""Frames: whatever the front sends, a worker gets, and the other way round."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradoracle_server import frames, lanes
from gradoracle_server.envelope import SHARED_FROM
from gradoracle_server.frames import Attachments, Job, Reply
from gradoracle_server.inbox import Inbox


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def descriptors() -> int:
    """How many descriptors of memory files this process has; other threads may open others."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "memfd:" in str(one.readlink())
    return found


@pytest.mark.parametrize("size", [0, 1, 1000, SHARED_FROM - 1, SHARED_FROM, 3_000_000])
def test_job_arrives(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    """A job of any size comes out as it went in, and leaves no descriptor behind."""
    left, right = pair
    payload = os.urandom(size)
    inbox = Inbox(Job)
    right.setblocking(False)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    before = descriptors()

    frames.send(left, Job(3, payload))
    job = None
    while job is None:
        job = inbox.read(right)

    assert (3, payload, None, False) == (job.method, bytes(job.payload), job.attachments, job.attachments_welcome)
    del job  # a mapping has a descriptor of its own
    assert before == descriptors()


def test_reply_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    """Every figure of a reply arrives."""
    phases = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    reply = Reply(13, b"why", None, phases, 2, 3, 2**40, 5, 6, 7)

    frames.send(pair[0], reply)

    assert reply == Inbox(Reply).wait(pair[1])


def test_attachments_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    """Attachments come as a memory file with spans; the receiver may write to its mapping, and nobody else sees it."""
    descriptor = lanes.memory_file([b"abc", b"\0" * 61, b"defg"])
    sent = Attachments(descriptor, [(0, 3), (64, 4)])

    frames.send(pair[0], Job(0, bytes(SHARED_FROM), sent, attachments_welcome=True))
    job = Inbox(Job).wait(pair[1])

    assert job.attachments is not None
    assert [(0, 3), (64, 4)] == list(job.attachments.spans)
    assert job.attachments_welcome
    with job.attachments.map() as content, sent.map() as theirs:
        content[:3] = b"xyz"
        assert (b"xyz", b"abc") == (content[:3], theirs[:3])
        assert b"defg" == content[64:68]
    for attachments in (job.attachments, sent):
        attachments.close()
        attachments.close()


def test_message_in_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    """A message that arrives byte by byte is whole at its last byte, not before; so is the next."""
    left, right = pair
    inbox = Inbox(Job)
    for payload in (b"first", b"second"):
        buffers, _, _ = frames.parts(Job(1, payload))
        whole = b"".join(buffers)
        for place, byte in enumerate(whole, 1):
            left.send(bytes([byte]))
            job = inbox.read(right)
            assert (job is not None) == (place == len(whole))
        assert job is not None
        assert payload == job.payload


def test_two_messages_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """What arrives behind a message is the beginning of the next."""
    left, right = pair
    both = b"".join(b"".join(frames.parts(Job(0, payload))[0]) for payload in (b"first", b"second"))
    inbox = Inbox(Job)
    left.send(both[:-1])
    first = inbox.wait(right)
    left.send(both[-1:])

    assert (b"first", b"second") == (first.payload, inbox.wait(right).payload)


def test_end_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    """When the other side has gone, reading says so."""
    pair[0].close()

    with pytest.raises(EOFError, match="the other side closed the socket"):
        Inbox(Reply).wait(pair[1])


def test_descriptors_of_half_a_message_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """When a message stops in the middle, `close` gives its descriptors back."""
    left, right = pair
    before = descriptors()
    buffers, passed, own = frames.parts(Job(0, bytes(SHARED_FROM)))
    assert own is not None
    socket.send_fds(left, [bytes(buffers[0])[:5]], passed)
    os.close(own)
    inbox = Inbox(Job)
    assert inbox.read(right) is None
    assert before + 1 == descriptors()

    inbox.close()

    assert before == descriptors()


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        (struct.pack("<BBHIQ", 255, 0, 0, 0, 0), "expected 1 descriptors with the message, got 0"),
        (struct.pack("<BBHIQ", 0, 0, 60000, 0, 0), "expected an envelope, got "),
        (struct.pack("<BBHIQ", 0, 0, 0, 0, 2**60), "expected an envelope, got "),
        (struct.pack("<BBHIQ", 1, 0, 0, 0, 2**20), "expected 1 descriptors with the message, got 0"),
        (struct.pack("<BBHIQ", 0, 0, 0, 0, 0), "expected another head: "),
    ],
)
def test_nonsense_is_a_value_error(pair: tuple[socket.socket, socket.socket], envelope: bytes, error: str) -> None:
    """What is no message is refused, whatever a broken worker sends."""
    pair[0].send(envelope)

    with pytest.raises(ValueError, match=error):
        Inbox(Reply).wait(pair[1])


@pytest.mark.parametrize("sealed", [True, False])
def test_payload_that_could_shrink_is_refused(pair: tuple[socket.socket, socket.socket], sealed: bool) -> None:
    """A memory file that its maker could cut off under the reader's hands is not mapped."""
    left, right = pair
    buffers, passed, own = frames.parts(Job(0, bytes(SHARED_FROM)))
    assert own is not None
    if not sealed:
        passed = [os.memfd_create("planted")]
        os.truncate(passed[0], SHARED_FROM)
    socket.send_fds(left, buffers, passed)

    if sealed:
        assert SHARED_FROM == len(Inbox(Job).wait(right).payload)
        assert fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    else:
        with pytest.raises(ValueError, match="expected a memory file sealed against shrinking"):
            Inbox(Job).wait(right)
        os.close(passed[0])
    os.close(own)

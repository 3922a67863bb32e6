"""A worker that finds no memory for what comes, or for what it answers: that request has an error, and no other."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2

from gradoracle_server import frames, lanes, mapping
from gradoracle_server.envelope import SHARED_FROM
from gradoracle_server.frames import Attachments, Job, PayloadError, Reply
from gradoracle_server.inbox import Inbox
from gradoracle_server.worker import main
from gradoracle_server.worker.backlog import Backlog

LARGE = bytes(SHARED_FROM)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The front's end and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def failing_once(function: Callable[..., Any], number: int, *, closes: bool = False) -> Callable[..., Any]:
    """The function, which fails the first time; `closes`: the descriptor that it was passed, all the same."""
    errors = [OSError(number, os.strerror(number))]

    def fails(*arguments: Any) -> Any:
        if not errors:
            return function(*arguments)
        if closes:
            os.close(arguments[0])
        raise errors.pop()

    return fails


def send(sock: socket.socket, *jobs: Job) -> None:
    """All in one piece, a large one only as the first."""
    buffers, descriptors, own = frames.parts(jobs[0])
    try:
        socket.send_fds(sock, [*buffers, *filter(None, map(frames.whole, jobs[1:]))], descriptors)
    finally:
        if own is not None:
            os.close(own)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("begun", [False, True], ids=["in one read", "in two"])
def test_what_cannot_be_read_has_its_number(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Those behind it are read, and what the front takes back is what it means."""
    backlog, before = Backlog(), open_descriptors()
    monkeypatch.setattr("gradoracle_server.inbox.mapped", failing_once(mapping.mapped, errno.ENOMEM, closes=True))
    job = Job(0, LARGE, Attachments(lanes.memory_file([b"abc"]), [(0, 3)]))
    word = frames.withdrawal([3])
    if begun:  # what follows is put together in another way
        data = frames.whole(word) or b""
        pair[0].sendall(data[:10])
        assert backlog._inbox.read(pair[1]) is None
        pair[0].sendall(data[10:])
        send(pair[0], job, Job(0, b"b"), Job(0, b"c"), Job(0, b"d"))
    else:
        send(pair[0], job, Job(0, b"b"), Job(0, b"c"), Job(0, b"d"), word)
    assert job.attachments is not None
    job.attachments.close()

    with pytest.raises(PayloadError, match="Cannot allocate memory"):
        backlog.wait(pair[1])

    found = [backlog.wait(pair[1]) for _ in range(3)]
    assert [b"b", None, b"d"] == [None if one is None else bytes(one.payload) for one in found]
    assert before == open_descriptors()


def test_a_lane_that_cannot_be_mapped_is_mapped_for_the_next_one(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor is passed only once."""
    inbox: Inbox[Job] = Inbox(Job)
    monkeypatch.setattr(lanes, "mapped", failing_once(lanes.mapped, errno.ENOMEM, closes=True))
    before = open_descriptors()
    with contextlib.closing(lanes.Outlet()) as outlet:
        frames.send(pair[0], Job(0, LARGE), outlet)
        with pytest.raises(PayloadError):
            inbox.wait(pair[1])
        outlet.free()
        frames.send(pair[0], Job(0, b"x" * SHARED_FROM), outlet)
        assert b"x" * SHARED_FROM == bytes(inbox.wait(pair[1]).payload)
    assert before + 1 == open_descriptors(), "that of the mapping"


class Large:
    """A worker all of whose answers are large: beyond what a lane takes, or not."""

    def __init__(self, size: int) -> None:
        self.kept = self
        self._size = size

    def rest(self, sock: socket.socket) -> None:
        """It keeps nothing."""

    def answer(self, job: Job) -> Reply:
        return Reply(0, bytes(job.payload) * self._size)

    def let_go(self) -> None:
        """It has taken nothing."""


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOMEM, "LIMIT_EXCEEDED"), (errno.ENOSPC, "LIMIT_EXCEEDED"), (errno.EMFILE, "INTERNAL")],
    ids=["memory", "space", "descriptors"],
)
@pytest.mark.parametrize("size", [SHARED_FROM, lanes.MOST + 1], ids=["lane", "own file"])
def test_an_answer_that_finds_no_memory(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, size: int, number: int, reason: str
) -> None:
    """Is an error, and the worker goes on."""
    monkeypatch.setattr(lanes, "memory_file", failing_once(lanes.memory_file, number))
    worker: Any = Large(size)
    with ThreadPoolExecutor(1) as thread:
        loop = thread.submit(main._answer_all, worker, pair[1], 5000)
        inbox: Inbox[Reply] = Inbox(Reply)
        frames.send(pair[0], Job(0, b"a"))
        refused = inbox.wait(pair[0])
        frames.send(pair[0], Job(0, b"b"))
        answered = inbox.wait(pair[0])
        pair[0].close()
        assert loop.result(60) is None
    status = status_pb2.Status.FromString(bytes(refused.payload))
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (refused.code, reason) == (status.code, info.reason)
    if reason == "LIMIT_EXCEEDED":
        assert "out of memory: " in status.message
        assert ("max-memory-bytes", "5000") == (info.metadata["limit"], info.metadata["allowed"])
    assert (0, b"b" * size) == (answered.code, bytes(answered.payload))


def test_descriptors_that_find_no_room(pair: tuple[socket.socket, socket.socket]) -> None:
    """What they came with is not nonsense, and what comes behind it is read."""
    inbox: Inbox[Job] = Inbox(Job)
    send(pair[0], Job(0, LARGE), Job(0, b"b"))
    send(pair[0], Job(0, b"c" * SHARED_FROM))
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(PayloadError, match="Too many open files"):
            inbox.wait(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [b"b", b"c" * SHARED_FROM] == [bytes(inbox.wait(pair[1]).payload) for _ in range(2)]

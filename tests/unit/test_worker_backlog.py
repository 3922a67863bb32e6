"""What a worker has been given and has not begun with: the front may take it back."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gradoracle_server import frames
from gradoracle_server.frames import Job
from gradoracle_server.worker.backlog import Backlog


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The front's end and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def send(sock: socket.socket, *jobs: Job) -> None:
    """All in one piece."""
    sock.sendall(b"".join(data for data in map(frames.whole, jobs) if data))


def taken(backlog: Backlog, sock: socket.socket) -> bytes | None:
    """The payload of the next job, None for one that was taken back."""
    job = backlog.wait(sock)
    return None if job is None else bytes(job.payload)


LETTERS = [Job(0, letter.encode()) for letter in "abcd"]


def test_jobs_come_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    """Those that arrive together, and those that arrive later."""
    backlog = Backlog()
    send(pair[0], *LETTERS[:3])
    assert [taken(backlog, pair[1]) for _ in range(3)] == [b"a", b"b", b"c"]
    send(pair[0], LETTERS[3])
    assert taken(backlog, pair[1]) == b"d"


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "later"])
def test_what_is_taken_back_is_not_run(pair: tuple[socket.socket, socket.socket], together: bool) -> None:
    """Whether word of it comes with the jobs, or while the first of them runs; the others keep their numbers."""
    backlog = Backlog()
    word = frames.withdrawal([2, 4])
    send(pair[0], *LETTERS, *([word] if together else []))
    first = taken(backlog, pair[1])
    if not together:
        send(pair[0], word)
    assert [first, *(taken(backlog, pair[1]) for _ in range(3))] == [b"a", None, b"c", None]
    send(pair[0], Job(0, b"e"))
    assert taken(backlog, pair[1]) == b"e"


def test_word_that_comes_too_late_is_no_word(pair: tuple[socket.socket, socket.socket]) -> None:
    """What has begun, or ended, is not touched, and neither is what comes after it."""
    backlog = Backlog()
    send(pair[0], *LETTERS[:2])
    assert taken(backlog, pair[1]) == b"a"
    send(pair[0], frames.withdrawal([1]))
    assert taken(backlog, pair[1]) == b"b"
    send(pair[0], frames.withdrawal([1, 2]), *LETTERS[2:])
    assert [taken(backlog, pair[1]) for _ in range(2)] == [b"c", b"d"]
    assert not backlog._withdrawn


def test_the_front_goes_while_jobs_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    """They are for nobody then."""
    backlog = Backlog()
    send(pair[0], *LETTERS[:2])
    assert taken(backlog, pair[1]) == b"a"
    pair[0].close()
    with pytest.raises(EOFError, match="the other side closed the socket"):
        backlog.wait(pair[1])

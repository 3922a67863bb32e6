"""Sockets that may be forgotten at any moment."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from gradoracle import quiet


class Interruption(BaseException):
    """As a signal's handler raises it, between any two steps."""


def descriptors() -> set[str]:
    """Those of this process that are sockets."""
    links = {one: str(one) for one in Path("/proc/self/fd").iterdir()}
    return {name for one, name in links.items() if one.is_symlink() and one.readlink().name.startswith("socket:")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No socket is left open afterwards, and nobody was warned of one, which pytest would make an error of."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert before == descriptors()


@pytest.mark.usefixtures("nothing_left")
def test_one_that_is_forgotten() -> None:
    """Used before or not."""
    one, other = quiet.Socket(socket.AF_UNIX), quiet.Socket(socket.AF_UNIX)
    one.bind("")
    assert one.fileno() != other.fileno()


@pytest.mark.usefixtures("nothing_left")
def test_its_making_is_interrupted() -> None:
    """Before every line of it, until there are no more."""
    step, is_done = 1, False
    while not is_done:
        lines = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal lines
            lines += event == "line" and frame.f_code is socket.socket.__init__.__code__
            if lines == step:  # noqa: B023 - it is used in this turn alone
                sys.settrace(None)
                raise Interruption
            return trace

        sys.settrace(trace)
        with contextlib.suppress(Interruption):
            quiet.Socket(socket.AF_UNIX)
            is_done = True
        sys.settrace(None)
        step += 1
    assert step > 5  # lines of Python's own socket


def test_the_tester() -> None:
    """A socket of Python's that is forgotten is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        socket.socket(socket.AF_UNIX)
        gc.collect()
    assert [ResourceWarning] == [one.category for one in caught]


def test_sending_to_who_has_gone() -> None:
    """Is an error, not a signal, whichever way is sent."""
    caught: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: caught.append(number))
    try:
        for how in ("send", "sendall", "sendmsg"):
            here, there = socket.socketpair()
            there.close()
            with quiet.Socket(fileno=here.detach()) as one, pytest.raises(BrokenPipeError):
                getattr(one, how)([b"x"] if how == "sendmsg" else b"x")
        assert not caught
        here, there = socket.socketpair()
        there.close()
        with here, pytest.raises(BrokenPipeError):
            here.send(b"x")
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert caught == [signal.SIGPIPE]

"""The process's own server: started at the first check that names no client, kept for the next, stopped at exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from gradoracle.client import Client
from gradoracle.errors import ServerUnavailableError

T = TypeVar("T")


class _Owner:
    """Holds the client of the private server. Any number of threads may ask for it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """As if nothing had been started."""
        self.lock = threading.Lock()
        self.client: Client | None = None
        self.process = os.getpid()

    def get(self) -> Client:
        """The client; the first one to ask waits for the server to start, and so do those who ask meanwhile."""
        with self.lock:
            if self.client is None:
                self.client = Client.local()
            return self.client

    def give_up(self, client: Client | None) -> None:
        """Stops the server, unless another has taken its place already."""
        with self.lock:
            if client is None or client is not self.client:
                return
            self.client = None
        client.close()


_owner = _Owner()
_inherited: list[Client] = []  # of the process that forked: to be neither used nor stopped here


def call(ask: Callable[[Client], T]) -> T:
    """What `ask` returns for the private server's client. Where the server has gone, once more with a new one."""
    client = _owner.get()
    try:
        return ask(client)
    except ServerUnavailableError:
        _owner.give_up(client)
        return ask(_owner.get())


def _stop() -> None:
    if _owner.process == os.getpid():
        with contextlib.suppress(Exception):  # the interpreter ends in any case, and the server with its stdin
            _owner.give_up(_owner.client)


def _after_fork() -> None:
    """A child starts a server of its own: the parent's ends with the parent, and its connections are the parent's."""
    if _owner.client is not None:
        _inherited.append(_owner.client)
    _owner.forget()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Where a server on this machine is found beside gRPC, by processes of its own user."""

from __future__ import annotations

import os
import socket
import struct

MEMORY = ".memory"
"""Behind the path of a server's Unix socket: where it takes memory files, if it was not told another place."""

CALLS = ".calls"
"""Behind that: where it takes calls without gRPC."""

_CREDENTIALS = struct.Struct("iII")  # process, user, group


def place(address: str) -> str | None:
    """Where the server at an address takes memory files, if it takes any: the path of a socket, or a name of Linux's,
    which begins with a zero byte. None where none can be there."""
    if address.startswith("unix:"):
        return path(address) + MEMORY
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host
    if not is_loopback(host) or not hasattr(os, "memfd_create"):  # or this is no Linux
        return None
    # A name is one of the network namespace, as ports are: a server there is that of the port.
    return f"\0gradoracle/{os.geteuid()}/{host}:{port}{MEMORY}"


def path(address: str) -> str:
    """That of gRPC's socket, of "unix:PATH"."""
    return address.removeprefix("unix:").removeprefix("//")


def is_loopback(host: str) -> bool:
    """Whether a host, which may stand in brackets, is this machine by its address."""
    return host in ("::1", "[::1]") or host.startswith("127.")


def admit(server: socket.socket, place: str) -> None:
    """Raises ConnectionRefusedError where whoever has taken a name, which anybody may, is not of this user."""
    if place.startswith("\0"):
        found = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(found)[1] != os.geteuid():
            raise ConnectionRefusedError("another user's process is there")

"""Where a server on this machine is found beside gRPC, and whether what is found there is that server."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

MEMORY = ".memory"
"""Behind the path of a server's Unix socket: where it takes memory files, if it was not told another place."""

CALLS = ".calls"
"""Behind that: where it takes calls without gRPC."""

_CREDENTIALS = struct.Struct("iII")  # process, user, group
_HERE = ("localhost", "0.0.0.0")  # noqa: S104 - hosts by which 127.0.0.1 is reached
_UNKNOWN = 65_534  # whom Linux takes a user for whom a namespace does not know
_ALL_KNOWN = ["0", "0", "4294967295"]  # what /proc/self/uid_map says where there is none such


def place(address: str) -> str | None:
    """Where the server at an address takes memory files, if it takes any: the path of a socket, or a name of Linux's,
    which begins with a zero byte. None where none can be there."""
    if not are_possible():
        return None
    if address.startswith("unix:"):
        return path(address) + MEMORY
    host, _, port = address.rpartition(":")
    if host in _HERE:
        if host == "localhost" and not _is_ipv4(host):
            return None
        host = "127.0.0.1"
    if not is_loopback(host) or not _is_one_user(os.geteuid()):
        return None
    # A name is one of the network namespace, as ports are: a server there is that of the port.
    return f"\0gradoracle/{os.geteuid()}/{host}:{port}{MEMORY}"


def are_possible() -> bool:
    """Whether this system has memory files, and tells whose process is at the other end of a socket."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


def path(address: str) -> str:
    """That of gRPC's socket, of "unix:PATH"."""
    return address.removeprefix("unix:").removeprefix("//")


def is_loopback(host: str) -> bool:
    """Whether a host, which may stand in brackets, is this machine by its address."""
    return host in ("::1", "[::1]") or host.startswith("127.")


def admit(server: socket.socket, place: str) -> None:
    """Raises ConnectionRefusedError where another user has taken a place, and nobody but the server's may be told
    anything: a name may be taken by anybody, and in some directories so may a path. The server is of this user, or of
    whose gRPC's socket is, which nobody can put in its place."""
    found = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user = _CREDENTIALS.unpack(found)[1]
    known = {os.geteuid()}
    if not place.startswith("\0"):
        try:
            known.add(Path(place.removesuffix(CALLS).removesuffix(MEMORY)).stat().st_uid)
        except OSError:
            raise ConnectionRefusedError("there is no server beside it") from None
    if user not in known:
        raise ConnectionRefusedError("another user's process is there")


def _is_ipv4(host: str) -> bool:
    """Whether a name stands for 127.0.0.1, as localhost does nearly everywhere."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return False
    return any(place[0] == "127.0.0.1" for *_, place in found)


def _is_one_user(user: int) -> bool:
    """Whether a number does not stand for many users, as one does in a namespace that does not know all."""
    return user != _UNKNOWN or Path("/proc/self/uid_map").read_text().split() == _ALL_KNOWN

"""Where the server's Unix sockets beside gRPC's are, and whom they admit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import sys
from pathlib import Path

from gradoracle_server.addresses import Address

_LONGEST = 107  # bytes of a socket's address
_CREDENTIALS = struct.Struct("iII")  # process, user, group
_EVERYWHERE = ("localhost", "0.0.0.0", "::")  # noqa: S104 - what is listened on has been decided
_UNKNOWN = 65_534  # whom Linux takes a user for whom a namespace does not know
_ALL_KNOWN = ["0", "0", "4294967295"]  # what /proc/self/uid_map says where there is none such


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A path; or a name of Linux's, which begins with a zero byte, and is no file's.

    A name is one of the network namespace, as ports are, and goes with its socket. It has no permissions, so that
    such a socket admits the processes of its own user, and no others.
    """

    address: str

    def __str__(self) -> str:
        return self.address.replace("\0", "@", 1)  # as ss and lsof write it

    @property
    def is_name(self) -> bool:
        """Whether it is no path."""
        return self.address.startswith("\0")

    @property
    def fits(self) -> bool:
        """Whether a socket's address may be as long as that."""
        return len(os.fsencode(self.address)) <= _LONGEST

    def beside(self, suffix: str) -> Place:
        """Another one."""
        return Place(self.address + suffix)

    def listening(self, kind: int, backlog: int, permissions: int) -> socket.socket:
        """A socket there. `permissions` are those of a path, at which one that nobody listens to is replaced. Raises
        OSError."""
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            if not self.is_name:
                Path(self.address).unlink(missing_ok=True)  # left behind by a server that is gone, as was looked at
            sock.bind(self.address)
            if not self.is_name:
                Path(self.address).chmod(permissions)
            sock.listen(backlog)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def admits(self, caller: socket.socket) -> bool:
        """Whether who has connected may stay."""
        return not self.is_name or peer(caller)[1] == os.geteuid()

    def remove(self) -> None:
        """After its socket was closed."""
        if not self.is_name:
            with contextlib.suppress(OSError):
                Path(self.address).unlink()


def by_port(listen: Address) -> Place | None:
    """Where callers look for a server of whom they know no more than its port on this machine; None where the server
    is not to be reached that way."""
    host = "127.0.0.1" if listen.host in _EVERYWHERE else listen.host
    if listen.path or not Address(host, listen.port).is_local or sys.platform != "linux":
        return None
    if not _is_one_user(os.geteuid()):
        return None
    return Place(f"\0gradoracle/{os.geteuid()}/{Address(host, listen.port)}")


def _is_one_user(user: int) -> bool:
    """Whether a number does not stand for many users, as one does in a namespace that does not know all."""
    return user != _UNKNOWN or Path("/proc/self/uid_map").read_text().split() == _ALL_KNOWN


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end; process 0 where that is of another namespace."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(found)
    return process, user

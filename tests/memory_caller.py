"""A caller of a server's second socket, over which memory files are handed, and requests that name them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from front_server import command

from gradoracle.v1 import service_pb2

GOOD = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Caller:
    """A connection to the second socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        self.socket.connect(str(path))

    def say(self, message: bytes, *descriptors: int) -> None:
        socket.send_fds(self.socket, [message], descriptors)

    def offer(self, *descriptors: int) -> bytes:
        """Offers files; gives the answer."""
        self.say(b"\1", *descriptors)
        return self.socket.recv(4096)

    def token(self, descriptor: int) -> bytes:
        """Offers a file that is taken."""
        answer = self.offer(descriptor)
        assert (17, b"\0") == (len(answer), answer[:1])
        return answer[1:]

    def is_closed(self) -> bool:
        """Waits until the server says something, and that must be the end."""
        return self.socket.recv(4096) == b""


@contextlib.contextmanager
def memory_file(contents: bytes = b"", seals: int = GOOD) -> Iterator[int]:
    """A memory file's descriptor."""
    descriptor = os.memfd_create("gradoracle-test", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, contents)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def naming(
    token: bytes, use: int, *spans: tuple[int, int], text: str = "echo", data: bytes = b""
) -> service_pb2.EvaluateRequest:
    """A request that names memory."""
    request = command(text, data)
    request.memory.token, request.memory.use = token, use
    for offset, length in spans:
        request.memory.spans.add(offset=offset, length=length)
    return request

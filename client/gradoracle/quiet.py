"""Sockets on which sending to who has gone is an error, and nothing else, and that may be forgotten.

In a program that has SIGPIPE as the system has it, as those have whose output is to be cut by `head`, it would be the
end of the program otherwise. And a client may be forgotten, not closed, or a signal's exception come between any two
steps: that is no cause for warnings.
"""

from __future__ import annotations

import socket
from typing import Any

FLAG: int = getattr(socket, "MSG_NOSIGNAL", 0)
"""Of sends."""


class Socket(socket.socket):
    """Whoever sends over it, asyncio too, which gives no flags."""

    def __del__(self) -> None:
        """Instead of the one that warns. Closes as the class below Python's does, which needs nothing of what one
        whose making was interrupted may not have yet."""
        super(socket.socket, self).close()

    def send(self, data: Any, flags: int = 0) -> int:
        """As any socket does."""
        return super().send(data, flags | FLAG)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As any socket does."""
        super().sendall(data, flags | FLAG)

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        """As any socket does."""
        return super().sendmsg(buffers, ancillary, flags | FLAG, address)

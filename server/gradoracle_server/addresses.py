"""Where servers listen."""

from __future__ import annotations

import dataclasses
import ipaddress
import re


@dataclasses.dataclass(frozen=True)
class Address:
    """Where to listen: a host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """An address as it is typed. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path:
            raise ValueError
        return Address("", 0, path)
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^:\s\[\]/]+):(\d{1,5})", text)
    if not found:
        raise ValueError
    host, port = found[1] or found[3], int(found[2] or found[4])
    if port > 65535:
        raise ValueError
    return Address(host, port)


def parse_metrics_address(text: str) -> Address | None:
    """The same of a host and port, or None for "off"."""
    if text == "off":
        return None
    address = parse_address(text)
    if address.path:
        raise ValueError
    return address

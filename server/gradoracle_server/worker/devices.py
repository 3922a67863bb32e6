"""What devices this machine has."""

from __future__ import annotations

import json
import os
import platform
import socket

import torch

from gradoracle_server.frames import Reply, send


def describe(name: str) -> dict[str, object]:
    """A device's name, its maker's name for it, and its memory in bytes."""
    device = torch.device(name)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"name": name, "description": properties.name, "memory_bytes": properties.total_memory}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"name": name, "description": platform.machine(), "memory_bytes": memory}


def report(sock: socket.socket) -> None:
    """Sends torch's version and every device, the CPU first, as JSON."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found = {"torch": torch.__version__, "devices": [describe(name) for name in names]}
    send(sock, Reply(0, json.dumps(found).encode()))
    sock.close()

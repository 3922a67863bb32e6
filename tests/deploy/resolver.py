"""The cluster's DNS for the headless Service, without a cluster: its name has the address of every ready pod."""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading
from typing import Any
from unittest import mock

import gradoracle as go
from deploy.manifests import of_kind, rendered
from gradoracle import channel

_HEADER = struct.Struct("!HHHHHH")  # id, flags, and the numbers of questions, answers, authorities, additions
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583
_A, _IN, _SECONDS = 1, 1, 5  # the answer's kind and class, and how long it may be kept: as CoreDNS has it


class Resolver:
    """A name server on the loopback net that knows one name."""

    def __init__(self) -> None:
        [service] = [one for one in of_kind(rendered("cpu"), "Service") if one["spec"].get("clusterIP") == "None"]
        self.name = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
        [port] = [one["port"] for one in service["spec"]["ports"] if one["name"] == "grpc"]
        self.address = f"{self.name}:{port}"
        self.pods: dict[str, None] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def client(self) -> go.Client:
        """The stock client of this name, which is asked of this server, not of those of the machine."""

        def target(address: str, **others: Any) -> channel.Target:
            host, port = self._socket.getsockname()
            return dataclasses.replace(stock(address, **others), address=f"dns://{host}:{port}/{address}")

        stock = channel.target
        with mock.patch.object(channel, "target", target):
            return go.Client(self.address, timeout=120)

    def endpoint(self, host: str, port: int, ready: bool) -> None:
        """A pod became ready, or no longer is."""
        assert self.address.endswith(f":{port}")  # the name has addresses alone
        if ready:
            self.pods[host] = None
        else:
            self.pods.pop(host, None)

    def close(self) -> None:
        """Ends it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            asked, caller = self._socket.recvfrom(4096)
            if not asked:
                return
            self._socket.sendto(self._answer(asked), caller)

    def _answer(self, asked: bytes) -> bytes:
        end = asked.index(b"\0", _HEADER.size) + 1
        name, question = asked[_HEADER.size : end], asked[_HEADER.size : end + 4]
        [kind] = struct.unpack_from("!H", question, len(name))
        wanted = b"".join(bytes([len(part)]) + part.encode() for part in self.name.split(".")) + b"\0"
        found = list(self.pods) if kind == _A and name.lower() == wanted else []
        flags = _ANSWER if name.lower() == wanted else _NO_SUCH_NAME
        records = [
            b"\xc0\x0c" + struct.pack("!HHIH", _A, _IN, _SECONDS, 4) + socket.inet_aton(host)  # 0xc00c: the question's
            for host in found
        ]
        return (
            _HEADER.pack(*struct.unpack_from("!H", asked), flags, 1, len(records), 0, 0) + question + b"".join(records)
        )

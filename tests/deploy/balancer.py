"""HAProxy in front of the rehearsal's pods, and what keeps its list of servers as the cluster keeps endpoints."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

NO_HAPROXY = "" if shutil.which("haproxy") else "haproxy is not installed here (Debian: apt-get install haproxy)"

_SLOTS = 6
_CONFIGURATION = """
global
    stats socket {folder}/admin.sock mode 600 level admin
    # A request that is to be tried again elsewhere must fit into a buffer.
    tune.bufsize 1048576
defaults
    mode {mode}
    timeout connect 2s
    timeout client 10m
    timeout server 10m
    retries 4
    option redispatch 1
{http}
frontend grpc
    bind 127.0.0.1:{port} {h2}
    default_backend pods
backend pods
    balance roundrobin
    server-template pod {slots} 127.0.0.1:1 {h2} disabled
"""
# A gradient is the same however often it is computed: what got no answer is safely asked again.
_HTTP = """
    retry-on conn-failure empty-response
    timeout http-keep-alive 10m
"""


class Balancer:
    """A running HAProxy. `mode`: "http" balances calls, "tcp" connections, as kube-proxy does."""

    def __init__(self, mode: str = "http") -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="gradoracle-haproxy-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        http, h2 = (_HTTP, "proto h2") if mode == "http" else ("", "")
        text = _CONFIGURATION.format(folder=self.folder.name, mode=mode, port=self.port, slots=_SLOTS, http=http, h2=h2)
        path = Path(self.folder.name) / "haproxy.cfg"
        path.write_text(text)
        self._slots: dict[str, str] = {}
        self._lock = threading.Lock()
        command = ["haproxy", "-db", "-q", "-f", str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._wait()

    @property
    def address(self) -> str:
        """Where clients call."""
        return f"127.0.0.1:{self.port}"

    def endpoint(self, host: str, port: int, ready: bool) -> None:
        """A pod became ready, or no longer is: calls that it has still end there."""
        with self._lock:
            slot = self._slots.setdefault(host, f"pod{len(self._slots) + 1}")
            if ready:
                self._tell(f"set server pods/{slot} addr {host} port {port}")
            self._tell(f"set server pods/{slot} state {'ready' if ready else 'drain'}")

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()

    def _tell(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(f"{self.folder.name}/admin.sock")
            admin.sendall(f"{command}\n".encode())
            answer = b""
            while received := admin.recv(4096):
                answer += received
        return answer.decode()

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "haproxy ended; its message stands above"
            try:
                self._tell("show info")
                return
            except OSError:
                assert time.monotonic() < end, "haproxy does not come up"
                time.sleep(0.05)

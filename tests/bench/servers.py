"""What the service is measured against and with: a bare gRPC server, and what the kernel says of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import grpc

ECHO = "/bench.Echo/Echo"
Echo: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def serve_echo() -> None:
    """Answers every call with the bytes that came, and prints its port first. Ends when its stdin does."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server(options=UNLIMITED)
    service, method = ECHO[1:].split("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@contextmanager
def echo_server() -> Iterator[str]:
    """The address of an echo server, bare grpc.aio without a serializer, in its own process."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"127.0.0.1:{(process.stdout.readline() if process.stdout else '').strip()}"


def front_pid() -> int:
    """The process of the one server that this process has started: its front."""
    found = [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _is_front(stat.parent)]
    if len(found) != 1:
        raise RuntimeError(f"expected one server started by this process, found {found}")
    return found[0]


def _is_front(process: Path) -> bool:
    try:
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and b"gradoracle_server" in (process / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return False


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(serve_echo())

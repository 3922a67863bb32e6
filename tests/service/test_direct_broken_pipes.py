"""A program that ends of SIGPIPE, as those do whose output may be cut short, does not end when a server has gone."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from gradoracle import quiet

SCRIPT = """
import asyncio, signal, sys, tempfile
import numpy as np
import gradoracle as go
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
kind, size = sys.argv[1], int(sys.argv[2])
x = np.ones(size)

def blocking(address):
    client = go.Client(address)
    for turn in range(2):
        with go.local_server(workers=1, listen=address, shared_memory=True):
            found = client.vjp("sum(x * 3)", {"x": x}).gradients["x"]
            print(found[0], flush=True)

async def awaiting(address):
    client = go.AsyncClient(address)
    for turn in range(2):
        server = go.local_server(workers=1, listen=address, shared_memory=True)
        await asyncio.to_thread(server.__enter__)
        found = (await client.vjp("sum(x * 3)", {"x": x})).gradients["x"]
        print(found[0], flush=True)
        await asyncio.to_thread(server.__exit__, None, None, None)
    await client.close()

with tempfile.TemporaryDirectory() as folder:
    address = f"unix:{folder}/g.sock"
    asyncio.run(awaiting(address)) if kind == "asyncio" else blocking(address)
"""


@pytest.mark.parametrize(("kind", "size"), [("blocking", 1), ("blocking", 40_000), ("asyncio", 1), ("asyncio", 40_000)])
def test_a_server_that_starts_anew(kind: str, size: int) -> None:
    """What the client says to the one that has gone is an error, and the next one is asked."""
    command = [sys.executable, "-c", SCRIPT, kind, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (0, "3.0\n3.0\n") == (done.returncode, done.stdout), done.stderr


QUIET = """
import signal, socket
from gradoracle import quiet
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
for send in ("send", "sendall", "sendmsg"):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("\\0" + __NAME__ + send)
    listening.listen()
    ours = quiet.Socket(socket.AF_UNIX)
    ours.connect(listening.getsockname())
    listening.accept()[0].close()
    try:
        getattr(ours, send)([b"1"] if send == "sendmsg" else b"1")
    except BrokenPipeError:
        print(send)
"""


def test_whatever_sends() -> None:
    """It is an error."""
    script = QUIET.replace("__NAME__", repr(f"gradoracle-test-{id(socket)}-"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (0, "send\nsendall\nsendmsg\n") == (done.returncode, done.stdout), done.stderr
    assert quiet.FLAG == socket.MSG_NOSIGNAL

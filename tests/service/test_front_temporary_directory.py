"""The directory of a private server's sockets goes with the server, whatever becomes of who made it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from front_server import eventually, refused, start

PROGRAM = (
    "import sys, gradoracle as go\n"
    "with go.local_server(device='cpu') as address:\n"
    "    print(address.memory, flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_outlives_nobody(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed does not remove what it made; its server does."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            memory = Path(process.stdout.readline().decode().strip())
            assert memory.is_socket()
            assert tmp_path == memory.parent.parent
        finally:
            process.send_signal(number)
        process.wait(30)
    eventually(lambda: not memory.parent.exists())


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """Neither a directory in which there is something else, nor one that the server was not given."""
    given, other, own = (tmp_path / name for name in ("given", "other", "own"))
    for folder in (given, other, own):
        folder.mkdir()
    (given / "file").touch()
    sockets = ("--workers", "1", "--shared-memory")
    with start(*sockets, str(given / "memory"), "--temporary-directory", str(given)) as server:
        assert server.stop() == 0
    with start(*sockets, str(other / "memory")) as server:
        assert server.stop() == 0
    with start(*sockets, str(own / "memory"), "--temporary-directory", str(own)) as server:
        assert server.stop() == 0
    assert ["given", "other"] == sorted(one.name for one in tmp_path.iterdir())
    assert ["file"] == [one.name for one in given.iterdir()]
    assert [] == list(other.iterdir())


def test_it_is_named_in_full() -> None:
    """So that it is clear which one is meant."""
    code, log = refused("--temporary-directory", "here")
    expected = 'expected the absolute path of a directory like "/tmp/for-this-server", got "here"'
    assert (2, f"gradoracle: --temporary-directory: {expected}\n") == (code, log)

"""Results in shared memory when a process forks: each side has its own, as it has of all other memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real_server import start

import gradoracle as go
from gradoracle import forks, shared_memory

SCRIPT = Path(__file__).with_name("forked_results.py")


@pytest.mark.parametrize(
    ("how", "child", "parent"),
    [
        ("dropped", "3.0 3.0", "7.0"),  # the parent asks again
        ("written by the child", "-1.0", "3.0"),
        ("written by the parent", "3.0 3.0", "-2.0"),
        ("written before and after", "-4.0 -5.0", "-4.0 -6.0"),
        ("closed", "-1.0", "3.0"),
        ("forgotten", "-1.0", "3.0"),
        ("twice", "-2.0 -3.0", "-2.0"),  # another child, and a child's child
    ],
)
def test_each_side_has_its_own(tmp_path: Path, how: str, child: str, parent: str) -> None:
    """Whoever writes first, and whatever became of the client; the parent's later calls are right, too."""
    with start("--listen", f"unix:{tmp_path / 'g.sock'}", "--shared-memory", "--workers", "1") as server:
        command = [sys.executable, str(SCRIPT), server.address, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert f"child {child}\nparent {parent}\n" == done.stdout, done.stderr
    assert "stay shared" not in done.stderr


def test_a_thread_that_is_answered_while_another_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is copied: to be told of the fork it may be too late."""
    x = np.ones(40_000)
    with (
        start("--listen", f"unix:{tmp_path / 'g.sock'}", "--shared-memory", "--workers", "1") as server,
        go.Client(server.address, shared_memory=True) as client,
    ):
        for under_way in ([], [None]):
            monkeypatch.setattr(forks, "_under_way", under_way)
            found = client.vjp("sum(x * 3)", {"x": x}).gradients["x"]
            assert found is not None
            assert isinstance(found.base, shared_memory._Held) == (not under_way)
            assert (found == 3.0).all()
            assert client._memory is not None
            connection = client._memory._connection
            assert connection is not None
            del found
            assert (0 if under_way else 1) == len(connection.files)


def test_where_there_is_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of both sides stay the same memory, and right, because their file is not used again."""

    def full(*_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(forks, "map_privately", full)
    monkeypatch.setattr(forks, "_under_way", [])
    x = np.ones(40_000)
    with (
        start("--listen", f"unix:{tmp_path / 'g.sock'}", "--shared-memory", "--workers", "1") as server,
        go.Client(server.address, shared_memory=True) as client,
    ):
        found = client.vjp("sum(x * 3)", {"x": x}).gradients["x"]
        with pytest.raises(RuntimeError, match="results of gradoracle stay shared with the process that is forked off"):
            forks._before()
        forks._after_in_parent()
        assert client._memory is not None
        connection = client._memory._connection
        assert connection is not None
        assert 1 == len(connection.files)
        del found
        assert set() == connection.files

"""Restarts back off. (What happens to requests is tested through real servers.)"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gradoracle_server.front import pool
from gradoracle_server.front.admission import Queue
from gradoracle_server.launch import WorkerOptions


class NoProcesses:
    """Cannot start anything."""

    async def start(self, *_: object) -> Any:
        raise OSError("no more processes")


async def test_starts_that_fail_back_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that does not come up is tried again after ever longer pauses, up to ten seconds; all are counted."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0 if len(pauses) < 10 else 3600)

    monkeypatch.setattr(pool.asyncio, "sleep", no_sleep)
    processes: Any = NoProcesses()
    lane = pool.Lane(
        WorkerOptions("cpu", 1, 0, 0, 0), Queue(0, 0), processes, lambda: None, workers=1, on_change=lambda: None
    )

    lane.start()

    with pytest.raises(pool.StartError, match="no worker of cpu comes up: 3 ended for an unknown reason before they"):
        await lane.came_up
    async with asyncio.timeout(10):
        while len(pauses) < 10:
            await sleep(0.001)
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0] == pauses
    assert {"start": 10} == dict(lane.restarts)
    assert "a worker of cpu did not come up: no more processes" in caplog.text
    await lane.close()

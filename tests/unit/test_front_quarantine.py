"""Quarantine: what ended workers is refused for a while, and nothing else."""

from __future__ import annotations

import os

import pytest

from gradoracle_server import frames, lanes
from gradoracle_server.front import quarantine
from gradoracle_server.front.quarantine import Quarantine


class Clock:
    """Stands still until told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_two_deaths_refuse_for_a_while() -> None:
    """After two deaths the same bytes are refused, for as long as agreed, and then served again."""
    clock = Clock()
    kept = Quarantine(deaths=2, seconds=60.0, clock=clock)
    job = frames.Job(0, b"crash")
    assert not kept

    kept.record(job, -11)
    assert kept.refused(job) is None
    kept.record(job, -6)
    clock.now += 20

    assert (-6, 40.0) == kept.refused(frames.Job(0, b"crash"))
    clock.now += 41
    assert kept.refused(job) is None


@pytest.mark.parametrize("other", [frames.Job(1, b"crash"), frames.Job(0, b"crush"), frames.Job(0, b"crash!")])
def test_other_requests_are_not_refused(other: frames.Job) -> None:
    """Another method, other bytes or another length is another request."""
    kept = Quarantine()
    for _ in range(2):
        kept.record(frames.Job(0, b"crash"), -11)

    assert kept.refused(other) is None


def test_attachments_belong_to_the_request() -> None:
    """Requests with the same bytes and other attachments are different ones."""
    kept = Quarantine()
    jobs = []
    for content in (b"a" * 3_000_000, b"a" * 2_999_999 + b"b"):
        jobs.append(frames.Job(0, b"x", frames.Attachments(lanes.memory_file([content]), [(0, len(content))])))
    for _ in range(2):
        kept.record(jobs[0], None)

    assert kept.refused(jobs[0])
    assert kept.refused(jobs[1]) is None
    for job in jobs:
        assert job.attachments is not None
        job.attachments.close()
    kept.record(jobs[1], None)  # closed: cannot be read any more, and is let be
    kept.forgive(jobs[0])
    assert not kept.suspects(jobs[0])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests crash, only so many are remembered, and those that are over are forgotten."""
    monkeypatch.setattr(quarantine, "_ENTRIES", 10)
    clock = Clock()
    kept = Quarantine(clock=clock)
    for length in range(100):
        kept.record(frames.Job(0, os.urandom(1) * length), -11)
    assert len(kept._entries) <= 10

    clock.now += 61
    kept.record(frames.Job(0, b"one more"), -11)

    assert 1 == len(kept._entries)


def test_what_is_withstood_is_forgiven() -> None:
    """A request that a worker has answered is as if it had never ended one; others are not forgiven with it."""
    kept = Quarantine()
    job, other = frames.Job(0, b"crash"), frames.Job(0, b"crush")
    for each in (job, other):
        kept.record(each, -9)
    assert kept.suspects(job)

    kept.forgive(frames.Job(0, b"crash"))
    kept.record(job, -9)
    kept.record(other, -9)

    assert kept.refused(job) is None
    assert kept.refused(other)


def test_suspicion_ends() -> None:
    """After the time for which a request would be refused it is not suspected either."""
    clock = Clock()
    kept = Quarantine(seconds=60.0, clock=clock)
    job = frames.Job(0, b"crash")
    kept.record(job, -9)

    clock.now += 61

    assert not kept.suspects(job)

"""What a worker keeps of freed memory: for requests like the last large one, and not for ever."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from gradoracle_server import heap, lanes
from gradoracle_server.frames import Attachments
from gradoracle_server.worker import kept
from gradoracle_server.worker.kept import KeptMemory

MIB = 1024 * 1024
LITTLE, MUCH, BACK = ("little", 64 * MIB), ("large blocks", 256 * MIB), ("back", 0)


@pytest.fixture
def done(monkeypatch):
    """What is asked of the C library, in order."""
    found = []

    def keep(most, *, large_blocks=False):
        found.append(("large blocks" if large_blocks else "little", most))

    monkeypatch.setattr(heap, "keep_freed_memory", keep)
    monkeypatch.setattr(heap, "give_back", lambda: found.append(BACK))
    return found


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_small_requests_change_nothing(done, clock):
    """They take what little is kept always."""
    made = KeptMemory(0)
    for _ in range(3):
        made.prepare(100)
        clock[0] += 10
    assert done == [LITTLE]


def test_a_large_request_keeps_more_for_the_next_ones(done, clock):
    """The C library is asked once, however many come, with small ones between them."""
    made = KeptMemory(0)
    for size in (16 * MIB, 100, 64 * MIB, 100):
        made.prepare(size)
        clock[0] += 0.9
    assert done == [LITTLE, MUCH]


def test_small_requests_do_not_hold_it_for_ever(done, clock):
    """A second after the last large one, one that comes gives it back."""
    made = KeptMemory(0)
    made.prepare(16 * MIB)
    clock[0] += 1.1
    made.prepare(100)
    made.prepare(100)
    assert done == [LITTLE, MUCH, LITTLE, BACK]


def test_one_that_is_too_large_gives_it_back_at_once(done, clock):
    """It would leave holes where others are in between."""
    made = KeptMemory(0)
    made.prepare(127 * MIB)
    made.prepare(128 * MIB)
    made.prepare(1024 * MIB)
    assert done == [LITTLE, MUCH, LITTLE, BACK]


def test_it_is_given_back_where_no_request_comes(done, clock, pair):
    """Once; a worker that rests on after that waits for nothing."""
    made = KeptMemory(0)
    made.rest(pair[0])
    assert done == [LITTLE]
    made.prepare(16 * MIB)
    clock[0] += 0.95
    made.rest(pair[0])
    made.rest(pair[0])
    assert done == [LITTLE, MUCH, LITTLE, BACK]


def test_it_is_there_for_a_request_that_comes_in_time(done, clock, pair):
    """And so it is for one that finds it a little late, but before it was given back."""
    made = KeptMemory(0)
    made.prepare(16 * MIB)
    pair[1].send(b"x")
    clock[0] += 2
    made.rest(pair[0])
    assert done == [LITTLE, MUCH]


@pytest.mark.parametrize(
    ("limit", "little", "much"), [(0, 64, 256), (8192, 64, 256), (2048, 64, 128), (512, 32, 32), (16, 1, 1)]
)
def test_it_is_a_small_part_of_what_the_process_may_have(limit, little, much, done, clock):
    """A sixteenth at most, in MiB."""
    made = KeptMemory(limit * MIB)
    made.prepare(16 * MIB)
    assert made.most == much * MIB
    assert done == [("little", little * MIB), ("large blocks", much * MIB)]


def descriptors():
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def write(descriptor, text):
    """Writes at the start of a file, and closes it as whoever sends it does; gives which file it is."""
    os.pwrite(descriptor, text, 0)
    found = os.fstat(descriptor).st_ino
    os.close(descriptor)
    return found


def test_a_file_is_used_again_once_it_is_read(done):
    """And not before: answers in between get others."""
    made = KeptMemory(0)
    first = write(made.file(), b"a")
    made.prepare(100)
    others = {write(made.file(), b"b") for _ in range(2)}
    made.prepare(100, all_read=True)
    again = made.file()
    assert os.pread(again, 1, 0) == b"a"
    assert write(again, b"c") == first
    assert first not in others
    made.give_back()


def test_a_large_file_is_not_kept(done):
    """An answer of more than 64 MiB is the last in its file."""
    made = KeptMemory(0)
    descriptor = made.file()
    os.ftruncate(descriptor, 64 * MIB + 1)
    first = write(descriptor, b"a")
    made.prepare(100, all_read=True)
    assert write(made.file(), b"b") != first
    made.give_back()


def test_a_file_is_given_back_where_no_request_comes(done, clock, pair):
    """After small requests as well, whose answers may be large."""
    made = KeptMemory(0)
    before = descriptors()
    made.prepare(100)
    write(made.file(), b"a")
    assert descriptors() == before + 1
    clock[0] += 0.95
    made.rest(pair[0])
    assert descriptors() == before
    assert done == [LITTLE, BACK]


def test_what_a_caller_shares_is_mapped_while_his_requests_run(done, clock, pair):
    """And not while another's does, nor for ever."""
    made = KeptMemory(0)
    files = [lanes.memory_file([b"a" * 100]) for _ in range(2)]
    his, others = (Attachments(file, [(0, 100)], callers=True) for file in files)
    uploaded = Attachments(files[1], [(0, 100)])
    assert made.mapping(his) is made.mapping(others)
    assert made.mapping(his) is not made.mapping(None)
    assert made.mapping(uploaded) is made.mapping(None)

    def is_mapped():
        """Whether his file is."""
        return f" {os.fstat(files[0]).st_ino} " in Path("/proc/self/maps").read_text(encoding="utf-8")

    for nothing_of_his in (others, uploaded, None):
        made.prepare(100, attachments=his)
        made.mapping(his).room(files[0], 100)
        made.prepare(100, attachments=his)
        assert is_mapped()
        made.prepare(100, attachments=nothing_of_his)
        assert not is_mapped()
    made.prepare(100, attachments=his)
    made.mapping(his).room(files[0], 100)
    clock[0] += 0.95
    made.rest(pair[0])
    assert not is_mapped()
    for file in files:
        os.close(file)


def test_the_second_answer_goes_through_a_mapping(done, monkeypatch):
    """Of the file that is kept; the front may map that too, because it cannot shrink."""
    made = KeptMemory(0)
    for text in (b"a", b"b"):
        made.prepare(100, all_read=True)
        descriptor = made.file()
        room = made.mapping(None).room(descriptor, 4096)
        assert (room is None) == (text == b"a")
        if room is None:
            os.pwrite(descriptor, text * 4096, 0)
        else:
            room[:] = text * 4096
        assert text * 4096 == os.pread(descriptor, 4096, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 10)
        os.close(descriptor)
    made.give_back()

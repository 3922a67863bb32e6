"""Memory files of the front's: empty ones to begin with, others made ready beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradoracle_server.front import files
from gradoracle_server.front.files import LARGE, Files
from gradoracle_server.front.uploads import Budget, Upload

SIZE = 3 * LARGE


def kept() -> list[int]:
    """The sizes of the memory files that this process has, by whatever descriptors: a mapping has one of its own."""
    found = {}
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "memfd:gradoracle" in str(one.readlink()):
                found[one.stat().st_ino] = one.stat().st_size
    return sorted(found.values())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever happens, all are closed in the end."""
    assert kept() == []
    yield
    assert kept() == []


async def until(sizes: list[int]) -> None:
    async with asyncio.timeout(10):
        while kept() != sizes:
            await asyncio.sleep(0.001)


async def at_rest(made: Files) -> None:
    """Waits until none is being made."""
    async with asyncio.timeout(10):
        while made._is_making:
            await asyncio.sleep(0.001)


async def test_another_is_ready_for_the_next_upload() -> None:
    """It is a new one of that size, whose pages are there and hold zeros, whatever became of the first."""
    made = Files()
    first = made.take(SIZE)
    assert (first.size, first.room) == (0, None)
    first.write(memoryview(b"secret"), 0)
    number = os.fstat(first.descriptor).st_ino
    made.make_ready(SIZE)
    made.discard(first, SIZE)
    await until([SIZE])
    await at_rest(made)
    second = made.take(SIZE)
    found = os.fstat(second.descriptor)
    assert (second.size, found.st_size, found.st_blocks * 512) == (SIZE, SIZE, SIZE)
    assert found.st_ino != number
    assert os.pread(second.descriptor, SIZE, 0) == bytes(SIZE)
    made.discard(second, 100)
    made.close()


async def test_what_is_written_is_in_the_file() -> None:
    """Through its mapping, across the end of that, and behind it."""
    made = Files()
    made.make_ready(SIZE)
    await until([SIZE])
    await at_rest(made)
    file = made.take(SIZE)
    assert file.room is not None
    want = bytearray(SIZE + 300)
    for offset, data in ((0, b"begin"), (SIZE - 3, b"across"), (SIZE + 200, b"z" * 100)):
        file.write(memoryview(data), offset)
        want[offset : offset + len(data)] = data
    assert os.pread(file.descriptor, SIZE + 1000, 0) == want
    made.discard(file, SIZE)
    await until([])


async def test_none_is_for_small_and_very_large_ones() -> None:
    """For small ones it is not worth its while, and very large ones would be held for nobody."""
    made = Files()
    for size in (LARGE - 1, 64 * LARGE + 1):
        made.make_ready(size)
        made.discard(made.take(size), size)
        await at_rest(made)
        await until([])


async def test_one_is_ready_and_no_more() -> None:
    """However many are asked for."""
    made = Files()
    for _ in range(5):
        made.make_ready(SIZE)
    await until([SIZE])
    await at_rest(made)
    made.make_ready(SIZE)
    await at_rest(made)
    assert kept() == [SIZE]
    made.close()


async def test_what_nobody_wants_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(files, "_IDLE", 0.02)
    made = Files()
    made.make_ready(SIZE)
    await until([SIZE])
    await until([])


async def test_without_memory_for_it_none_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next upload tries for itself."""

    def full(*_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = Files()
    made.make_ready(SIZE)
    await at_rest(made)
    assert kept() == []
    made.take(SIZE).close()


async def run(budget: Budget) -> None:
    """A call with an upload of SIZE, from the first byte to the last."""
    upload = Upload(budget, 1)
    upload.add(0, memoryview(bytes(SIZE)))
    given = upload.attachments()
    assert given is not None
    given.close()
    upload.close()
    await at_rest(budget.files)


async def test_a_full_queue_leaves_no_room_for_it() -> None:
    """What is ready is within the queue's bytes, at the time."""
    budget = Budget(2 * SIZE - 1, 0)
    await run(budget)
    assert budget.files._ready is None
    await until([])


async def test_an_upload_has_its_own_bytes_and_no_more() -> None:
    """Of a file that was ready, and larger, which is not cut: that would take as long as to fetch its pages."""
    budget = Budget(0, 0)
    await run(budget)
    await until([SIZE])
    upload = Upload(budget, 2)
    upload.add(0, memoryview(b"x" * (LARGE + 5)))
    upload.add(1, memoryview(b"abc"))
    found = upload.attachments()
    assert found is not None
    (first, length), (second, _) = found.spans
    assert os.fstat(found.descriptor).st_size == SIZE
    with found.map() as room:
        assert len(room) == found.end == second + 3
        assert room[first : first + length] == b"x" * (LARGE + 5)
        assert room[first + length :] == bytes(second - first - length) + b"abc"
    found.close()
    upload.close()
    await until([LARGE + 8])
    await at_rest(budget.files)
    budget.files.close()


async def test_small_uploads_leave_what_is_ready_to_large_ones() -> None:
    """Whose first piece is not small."""
    budget = Budget(0, 0)
    await run(budget)
    await until([SIZE])
    upload = Upload(budget, 2)
    upload.add(0, memoryview(b"small"))
    assert kept() == [5, SIZE]
    upload.close()
    budget.files.close()


@pytest.mark.parametrize("ready", [False, True])
async def test_an_empty_attachment_can_be_mapped(ready: bool) -> None:
    """Whatever the file was."""
    budget = Budget(0, 0)
    if ready:
        await run(budget)
        await until([SIZE])
    upload = Upload(budget, 2)
    upload.add(0, memoryview(b""))
    found = upload.attachments()
    assert found is not None
    assert found.spans == [(0, 0)]
    found.map().close()
    found.close()
    upload.close()
    budget.files.close()


async def test_nothing_is_written_into_what_a_worker_may_have() -> None:
    """It might have been cut, and to write through the mapping of a cut file would be the front's end."""
    budget = Budget(0, 0)
    await run(budget)
    await until([SIZE])
    upload = Upload(budget, 2)
    upload.add(0, memoryview(b"x" * SIZE))
    found = upload.attachments()
    assert found is not None
    os.ftruncate(found.descriptor, 0)
    upload.add(0, memoryview(b"late"))
    assert os.fstat(found.descriptor).st_size == 0
    found.close()
    upload.close()
    await at_rest(budget.files)
    budget.files.close()
    await until([])

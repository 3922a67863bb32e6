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
        while made._making:
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
    assert budget.files.ready == 0
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
    """It cannot be cut, which would be the end of a front that writes through its mapping, but it may be read."""
    budget = Budget(0, 0)
    await run(budget)
    await until([SIZE])
    upload = Upload(budget, 2)
    upload.add(0, memoryview(b"x" * SIZE))
    found = upload.attachments()
    assert found is not None
    with pytest.raises(PermissionError):
        os.ftruncate(found.descriptor, 0)
    upload.add(0, memoryview(b"late"))
    assert os.pread(found.descriptor, SIZE, 0) == b"x" * SIZE
    assert os.fstat(found.descriptor).st_size == SIZE
    found.close()
    upload.close()
    await at_rest(budget.files)
    budget.files.close()
    await until([])


# ---- Files that are used again


class Worker:
    """A worker's process."""

    is_closed = False


async def call(
    budget: Budget, data: bytes, worker: Worker, *, answered: bool = True
) -> tuple[int, bytes, list[tuple[int, int]]]:
    """A call whose upload is given to a worker: which file that got, all that is in it, and where the call's own is."""
    upload = Upload(budget, 1)
    for start in range(0, len(data), LARGE):
        upload.add(0, memoryview(data)[start : start + LARGE])
    found = upload.attachments()
    assert found is not None
    if found.on_give is not None:
        found.on_give(found, worker)
    about = os.fstat(found.descriptor)
    seen = about.st_ino, os.pread(found.descriptor, about.st_size, 0), list(found.spans)
    found.close()
    upload.close(answered=answered)
    await at_rest(budget.files)
    return seen


async def test_one_worker_gets_the_same_file_again() -> None:
    """Mapped from the second time on, however large the uploads are; it grows."""
    budget, worker = Budget(0, 0, again=True), Worker()
    first, _, _ = await call(budget, b"a" * SIZE, worker)
    for byte, size in ((b"b", SIZE), (b"c", 2 * LARGE), (b"d", SIZE + LARGE), (b"e", SIZE + LARGE)):
        (ready,) = budget.files._ready
        assert ready.room is not None
        assert len(ready.room) == ready.size == os.fstat(ready.descriptor).st_size
        number, contents, spans = await call(budget, byte * size, worker)
        assert (number, spans) == (first, [(0, size)])
        assert contents[:size] == byte * size
    budget.files.close()


async def test_another_worker_sees_its_own_request_and_no_more() -> None:
    """One that has taken the place of the first, or tries what killed that, gets the call's bytes in another file."""
    budget, worker, other = Budget(0, 0, again=True), Worker(), Worker()
    first, _, _ = await call(budget, b"secret" * LARGE, worker)
    number, contents, spans = await call(budget, b"x" * (2 * LARGE + 5), other)
    assert number != first
    assert spans == [(0, 2 * LARGE + 5)]
    assert contents == b"x" * (2 * LARGE + 5)
    budget.files.close()
    await until([])


async def test_an_upload_may_be_given_twice() -> None:
    """In a file that held nothing else, as it is; whoever had it last may get that again."""
    budget, worker, other = Budget(0, 0, again=True), Worker(), Worker()
    upload = Upload(budget, 1)
    upload.add(0, memoryview(b"x" * SIZE))
    found = upload.attachments()
    assert found is not None
    assert found.on_give is not None
    numbers = []
    for one in (worker, worker, other):
        found.on_give(found, one)
        numbers.append(os.fstat(found.descriptor).st_ino)
    assert len(set(numbers)) == 1
    found.close()
    upload.close(answered=True)
    await at_rest(budget.files)
    assert numbers[0] == (await call(budget, b"y" * SIZE, other))[0]
    budget.files.close()


async def test_what_a_worker_may_still_be_reading_is_not_used_again() -> None:
    """A call that nobody waits for any more has not been answered: what its worker sees must not change."""
    budget, worker = Budget(0, 0, again=True), Worker()
    await call(budget, b"a" * SIZE, worker, answered=False)
    await until([])
    assert budget.files.ready == 0


async def test_the_file_of_a_worker_that_has_gone_is_not_taken() -> None:
    """Others would have to have a copy."""
    budget, worker = Budget(0, 0, again=True), Worker()
    first, _, _ = await call(budget, b"a" * SIZE, worker)
    worker.is_closed = True
    number, contents, _ = await call(budget, b"b" * SIZE, Worker())
    assert number != first
    assert contents == b"b" * SIZE
    budget.files.close()
    await until([])


async def test_where_there_are_several_workers_no_file_is_used_again() -> None:
    """The next request may be for another one."""
    budget, worker = Budget(0, 0), Worker()
    numbers = {(await call(budget, b"a" * SIZE, worker))[0] for _ in range(3)}
    assert len(numbers) == 3
    budget.files.close()
    await until([])


async def test_few_files_are_kept_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at most, of 64 MiB at most, within the queue's bytes, and for a while."""
    budget, worker = Budget(5 * SIZE, 0, again=True), Worker()
    for uploads, ready in ((3, 2), (1, 2)):
        made = [Upload(budget, number) for number in range(uploads)]
        for one in made:
            one.add(0, memoryview(bytes(SIZE)))
            found = one.attachments()
            assert found is not None
            assert found.on_give is not None
            found.on_give(found, worker)
            found.close()
        for one in made:
            one.close(answered=True)
        await at_rest(budget.files)
        await until([SIZE] * ready)
    budget.files.close()
    tight = Budget(2 * SIZE - 1, 0, again=True)
    await call(tight, bytes(SIZE), worker)
    assert tight.files.ready == SIZE
    await call(tight, bytes(LARGE), worker)
    small = Budget(SIZE - 1 + LARGE, 0, again=True)
    monkeypatch.setattr(files, "_LARGEST", SIZE - 1)
    await call(small, bytes(SIZE), worker)
    assert small.files.ready == 0
    monkeypatch.setattr(files, "_IDLE", 0.02)
    await call(tight, bytes(LARGE), worker)
    await until([])


async def test_a_file_that_cannot_be_mapped_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next upload has a new one."""
    budget = Budget(0, 0, again=True)

    def none_left(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(files.mmap, "mmap", none_left)
        await call(budget, bytes(SIZE), Worker())
    assert budget.files.ready == 0
    await until([])

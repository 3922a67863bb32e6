"""Memory files that stay mapped: which file it is, how far it goes, and when it is let go."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradoracle_server import lanes
from gradoracle_server.mapping import KeptMapping, OwnersMappings

MOST = 1 << 20


def files() -> list[int]:
    """The memory files that this process has mapped: their inodes."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[4]) for line in lines if "/memfd:test-mapping" in line]


def inode(descriptor: int) -> int:
    """Which file it is."""
    return os.fstat(descriptor).st_ino


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Two files."""
    found = tuple(lanes.memory_file([text * 8192], name="test-mapping") for text in (b"a", b"b"))
    yield found
    for descriptor in found:
        os.close(descriptor)


def test_one_file_is_mapped_once(pair: tuple[int, int]) -> None:
    """However often it is asked for, and by whatever descriptor; what others write is seen."""
    kept = KeptMapping(MOST)
    for end in (1, 8192, 100):
        copy = os.dup(pair[0])
        room = kept.room(copy, end)
        os.close(copy)
        assert b"a" * end == bytes(room or b"")
        assert [inode(pair[0])] == files()
    os.pwrite(pair[0], b"changed", 0)
    assert b"changed" == bytes(kept.room(pair[0], 7) or b"")
    kept.drop()
    kept.drop()


def test_another_file_takes_its_place(pair: tuple[int, int]) -> None:
    """Of two files one is mapped, whose views live on as long as somebody has them."""
    kept = KeptMapping(MOST)
    first = kept.room(pair[0], 8192)
    assert b"b" * 8192 == bytes(kept.room(pair[1], 8192) or b"")
    assert sorted(map(inode, pair)) == sorted(files())
    assert b"a" * 8192 == bytes(first or b"")
    del first
    assert [inode(pair[1])] == files()
    kept.drop()
    assert [] == files()


@pytest.mark.parametrize(
    ("owner", "which", "kept"),
    [(7, 0, (0, 1)), (7, 1, (0, 1)), (8, 0, ()), (8, 1, ()), (0, 0, ())],
    ids=["the same", "the same, with another file", "another", "another, with the file", "nobody known"],
)
def test_only_those_of_one_owner_are_kept(pair: tuple[int, int], owner: int, which: int, kept: tuple[int, ...]) -> None:
    """While another's request runs, nothing of the first one's is mapped."""
    mappings = OwnersMappings(MOST)
    mappings.turn_to(7, pair[0])
    for descriptor, text in zip(pair, (b"a", b"b"), strict=True):
        assert text * 10 == bytes(mappings.room(descriptor, 10) or b"")
    mappings.turn_to(owner, pair[which])
    assert sorted(inode(pair[place]) for place in kept) == sorted(files())
    mappings.drop()
    mappings.drop()
    assert [] == files()


@pytest.mark.parametrize("which", [0, 1], ids=["the same", "another"])
def test_of_who_is_not_known_one_file_is_kept(pair: tuple[int, int], which: int) -> None:
    mappings = OwnersMappings(MOST)
    mappings.turn_to(0, pair[0])
    mappings.room(pair[0], 10)
    mappings.turn_to(0, pair[which])
    assert files() == ([inode(pair[0])] if which == 0 else [])


def test_an_owners_files_are_bounded() -> None:
    """By their number and by their bytes; those go that were not used for longest."""
    made = [lanes.memory_file([b"x" * 8192], name="test-mapping") for _ in range(6)]
    mappings = OwnersMappings(MOST)
    mappings.turn_to(1, made[0])
    for descriptor in (*made[:4], made[0], *made[4:]):
        assert mappings.room(descriptor, 8192) is not None
    assert sorted(files()) == sorted(inode(made[place]) for place in (3, 0, 4, 5))
    small = OwnersMappings(20000)
    mappings.drop()
    for descriptor in made[:4]:
        assert small.room(descriptor, 8192) is not None
    assert sorted(files()) == sorted(map(inode, made[2:4]))
    assert small.room(made[0], 8193) is None  # beyond its end
    for descriptor in made:
        os.close(descriptor)


def test_a_file_that_has_grown_is_mapped_anew(pair: tuple[int, int]) -> None:
    """No further than it goes, and not at all beyond the bound."""
    kept = KeptMapping(16384)
    assert kept.room(pair[0], 8193) is None
    kept.room(pair[0], 8192)
    os.pwrite(pair[0], b"more", 8192)
    assert b"aamore" == bytes(kept.room(pair[0], 8196) or b"")[-6:]
    os.ftruncate(pair[0], 16385)
    assert kept.room(pair[0], 8200) is None
    assert [] == files()


def test_a_file_that_may_shrink_is_not_mapped() -> None:
    """To look beyond its end would be the end of this process."""
    descriptor = os.memfd_create("test-mapping", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"abc")
    assert KeptMapping(MOST).room(descriptor, 3) is None
    assert [] == files()
    os.close(descriptor)


def test_what_is_only_read_cannot_be_written(pair: tuple[int, int]) -> None:
    """The front looks at workers' files."""
    room = KeptMapping(MOST, mmap.PROT_READ).room(pair[0], 3)
    assert room is not None
    with pytest.raises(TypeError, match="read-only"):
        room[0] = 1
    assert b"aaa" == bytes(room)


def test_a_mapping_that_cannot_be_made_is_none(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked goes on without."""

    def none_left(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    kept = KeptMapping(MOST)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", none_left)
        assert kept.room(pair[0], 3) is None
    assert b"aaa" == bytes(kept.room(pair[0], 3) or b"")

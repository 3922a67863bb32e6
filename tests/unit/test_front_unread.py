"""What the answers of all streams may take that callers have not read."""

from __future__ import annotations

import pytest

from gradoracle_server.front.unread import ALWAYS, Share, Unread

MIB = 1024 * 1024


def calls(share: Share, at_most: int = 10_000) -> int:
    """How many calls a stream begins before it is full."""
    count = 0
    while not share.is_full and count < at_most:
        share.begin()
        count += 1
    return count


def answer(share: Share, size: int) -> None:
    share.add(size)
    share.end()


def hog(unread: Unread, size: int) -> int:
    """A stream whose caller reads nothing sends as many calls as it may; gives the bytes of their answers."""
    share = Share(unread)
    found = 0
    while begun := calls(share):
        for _ in range(begun):
            answer(share, size)
            found += size
    return found


@pytest.mark.parametrize("size", [10_000, 640_000, 1_000_000])
def test_streams_that_are_not_read_share_the_room(size: int) -> None:
    """The first has half of it, each further one half of what is left, and all what they may always have."""
    unread = Unread(256 * MIB, 1)
    taken = [hog(unread, size) for _ in range(20)]
    assert [round(one / MIB) for one in taken[:4]] == pytest.approx([128, 64, 32, 16], abs=2)
    assert min(taken) >= ALWAYS
    assert sum(taken) == unread.bytes <= 256 * MIB + 20 * (ALWAYS + 2 * size)


def test_more_streams_than_there_is_room_for() -> None:
    """Each has what it may always have, and no more."""
    unread = Unread(64 * MIB, 1)
    taken = [hog(unread, 640_000) for _ in range(40)]
    assert taken[-1] <= ALWAYS + 2 * 640_000


def test_small_calls_go_on_beside_them() -> None:
    """A stream that is read begins a thousand calls with small answers, though others have filled the room."""
    unread = Unread(64 * MIB, 1)
    while hog(unread, 640_000) > 2 * ALWAYS:
        pass
    share = Share(unread)
    while (begun := calls(share, 1000)) < 1000:
        assert begun >= 4
        for _ in range(begun):
            answer(share, 100)
            share.take(100)


def test_large_answers_do_not_keep_workers_waiting() -> None:
    """As many calls as there are workers are begun, however large the answers: what is to be read alone counts."""
    unread = Unread(256 * MIB, 4)
    share = Share(unread)
    for _ in range(calls(share)):
        answer(share, 64 * MIB)
        share.take(64 * MIB)
    assert calls(share, 4) == 4
    answer(share, 64 * MIB)
    assert calls(share, 1) == 1


def test_what_a_stream_had_is_given_back_at_its_end() -> None:
    """Calls that end later change nothing."""
    unread = Unread(64 * MIB, 1)
    share = Share(unread)
    calls(share)
    share.add(MIB)
    assert unread.bytes > 0
    assert not share.is_empty
    share.close()
    assert unread.bytes == 0
    share.end()
    assert unread.bytes == 0


def test_without_a_limit_nothing_is_full() -> None:
    """A limit of 0 is none."""
    share = Share(Unread(0, 1))
    share.add(10**12)
    assert calls(share, 5000) == 5000

"""Lanes: payloads through memory that both sides keep, and what one side may do to the other."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from gradoracle_server import frames, lanes
from gradoracle_server.envelope import SHARED_FROM
from gradoracle_server.frames import Job, Reply
from gradoracle_server.inbox import Inbox
from gradoracle_server.lanes import Inlet, Outlet


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def outlet() -> Iterator[Outlet]:
    made = Outlet()
    yield made
    made.close()


def test_a_payload_goes_through_the_same_memory_again_and_again(pair, outlet):
    """The descriptor is passed with the first, and with one that is larger than all before."""
    inbox = Inbox(Job)
    passed = []
    for size in (SHARED_FROM, SHARED_FROM + 7, lanes.MOST, SHARED_FROM):
        payload = os.urandom(size)
        outlet.free()
        buffers, descriptors, own = frames.parts(Job(2, payload), outlet)
        assert own is None
        passed.append(len(descriptors))
        assert sum(map(len, buffers)) < 100
        socket.send_fds(pair[0], buffers, descriptors)
        job = inbox.wait(pair[1])
        assert (2, payload) == (job.method, bytes(job.payload))
    assert [1, 0, 1, 0] == passed


def test_a_reply_in_pieces_is_whole_until_the_next_one(pair, outlet):
    """They stand one behind the other in the lane, where the next reply is written over them."""
    inbox = Inbox(Reply)
    seen = []
    for byte in (b"a", b"b", b"c"):
        pieces = [byte * 10, memoryview(byte * SHARED_FROM), byte]
        outlet.free()
        frames.send(pair[0], Reply(0, pieces[0], tail=pieces[1:]), outlet)
        payload = inbox.wait(pair[1]).payload
        assert byte * (SHARED_FROM + 11) == bytes(payload)
        seen.append(payload)
    assert seen[0] == seen[1] == seen[2]


def test_what_was_not_read_is_not_written_over(pair, outlet):
    """Until the other side has done with a payload, the next ones have memory of their own."""
    inbox = Inbox(Reply)
    contents = [bytes([number]) * SHARED_FROM for number in range(4)]
    ways = []
    for payload in contents:
        buffers, descriptors, own = frames.parts(Reply(0, payload), outlet)
        ways.append("lane" if own is None else "own")
        socket.send_fds(pair[0], buffers, descriptors)
        if own is not None:
            os.close(own)
        if payload == contents[2]:
            outlet.free()
    assert ["lane", "own", "own", "lane"] == ways
    # The last one is written over the first, which the other side was to have read before.
    assert contents[1:3] == [bytes(inbox.wait(pair[1]).payload) for _ in range(3)][1:]


def test_a_job_says_whether_it_was_sent_ahead(pair):
    """A worker may write over its last reply only for one that was not."""
    inbox = Inbox(Job)
    for ahead in (True, False):
        data = frames.whole(Job(1, b"abc", attachments_welcome=True), ahead=ahead)
        assert data is not None
        pair[0].sendall(data)
        job = inbox.wait(pair[1])
        assert (ahead, True, b"abc") == (job.ahead, job.attachments_welcome, job.payload)
    frames.send(pair[0], Job(1, bytes(SHARED_FROM)))
    assert not inbox.wait(pair[1]).ahead


def test_what_is_larger_than_a_lane_has_memory_of_its_own(outlet):
    """And what is small goes through the socket."""
    for size in (5, lanes.MOST + 1):
        payload = os.urandom(size)
        _, descriptors, own = frames.parts(Job(1, payload), outlet)
        assert (own is None) == (size == 5)
        if own is not None:
            assert descriptors == [own]
            os.close(own)
    assert b"".join(frames.parts(Reply(0, b"ab", tail=[b"cd"]))[0]).endswith(b"abcd")


def test_a_message_that_was_not_sent_leaves_no_lane(outlet):
    """The other side does not know a descriptor that did not go out: it is passed with the next one."""
    _, descriptors, _ = frames.parts(Job(0, bytes(SHARED_FROM)), outlet)
    assert len(descriptors) == 1
    outlet.close()
    _, descriptors, _ = frames.parts(Job(0, bytes(SHARED_FROM)), outlet)
    assert len(descriptors) == 1


def test_no_memory_is_no_lane(outlet, monkeypatch):
    """Half a payload is not taken for a whole one afterwards."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    outlet.put([bytes(SHARED_FROM)], SHARED_FROM)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert outlet.put([b"abc"], 3) is None  # written over what is there, which needs no memory
        with pytest.raises(OSError, match="No space left"):
            outlet.put([bytes(SHARED_FROM + 1)], SHARED_FROM + 1)
    assert outlet.put([b"x"], 1) is not None


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW])
def test_a_file_that_could_shrink_is_refused(seals):
    """Whoever reads beyond its end would be ended."""
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"abc")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(ValueError, match="sealed against shrinking"):
        Inlet().renew(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_payload_that_is_not_there_is_refused(pair, outlet):
    """A worker that says more than its lane holds, or names a lane that it never passed, is not believed."""
    inlet = Inlet()
    inlet.renew(lanes.memory_file([b"abc"], 4096))
    assert b"abc" == bytes(inlet.take(3))
    with pytest.raises(ValueError, match="expected a payload of 4096 bytes at most in the lane, got 4097"):
        inlet.take(4097)
    frames.parts(Reply(0, bytes(SHARED_FROM)), outlet)
    outlet.free()
    buffers, descriptors, _ = frames.parts(Reply(0, bytes(SHARED_FROM)), outlet)
    assert descriptors == []
    pair[0].sendmsg(buffers)
    with pytest.raises(ValueError, match="expected a payload of 0 bytes at most"):
        Inbox(Reply).wait(pair[1])


def test_a_file_of_its_own_that_is_too_short_is_refused(pair):
    """What a payload says of its size must be there."""
    buffers, descriptors, own = frames.parts(Reply(0, bytes(SHARED_FROM + 1)))
    assert own is not None
    os.close(own)
    short = lanes.memory_file([bytes(10)])
    assert len(descriptors) == 1
    socket.send_fds(pair[0], buffers, [short])
    os.close(short)
    with pytest.raises(ValueError, match=f"expected a memory file of {SHARED_FROM + 1} bytes, got one of 10"):
        Inbox(Reply).wait(pair[1])

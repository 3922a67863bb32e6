"""The queue: bounded, and fair between connections."""

from __future__ import annotations

import asyncio

import pytest

from gradoracle_server.frames import Attachments, Job, Reply
from gradoracle_server.front.admission import Full, Queue, Ticket


def ticket(peer: str, size: int = 1) -> Ticket:
    """A request of some bytes from a connection."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    return Ticket(Job(0, bytes(size)), lambda: peer, future, 0.0)


async def test_first_come_first_served() -> None:
    """Requests of one connection keep their order."""
    queue = Queue(0, 0)
    tickets = [ticket("a") for _ in range(5)]
    for each in tickets:
        queue.put(each)

    assert [*tickets, None] == [queue.take() for _ in range(6)]
    assert (0, 0) == (queue.depth, queue.bytes)


async def test_connections_take_turns() -> None:
    """A connection with one request waits for one request of each other connection, not for all of them."""
    queue = Queue(0, 0)
    batch = [ticket("batch") for _ in range(100)]
    for each in batch:
        queue.put(each)
    user = ticket("user")
    queue.put(user)

    taken = [queue.take() for _ in range(3)]

    assert [batch[0], user, batch[1]] == taken


async def test_full_by_count() -> None:
    """Over the limit a request is refused, with the flag and its value."""
    queue = Queue(2, 0)
    queue.put(ticket("a"))
    queue.put(ticket("a"))

    with pytest.raises(Full) as caught:
        queue.put(ticket("a"))

    assert ("--max-queue", 2) == (caught.value.limit, caught.value.allowed)
    assert 2 == queue.depth


async def test_last_places_are_for_those_who_have_none() -> None:
    """A batch job fills the queue, and another connection's request is still let in; but only so many."""
    queue = Queue(16, 0)
    for _ in range(16):
        queue.put(ticket("batch"))
    with pytest.raises(Full):
        queue.put(ticket("batch"))

    queue.put(ticket("user 1"))
    with pytest.raises(Full):
        queue.put(ticket("user 1"))
    queue.put(ticket("user 2"))
    with pytest.raises(Full):
        queue.put(ticket("user 3"))


async def test_full_by_bytes() -> None:
    """Bytes are bounded too, attachments among them; a request larger than the limit waits only alone."""
    queue = Queue(0, 100)
    large = ticket("a")
    large = Ticket(Job(0, b"", Attachments(-1, [(0, 90), (128, 60)])), lambda: "a", large.future, 0.0)
    queue.put(large)
    assert 150 == queue.bytes

    with pytest.raises(Full) as caught:
        queue.put(ticket("a"))

    assert ("--max-queue-bytes", 100) == (caught.value.limit, caught.value.allowed)
    assert large is queue.take()
    queue.put(ticket("a", 100))


async def test_who_leaves_leaves_room() -> None:
    """A request that is not waited for any more counts no longer."""
    queue = Queue(2, 0)
    first, second, third = ticket("a"), ticket("b"), ticket("b")
    queue.put(first)
    queue.put(second)

    assert queue.discard(first)
    assert not queue.discard(first)
    assert not queue.discard(third)
    queue.put(third)
    assert [second, third] == queue.clear()
    assert (0, 0) == (queue.depth, queue.bytes)


async def test_second_try_comes_first() -> None:
    """A request that lost its worker goes before all others, and past the limits."""
    queue = Queue(1, 1)
    queue.put(ticket("a"))
    again = ticket("b")
    queue.put_first(again)

    assert again is queue.take()


async def test_peer_is_asked_once_and_only_if_needed() -> None:
    """Who need not wait is not asked for its connection."""
    asked = []
    queue = Queue(0, 0)
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    each = Ticket(Job(0, b""), lambda: asked.append(1) or "a", future, 0.0)
    assert not queue.discard(each)
    assert [] == asked

    queue.put(each)

    assert queue.discard(each)
    assert [1] == asked

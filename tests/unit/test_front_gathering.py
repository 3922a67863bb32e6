"""Answers of a stream wait a moment for others where many calls are unanswered, and then share a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gradoracle.v1 import service_pb2
from gradoracle_server.front import stream, stream_answers
from gradoracle_server.front.stream_wire import Answer
from gradoracle_server.front.unread import Unread

FIELD = 3  # evaluate


class Context:
    """Takes messages, as gRPC would."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []  # the ids of the answers in each
        self.came = asyncio.Event()

    async def write(self, message: bytes) -> None:
        self.messages.append([one.id for one in service_pb2.StreamResponse.FromString(message).answers])
        self.came.set()

    def time_remaining(self) -> float | None:
        """It has no deadline."""
        return None


@asynccontextmanager
async def writing(context: Context, unanswered: int, waiting: int) -> AsyncIterator[Any]:
    """A stream with so many unanswered calls, on two workers for which so many calls wait."""
    unread = Unread(0, 2)
    made = stream.Stream(SimpleNamespace(), SimpleNamespace(), unread, context, None)  # type: ignore[arg-type]
    made._calls.update(dict.fromkeys(range(1000, 1000 + unanswered)))  # type: ignore[assignment]
    made._lane = SimpleNamespace(queue=SimpleNamespace(depth=waiting), size=2)  # type: ignore[assignment]
    writer = asyncio.create_task(made._answers.send())
    try:
        yield made
    finally:
        made._calls.clear()
        made._give_back()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def answer(made: Any, count: int) -> None:
    """So many answers, one after another, with time to send each."""
    for number in range(count):
        made._answers.add(Answer(number, FIELD, [b""]))
        await settle()


async def test_answers_share_a_message_where_many_calls_are_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go when they are a quarter of what is unanswered."""
    monkeypatch.setattr(stream_answers, "_PATIENCE", 3600.0)
    context = Context()
    async with writing(context, unanswered=20, waiting=18) as made:
        await answer(made, 4)
        assert [] == context.messages
        await answer(made, 1)
        assert [[0, 1, 2, 3, 0]] == context.messages
        made._calls.clear()
        await answer(made, 1)
        assert [0] == context.messages[1]


@pytest.mark.parametrize(("unanswered", "waiting"), [(3, 3), (20, 1), (0, 0)])
async def test_an_answer_goes_at_once(monkeypatch: pytest.MonkeyPatch, unanswered: int, waiting: int) -> None:
    """Where few calls are unanswered, and where a worker could have to wait for what the client sends next."""
    monkeypatch.setattr(stream_answers, "_PATIENCE", 3600.0)
    context = Context()
    async with writing(context, unanswered, waiting) as made:
        await answer(made, 2)
        assert [[0], [1]] == context.messages


async def test_no_answer_waits_for_long() -> None:
    """What does not come in time is not waited for."""
    context = Context()
    async with writing(context, unanswered=1000, waiting=998) as made:
        made._answers.add(Answer(7, FIELD, [b""]))
        await asyncio.wait_for(context.came.wait(), 60)
        assert [[7]] == context.messages


async def test_a_timer_that_was_overtaken_does_not_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers after a message have a time of their own."""
    monkeypatch.setattr(stream_answers, "_PATIENCE", 3600.0)
    context = Context()
    async with writing(context, unanswered=4, waiting=2) as made:
        made._calls.update(dict.fromkeys(range(4)))
        await answer(made, 1)
        assert made._answers._timer is not None
        await answer(made, 1)
        assert [[0, 0]] == context.messages
        assert made._answers._timer is None
        assert not made._answers._waited

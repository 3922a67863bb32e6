"""What is refused is given back at once, and not when all memory is next looked through for garbage."""

from __future__ import annotations

import collections
import dataclasses
import gc
import sys
import types
from typing import Any

import grpc
import pytest

from gradoracle_server import settings
from gradoracle_server.front import statuses
from gradoracle_server.front.service import Service


class Aborted(Exception):  # noqa: N818 - stands for gRPC's own
    """What ends a call."""


class Context:
    """A call's, which keeps what it was aborted with, as gRPC's does."""

    def __init__(self) -> None:
        self.kept: list[BaseException] = []
        self.code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        self.code = code
        try:
            raise Aborted
        except Aborted as error:
            self.kept.append(error)
            raise

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "nobody"


def service(**pool: Any) -> Service:
    """One whose pool does as it is told."""
    calls = types.SimpleNamespace(started=0, finished=lambda *_: None)
    metrics: Any = types.SimpleNamespace(calls=collections.defaultdict(lambda: calls))
    told = dataclasses.replace(settings.load([], {}), max_message_bytes=100)
    return Service(types.SimpleNamespace(lanes={}, **pool), metrics, told, "")  # type: ignore[arg-type]


def full(*_: object) -> None:
    raise statuses.overloaded("cpu", "--max-queue", 1, 1.0)


@pytest.mark.parametrize("size", [50, 1000])
async def test_a_request_that_is_refused_is_given_back(size: int) -> None:
    """Whether it is too long or finds the queue full, nothing holds it when its call has ended."""
    handle = service(lane=lambda _: types.SimpleNamespace(submit=full)).handlers()["Evaluate"].unary_unary
    context = Context()
    request = bytes(size)
    before = sys.getrefcount(request)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Aborted):
            await handle(request, context)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is context.code
        assert context.kept
        assert before == sys.getrefcount(request)
    finally:
        gc.enable()


def test_a_failure_forgets_where_it_was_raised() -> None:
    """In a stream too, where it becomes an answer."""
    with pytest.raises(statuses.Failure) as caught:
        raise statuses.shutting_down()
    assert caught.value.__traceback__ is not None
    caught.value.let_go()
    assert caught.value.__traceback__ is None

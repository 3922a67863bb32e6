"""Callers who do not read their answers: what those may take is bounded, over all streams, and nobody is refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from front_server import Server, command, connect, eventually, start

from gradoracle.v1 import service_pb2

CALLS, STREAMS, SIZE = 300, 5, 640_000
HANDLED = (
    'grpc_server_handled_total{grpc_code="OK",grpc_method="Evaluate",'
    'grpc_service="gradoracle.v1.GradientService",grpc_type="unary"}'
)


def calls(text: str, done: threading.Event, *, together: bool = False) -> Iterator[service_pb2.StreamRequest]:
    """A stream's messages, one call in each or all in one; its end comes when all is `done`."""
    message = service_pb2.StreamRequest()
    for number in range(CALLS):
        message.calls.add(id=number, evaluate=command(text))
        if not together:
            yield message
            message = service_pb2.StreamRequest()
    if together:
        yield message
    done.wait(60)


def at_rest(server: Server) -> float:
    """How many calls the server has answered when it answers no more."""
    counts: list[float] = []

    def rests() -> bool:
        counts.append(server.metric(HANDLED))
        threading.Event().wait(0.5)
        return len(counts) > 2 and counts[-1] == counts[-3]

    eventually(rests)
    return counts[-1]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["answer", "attach"])
def test_answers_that_nobody_reads(kind: str, together: bool) -> None:
    """Streams are not read on when the answers of all are too many; others go on, and in the end each is answered."""
    done = threading.Event()
    with start("--workers", "1", "--max-queue-bytes", "64MiB") as server, contextlib.ExitStack() as closing:
        connections = [closing.enter_context(connect(server)) for _ in range(STREAMS)]
        slow = [stub.Stream(calls(f"{kind} {SIZE}", done, together=together)) for stub in connections]
        closing.callback(done.set)
        bytes_held = at_rest(server) * SIZE
        assert bytes_held < 64 * 1024 * 1024  # 8 MiB, or 4 for each, and what was under way; all are 960 MB

        with connect(server) as stub:
            for text in ("echo", f"{kind} {SIZE}"):
                mine = stub.Stream(calls(text, done))
                assert sorted(_ids(mine, CALLS)) == list(range(CALLS))
                mine.cancel()
        for one in slow:
            assert sorted(_ids(one, CALLS)) == list(range(CALLS))
        done.set()
        assert [[]] * STREAMS == [list(one) for one in slow]


def _ids(stream: Iterator[service_pb2.StreamResponse], count: int) -> list[int]:
    """Of so many answers, which are all good."""
    found: list[int] = []
    while len(found) < count:
        for answer in next(stream).answers:
            assert answer.WhichOneof("response") == "evaluate"
            found.append(answer.id)
    return found

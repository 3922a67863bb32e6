"""Calls over a Stream with raw requests, and whether what is answered is an answer."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import grpc
from google.rpc import error_details_pb2, status_pb2

from gradoracle import wire
from gradoracle.requests import METHODS
from gradoracle.v1 import errors_pb2, service_pb2

FIELDS = {method.rpc: method.stream_number for method in METHODS}
"""The fields of StreamCall by method."""

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_KNOWN = {name.removeprefix("ERROR_REASON_") for name in dict(errors_pb2.ErrorReason.items())} - {"UNSPECIFIED"}
_NO_ANSWERS = {"INTERNAL", "SHUTTING_DOWN", "NOT_SERVED", "UNAUTHENTICATED"}
"""Reasons with which nothing that is sent to a healthy server is answered."""


def told(status: status_pb2.Status) -> str:
    """A failure as it is counted: its reason, and the signal where there is one."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return f"{info.reason} {info.metadata['signal']}" if "signal" in info.metadata else info.reason
    return f"no reason ({_NAMES.get(status.code, status.code)})"


def is_contained(what: str) -> bool:
    """Whether a call that was answered so is one that the server was equal to."""
    return what == "OK" or (what.split()[0] in _KNOWN and what.split()[0] not in _NO_ANSWERS)


def call(number: int, method: str, request: bytes) -> bytes:
    """A StreamRequest with one call, whose request need not be one."""
    inside = wire.number_field(1, number) + wire.bytes_field(FIELDS[method], request)
    return wire.bytes_field(1, inside)


def over_stream(
    converse: Callable[[Iterator[bytes]], Iterable[bytes]], calls: Iterable[tuple[str, bytes]], window: int
) -> Iterator[tuple[int, str, str]]:
    """Makes calls over a stream, so many at a time: place among the calls, what came of it, and its message.

    A call whose time passed before it reached a worker is made again.
    """
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    source = enumerate(calls)
    open_calls: dict[int, tuple[str, bytes]] = {}

    def more() -> None:
        while len(open_calls) < window and (found := next(source, None)) is not None:
            number, one = found
            open_calls[number] = one
            outbox.put(call(number, *one))
        if not open_calls:
            outbox.put(None)

    more()
    for data in converse(iter(outbox.get, None)):
        for answer in service_pb2.StreamResponse.FromString(data).answers:
            status = status_pb2.Status.FromString(answer.status)
            if answer.WhichOneof("response") == "status" and _waited(status):
                outbox.put(call(answer.id, *open_calls[answer.id]))
                continue
            del open_calls[answer.id]
            is_status = answer.WhichOneof("response") == "status"
            yield answer.id, told(status) if is_status else "OK", status.message
        more()


def _waited(status: status_pb2.Status) -> bool:
    """Whether a call failed before it ran: the workers were busy with others."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason == "OVERLOADED" or info.metadata.get("phase") == "queue"
    return False


def figures(counts: Counter[str]) -> dict[str, str | int | float]:
    """Counts for a line of figures, the largest first."""
    return dict(counts.most_common())

"""Valid requests with bytes and fields changed: each is answered, whatever it has become."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import status_pb2

import gradoracle as go
from faults import answers
from faults.callers import calling
from faults.outcome import Outcome
from faults.servers import connection_to_stream, serving
from gradoracle.requests import SERVICE

SHORT = {"calls": 500, "streams": 20, "seed": 1}
LONG = {"calls": 98_000, "streams": 2_000, "seed": 2}

_AT_ONCE = 16


def valid() -> list[tuple[str, bytes]]:
    """A request of every kind: the method, and its bytes."""
    g = go.Graph()
    x, w = g.input("x"), g.input("w", structure="symmetric")
    h = (x @ w).relu()
    values, _ = go.ops.topk(h, 2, dim=-1)
    with g.no_grad():
        kept = h * g.constant(np.array([1.0, 2.0, 3.0]))
    g.output("y", (values.sum() + kept.sum() + go.ops.dropout(h, 0.5, True).sum()) ** 2)
    primals = {"x": np.ones((2, 3)), "w": go.normal((3, 3), "float64", seed=1)}
    ones = {"x": np.ones((2, 3))}
    made = [
        go.request("evaluate", g, primals, seed=3, device="cpu"),
        go.request("vjp", g, primals, wrt=["x"], retain=[h]),
        go.request("vjp", "(x * w).sum()", {"x": np.ones((4, 3)), "w": np.ones(3)}, batched=["x"]),
        go.request("jvp", g, primals, ones),
        go.request("jacobian", "x @ w", primals, of=["out"]),
        go.request("hessian", "(x ** 3).sum()", ones),
        go.request("hvp", "(x ** 3).sum()", ones, ones),
        go.request("check", "(x ** 3).sum()", ones, claimed=ones),
        go.request("inspect", g, primals),
        go.request("operators", "softmax"),
        go.request("server_info"),
    ]
    return [(one.method.rpc, one.to_bytes()) for one in made]


def run(calls: int, streams: int, seed: int) -> Outcome:
    """Sends changed requests, half as unary calls and half as calls of a stream, then changed messages of streams."""
    outcome = Outcome(
        "mutated messages",
        f"{calls} requests changed in bytes or fields, {streams} changed messages of streams, a caller beside them",
        "each answered; the caller's answers right, none lost",
    )
    counts: Counter[str] = Counter()
    chosen = Random(seed)  # noqa: S311

    def note(what: str, message: str) -> None:
        counts[what] += 1
        if not answers.is_contained(what):
            outcome.broken.append(f"{what}: {message}{server.incident(message)}"[:300])

    flags = ["--workers", "2", "--max-memory-bytes", "1GiB", "--request-timeout", "30s"]
    with serving(*flags) as server, calling(server.address, pause=0.05) as other:
        asyncio.run(_unary(server.address, changed(calls // 2, chosen), note))
        with connection_to_stream(server.address) as converse:
            for _, what, message in answers.over_stream(converse, changed(calls - calls // 2, chosen), window=_AT_ONCE):
                note(what, message)
            ended = [_stream(converse, chosen) for _ in range(streams)]
        for what, message in ended:
            note(what, message)
        other.finish()
        outcome.figures = {
            "answered": sum(counts.values()),
            **dict(counts.most_common()),
            "workers lost": server.restarts(),
            "other answered": other.answered,
            "other wrong": len(other.wrong),
            "other lost": other.lost,
        }
        outcome.require(calls + streams == sum(counts.values()), "some were not answered")
        outcome.require(server.process.poll() is None, "the front has ended")
        outcome.require(not other.wrong and not other.lost, f"{other.wrong[:3]} {other.failed}")
        outcome.require(counts["OK"] > 0 < counts["MALFORMED_REQUEST"], f"nothing was tried: {counts}")
    return outcome


def changed(count: int, chosen: Random) -> Iterator[tuple[str, bytes]]:
    """Requests, each changed in one way or a few."""
    originals = valid()
    for _ in range(count):
        method, request = chosen.choice(originals)
        if chosen.random() < 0.5:
            yield method, change_bytes(request, chosen)
        else:
            yield method, change_fields(method, request, chosen)


def change_bytes(request: bytes, chosen: Random) -> bytes:
    """The same bytes, but for a few."""
    made = bytearray(request) or bytearray(1)
    for _ in range(chosen.choice([1, 1, 1, 2, 5])):
        start = chosen.randrange(len(made))
        end = min(len(made), start + chosen.choice([1, 1, 4, 20]))
        match chosen.randrange(6):
            case 0:
                made[start] ^= 1 << chosen.randrange(8)
            case 1:
                made[start:end] = chosen.randbytes(end - start)
            case 2:
                del made[start:end]
            case 3:
                made[start:start] = made[start:end] * chosen.choice([1, 2, 50])
            case 4:
                made[start:end] = b"\xff" * (end - start)
            case _:
                del made[start:]
        if not made:
            return b""
    return bytes(made)


def change_fields(method: str, request: bytes, chosen: Random) -> bytes:
    """The same message, but for a field somewhere in it."""
    from gradoracle.v1 import service_pb2

    message = getattr(service_pb2, f"{method}Request").FromString(request)
    for _ in range(chosen.choice([1, 1, 2])):
        _change(chosen.choice(list(_inside(message))), chosen)
    found: bytes = message.SerializeToString()
    return found


def _inside(message: Message) -> Iterator[Message]:
    """A message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from _inside(one)


def _change(message: Message, chosen: Random) -> None:
    """One field of a message gets another value, or none, or comes once more."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = chosen.choice(fields)
    if chosen.random() < 0.3:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _change_message(message, field, chosen)
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field, chosen))
    else:
        setattr(message, field.name, _scalar(field, chosen))


def _change_message(message: Message, field: Any, chosen: Random) -> None:
    value = getattr(message, field.name)
    if not field.is_repeated:
        value.SetInParent()
    elif len(value) and chosen.random() < 0.7:
        match chosen.randrange(3):
            case 0:
                value.append(value[chosen.randrange(len(value))])
            case 1:
                del value[chosen.randrange(len(value))]
            case _:
                value.add().CopyFrom(value[0])
                del value[0]
    else:
        value.add()


def _scalar(field: Any, chosen: Random) -> Any:
    kinds = {field.CPPTYPE_STRING: "text", field.CPPTYPE_BOOL: "flag"}
    if field.cpp_type == field.CPPTYPE_STRING and field.type == field.TYPE_BYTES:
        return chosen.randbytes(chosen.choice([0, 1, 8, 48, 100_000]))
    if kinds.get(field.cpp_type) == "text":
        return chosen.choice(
            ["", "x", "w", "y", "aten.mul.Tensor", "getitem", "cuda:0", "n" * 5000, "\N{SNOWMAN}", "\0"]
        )
    if kinds.get(field.cpp_type) == "flag":
        return chosen.random() < 0.5
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return chosen.choice([0.0, -1.0, float("nan"), float("inf"), 1e300])
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return chosen.choice([0, 1, 2, 7, 2**31, 2**32 - 1])
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
        return chosen.choice([0, 1, 2, 5, 13, 99, 2**31 - 1, -1])
    return chosen.choice([0, 1, 2, 3, -1, 2**31, 2**40, 2**63 - 1, -(2**63)])


async def _unary(address: str, requests: Iterator[tuple[str, bytes]], note: Any) -> None:
    """Sends requests as unary calls, some at once."""
    async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:

        async def sender() -> None:
            for method, request in requests:
                try:
                    await channel.unary_unary(SERVICE + method)(request)
                except grpc.RpcError as error:
                    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
                    note(answers.told(status_pb2.Status.FromString(bytes(details))), error.details())
                else:
                    note("OK", "")

        await asyncio.gather(*(sender() for _ in range(_AT_ONCE)))


def _stream(converse: Any, chosen: Random) -> tuple[str, str]:
    """Sends a changed message of a stream; how the stream ended."""
    message = b"".join(answers.call(number, *one) for number, one in enumerate(valid()[-4:]))
    try:
        for _ in converse(iter([change_bytes(message, chosen)]), timeout=60):
            pass
    except grpc.RpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        return answers.told(status_pb2.Status.FromString(bytes(details))), error.details() or ""
    return "OK", ""

"""Files of length-delimited protobuf messages as cases.

A message is a `gradoracle.v1.StreamRequest`, as a client sends it to Stream, before it its length as a varint. Each of
its calls is a case, whose id is the call's; calls and their chunks may be spread over messages as in a stream. So the
recorded requests of a stream are a file of cases.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import IO, Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from gradoracle import requests
from gradoracle.batch import lines
from gradoracle.batch.arrays import CaseError
from gradoracle.batch.cases import METHODS, Case
from gradoracle.requests import Method, Request
from gradoracle.tensors import WireTensor
from gradoracle.v1 import graph_pb2, service_pb2, tensor_pb2

_LENGTH_AT_MOST = 10  # bytes of a varint
_MESSAGE_AT_MOST = 2**31 - 1  # bytes; protobuf's own limit


def read(file: IO[bytes]) -> Iterator[tuple[int, Case | CaseError]]:
    """The cases of a file, each with its place among the calls, counted from 1; for a broken one, why.

    After a message that is cut off, or a length that is none, there is nothing more to read.
    """
    place = 0
    chunks: dict[int, list[bytearray]] = {}
    for number, message in enumerate(_messages(file), 1):
        if isinstance(message, CaseError):
            place += 1
            message.line = place
            yield place, message
            continue
        for chunk in message.chunks:
            attachments = chunks.setdefault(chunk.call_id, [])
            while len(attachments) <= chunk.attachment:
                attachments.append(bytearray())
            attachments[chunk.attachment] += chunk.data
        for call in message.calls:
            place += 1
            try:
                yield place, _case(call, place, chunks.pop(call.id, []), number)
            except CaseError as error:
                error.line = place
                yield place, error


def _messages(file: IO[bytes]) -> Iterator[service_pb2.StreamRequest | CaseError]:
    number = 0
    while True:
        number += 1
        try:
            length = _length(file, number)
        except CaseError as error:
            yield error
            return
        if length is None:
            return
        data = file.read(length)
        if len(data) < length:
            yield CaseError(f"message {number}: expected {length} bytes, got {len(data)} and the end of the file")
            return
        try:
            yield service_pb2.StreamRequest.FromString(data)
        except DecodeError:
            yield CaseError(
                f"message {number}: expected a gradoracle.v1.StreamRequest, got {length} bytes that are none"
            )


def _length(file: IO[bytes], number: int) -> int | None:
    """The varint before a message, or None at the end of the file."""
    length = 0
    for place in range(_LENGTH_AT_MOST):
        byte = file.read(1)
        if not byte:
            if place == 0:
                return None
            raise CaseError(f"message {number}: expected its length, got the end of the file")
        length |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            if length > _MESSAGE_AT_MOST:
                break
            return length
    raise CaseError(f"message {number}: expected its length, a varint of at most {_MESSAGE_AT_MOST}; is this the file?")


def _case(call: service_pb2.StreamCall, place: int, attachments: list[bytearray], number: int) -> Case:
    kind = call.WhichOneof("request")
    if kind is None:
        raise CaseError(f"message {number}, call {call.id}: expected a request, got none")
    message = getattr(call, kind)
    name = _method_name(kind, message)
    if name not in METHODS:
        raise CaseError(f"message {number}, call {call.id}: expected a request with a graph, got {kind}")
    if len(attachments) != call.attachments:
        got = f"the chunks of {len(attachments)}"
        raise CaseError(f"message {number}, call {call.id}: expected {call.attachments} attachments, got {got}")
    device: str = message.device
    digest = lines.digest(b"".join([call.SerializeToString(deterministic=True), *attachments]))
    return Case(
        id=str(call.id),
        line=place,
        method=name,
        labels={},
        options={"device": device} if device else {},
        graph={},
        arrays={},
        request=_request(_methods()[name], message, attachments, f"message {number}, call {call.id}"),
        digest=digest,
    )


def _method_name(kind: str, message: Any) -> str:
    if kind == "compute_hessian":
        return "hvp" if message.vectors else "hessian"
    return next(one.name for one in requests.METHODS if one.stream_field == kind)


@functools.cache
def _methods() -> dict[str, Method[Any]]:
    return {one.name: one for one in requests.METHODS}


def _request(method: Method[Any], message: Message, attachments: list[bytearray], where: str) -> Request[Any]:
    """The request of a message, its tensors apart, so that large ones travel in chunks."""
    found: list[tuple[int, str, WireTensor]] = []
    for field, value in message.ListFields():
        if field.message_type is not tensor_pb2.NamedTensor.DESCRIPTOR:
            continue
        for one in value:
            found.append(
                (field.number, one.name, _tensor(one.tensor, attachments, f"{where}, {field.name} {one.name}"))
            )
        message.ClearField(field.name)
    return Request(method, b"", message.SerializeToString(), tuple(found))


def _tensor(tensor: tensor_pb2.Tensor, attachments: list[bytearray], where: str) -> WireTensor:
    contents = tensor.WhichOneof("contents")
    if contents not in ("data", "attachment"):
        return WireTensor(tensor.SerializeToString(), None)
    if contents == "data":
        data = tensor.data
    elif tensor.attachment < len(attachments):
        data = bytes(attachments[tensor.attachment])
    else:
        raise CaseError(f"{where}: expected one of {len(attachments)} attachments, got number {tensor.attachment}")
    head = tensor_pb2.Tensor(dtype=tensor.dtype, shape=tensor.shape).SerializeToString()
    return WireTensor(head, data)


def graph_of(request: Request[Any]) -> dict[str, Any]:
    """The graph of a request of such a file, in the proto's JSON."""
    message: Any = request.method.request()
    message.MergeFromString(request.head)
    return _json(message.graph.SerializeToString(deterministic=True))


@functools.lru_cache(maxsize=256)
def _json(graph: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(graph_pb2.Graph.FromString(graph))
    return found

"""Requests and responses beside protobuf, for what it would cost: what is large need not be parsed, nor written, by it.

Taken out of a serialized request without parsing it are the graph, so that its bytes can look up the plan, and the data
of large tensors, which protobuf copies twice on the way to a tensor. Into a response it is put in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from gradoracle.v1 import tensor_pb2
from gradoracle_server.wire_format import LENGTH, MalformedError, fields, headed

LARGE = 64 * 1024
"""Bytes of a tensor's data from which on it is worth taking out."""

_GRAPH_KEY = 0x0A  # field 1, length-delimited: the graph, in every request that has one
_TENSOR, _DATA = tensor_pb2.NamedTensor.TENSOR_FIELD_NUMBER, tensor_pb2.Tensor.DATA_FIELD_NUMBER
_CONTENTS = {one.number for one in tensor_pb2.Tensor.DESCRIPTOR.oneofs_by_name["contents"].fields}


def split(payload: bytes | memoryview) -> tuple[bytes | None, bytes | memoryview]:
    """(the graph's bytes, the request without it).

    The graph is None, and the request whole, where the graph is not the first field or its length does not add up.
    Every protobuf library writes fields in their order, so that is the rare case, and then protobuf itself decides.
    """
    if len(payload) < 2 or payload[0] != _GRAPH_KEY:
        return None, payload
    size = shift = 0
    place = 1
    while True:
        if place >= len(payload) or shift > 28:
            return None, payload
        byte = payload[place]
        place += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    end = place + size
    # A second graph would have to be merged with the first.
    if end > len(payload) or (end < len(payload) and payload[end] == _GRAPH_KEY):
        return None, payload
    return bytes(payload[place:end]), payload[end:]


def tensor_fields(request: type[Message]) -> dict[int, str]:
    """The fields of a request that are lists of named tensors: names by numbers."""
    named = tensor_pb2.NamedTensor.DESCRIPTOR
    return {one.number: one.name for one in request.DESCRIPTOR.fields if one.message_type is named}


def taken(
    request: bytes | memoryview, names: Mapping[int, str]
) -> tuple[bytes | memoryview, dict[str, dict[int, memoryview]]]:
    """(the request without the data of large tensors, those data by field and place in it).

    Protobuf itself decides on what is not as every library writes it: a tensor in pieces, or with other contents, too.
    """
    view, done, start = memoryview(request), 0, 0
    kept: list[bytes | memoryview] = []
    found: dict[str, dict[int, memoryview]] = {}
    counts = dict.fromkeys(names.values(), 0)
    try:
        for number, kind, value, stop in fields(request, 0, len(request)):
            name = names.get(number) if kind == LENGTH else None
            if name is not None:
                if stop - value >= LARGE and (parts := _without_data(view, value, stop)) is not None:
                    entry, found.setdefault(name, {})[counts[name]] = parts
                    kept += [view[done:start], headed(number, len(entry)), entry]
                    done = stop
                counts[name] += 1
            start = stop
    except MalformedError:
        return request, {}
    return (b"".join((*kept, view[done:])), found) if found else (request, {})


def _without_data(message: memoryview, start: int, end: int) -> tuple[bytes, memoryview] | None:
    """A named tensor that lies between two places, without its data, and these; None where that is not to be told."""
    found, place = None, start
    for number, kind, value, stop in fields(message, start, end):
        if number == _TENSOR:
            if kind != LENGTH or found is not None or (parts := _data_of(message, value, stop)) is None:
                return None
            tensor, data = parts
            found = b"".join((message[start:place], headed(_TENSOR, len(tensor)), tensor, message[stop:end])), data
        place = stop
    return found


def _data_of(message: memoryview, start: int, end: int) -> tuple[bytes, memoryview] | None:
    """The same of a tensor."""
    found, place = None, start
    for number, kind, value, stop in fields(message, start, end):
        if number in _CONTENTS:
            if number != _DATA or kind != LENGTH or found is not None or stop - value < LARGE:
                return None
            found = b"".join((message[start:place], message[stop:end])), message[value:stop]
        place = stop
    return found


def written(response: Message, kept: Sequence[memoryview]) -> list[bytes | memoryview]:
    """A response's bytes in pieces, with the data that were left out of it, by the numbers of their attachments, in the
    places where protobuf would have put them."""
    rest = type(response)()
    rest.CopyFrom(response)
    pieces: list[bytes | memoryview] = []
    for descriptor, value in response.ListFields():
        inner = descriptor.message_type
        if inner is not None and "tensor" in inner.fields_by_name:
            rest.ClearField(descriptor.name)
            tensor = inner.fields_by_name["tensor"].number
            for entry in value:
                pieces += _entry(descriptor.number, tensor, entry, kept)
    return [rest.SerializeToString(), *pieces]


def _entry(number: int, tensor: int, entry: Any, kept: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    """One element of a repeated field: names, and behind them a tensor."""
    if not entry.tensor.HasField("attachment"):
        whole = entry.SerializeToString()
        yield headed(number, len(whole)) + whole
        return
    data = kept[entry.tensor.attachment]
    names, head = type(entry)(), tensor_pb2.Tensor()
    names.CopyFrom(entry)
    names.ClearField("tensor")
    head.CopyFrom(entry.tensor)
    head.ClearField("attachment")
    before = head.SerializeToString() + headed(_DATA, len(data))
    before = names.SerializeToString() + headed(tensor, len(before) + len(data)) + before
    yield headed(number, len(before) + len(data)) + before
    yield data

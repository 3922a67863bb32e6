"""Which tensor of a request an attachment belongs to, for those that are refused."""

from __future__ import annotations

import functools
import itertools

from gradoracle.v1 import service_pb2, tensor_pb2
from gradoracle_server.wire_format import LENGTH, VARINT, MalformedError, fields

_FIELDS_AT_MOST = 4096  # of a request; about ten milliseconds
_NAME, _TENSOR = 1, 2  # fields of NamedTensor
_ATTACHMENT = 6  # of Tensor


def tensor_of(request: bytes | memoryview, method: str, attachment: int) -> str:
    """The tensor as other errors name it, `primals["x"]`; "" where it is not among the first fields of the request."""
    lists = _lists(method)
    try:
        for number, kind, start, end in itertools.islice(fields(request, 0, len(request)), _FIELDS_AT_MOST):
            if number in lists and kind == LENGTH:
                parts = {part: slice(value, stop) for part, kind, value, stop in fields(request, start, end)}
                name, tensor = parts.get(_NAME, slice(0)), parts.get(_TENSOR, slice(0, 0))
                for part, kind, value, _ in fields(request, tensor.start, tensor.stop):
                    if (part, kind, value) == (_ATTACHMENT, VARINT, attachment):
                        return f'{lists[number]}["{str(request[name], "utf-8")}"]'
    except (MalformedError, UnicodeDecodeError, IndexError):
        pass  # the worker would say what is wrong with it, but the request does not come so far
    return ""


@functools.cache
def _lists(method: str) -> dict[int, str]:
    """The names of a request's fields of NamedTensor, by number."""
    request = service_pb2.DESCRIPTOR.message_types_by_name[f"{method}Request"]
    kind = tensor_pb2.NamedTensor.DESCRIPTOR
    return {one.number: one.name for one in request.fields if one.message_type is kind}

"""Which tensor an attachment is: found in a request without parsing it, whatever the request looks like."""

from __future__ import annotations

import pytest

from gradoracle.v1 import service_pb2, tensor_pb2
from gradoracle_server.front.attached import tensor_of


def tensor(name: str, attachment: int | None) -> tensor_pb2.NamedTensor:
    inside = tensor_pb2.Tensor(shape=[3]) if attachment is None else tensor_pb2.Tensor(attachment=attachment)
    return tensor_pb2.NamedTensor(name=name, tensor=inside)


REQUEST = service_pb2.CheckGradientsRequest(
    device="cpu",
    primals=[tensor("small", None), tensor("x", 0), tensor("", 3)],
    cotangents=[tensor("out", 1)],
    claimed=[tensor("x", 2), tensor_pb2.NamedTensor(name="none")],
).SerializeToString()


@pytest.mark.parametrize(
    ("attachment", "name"),
    [(0, 'primals["x"]'), (1, 'cotangents["out"]'), (2, 'claimed["x"]'), (3, 'primals[""]'), (4, "")],
)
def test_a_tensor_is_found(attachment: int, name: str) -> None:
    """By its list and its name; an attachment that no tensor names has none."""
    assert name == tensor_of(REQUEST, "CheckGradients", attachment)
    assert name == tensor_of(memoryview(REQUEST), "CheckGradients", attachment)


def test_what_is_no_request_names_nothing() -> None:
    """Every beginning of a request, and one with bytes of another kind, is read without an error."""
    for end in range(len(REQUEST)):
        assert tensor_of(REQUEST[:end], "CheckGradients", 9) == ""
        assert tensor_of(REQUEST[:end] + b"\xff" * 12, "CheckGradients", 9) == ""
    assert tensor_of(REQUEST, "ListOperators", 0) == ""
    assert tensor_of(tensor("\ud7ff", 0).SerializeToString(), "Evaluate", 0) == ""

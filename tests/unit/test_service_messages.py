"""The messages of the service, looked at as protobuf describes them."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from gradoracle.v1 import service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GradientService"]


def inside(message: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    """A message and all that it may hold."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from inside(field.message_type, seen)


def holds_tensors(message: Descriptor) -> bool:
    return any(one.full_name == "gradoracle.v1.Tensor" for one in inside(message, set()))


def test_what_comes_back_in_shared_memory_says_where():
    """Tensors of an answer may lie in the memory that the request named; without spans nobody would find them."""
    answered = {
        method.output_type.name: method.output_type
        for method in SERVICE.methods
        if "memory" in method.input_type.fields_by_name
    }
    assert {"ComputeVjpResponse", "CheckGradientsResponse"} <= set(answered)
    for name, message in answered.items():
        if holds_tensors(message):
            assert message.fields_by_name["spans"].number == 16, name
            assert message.fields_by_name["spans"].message_type.full_name == "gradoracle.v1.Span", name

"""Arrays to the wire and back."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

import gradoracle as go
from gradoracle import dtypes, requests, tensors, wire
from gradoracle.errors import TensorError
from gradoracle.v1 import service_pb2, tensor_pb2

EVERY_DTYPE = sorted(dtypes.NUMBERS)


def message(value: Any, *, floating: bool = False) -> tensor_pb2.Tensor:
    """A value as a message."""
    return tensors.message_of(tensors.encode(value, "primals", "x", floating=floating))


def wired(value: Any, *, floating: bool = False) -> np.ndarray[Any, Any]:
    """A value to the wire and back."""
    return tensors.decode(message(value, floating=floating))


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of any dtype and shape, of any layout in memory."""
    dtype = dtypes.TO_NUMPY[dtypes.NUMBERS[draw(st.sampled_from(EVERY_DTYPE))]]
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype == np.bool_:
        data = bytes(byte % 2 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape) if size else np.zeros(shape, dtype)
    match draw(st.sampled_from(["as it is", "transposed", "reversed", "strided", "read-only"])):
        case "transposed":
            return array.T
        case "reversed" if array.ndim:
            return array[::-1]
        case "strided" if array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
    return array


@given(arrays())
def test_round_trip(array: np.ndarray[Any, Any]) -> None:
    """Dtype, shape and every bit survive, NaN payloads too; the copy is writable and lies in rows."""
    copy = wired(array)
    assert copy.dtype == array.dtype
    assert copy.shape == array.shape
    assert copy.tobytes() == array.tobytes()
    assert copy.flags.writeable
    assert copy.flags.c_contiguous


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_large_arrays_are_not_copied(dtype: str) -> None:
    """A large contiguous array goes out as a view of its own memory, of any dtype."""
    array = np.zeros(100_000, dtypes.TO_NUMPY[dtypes.NUMBERS[dtype]])
    encoded = tensors.encode(array, "primals", "x", floating=True)
    assert isinstance(encoded.data, memoryview)
    assert np.shares_memory(np.frombuffer(encoded.data, np.uint8), array.view(np.uint8))
    assert encoded.kept().data == bytes(encoded.data)
    assert isinstance(encoded.kept().data, bytes)


@given(arrays())
def test_wire_is_protobufs(array: np.ndarray[Any, Any]) -> None:
    """A tensor written by hand is what protobuf would have written, field by field."""
    expected = service_pb2.EvaluateRequest()
    named = expected.primals.add(name="x·")
    named.tensor.dtype = dtypes.FROM_NUMPY[array.dtype]
    named.tensor.shape.extend(array.shape)
    named.tensor.data = array.tobytes()
    encoded = tensors.encode(array, "primals", "x·", floating=False)
    assert b"".join(tensors.named_field(2, "x·", encoded)) == expected.SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_varint(value: int) -> None:
    """A whole number is written as protobuf writes it."""
    assert wire.number_field(4, value) == service_pb2.EvaluateRequest(seed=value).SerializeToString()


@pytest.mark.parametrize(
    ("value", "floating", "dtype", "shape"),
    [
        (2, False, "int64", ()),
        (2, True, "float64", ()),
        (2.0, False, "float64", ()),
        (True, False, "bool", ()),
        (True, True, "float64", ()),
        (1j, False, "complex128", ()),
        (1j, True, "complex128", ()),
        ([1, 2], False, "int64", (2,)),
        ([1, 2], True, "float64", (2,)),
        ([1, 2.5], False, "float64", (2,)),
        ([[True], [False]], False, "bool", (2, 1)),
        ([True, 2], False, "int64", (2,)),
        ((1, 1j), True, "complex128", (2,)),
        ([], False, "float64", (0,)),
        ([[], []], True, "float64", (2, 0)),
        (2**70, True, "float64", ()),
        ([-(2**63), 2**63 - 1], False, "int64", (2,)),
        (np.float32(2), True, "float32", ()),
        (np.int8(2), True, "int8", ()),
        (np.array([1, 2], np.int32), True, "int32", (2,)),
        (ml_dtypes.bfloat16(2), False, "bfloat16", ()),
    ],
)
def test_numbers_are_weak(value: Any, floating: bool, dtype: str, shape: tuple[int, ...]) -> None:
    """Python numbers take the dtype that fits where they go; numpy's keep theirs."""
    array = wired(value, floating=floating)
    assert array.dtype.name == dtype
    assert array.shape == shape
    assert array.tolist() == np.asarray(value).astype(array.dtype).tolist()


def test_byte_order() -> None:
    """Arrays of the other byte order are turned into the wire's."""
    assert wired(np.array([1, 256], ">i4")).tolist() == [1, 256]
    assert message(np.array(1.0, ">f8")).dtype == tensor_pb2.DTYPE_FLOAT64


def test_a_message_passes_through() -> None:
    """A ready-made message is sent as it is."""
    made = go.normal((2, 3), "float32", seed=7)
    assert message(made) == made


class Foreign:
    """An array of a library that exports by DLPack."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_dlpack() -> None:
    """Anything that exports by DLPack is taken."""
    assert wired(Foreign(np.arange(3.0))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_torch_tensors(dtype: str) -> None:
    """torch tensors are taken in every dtype, also those that numpy cannot import by itself."""
    import torch

    made = torch.tensor([0.0, 1.0, 2.0]).to(getattr(torch, dtype))
    array = wired(made)
    assert array.dtype.name == dtype
    assert array.astype(np.complex128).tolist() == made.to(torch.complex128).tolist()
    assert wired(made[1]).shape == ()


def test_torch_tensors_with_history() -> None:
    """A torch tensor that requires grad, or is conjugated lazily, gives its values."""
    import torch

    assert wired(torch.ones(2, requires_grad=True) * 2).tolist() == [2, 2]
    assert wired(torch.tensor([1j]).conj()).tolist() == [-1j]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "2",
            'primals["x"]: expected a numpy array, a number, nested lists of numbers or an object with __dlpack__, '
            "got str",
        ),
        (
            [[1], [2, 3]],
            'primals["x"]: expected numbers, or nested lists of them in rows of equal length, got [[1], [2, 3]]',
        ),
        ([1, None], 'primals["x"]: expected numbers, or nested lists of them in rows of equal length, got [1, None]'),
        (
            [1.5, None],
            'primals["x"]: expected numbers, or nested lists of them in rows of equal length, got [1.5, None]',
        ),
        (
            [2**70, "3"],
            f"primals[\"x\"]: expected numbers, or nested lists of them in rows of equal length, got [{2**70}, '3']",
        ),
        (2**70, f'primals["x"]: expected numbers, or nested lists of them in rows of equal length, got {2**70}'),
        (
            np.array(["a"]),
            f'primals["x"]: expected a dtype with a wire form: {", ".join(dtypes.NUMBERS)}, got <U1',
        ),
        (
            np.zeros(2, np.longdouble),
            f'primals["x"]: expected a dtype with a wire form: {", ".join(dtypes.NUMBERS)}, '
            f"got {np.dtype(np.longdouble)}",
        ),
    ],
)
def test_what_is_no_tensor(value: Any, text: str) -> None:
    """What cannot be a tensor is refused with its place, what was expected and what came."""
    with pytest.raises(TensorError) as caught:
        message(value)
    assert str(caught.value) == text
    assert caught.value.reason == "INVALID_TENSOR"
    assert caught.value.metadata["field"] == 'primals["x"]'


def test_made_by_the_server() -> None:
    """Contents that the server makes take no bytes on the wire."""
    normal = go.normal((8, 64), mean=1, std=0.5, seed=3)
    assert normal == tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_FLOAT64,
        shape=[8, 64],
        random=tensor_pb2.Random(normal=tensor_pb2.Random.Normal(mean=1, std=0.5), seed=3),
    )
    uniform = go.uniform(5, "torch.bfloat16", low=-1, high=2)
    assert (uniform.dtype, list(uniform.shape)) == (tensor_pb2.DTYPE_BFLOAT16, [5])
    assert (uniform.random.uniform.low, uniform.random.uniform.high) == (-1, 2)
    integers = go.integers((), 0, 10)
    assert (integers.dtype, integers.random.integers.high) == (tensor_pb2.DTYPE_INT64, 10)
    assert go.fill(2, 1j, np.complex64).fill.complex == tensor_pb2.Complex(imag=1)
    assert go.fill(2, True, "bool").fill.boolean
    assert go.fill(2, np.int8(3), "int8").fill.integer == 3


def test_unknown_dtype() -> None:
    """An unknown dtype gets the nearest ones."""
    with pytest.raises(TensorError) as caught:
        go.normal(3, "flaot32")
    assert str(caught.value) == "normal: expected a dtype, got 'flaot32'; did you mean \"float32\"?"


@settings(max_examples=30)
@given(arrays())
def test_attachments(array: np.ndarray[Any, Any]) -> None:
    """A tensor whose bytes came in an attachment is read from there, without a copy."""
    attached = bytearray(array.tobytes())
    read = tensors.decode(
        tensor_pb2.Tensor(dtype=dtypes.FROM_NUMPY[array.dtype], shape=array.shape, attachment=0), [attached]
    )
    assert read.tobytes() == array.tobytes()
    if array.size:
        assert np.shares_memory(read, np.frombuffer(attached, np.uint8))


def test_requests_outlive_their_arrays() -> None:
    """A request that is made for later holds the numbers of now."""
    array = np.zeros(100_000)
    request = go.request("evaluate", "x", {"x": array})
    before = request.to_bytes()
    array += 1
    assert request.to_bytes() == before
    assert requests.evaluate("x", {"x": array}).to_bytes() != before

"""Arrays to the wire and back, and tensors that the server makes itself.

Going in, an array keeps its dtype. Python numbers and nested lists of them have none and take one that fits where they
go (`encode`). Coming out, every array is numpy's, writable and the caller's own.
"""

from __future__ import annotations

import numbers
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradoracle import dtypes, wire
from gradoracle.errors import TensorError
from gradoracle.v1 import tensor_pb2

Array: TypeAlias = npt.NDArray[Any]
ArrayLike: TypeAlias = Any
"""A numpy array, a Python number, nested lists of numbers, anything with `__dlpack__`, or a `tensor_pb2.Tensor`."""

Bytes: TypeAlias = bytearray | npt.NDArray[np.uint8]
"""Bytes of an answer that become an array's own memory."""

_COPIED_BELOW = 64 * 1024  # bytes; a smaller array is quicker to copy than to view
_SET = 1 << 64

# Field numbers of tensor.proto.
_DTYPE, _SHAPE, DATA, ATTACHMENT = 1, 2, 3, 6
_NAME, _TENSOR = 1, 2


class WireTensor(NamedTuple):
    """A tensor on its way out."""

    head: bytes
    """Fields of the message but its data. The whole message where the server makes the contents."""
    data: wire.Piece | None
    """The elements, or None where the server makes them."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements on the wire."""
        return 0 if self.data is None else len(self.data)

    def kept(self) -> WireTensor:
        """The same, safe from later changes to the array."""
        return self if not isinstance(self.data, memoryview) else WireTensor(self.head, bytes(self.data))


# ---- In


def encode(value: ArrayLike, where: str, name: str, *, floating: bool) -> WireTensor:
    """A tensor from whatever the caller has.

    Python numbers and lists become float64 or complex128 where `floating` holds or one of them is a float; otherwise
    int64, or bool where all are. `where` and `name` are for errors, as in 'primals["x"]'. Raises TensorError.
    """
    if type(value) is float:
        return WireTensor(_head(tensor_pb2.DTYPE_FLOAT64, ()), struct.pack("<d", value))
    if type(value) is not np.ndarray:
        if isinstance(value, tensor_pb2.Tensor):
            return WireTensor(value.SerializeToString(), None)
        value = as_array(value, f'{where}["{name}"]', floating=floating)
    dtype = dtypes.FROM_NUMPY.get(value.dtype)
    if dtype is None:
        dtype, value = _converted(value, where, name)
    head = _head(dtype, value.shape)
    if value.nbytes < _COPIED_BELOW:
        return WireTensor(head, value.tobytes())
    return WireTensor(head, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def as_array(value: ArrayLike, place: str, *, floating: bool) -> Array:
    """A numpy array from whatever the caller has but a `tensor_pb2.Tensor`. Raises TensorError."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, bool | int | float | complex | list | tuple):
        return _weak(value, place, floating)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, place)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise TensorError(
        f"{place}: expected a numpy array, a number, nested lists of numbers or an object with __dlpack__, "
        f"got {type(value).__name__}",
        reason="INVALID_TENSOR",
        metadata={"field": place, "got": type(value).__name__},
    )


def _weak(value: Any, place: str, floating: bool) -> Array:
    """Python numbers, which have no dtype of their own."""
    try:
        array = np.asarray(value)
        kind = array.dtype.kind
        if kind == "O" and not all(isinstance(one, numbers.Number) for one in array.flat):
            raise TypeError  # numpy makes NaN of None, and reads texts
        if kind == "O" or (floating and kind in "biu"):
            # Whole numbers beyond 64 bits fit a float64 still.
            array = np.asarray(value, np.float64 if floating or kind != "O" else np.int64)
        elif kind == "u":
            array = np.asarray(value, np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        shown = repr(value)
        raise _fault(place, "numbers, or nested lists of them in rows of equal length", shown[:80]) from error
    return array


def _from_dlpack(value: Any, place: str) -> Array:
    """An array of another library."""
    if hasattr(value, "detach"):  # a torch tensor that requires grad does not export itself
        value = value.detach()
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        array = _without_dlpack(value)
        if array is None:
            raise _fault(place, *_fitting(value, f"{error}")) from error
        return array


def _fitting(value: Any, error: str) -> tuple[str, str]:
    """What was expected, and got, in the place of a tensor that has no elements here to be taken."""
    layout = str(getattr(value, "layout", "")).removeprefix("torch.")
    if getattr(getattr(value, "device", None), "type", "") == "meta":
        return "a tensor that holds numbers", "one on the meta device, which has a shape alone"
    if layout.startswith("sparse"):
        return "a dense tensor (x.to_dense() makes one)", f"one of layout {layout}"
    if getattr(value, "is_nested", False):
        return "a dense tensor", "a nested one"
    return "a tensor in the CPU's memory (x.cpu() makes one)", error


def _without_dlpack(value: Any) -> Array | None:
    """The same for what numpy cannot import by itself: torch's bfloat16 and float8, lazily conjugated tensors."""
    torch = sys.modules.get("torch")  # there, if the value is torch's; never imported here
    if torch is not None and isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_nested:
            return None
        value = value.resolve_conj().resolve_neg().contiguous()
        extended = getattr(ml_dtypes, name, None)
        array: Array
        if extended is None:
            array = value.numpy()
            return array
        bits = torch.int16 if value.dtype.itemsize == 2 else torch.uint8
        array = value.view(bits).numpy()
        array = array.view(extended)
        return array
    return np.asarray(value) if hasattr(value, "__array__") else None


def _converted(value: Array, where: str, name: str) -> tuple[int, Array]:
    """The same array in the wire's byte order, as a plain ndarray."""
    value = np.asarray(value)
    little = value.dtype.newbyteorder("<")
    dtype = dtypes.FROM_NUMPY.get(little)
    if dtype is None:
        raise _fault(f'{where}["{name}"]', f"a dtype with a wire form: {', '.join(dtypes.NUMBERS)}", str(value.dtype))
    return dtype, value.astype(little)


def _fault(place: str, expected: str, got: str) -> TensorError:
    metadata = {"field": place, "expected": expected, "got": got}
    return TensorError(f"{place}: expected {expected}, got {got}", reason="INVALID_TENSOR", metadata=metadata)


@lru_cache(maxsize=4096)
def _head(dtype: int, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(wire.varint(size) for size in shape)
    return wire.number_field(_DTYPE, dtype) + (wire.bytes_field(_SHAPE, sizes) if shape else b"")


# ---- Placed in messages


def message_of(tensor: WireTensor) -> tensor_pb2.Tensor:
    """The tensor as a message of its own."""
    message = tensor_pb2.Tensor.FromString(tensor.head)
    if tensor.data is not None:
        message.data = bytes(tensor.data)
    return message


def named_field(field: int, name: str, tensor: WireTensor) -> list[wire.Piece]:
    """A NamedTensor as a field of a request."""
    if tensor.data is None:
        return [_named_prefix(field, name, tensor.head, 0), tensor.head]
    return [_named_data_prefix(field, name, tensor.head, len(tensor.data)), tensor.data]


def attached_field(field: int, name: str, tensor: WireTensor, attachment: int) -> bytes:
    """The same with its elements in an attachment of a stream."""
    return _named_attachment(field, name, tensor.head, attachment)


@lru_cache(maxsize=4096)
def _named_attachment(field: int, name: str, head: bytes, attachment: int) -> bytes:
    contents = head + wire.number_field(ATTACHMENT, attachment)
    return _named_prefix(field, name, contents, 0) + contents


def _named_prefix(field: int, name: str, contents: bytes, more: int) -> bytes:
    inner = wire.bytes_field(_NAME, name.encode()) + wire.prefix(_TENSOR, len(contents) + more)
    return wire.prefix(field, len(inner) + len(contents) + more) + inner


@lru_cache(maxsize=4096)
def _named_data_prefix(field: int, name: str, head: bytes, length: int) -> bytes:
    contents = head + wire.prefix(DATA, length)
    return _named_prefix(field, name, contents, length) + contents


# ---- Out


def decode(message: tensor_pb2.Tensor, attachments: Sequence[Bytes] = ()) -> Array:
    """The array of a tensor in an answer. `attachments` are the answer's, each given to one array for good."""
    buffer = attachments[message.attachment] if message.HasField("attachment") else bytearray(message.data)
    return np.ndarray(tuple(message.shape), dtypes.TO_NUMPY[message.dtype], buffer=buffer)


# ---- Tensors that the server makes


def normal(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: object = "float64",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
) -> tensor_pb2.Tensor:
    """Gaussian numbers, drawn by the server: mean + std * torch.randn(shape), from a generator seeded with `seed`."""
    tensor = _made("normal", shape, dtype)
    tensor.random.seed = _seed("normal", seed)
    tensor.random.normal.mean = mean
    tensor.random.normal.std = std
    return tensor


def uniform(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: object = "float64",
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
) -> tensor_pb2.Tensor:
    """Numbers in [low, high), each as likely as the next, drawn by the server from a generator seeded with `seed`."""
    tensor = _made("uniform", shape, dtype)
    tensor.random.seed = _seed("uniform", seed)
    tensor.random.uniform.low = low
    tensor.random.uniform.high = high
    return tensor


def integers(
    shape: SupportsIndex | Sequence[SupportsIndex],
    low: int,
    high: int,
    dtype: object = "int64",
    *,
    seed: int = 0,
) -> tensor_pb2.Tensor:
    """Whole numbers in [low, high), as torch.randint draws them, by the server from a generator seeded with `seed`."""
    tensor = _made("integers", shape, dtype)
    tensor.random.seed = _seed("integers", seed)
    tensor.random.integers.low = low
    tensor.random.integers.high = high
    return tensor


def fill(
    shape: SupportsIndex | Sequence[SupportsIndex], value: bool | int | float | complex, dtype: object = "float64"
) -> tensor_pb2.Tensor:
    """A tensor whose elements are all `value`, made by the server."""
    tensor = _made("fill", shape, dtype)
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case bool():
            tensor.fill.boolean = value
        case int():
            if not -(2**63) <= value < 2**63:
                raise _fault("fill", "a number of 64 bits", str(value))
            tensor.fill.integer = value
        case float():
            tensor.fill.real = value
        case complex():
            tensor.fill.complex.real, tensor.fill.complex.imag = value.real, value.imag
        case _:
            raise _fault("fill", "a number", type(value).__name__)
    return tensor


def _made(what: str, shape: SupportsIndex | Sequence[SupportsIndex], dtype: object) -> tensor_pb2.Tensor:
    number = dtypes.number_of(dtype)
    if number is None:
        raise TensorError(f"{what}: expected a dtype, got {dtypes.unknown(dtype)}", reason="INVALID_TENSOR")
    sizes = shape if isinstance(shape, Sequence) else [shape]
    return tensor_pb2.Tensor(dtype=number, shape=[int(size) for size in sizes])


def _seed(what: str, seed: int) -> int:
    if not 0 <= seed < _SET:
        raise _fault(what, "a seed from 0 to 2**64 - 1", str(seed))
    return seed

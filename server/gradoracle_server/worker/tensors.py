"""Tensors between messages and torch."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from gradoracle.v1 import tensor_pb2 as pb
from gradoracle_server import lanes
from gradoracle_server.engine import memory
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.program import computation_failed
from gradoracle_server.frames import Attachments
from gradoracle_server.mapping import Kept

DTYPES: dict[int, torch.dtype] = {
    number: getattr(torch, name.removeprefix("DTYPE_").lower()) for name, number in pb.Dtype.items() if number
}
"""torch's dtype by the proto's number."""

NUMBERS = {dtype: cast(pb.Dtype, number) for number, dtype in DTYPES.items()}
"""The proto's number by torch's dtype."""

_SMALL = 4096  # bytes of data up to which a tensor is quicker to take than to look at from all sides
_ALIGNMENT = 64  # bytes, as torch's own allocator gives
_ATTACHED_FROM = 1024 * 1024  # bytes; smaller tensors travel inside the answer
_SHARED_FROM = 64 * 1024  # the same where the answer goes into the caller's memory
_KEPT_FROM = 64 * 1024  # bytes; protobuf copies what it is given, and copies it again when it writes a message
_DRAWN_IN_ITSELF = (torch.float32, torch.float64, torch.complex64, torch.complex128)


Taken = Mapping[str, Mapping[int, memoryview]]
"""Data of tensors, by field and place in it."""


class Incoming:
    """Reads the tensors of one request, on one device, and counts their bytes."""

    def __init__(
        self,
        device: torch.device,
        max_tensor_bytes: int,
        attachments: Attachments | None,
        max_memory_bytes: int = 0,
        mapping: Kept | None = None,
    ) -> None:
        """The limits are those of one tensor, and of all of them together with what it takes to make one; 0: none.
        `mapping` is kept from call to call, for files of callers."""
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._limit = max_tensor_bytes
        self._all_limit = max_memory_bytes
        self._attachments = attachments
        self._mapping = mapping if attachments is not None and attachments.callers else None
        self._mapped: memoryview | None = None
        self.bytes = 0
        self.data: Taken = {}
        """The data of large tensors, which were taken out of the request before it was parsed."""

    def named(self, tensors: Sequence[pb.NamedTensor], field: str) -> dict[str, torch.Tensor]:
        """Tensors by name. Raises Fault where a name stands twice or a tensor is malformed."""
        found: dict[str, torch.Tensor] = {}
        taken = self.data.get(field) or {}
        for place, one in enumerate(tensors):
            if one.name in found:
                message = f'{field}: the name "{one.name}" stands twice'
                raise Fault("DUPLICATE_NAME", message, field=field, name=one.name)
            if (made := self._small(one.tensor)) is None:
                made = self.tensor(one.tensor, f'{field}["{one.name}"]', taken.get(place))
            found[one.name] = made
        return found

    def _small(self, message: pb.Tensor) -> torch.Tensor | None:
        """What `tensor` gives, where that is plain data of a few bytes, as most tensors of small requests are."""
        data, dtype = message.data, DTYPES.get(message.dtype)
        size = len(data)
        if not 0 < size <= _SMALL or dtype is None or dtype is torch.bool or not self._on_cpu:
            return None
        shape = tuple(message.shape)
        if (shape and min(shape) < 0) or math.prod(shape) * dtype.itemsize != size:
            return None
        if (self._limit and size > self._limit) or (self._all_limit and self.bytes + size > self._all_limit):
            return None
        self.bytes += size
        own = torch.empty(shape, dtype=dtype)
        ctypes.memmove(own.data_ptr(), data, size)
        return own

    def tensor(self, message: pb.Tensor, field: str, taken: memoryview | None = None) -> torch.Tensor:
        """One tensor, in memory aligned as torch's own; `taken` is its data where the message is without it. Raises
        Fault where dtype, shape and contents do not fit."""
        dtype = DTYPES.get(message.dtype)
        if dtype is None:
            got = f"number {message.dtype}" if message.dtype else "none"
            raise _invalid(field, "expected a dtype of gradoracle.v1.Dtype", expected="a dtype", got=got)
        shape = tuple(message.shape)
        count = 1
        for size in shape:
            if size < 0:
                raise _invalid(field, "sizes must not be negative", expected="0 or more", got=f"shape {list(shape)}")
            count *= size
        size = count * dtype.itemsize
        if self._limit and size > self._limit:
            text = (
                f"{field}: {dtype_and_shape(dtype, shape)} takes {size} bytes, over the server's limit of {self._limit}"
            )
            raise Fault("LIMIT_EXCEEDED", text, field=field, limit="max-tensor-bytes", allowed=self._limit, asked=size)
        self.bytes += size
        if self._all_limit:
            self._check_all(message, dtype, count, field)
        try:
            if taken is not None:
                return self._from_data(taken, dtype, shape, size, field)
            return self._made(message, dtype, shape, size, field)
        except RuntimeError as error:
            if memory.is_exhausted(error):
                raise
            # A number that the dtype cannot hold, sizes whose product cannot be counted.
            text = f"torch cannot make {dtype_and_shape(dtype, shape)}"
            raise _invalid(field, text, expected="what it can make", got=f'"{str(error).splitlines()[0]}"') from error

    def _made(
        self,
        message: pb.Tensor,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        size: int,
        field: str,
    ) -> torch.Tensor:
        contents = message.WhichOneof("contents")
        if contents == "data":
            return self._from_data(message.data, dtype, shape, size, field)
        if contents == "attachment":
            return self._from_attachment(message.attachment, dtype, shape, size, field)
        if contents == "fill":
            return torch.full(shape, _scalar(message.fill, dtype, field), dtype=dtype, device=self._device)
        if contents == "random":
            return draw(message.random, dtype, shape, field).to(self._device)
        if size == 0:
            return torch.empty(shape, dtype=dtype, device=self._device)
        expected = f"data, fill or random for {dtype_and_shape(dtype, shape)}"
        raise _invalid(field, f"expected {expected}", expected=expected, got="no contents")

    def _check_all(self, message: pb.Tensor, dtype: torch.dtype, count: int, field: str) -> None:
        """Holds all tensors so far, with what the making of this one takes, to the limit."""
        drawn = message.HasField("random")
        needed = self.bytes + (_to_draw(message.random, dtype, count) if drawn else 0)
        if needed > self._all_limit:
            what = f"{field}: with {dtype_and_shape(dtype, tuple(message.shape))} the tensors of the request take"
            raise memory.too_much(what, needed, self._all_limit, field=field)

    def _from_data(
        self, data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...], size: int, field: str
    ) -> torch.Tensor:
        if len(data) != size:
            raise _wrong_length(field, dtype, shape, size, len(data))
        if size == 0:
            return torch.empty(shape, dtype=dtype, device=self._device)
        # A copy, because the message's memory is neither writable nor aligned, and kernels choose by alignment the
        # order in which they add: the same request must give the same bits.
        own = torch.empty(shape, dtype=dtype) if self._on_cpu else staging(shape, dtype)
        if isinstance(data, bytes):
            ctypes.memmove(own.data_ptr(), data, size)
        else:
            own.view(-1).view(torch.uint8).numpy().data[:] = data
        _check_bools(own, field)
        # From staging memory the device fetches it while the next tensor is read; torch keeps that memory until then.
        return own if self._on_cpu else own.to(self._device, non_blocking=True)

    def _from_attachment(
        self, place: int, dtype: torch.dtype, shape: tuple[int, ...], size: int, field: str
    ) -> torch.Tensor:
        spans = self._attachments.spans if self._attachments is not None else ()
        if place >= len(spans):
            got = f"attachment {place} of {len(spans)}"
            raise _invalid(field, "refers to an attachment that did not come", expected="one of the call's", got=got)
        offset, length = spans[place]
        if length != size:
            raise _wrong_length(field, dtype, shape, size, length)
        if size == 0:
            return torch.empty(shape, dtype=dtype, device=self._device)
        room = self._room(offset + length)
        # Operators check indices, and use them later: no caller may change them in between.
        is_index = not (dtype.is_floating_point or dtype.is_complex)
        may_change = self._attachments is not None and self._attachments.callers
        if not self._on_cpu or offset % _ALIGNMENT or dtype is torch.bool or (is_index and may_change):
            return self._from_data(room[offset : offset + length], dtype, shape, size, field)
        return torch.frombuffer(room, dtype=dtype, count=size // dtype.itemsize, offset=offset).view(shape)

    def _room(self, end: int) -> memoryview:
        """The file of the attachments up to there, mapped: a caller's stays so for the next call."""
        assert self._attachments is not None  # noqa: S101 - there is one of the tensors
        if self._mapping is not None:
            room = self._mapping.room(self._attachments.descriptor, end)
            if room is not None:
                return room
        if self._mapped is None:
            self._mapped = memoryview(self._attachments.map())
        return self._mapped


class Outgoing:
    """Writes the tensors of one answer, and counts their bytes; large ones into attachments where they are welcome.

    Into the caller's memory, behind what it holds of the request, where the request came in it.
    """

    def __init__(
        self,
        attachments_welcome: bool,
        memory: Attachments | None = None,
        *,
        keep: bool = False,
        file: Callable[[], int] = lanes.empty_file,
        mapping: Kept | None = None,
    ) -> None:
        """`keep`: the data of large tensors may be left out of messages, and be put into their places afterwards.
        `file` gives the descriptor of a memory file for attachments, to be closed; `mapping` is that of such files, or
        of the caller's, kept from call to call."""
        self._welcome = attachments_welcome
        self._keep = keep and not attachments_welcome
        self.kept: list[memoryview] = []
        """What was left out, by the number that the message has as its attachment's."""
        self._callers = memory if memory is not None and memory.callers else None
        self._from = _ATTACHED_FROM if self._callers is None else _SHARED_FROM
        self._file_for_attachments = file
        self._mapping = mapping
        self._descriptor = -1
        self._end = 0 if self._callers is None else self._callers.end
        self._spans: list[tuple[int, int]] = []
        self.bytes = 0

    def fill(self, message: pb.Tensor, tensor: torch.Tensor) -> None:
        """Puts a tensor into a message: row-major, conjugations and negations carried out."""
        number = NUMBERS.get(tensor.dtype)
        if number is None:
            got = str(tensor.dtype).removeprefix("torch.")
            raise _invalid("outputs", "a result has a dtype that has no wire form", expected="one that has", got=got)
        message.dtype = number
        if tensor.dim():
            message.shape.extend(tensor.shape)
        try:
            plain = row_major(tensor)
        except RuntimeError as error:  # a view as the negative of bools, say
            raise computation_failed(error) from error
        size = plain.nbytes
        self.bytes += size
        if self._welcome and size >= self._from:
            message.attachment = self._attach(_bytes(plain))
        elif self._keep and size >= _KEPT_FROM:
            message.attachment = len(self.kept)
            self.kept.append(_bytes(plain))
        else:
            message.data = ctypes.string_at(plain.data_ptr(), size) if size else b""

    def _attach(self, data: memoryview) -> int:
        descriptor = self._file()
        offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = offset + data.nbytes
        self._spans.append((offset, data.nbytes))
        room = None if self._mapping is None else self._mapping.room(descriptor, self._end)
        if room is not None:
            room[offset:] = data
            data = data[:0]
        while data:
            written = os.pwrite(descriptor, data, offset)
            offset, data = offset + written, data[written:]
        return len(self._spans) - 1

    def _file(self) -> int:
        if self._callers is not None:
            return self._callers.descriptor
        if self._descriptor < 0:
            self._descriptor = self._file_for_attachments()
        return self._descriptor

    def attachments(self) -> Attachments | None:
        """What was attached, or None; the caller owns it."""
        if self._callers is not None:
            return Attachments(-1, self._spans, callers=True)
        if self._descriptor < 0:
            return None
        found, self._descriptor = Attachments(self._descriptor, self._spans), -1
        return found

    def close(self) -> None:
        """Gives up what was attached and not taken."""
        left = self.attachments()
        if left is not None:
            left.close()


def _bytes(plain: torch.Tensor) -> memoryview:
    """The elements of a contiguous tensor on the CPU."""
    return plain.view(-1).view(torch.uint8).numpy().data


def row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same values, on the CPU, without gaps, with conjugations and negations carried out."""
    plain = tensor.detach() if tensor.requires_grad else tensor
    if plain._is_zerotensor():  # autograd's shorthand, which has no memory of its own
        plain = torch.zeros_like(plain)
    if not plain.is_cpu:
        return staging(tuple(plain.shape), plain.dtype).copy_(plain)
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    return plain if plain.is_contiguous() else plain.contiguous()


def staging(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor in memory that a GPU reads and writes by itself (page-locked), where there is such memory; torch
    keeps what was used once for the next time."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:  # none, or no more of it
        return torch.empty(shape, dtype=dtype)


def _to_draw(message: pb.Random, dtype: torch.dtype, count: int) -> int:
    """The bytes that drawing takes beside the tensor itself: numbers of another dtype come first where it is not one
    that can be drawn."""
    integers = message.WhichOneof("distribution") == "integers"
    if dtype in _DRAWN_IN_ITSELF and not integers:
        return 0
    return 0 if integers and dtype is torch.int64 else count * (4 if not integers and dtype.is_floating_point else 8)


def draw(message: pb.Random, dtype: torch.dtype, shape: tuple[int, ...], field: str) -> torch.Tensor:
    """A tensor of random contents, on the CPU; see Random in tensor.proto for what is drawn how."""
    generator = torch.Generator()
    generator.manual_seed(message.seed)
    kind = message.WhichOneof("distribution")
    if kind == "integers":
        low, high = message.integers.low, message.integers.high
        if high <= low:
            raise _invalid(
                field, "random integers need low < high", expected="low < high", got=f"low {low}, high {high}"
            )
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int64).to(dtype)
    rounded_from = torch.float32 if dtype.is_floating_point else torch.float64
    drawn = dtype if dtype in _DRAWN_IN_ITSELF else rounded_from
    if kind == "normal":
        std = message.normal.std if message.normal.HasField("std") else 1.0
        if not std >= 0:
            raise _invalid(field, "random normal needs std of 0 or more", expected="0 or more", got=f"std {std}")
        values = torch.randn(shape, generator=generator, dtype=drawn).mul_(std).add_(message.normal.mean)
        return values.to(dtype)
    if kind == "uniform":
        high_limit = message.uniform.high if message.uniform.HasField("high") else 1.0
        span = high_limit - message.uniform.low
        return torch.rand(shape, generator=generator, dtype=drawn).mul_(span).add_(message.uniform.low).to(dtype)
    raise _invalid(field, "random contents need a distribution", expected="normal, uniform or integers", got="none")


def scalar(message: pb.Scalar, field: str) -> bool | int | float | complex:
    """The number in a Scalar, as Python's."""
    kind = message.WhichOneof("value")
    if kind == "complex":
        return complex(message.complex.real, message.complex.imag)
    if kind is None:
        raise _invalid(field, "expected a number", expected="a number", got="an unset Scalar")
    value: bool | int | float = getattr(message, kind)
    return value


def _scalar(message: pb.Scalar, dtype: torch.dtype, field: str) -> bool | int | float | complex:
    """The number, if the dtype can hold its kind: torch.full would drop an imaginary part or a fraction silently."""
    value = scalar(message, field)
    fits = dtype.is_complex or (not isinstance(value, complex) and (dtype.is_floating_point or value == int(value)))
    if not fits:
        expected = f"a number that {str(dtype).removeprefix('torch.')} can hold"
        raise _invalid(field, f"fill: expected {expected}", expected=expected, got=str(value))
    return value


def _check_bools(raw: torch.Tensor, field: str) -> None:
    """A bool that is neither 0 nor 1 is undefined behaviour in torch's kernels."""
    if raw.dtype is torch.bool and bool((raw.view(torch.uint8) > 1).any()):
        got = int(raw.view(torch.uint8).max())
        raise _invalid(field, "bool data must be bytes of 0 and 1", expected="0 or 1", got=f"a byte of {got}")


def dtype_and_shape(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """ "a float64 tensor of shape [2, 3]"."""
    return f"a {str(dtype).removeprefix('torch.')} tensor of shape {list(shape)}"


def _wrong_length(field: str, dtype: torch.dtype, shape: Sequence[int], size: int, got: int) -> Fault:
    text = f"{dtype_and_shape(dtype, shape)} needs {size} bytes of data"
    return _invalid(field, text, expected=f"{size} bytes", got=f"{got} bytes")


def _invalid(field: str, text: str, *, expected: str, got: str) -> Fault:
    return Fault("INVALID_TENSOR", f"{field}: {text}, got {got}", field=field, expected=expected, got=got)

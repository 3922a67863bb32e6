"""Tensors between messages and torch: every dtype and shape survives, and what does not fit together is refused."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
from engine_cases import CPU, same_bits
from hypothesis import given
from hypothesis import strategies as st

from gradoracle.v1 import tensor_pb2 as pb
from gradoracle_server.engine.errors import Fault
from gradoracle_server.frames import Attachments
from gradoracle_server.worker.tensors import DTYPES, NUMBERS, Incoming, Outgoing, staging

SHAPES = st.lists(st.integers(0, 4), max_size=4)


def read(message: pb.Tensor, *, limit: int = 0, attachments: Attachments | None = None) -> torch.Tensor:
    return Incoming(CPU, limit, attachments).tensor(message, 'primals["x"]')


def read_in_a_list(message: pb.Tensor, *, limit: int = 0, all_limit: int = 0) -> torch.Tensor:
    """The same, where small tensors take a shorter way."""
    return Incoming(CPU, limit, None, all_limit).named([pb.NamedTensor(name="x", tensor=message)], "primals")["x"]


def refused(message: pb.Tensor, **options) -> Fault:
    with pytest.raises(Fault) as caught:
        read(message, **options)
    return caught.value


def raw(dtype: torch.dtype, shape: list[int], data: bytes) -> pb.Tensor:
    return pb.Tensor(dtype=NUMBERS[dtype], shape=shape, data=data)


def test_every_wire_dtype_is_a_torch_dtype():
    """Each number of the proto's Dtype, 0 apart, stands for one torch dtype of its own."""
    assert len(set(DTYPES.values())) == len(DTYPES) == len(pb.Dtype.keys()) - 1


@given(st.sampled_from(sorted(DTYPES)), SHAPES, st.randoms(use_true_random=False))
def test_bits_survive_the_round_trip(number, shape, random):
    """bytes -> tensor -> bytes is the identity for every dtype and shape, NaN payloads and all."""
    dtype = DTYPES[number]
    count = 1
    for size in shape:
        count *= size
    data = random.randbytes(count * dtype.itemsize)
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = read(raw(dtype, shape, data))
    assert (tensor.dtype, list(tensor.shape)) == (dtype, shape)
    assert tensor.data_ptr() % 64 == 0
    back = pb.Tensor()
    Outgoing(False).fill(back, tensor)
    assert (back.dtype, list(back.shape), back.data) == (number, shape, data)


@given(st.sampled_from(sorted(DTYPES)), SHAPES, st.integers(-1, 1), st.randoms(use_true_random=False))
def test_small_tensors_are_read_as_all_others(number, shape, change, random):
    """The shorter way gives the same tensor, byte count and alignment, or refuses with the same words."""
    dtype = DTYPES[number]
    size = math.prod(shape) * dtype.itemsize
    change = max(change, -size)
    message = pb.Tensor(dtype=number, shape=shape, data=random.randbytes(size + change))
    if change or (dtype is torch.bool and max(message.data, default=0) > 1):
        with pytest.raises(Fault) as caught:
            read_in_a_list(message)
        assert refused(message).message == caught.value.message
        return
    expected = read(message)
    incoming = Incoming(CPU, 0, None)
    found = incoming.named([pb.NamedTensor(name="x", tensor=message)], "primals")["x"]
    assert same_bits(expected, found)
    assert (expected.nbytes, 0) == (incoming.bytes, found.data_ptr() % 64)


@pytest.mark.parametrize("limits", [{"limit": 23}, {"all_limit": 23}])
def test_small_tensors_are_held_to_the_limits(limits):
    """Those of one tensor and of all together, to the byte."""
    assert read_in_a_list(raw(torch.float64, [2], bytes(16)), **limits).shape == (2,)
    with pytest.raises(Fault) as caught:
        read_in_a_list(raw(torch.float64, [3], bytes(24)), **limits)
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert ("23", "24") == (caught.value.metadata["allowed"], caught.value.metadata["asked"])


def test_sizes_that_multiply_to_the_right_number_are_refused_where_one_is_negative():
    """-1 times -2 is 2 as well."""
    with pytest.raises(Fault, match="sizes must not be negative"):
        read_in_a_list(raw(torch.float64, [-1, -2], bytes(16)))


@given(SHAPES, st.permutations(range(4)))
def test_views_are_written_row_major(shape, order):
    """A permuted, conjugated or negated view is written as the values that it shows."""
    tensor = torch.randn(shape, dtype=torch.complex128)
    view = tensor.permute([axis for axis in order if axis < len(shape)]).conj()
    for shown in (view, view.imag):
        message = pb.Tensor()
        Outgoing(False).fill(message, shown)
        assert read(message).tolist() == shown.tolist()


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (pb.Tensor(shape=[2]), "INVALID_TENSOR", "expected a dtype of gradoracle.v1.Dtype, got none"),
        (pb.Tensor(dtype=99), "INVALID_TENSOR", "expected a dtype of gradoracle.v1.Dtype, got number 99"),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT64, shape=[2, -1], data=b""),
            "INVALID_TENSOR",
            "sizes must not be negative, got shape [2, -1]",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT64, shape=[2, 3], data=bytes(40)),
            "INVALID_TENSOR",
            "a float64 tensor of shape [2, 3] needs 48 bytes of data, got 40 bytes",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT16, shape=[2], data=bytes(6)),
            "INVALID_TENSOR",
            "a float16 tensor of shape [2] needs 4 bytes of data, got 6 bytes",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_INT8, shape=[2**40, 2**40], data=b"a"),
            "INVALID_TENSOR",
            f"a int8 tensor of shape [{2**40}, {2**40}] needs {2**80} bytes of data, got 1 bytes",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[2]),
            "INVALID_TENSOR",
            "expected data, fill or random for a float32 tensor of shape [2], got no contents",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_BOOL, shape=[2], data=b"\x01\x07"),
            "INVALID_TENSOR",
            "bool data must be bytes of 0 and 1, got a byte of 7",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_INT32, shape=[1], fill=pb.Scalar(real=2.5)),
            "INVALID_TENSOR",
            "fill: expected a number that int32 can hold, got 2.5",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1], fill=pb.Scalar(complex=pb.Complex(imag=1))),
            "INVALID_TENSOR",
            "fill: expected a number that float32 can hold, got 1j",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1], fill=pb.Scalar()),
            "INVALID_TENSOR",
            "expected a number, got an unset Scalar",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1], random=pb.Random()),
            "INVALID_TENSOR",
            "random contents need a distribution, got none",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_INT64, shape=[1], random=pb.Random(integers=pb.Random.Integers(low=3, high=3))),
            "INVALID_TENSOR",
            "random integers need low < high, got low 3, high 3",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1], random=pb.Random(normal=pb.Random.Normal(std=-1))),
            "INVALID_TENSOR",
            "random normal needs std of 0 or more, got std -1.0",
        ),
        (
            pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1], attachment=2),
            "INVALID_TENSOR",
            "refers to an attachment that did not come, got attachment 2 of 0",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(message, reason, text):
    """dtype, shape and contents are held against one another before anything is allocated."""
    found = refused(message)
    assert found.reason == reason
    assert found.message == f'primals["x"]: {text}'
    with pytest.raises(Fault) as caught:
        read_in_a_list(message)
    assert (found.reason, found.message) == (caught.value.reason, caught.value.message)


def test_tensors_over_the_limit_are_refused_before_they_are_made():
    """A terabyte of zeros is a few bytes on the wire; the limit, the size asked and the name are told."""
    message = pb.Tensor(dtype=pb.DTYPE_FLOAT64, shape=[10**12], fill=pb.Scalar(integer=0))
    found = refused(message, limit=1000)
    assert found.reason == "LIMIT_EXCEEDED"
    assert found.message == (
        f'primals["x"]: a float64 tensor of shape [{10**12}] takes {8 * 10**12} bytes, over the server\'s limit of 1000'
    )
    assert found.metadata == {"limit": "max-tensor-bytes", "allowed": "1000", "asked": str(8 * 10**12)}


def test_fill_and_random_are_what_the_proto_says():
    """fill is torch.full; random draws what a freshly seeded torch.Generator draws."""
    three = pb.Tensor(dtype=pb.DTYPE_BFLOAT16, shape=[2, 2], fill=pb.Scalar(real=1.5))
    assert same_bits(read(three), torch.full((2, 2), 1.5, dtype=torch.bfloat16))

    def drawn(dtype, **random):
        return read(pb.Tensor(dtype=NUMBERS[dtype], shape=[3, 2], random=pb.Random(seed=5, **random)))

    def seeded():
        return torch.Generator().manual_seed(5)

    normal = pb.Random.Normal(mean=1, std=2)
    want = torch.randn(3, 2, generator=seeded(), dtype=torch.float64) * 2 + 1
    assert same_bits(drawn(torch.float64, normal=normal), want)
    half = (torch.randn(3, 2, generator=seeded()) * 2 + 1).to(torch.float16)
    assert same_bits(drawn(torch.float16, normal=normal), half)
    uniform = torch.rand(3, 2, generator=seeded()) * 3 - 1
    assert same_bits(drawn(torch.float32, uniform=pb.Random.Uniform(low=-1, high=2)), uniform)
    integers = torch.randint(-2, 9, (3, 2), generator=seeded())
    assert same_bits(drawn(torch.int64, integers=pb.Random.Integers(low=-2, high=9)), integers)
    assert same_bits(drawn(torch.float32, normal=pb.Random.Normal()), torch.randn(3, 2, generator=seeded()))
    complex_normal = torch.randn(3, 2, generator=seeded(), dtype=torch.complex64)
    assert same_bits(drawn(torch.complex64, normal=pb.Random.Normal()), complex_normal)


def test_large_results_become_attachments_only_where_welcome():
    """A tensor of a megabyte or more leaves the message where the caller takes attachments, and comes back whole."""
    big, small = torch.randn(3, 512, 256), torch.randn(3)
    outgoing = Outgoing(True)
    messages = [pb.Tensor(), pb.Tensor(), pb.Tensor()]
    for message, tensor in zip(messages, (big, small, big + 1), strict=True):
        outgoing.fill(message, tensor)
    assert [one.WhichOneof("contents") for one in messages] == ["attachment", "data", "attachment"]
    attachments = outgoing.attachments()
    assert all(offset % 64 == 0 for offset, _ in attachments.spans)
    incoming = Incoming(CPU, 0, attachments)
    assert same_bits(incoming.tensor(messages[0], "a"), big)
    assert same_bits(incoming.tensor(messages[2], "b"), big + 1)
    assert incoming.bytes == 2 * big.nbytes
    short = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[2], attachment=0)
    found = refused(short, attachments=attachments)
    assert found.message == f'primals["x"]: a float32 tensor of shape [2] needs 8 bytes of data, got {big.nbytes} bytes'
    attachments.close()
    plain = pb.Tensor()
    Outgoing(False).fill(plain, big)
    assert plain.WhichOneof("contents") == "data"


def test_attachments_that_nobody_took_are_given_back():
    """An answer that fails half-way leaves no descriptor open."""
    gc.collect()  # what earlier tests left does not go meanwhile
    before = memory_files()
    outgoing = Outgoing(True)
    outgoing.fill(pb.Tensor(), torch.ones(1 << 20))
    assert len(memory_files()) == len(before) + 1
    outgoing.close()
    assert memory_files() == before


def memory_files() -> list[str]:
    """The descriptors of this process that are memory files."""
    names = Path("/proc/self/fd").iterdir()
    return sorted(one.name for one in names if one.is_symlink() and "memfd:" in str(one.readlink()))


def test_a_name_stands_once_in_a_list_of_tensors():
    """Two tensors for one name are refused, not silently merged."""
    one = pb.NamedTensor(name="x", tensor=pb.Tensor(dtype=pb.DTYPE_BOOL, data=b"\1"))
    with pytest.raises(Fault, match='cotangents: the name "x" stands twice'):
        Incoming(CPU, 0, None).named([one, one], "cotangents")


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_results_without_a_wire_form_are_refused() -> None:
    """complex32 cannot be sent, and a negative view of bools not even be read: the caller is told, and nobody else."""
    outgoing = Outgoing(attachments_welcome=False)
    with pytest.raises(Fault) as caught:
        outgoing.fill(pb.Tensor(), torch.zeros(2, dtype=torch.complex32))
    expected = "outputs: a result has a dtype that has no wire form, got complex32"
    assert ("INVALID_TENSOR", expected) == (caught.value.reason, caught.value.message)
    with pytest.raises(Fault) as caught:
        outgoing.fill(pb.Tensor(), torch._neg_view(torch.zeros(2, dtype=torch.bool)))
    assert "COMPUTATION_FAILED" == caught.value.reason


def test_a_number_that_the_dtype_cannot_hold_is_refused() -> None:
    """torch raises for a fill of 1e300 in half precision: that is the request's fault."""
    message = pb.Tensor(dtype=pb.DTYPE_FLOAT16, shape=[2], fill=pb.Scalar(real=1e300))
    with pytest.raises(Fault) as caught:
        Incoming(CPU, 0, None).tensor(message, "inputs[0]")
    assert "INVALID_TENSOR" == caught.value.reason
    assert caught.value.message == (
        "inputs[0]: torch cannot make a float16 tensor of shape [2], got "
        '"value cannot be converted to type c10::Half without overflow"'
    )


@pytest.mark.parametrize("page_locked", [True, False])
def test_memory_for_copies_from_a_device_is_plain_where_there_is_no_other(monkeypatch, page_locked):
    """Page-locked is asked for first; a machine without a GPU, or without more of it, has an ordinary tensor."""
    asked, empty = [], torch.empty

    def made(shape, *, dtype, pin_memory=False):
        asked.append(pin_memory)
        if pin_memory and not page_locked:
            raise RuntimeError("Cannot access accelerator device when none is available.")
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", made)
    found = staging((2, 3), torch.float16)
    assert ([True] if page_locked else [True, False]) == asked
    assert (torch.float16, (2, 3)) == (found.dtype, tuple(found.shape))

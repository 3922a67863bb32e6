"""Claims and cotangents by name, from the forms in which callers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go
from gradoracle import claims

A, B = np.ones(2), np.zeros((1, 3))
SHAPES = {"x": (2,), "w": (1, 3)}


class Foreign:
    """An array of another library: it has nothing but the DLPack protocol."""

    def __init__(self, array: Any) -> None:
        self._tensor = torch.as_tensor(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"w": B}, {"w": B}),
        ({"x": None, "w": B}, {"w": B}),
        ((A, B), {"x": A, "w": B}),
        ([A, None], {"x": A}),
    ],
)
def test_several_inputs(given: Any, expected: dict[str, Any]) -> None:
    """A dict by name, or a sequence in order in which None claims nothing."""
    assert expected == claims.by_name(given, ["x", "w"], SHAPES, "claimed", "input")


@pytest.mark.parametrize("given", [{"w": [[0, 0, 0]]}, [[[0, 0, 0]]], ([[0, 0, 0]],), [[0, 0, 0]], [B], (B,)])
def test_one_input(given: Any) -> None:
    """One array, also as nested lists, or a sequence that holds it; the shape tells which is meant."""
    (found,) = claims.by_name(given, ["w"], SHAPES, "claimed", "input").values()
    assert np.array_equal(B, found)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((A,), 'claimed: expected 2 gradients, for the inputs "x", "w", got a sequence of 1'),
        (A, 'claimed: expected a dict by name, or a sequence for "x", "w", got one ndarray of shape [2]'),
        ((None, None), 'claimed: expected an array for one input at least of "x", "w", got none'),
        ({}, 'claimed: expected an array for one input at least of "x", "w", got none'),
    ],
)
def test_what_does_not_fit(given: Any, text: str) -> None:
    """What cannot be meant is refused with the inputs' names, and never taken for a claim of nothing."""
    with pytest.raises(go.InvalidRequestError) as caught:
        claims.by_name(given, ["x", "w"], SHAPES, "claimed", "input")
    assert text == str(caught.value)
    assert caught.value.reason == "INVALID_SELECTION"
    assert caught.value.metadata["field"] == "claimed"


def test_foreign_arrays() -> None:
    """Arrays come by DLPack, whatever library they are of; a tensor that requires grad is one too."""
    for one in (Foreign([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True)):
        found = claims.host_array(one, "claimed")
        assert found.dtype == np.float32
        assert found.tolist() == [1.0, 2.0]


def test_arrays_of_another_device() -> None:
    """An array on another device is asked for a copy on the CPU."""

    class Elsewhere(Foreign):
        def __dlpack_device__(self) -> Any:
            return (2, 0) if not self.asked else (1, 0)

        asked = False

        def __dlpack__(self, **options: Any) -> Any:
            if options.get("dl_device") != (1, 0):
                raise BufferError("not in this memory")
            return self._tensor.__dlpack__()

    assert claims.host_array(Elsewhere([3.0]), "claimed").tolist() == [3.0]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [(2.0, "float32", "float32"), ([1, 2], "float32", "float32"), (1j, "float32", "complex128"),
     (2.0, "complex64", "complex64"), (np.float32(2), "float64", "float32")],
)  # fmt: skip
def test_numbers_take_their_inputs_dtype(value: Any, dtype: str, expected: str) -> None:
    """Python numbers have no dtype of their own; what has one keeps it, and an imaginary part is not dropped."""
    found = claims.like({"x": value}, {"x": np.zeros(2, dtype)}, "claimed")
    assert expected == found["x"].dtype.name


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("vjp", {"wrt": []}, "wrt: expected one name at least, got none; leave it out for every input that requires"),
        ("check", {"wrt": ()}, "wrt: expected one name at least, got none; leave it out for every input that requires"),
        ("jacobian", {"of": []}, "of: expected one name at least, got none; leave it out for every floating or"),
        ("check", {"claimed": {}}, "claimed: expected one name at least, got none; leave it out for autograd's own"),
    ],
)
def test_choosing_nothing_is_not_choosing_all(method: str, options: dict[str, Any], text: str) -> None:
    """As torch.autograd.grad refuses an empty list of inputs."""
    with pytest.raises(go.InvalidRequestError, match=text) as caught:
        go.request(method, "sum(x * x)", {"x": A}, **options)
    assert ("INVALID_SELECTION", "none") == (caught.value.reason, caught.value.metadata["got"])


def test_retaining_nothing_is_nothing() -> None:
    """As it is by default."""
    asked = [go.request("vjp", "sum(x * x)", {"x": A}, **options) for options in ({}, {"retain": []}, {"batched": ()})]
    assert 1 == len({one.head for one in asked})

"""Arguments of another type than a client takes: by their names, with what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go
from gradoracle import claims, tensors

ARRAYS = {"x": np.ones(2)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"address": 50051}, 'address: expected a text, "host:port" or "unix:path", got int'),
        ({"token": b"secret"}, "token: expected a text, got bytes"),
        ({"tls": 5}, "tls: expected True, the path of a CA's certificate, or a gradoracle.TLS, got int"),
        ({"tls": b"PEM"}, "tls: expected True, the path of a CA's certificate, or a gradoracle.TLS, got bytes"),
        ({"timeout": "5"}, "timeout: expected seconds, as a number, or None, got str"),
        ({"channels": 1.5}, "channels: expected a whole number, 1 or more, got float"),
    ],
)
def test_of_a_client(options: dict[str, Any], text: str) -> None:
    """They are refused when it is made, a secret without its value."""
    for kind in (go.Client, go.AsyncClient):
        with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
            kind(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": 0}, 'device: expected a text, "cpu", "cuda" or "cuda:1", or a torch.device, got 0'),
        ({"seed": 1.5}, "seed: expected a whole number, got 1.5"),
        ({"seed": "1"}, "seed: expected a whole number, got '1'"),
    ],
)
def test_of_a_call(options: dict[str, Any], text: str) -> None:
    """For every method, before anything is sent."""
    with go.Client("localhost:1") as client:
        for ask in (client.evaluate, client.vjp, client.check, lambda *a, **k: go.request("inspect", *a, **k)):
            with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
                ask("sum(x)", ARRAYS, **options)  # type: ignore[operator]


def test_timeouts_of_calls() -> None:
    """Of a function that is judged in this process, too, where no call has the timeout."""
    text = "^timeout: expected seconds, as a number, or None, got str$"
    with go.Client("localhost:1") as client:
        for ask in (
            lambda: client.evaluate("sum(x)", ARRAYS, timeout="5"),  # type: ignore[arg-type]
            lambda: client.map([], timeout="5"),  # type: ignore[arg-type]
            lambda: go.check(lambda x: x * float(x), 1.0, client=client, timeout="5"),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match=text):
                ask()


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"device": torch.device("cuda", 1)}, {"device": "cuda:1"}),
        ({"device": torch.device("cpu")}, {"device": "cpu"}),
        ({"seed": np.int64(-3)}, {"seed": -3}),
        ({"seed": np.uint64(2**64 - 1)}, {"seed": 2**64 - 1}),
    ],
)
def test_what_means_the_same(given: dict[str, Any], same: dict[str, Any]) -> None:
    """A torch.device is its name, numpy's whole numbers are numbers."""
    assert go.request("evaluate", "x", ARRAYS, **given).head == go.request("evaluate", "x", ARRAYS, **same).head


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.eye(2).to_sparse(), "a dense tensor (x.to_dense() makes one), got one of layout sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "a dense tensor (x.to_dense() makes one), got one of layout sparse_csr"),
        (
            lambda: torch.eye(2, device="meta"),
            "a tensor that holds numbers, got one on the meta device, which has a shape alone",
        ),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a dense tensor, got a nested one"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta", "ignore:The PyTorch API of nested tensors")
def test_tensors_that_have_no_elements_to_take(make: Callable[[], torch.Tensor], text: str) -> None:
    """The error says what to do, which is not x.cpu(): they are on the CPU, or nowhere."""
    value = make()
    for take in (lambda: claims.host_array(value, "x"), lambda: tensors.as_array(value, "x", floating=True)):
        with pytest.raises(go.TensorError) as caught:
            take()
        assert str(caught.value) == f"x: expected {text}"

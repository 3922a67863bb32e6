"""Through a real server, results have the bits of the same work done by torch in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import gradoracle as go

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """As many threads as a worker has: torch adds in another order with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


def same_bits(array: Any, tensor: torch.Tensor) -> bool:
    want = to_numpy(tensor)
    return array.dtype == want.dtype and array.shape == want.shape and array.tobytes() == want.tobytes()


def normalised_attention() -> go.Graph:
    """softmax(q k^T / 4) v, layer norm, gelu; large enough that the order of additions shows."""
    g = go.Graph()
    q, k, v = (g.input(name) for name in "qkv")
    weights = (q @ k.transpose(-2, -1) / 4).softmax(dim=-1)
    g.output("y", go.ops.gelu(go.ops.layer_norm(weights @ v, [64])))
    g.output("loss", (weights * weights).sum())
    return g


def eager_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = (q @ k.transpose(-2, -1) / 4).softmax(dim=-1)
    y = torch.nn.functional.gelu(torch.nn.functional.layer_norm(weights @ v, [64]))
    return y, (weights * weights).sum()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_attention(client: go.Client, dtype: str) -> None:
    """Outputs and gradients of a block of a transformer, with cotangents for both outputs."""
    torch.manual_seed(0)
    leaves = {name: torch.randn(4, 48, 64, dtype=DTYPES[dtype], requires_grad=True) for name in "qkv"}
    cotangents = {"y": torch.randn(4, 48, 64, dtype=DTYPES[dtype]), "loss": torch.tensor(0.5, dtype=DTYPES[dtype])}
    outputs = eager_attention(**leaves)
    want = torch.autograd.grad(outputs, list(leaves.values()), list(cotangents.values()))
    result = client.vjp(
        normalised_attention(),
        {name: to_numpy(one) for name, one in leaves.items()},
        {name: to_numpy(one) for name, one in cotangents.items()},
    )
    assert same_bits(result.outputs["y"], outputs[0])
    assert same_bits(result.outputs["loss"], outputs[1])
    for name, gradient in zip(leaves, want, strict=True):
        assert same_bits(result.gradients[name], gradient)


POINTWISE: dict[str, Callable[[Any], Any]] = {
    "exp(x) * x.sin()": lambda x: torch.exp(x) * x.sin(),
    "tanh(x @ x.T) + 1": lambda x: torch.tanh(x @ x.T) + 1,
    "cumsum(x, 0) / 3": lambda x: torch.cumsum(x, 0) / 3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("expression", POINTWISE)
def test_every_differentiable_dtype(client: go.Client, expression: str, dtype: str) -> None:
    """Expressions in every dtype that can carry a gradient."""
    scale = 0.1 if dtype == "float16" and "@" in expression else 1.0
    torch.manual_seed(1)
    x = (torch.randn(6, 6, dtype=torch.complex128 if "complex" in dtype else torch.float64) * scale).to(DTYPES[dtype])
    x.requires_grad_()
    y = POINTWISE[expression](x)
    cotangent = torch.ones_like(y)
    (want,) = torch.autograd.grad(y, x, cotangent)
    result = client.vjp(expression, {"x": to_numpy(x)}, {"out": to_numpy(cotangent)})
    assert same_bits(result.outputs["out"], y)
    assert same_bits(result.gradients["x"], want)


def test_jvp_jacobian_and_hessian(client: go.Client) -> None:
    """Forward mode, Jacobian and Hessian equal torch's own."""
    torch.manual_seed(2)
    x, v = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() * x).cumsum(0)

    expression = "cumsum(sin(x) * x, 0)"
    _, tangent = torch.func.jvp(f, (x,), (v,))
    assert same_bits(client.jvp(expression, {"x": x.numpy()}, {"x": v.numpy()}).tangents["out"], tangent)
    want = torch.func.jacrev(f)(x)
    assert same_bits(client.jacobian(expression, {"x": x.numpy()}).jacobian["out", "x"], want)
    second = torch.autograd.functional.hessian(lambda x: f(x).sum(), x)
    got = client.hessian(f"sum({expression})", {"x": x.numpy()}).hessian["x", "x"]
    np.testing.assert_allclose(got, second.numpy(), rtol=1e-13, atol=1e-15)
    product = client.hvp(f"sum({expression})", {"x": x.numpy()}, {"x": v.numpy()}).products["x"]
    np.testing.assert_allclose(product, (second @ v).numpy(), rtol=1e-12)


def test_the_same_request_has_the_same_bits_on_every_worker(client: go.Client) -> None:
    """Random operators follow the request's seed, whichever of the workers answers and whatever ran before."""
    g = go.Graph()
    x = g.input("x")
    g.output("y", go.ops.dropout(x, 0.5, True) + go.ops.randn_like(x))
    primals = {"x": np.ones(100)}
    results = [client.vjp(g, primals, {"y": np.ones(100)}, seed=5) for _ in range(8)]
    torch.manual_seed(5)
    leaf = torch.ones(100, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.dropout(leaf, 0.5) + torch.randn_like(leaf)
    (want,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    for result in results:
        assert same_bits(result.outputs["y"], y)
        assert same_bits(result.gradients["x"], want)
    other = client.evaluate(g, primals, seed=6).outputs["y"]
    assert other.tobytes() != results[0].outputs["y"].tobytes()


def test_large_tensors_keep_their_bits(client: go.Client) -> None:
    """A tensor too large for the socket goes through shared memory, and through a stream, bit for bit the same."""
    torch.manual_seed(3)
    x = torch.randn(3, 1 << 20, dtype=torch.float32, requires_grad=True)
    y = torch.sin(x)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y))
    primals, cotangents = {"x": to_numpy(x)}, {"out": np.ones((3, 1 << 20), np.float32)}
    unary = client.vjp("sin(x)", primals, cotangents)
    (streamed,) = client.map([go.request("vjp", "sin(x)", primals, cotangents)])
    for result in (unary, streamed):
        assert same_bits(result.outputs["out"], y)
        assert same_bits(result.gradients["x"], want)


def test_empty_0_dimensional_and_integer_tensors(client: go.Client) -> None:
    """Shapes without elements or dimensions, and integers among the inputs and outputs, come back as torch has them."""
    g = go.Graph()
    x, i = g.input("x"), g.input("i", requires_grad=False)
    g.output("picked", x[i])
    g.output("where", go.ops.argmax(x, dim=0))
    g.output("total", x.sum())
    result = client.vjp(
        g,
        {"x": np.arange(6.0).reshape(3, 2), "i": np.array([2, 0])},
        {"picked": np.ones((2, 2)), "total": 0.0},
    )
    assert result.outputs["picked"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert result.outputs["where"].dtype == np.int64
    assert result.gradients["x"].tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    for shape in ((0,), (2, 0), ()):
        got = client.vjp("sum(exp(x))", {"x": np.zeros(shape)})
        assert got.gradients["x"].shape == shape
        assert got.outputs["out"] == np.ones(shape).sum()

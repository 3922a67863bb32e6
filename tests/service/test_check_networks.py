"""The functions that people check: layers, losses, solvers, as they write them, with weights that are closed over.

Autograd's gradients of them are right, in float64 and float32. A claim is not, in which the largest element is off by
as little as the precision shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradoracle as go

Case = tuple[Callable[..., Any], list[torch.Tensor]]
Draw = Callable[..., torch.Tensor]

FAULT = {torch.float64: 1e-6, torch.float32: 1e-3}


@pytest.fixture(scope="module")
def client() -> Iterator[go.Client]:
    """A server of its own for all of them."""
    with go.Client.local() as found:
        yield found


def frozen(module: nn.Module, like: torch.Tensor) -> Any:
    """A module whose parameters are constants."""
    return module.to(like.dtype).requires_grad_(False).eval()


def perceptron(t: Draw) -> Case:
    x = t(16, 32)
    return frozen(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), x), [x]


def classifier(t: Draw) -> Case:
    x, labels = t(8, 32), torch.arange(8) % 5
    network = frozen(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 5)), x)
    return lambda x: functional.cross_entropy(network(x), labels, label_smoothing=0.1), [x]


def transformer(t: Draw) -> Case:
    x = t(2, 6, 16)
    return frozen(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), x), [x]


def recurrent(t: Draw) -> Case:
    x = t(3, 7, 6)
    network = frozen(nn.LSTM(6, 10, batch_first=True), x)
    return lambda x: network(x)[0], [x]


def residual(t: Draw) -> Case:
    """Its batch norm's statistics are closed over, and are not changed."""
    x = t(2, 8, 12, 12)
    first, second, norm = (
        frozen(one, x) for one in (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    )
    return lambda x: torch.relu(x + second(torch.relu(norm(first(x))))), [x]


def normalised(t: Draw) -> Case:
    return lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True), [t(6, 4, 3, 3), t(4), t(4)]


def convolved(t: Draw) -> Case:
    x = t(2, 3, 8, 8)
    return lambda w, b: functional.conv2d(x, w, b).tanh(), [t(4, 3, 3, 3), t(4)]


def pooled(t: Draw) -> Case:
    return lambda x: functional.max_pool2d(x, 2), [t(2, 4, 8, 8)]


def attention(t: Draw) -> Case:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return function, [t(2, 2, 8, 4), t(2, 2, 8, 4), t(2, 2, 8, 4)]


def embedded(t: Draw) -> Case:
    places = torch.tensor([3, 1, 3, 7, 0])
    return lambda w: functional.embedding(places, w).sin(), [t(9, 6)]


def solved(t: Draw) -> Case:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(a @ a.T + 8 * torch.eye(8, dtype=a.dtype), b)

    return function, [t(8, 8), t(8, 2)]


def scattered(t: Draw) -> Case:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(6, dtype=x.dtype).scatter_add(0, torch.arange(60) % 6, x.exp()).log()

    return function, [t(60)]


def integrated(t: Draw) -> Case:
    weight = t(5, 5) / 3

    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            first = torch.tanh(x @ weight)
            x = x + 0.1 * torch.tanh((x + 0.05 * first) @ weight)
        return x

    return function, [t(3, 5)]


def process(t: Draw) -> Case:
    """The likelihood of a Gaussian process."""
    points, values = t(12, 2), t(12)

    def function(scales: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        apart = ((points[:, None] - points) / scales.exp()).square().sum(-1)
        factor = torch.linalg.cholesky((-apart / 2).exp() + noise.exp() * torch.eye(12, dtype=noise.dtype))
        weights = torch.cholesky_solve(values[:, None], factor)
        return values @ weights[:, 0] / 2 + factor.diag().log().sum()

    return function, [t(2), t(1)[0] - 1]


CASES = [
    perceptron, classifier, transformer, recurrent, residual, normalised, convolved, pooled, attention, embedded,
    solved, scattered, integrated, process,
]  # fmt: skip


def made(case: Callable[[Draw], Case], dtype: torch.dtype) -> Case:
    """The function, and inputs that require grad."""
    torch.manual_seed(7)
    function, inputs = case(lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype))
    return function, [one.requires_grad_() for one in inputs]


@pytest.mark.parametrize("dtype", FAULT, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[one.__name__ for one in CASES])
def test_autograds_gradients(client: go.Client, case: Callable[[Draw], Case], dtype: torch.dtype) -> None:
    """They pass, and a fault as small as FAULT would have been seen."""
    function, inputs = made(case, dtype)
    report = go.check(function, *inputs, client=client)
    assert report.passed, report.render()
    assert report.detection_power < FAULT[dtype]


@pytest.mark.parametrize("dtype", FAULT, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[one.__name__ for one in CASES])
def test_one_wrong_element(client: go.Client, case: Callable[[Draw], Case], dtype: torch.dtype) -> None:
    """Of a claim that is autograd's but for that."""
    function, inputs = made(case, dtype)
    output = function(*inputs)
    cotangent = torch.linspace(1, 2, output.numel(), dtype=torch.float64).to(dtype).reshape(output.shape)
    claimed = [
        one.clone(memory_format=torch.contiguous_format) for one in torch.autograd.grad(output, inputs, cotangent)
    ]
    element = int(claimed[0].abs().argmax())
    claimed[0].view(-1)[element] *= 1 + FAULT[dtype]
    report = go.check(function, *inputs, claimed=claimed, cotangents=cotangent, client=client)
    (wrong, *others) = report.inputs.values()
    assert wrong.verdict is go.Verdict.FAIL, report.render()
    place = tuple(int(one) for one in torch.unravel_index(torch.tensor(element), claimed[0].shape))
    assert wrong.worst[0].index == place
    assert all(one.verdict is go.Verdict.PASS for one in others)

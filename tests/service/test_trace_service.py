"""Traced functions through a real server."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import gradoracle as go

F64 = torch.float64


class StraightThrough(torch.autograd.Function):
    """round, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def test_a_training_step(client: go.Client) -> None:
    """A loss of a module: gradients by every parameter are autograd's, with the request's seed for its dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 4, dtype=F64), torch.randint(0, 3, (16,))

    def loss(model, x, y):
        return nn.functional.cross_entropy(model(x), y)

    graph = go.trace(loss, model, x, y)
    parameters = dict(model.named_parameters())
    primals = {f"model.{name}": one.detach().numpy() for name, one in parameters.items()}
    primals |= {"x": x.numpy(), "y": y.numpy()}
    assert graph.inputs == tuple(primals)
    result = client.vjp(graph, primals, seed=5, wrt=[name for name in primals if name.startswith("model")])
    torch.manual_seed(5)
    value = loss(model, x, y)
    value.backward()
    np.testing.assert_allclose(result.outputs["out"], value.detach().numpy(), rtol=1e-12)
    for name, one in parameters.items():
        np.testing.assert_allclose(result.gradients[f"model.{name}"], one.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_a_function_of_its_own(client: go.Client) -> None:
    """A custom autograd.Function keeps its gradient, and its second derivative."""
    graph = go.trace(lambda x: StraightThrough.apply(x * 3).square().sum(), torch.ones(2, dtype=F64))
    x = np.array([0.4, -1.1])
    assert client.vjp(graph, {"x": x}).gradients["x"].tolist() == (6 * np.round(3 * x)).tolist()
    assert client.hessian(graph, {"x": x}).hessian["x", "x"].tolist() == [[18.0, 0.0], [0.0, 18.0]]


def test_a_check_of_a_traced_function(client: go.Client) -> None:
    """A graph survives its bytes and its JSON, and can be built on."""
    graph = go.trace(lambda x: {"y": torch.sin(x) * x}, torch.ones(3, dtype=F64))
    x = np.array([0.1, 0.2, 0.3])
    want = client.evaluate(graph, {"x": x}).outputs["y"].tolist()
    for other in (go.Graph.from_bytes(graph.to_bytes()), go.Graph.from_json(graph.to_json())):
        assert client.evaluate(other, {"x": x}).outputs["y"].tolist() == want
    graph.output("twice", graph.value(graph.names[-1]) * 2)
    assert client.evaluate(graph, {"x": x}).outputs["twice"].tolist() == [2 * one for one in want]

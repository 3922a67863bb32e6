"""Figures that need a GPU: the service beside eager torch in the caller's own process, on the same card."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from bench import turns
from bench.table import Row, at_least, at_most

import gradoracle as go

NODES = 50
MIB = 1 << 20


def rows(quick: bool) -> Iterator[Row]:
    """All of them, or the one line that says why there are none."""
    if not torch.cuda.is_available():
        yield Row("GPU", None, "", None, None, "", "no CUDA device: not measured")
        return
    with go.Client.local(device="cuda") as client:
        yield repeated_graph(client, 100 if quick else 1000)
        yield from copies(client, [16] if quick else [16, 64, 256])
        yield from checks(client)


def chain(x: torch.Tensor) -> torch.Tensor:
    """So many operators in a row."""
    for place in range(NODES):
        x = torch.sin(x) if place % 2 else x * 1.01
    return x


def chain_graph() -> go.Graph:
    """The same as a graph."""
    graph = go.Graph()
    value = graph.input("x")
    for place in range(NODES):
        value = value.sin() if place % 2 else value * 1.01
    graph.output("y", value)
    return graph


def eager(x: np.ndarray, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """The gradient on the card, from an array to an array."""
    leaf = torch.from_numpy(x).cuda().requires_grad_()
    y = function(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return gradient.cpu().numpy()


def repeated_graph(client: go.Client, repeats: int) -> Row:
    """A graph of small operators, where launches are what costs."""
    graph, x = chain_graph(), np.linspace(-1, 1, 1024, dtype=np.float32)
    ones = {"y": np.ones_like(x)}

    def ours() -> np.ndarray:
        found: np.ndarray | None = client.vjp(graph, {"x": x}, ones).gradients["x"]
        assert found is not None
        return found

    assert ours().tobytes() == eager(x, chain).tobytes()
    found = turns.median({"ours": ours, "eager": lambda: eager(x, chain)}, repeats, warm=20)
    beside = f"eager in the caller's process, {found['eager'] * 1e3:.2f} ms"
    return Row(f"GPU, repeated graph of {NODES} nodes", found["ours"] / found["eager"], "x", at_most(1), None, beside)


def copies(client: go.Client, sizes: list[int]) -> Iterator[Row]:
    """Elementwise on tensors of so many MiB: copies to the card and back are what costs."""
    graph = go.Graph.parse("sum(sin(x))")
    for size in sizes:
        x = np.linspace(-1, 1, size * MIB // 4, dtype=np.float32)
        found = turns.median(
            {
                "ours": lambda: client.vjp(graph, {"x": x}),  # noqa: B023 - called at once
                "eager": lambda: eager(x, torch.sin),  # noqa: B023
            },
            10,
            warm=2,
        )
        beside = f"eager in the caller's process, {found['eager'] * 1e3:.1f} ms"
        yield Row(f"GPU, {size} MiB, elementwise vjp", found["ours"] / found["eager"], "x", None, None, beside)


def checks(client: go.Client) -> Iterator[Row]:
    """A check with all its probes in one batch, beside gradcheck's slow mode on the card."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 200, dtype=torch.float64, generator=generator) / 200**0.5
    v = torch.randn(200, dtype=torch.float64, generator=generator)
    graph, primals = go.Graph.parse("tanh(w @ v)"), {"w": weight.numpy(), "v": v.numpy()}
    on_card, leaf = weight.cuda(), v.cuda().requires_grad_()

    def ours() -> None:
        assert client.check(graph, primals, wrt=["v"]).passed

    def slow() -> None:
        assert torch.autograd.gradcheck(lambda v: torch.tanh(on_card @ v), (leaf,))

    found = turns.median({"ours": ours, "slow": slow}, 3, warm=1)
    beside = f"gradcheck's slow mode on the card, {found['slow'] * 1e3:.0f} ms; ours {found['ours'] * 1e3:.1f} ms"
    yield Row("GPU, check, tanh(W v), 200", found["slow"] / found["ours"], "x faster", at_least(20), None, beside)

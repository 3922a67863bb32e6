"""The engine beside torch by hand, in one process on one thread: long graphs, Jacobians, Hessians, cached plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch
from bench import long_chain, small_vjp, turns
from bench.table import Row, at_most

import gradoracle as go
from gradoracle_server.engine import autodiff, plan
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.replay import Replays
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker import graphs
from gradoracle_server.worker.handlers import Context, Plans
from gradoracle_server.worker.tensors import Incoming, Outgoing

CPU = torch.device("cpu")
NODES = 1000
F64 = torch.float64

Tensors = Mapping[str, torch.Tensor]
Function = Callable[..., torch.Tensor]


def plan_of(graph: go.Graph) -> Plan:
    """A graph's plan, as a worker makes it."""
    return plan.build(graphs.read(graph.message, Incoming(CPU, 0, None), 0), CPU)


def functions() -> dict[str, tuple[str, Function, Tensors]]:
    """By name: an expression of x, the same function, and its other inputs with x."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=F64, generator=generator)

    generator = torch.Generator().manual_seed(0)
    mlp = {"x": draw(16), "w1": draw(64, 16) / 4, "b1": draw(64), "w2": draw(16, 64) / 8}
    return {
        "MLP 16-64-16": ("w2 @ tanh(w1 @ x + b1)", lambda x, w1, b1, w2: w2 @ torch.tanh(w1 @ x + b1), mlp),
        "tanh(W v), 200": ("tanh(w @ x)", lambda x, w: torch.tanh(w @ x), {"x": draw(200), "w": draw(200, 200) / 14}),
        "tanh(v) v, 200": ("tanh(x) * x", lambda x: torch.tanh(x) * x, {"x": draw(200)}),
    }


def rows(quick: bool) -> Iterator[Row]:
    """All of the engine's figures."""
    torch.set_num_threads(1)
    yield long_graph(20 if quick else 200)
    for name, (expression, function, inputs) in functions().items():
        yield jacobian(name, expression, function, inputs, 10 if quick else 60)
        yield hessian(name, expression, function, inputs, 10 if quick else 40)
    yield found_again("polynomial", go.Graph.parse(small_vjp.POLYNOMIAL), 500 if quick else 5000)
    graph = go.Graph()
    value = graph.input("x")
    for _ in range(NODES):
        value = value * 1.01
    graph.output("y", value)
    yield found_again(f"{NODES:,} nodes", graph, 500 if quick else 5000)


def long_graph(repeats: int) -> Row:
    """Forward and backward of many operators on tensors of 4 elements."""
    made, x, phases = plan.build(long_chain.chain(NODES), CPU), torch.linspace(-1, 1, 4), Phases(CPU)
    cotangents = {"y": torch.ones(4)}

    def ours() -> torch.Tensor:
        found = autodiff.vjp(made, {"x": x}, phases, cotangents=cotangents).gradients["x"]
        assert found is not None
        return found

    assert torch.equal(ours(), long_chain.eager(NODES, x))
    found = turns.median({"ours": ours, "eager": lambda: long_chain.eager(NODES, x)}, repeats, warm=3)
    beside = f"the same torch calls by hand, {found['eager'] * 1e3:.2f} ms"
    return Row(f"{NODES:,} nodes, tiny tensors", found["ours"] / found["eager"], "x", at_most(1.1), None, beside)


def jacobian(name: str, expression: str, function: Function, inputs: Tensors, repeats: int) -> Row:
    """By x, beside torch.func.jacrev."""
    made, phases = plan_of(go.Graph.parse(expression)), Phases(CPU)

    def ours() -> torch.Tensor:
        _, blocks = autodiff.jacobian(made, inputs, phases, wrt=["x"])
        return blocks["out", "x"]

    def theirs() -> torch.Tensor:
        found: torch.Tensor = torch.func.jacrev(lambda x: function(**{**inputs, "x": x}))(inputs["x"])
        return found

    return _beside(f"Jacobian, {name}", ours, theirs, "torch.func.jacrev", repeats)


def hessian(name: str, expression: str, function: Function, inputs: Tensors, repeats: int) -> Row:
    """Of the sum by x, beside torch.func.hessian."""
    made, phases = plan_of(go.Graph.parse(f"sum({expression})")), Phases(CPU)

    def ours() -> torch.Tensor:
        _, blocks = autodiff.hessian(made, inputs, phases, cotangents={}, wrt=["x"])
        return blocks["x", "x"]

    def theirs() -> torch.Tensor:
        found: torch.Tensor = torch.func.hessian(lambda x: function(**{**inputs, "x": x}).sum())(inputs["x"])
        return found

    return _beside(f"Hessian, {name}", ours, theirs, "torch.func.hessian", repeats)


def _beside(
    name: str, ours: Callable[[], torch.Tensor], theirs: Callable[[], torch.Tensor], what: str, repeats: int
) -> Row:
    torch.testing.assert_close(ours(), theirs(), rtol=1e-12, atol=1e-13)
    found = turns.median({"ours": ours, "theirs": theirs}, repeats, warm=3)
    return Row(
        name, found["ours"] / found["theirs"], "x", at_most(1.1), None, f"{what}, {found['theirs'] * 1e3:.2f} ms"
    )


def found_again(name: str, graph: go.Graph, repeats: int) -> Row:
    """A plan looked up by the bytes of its graph, which are new with every request."""
    message, data, plans = graph.message, graph.to_bytes(), Plans()
    options, replays = WorkerOptions("cpu", 1, 0, 0, 0), Replays(None)

    def look(key: bytes) -> float:
        context = Context(options, CPU, plans, replays, Phases(CPU), Incoming(CPU, 0, None), Outgoing(False), key)
        start = time.perf_counter()
        context.plan(message)
        return time.perf_counter() - start

    look(data)
    spent = sorted(look(bytes(bytearray(data))) for _ in range(repeats))
    return Row(
        f"plan-cache hit, {name}", spent[repeats // 2] * 1e6, "us", at_most(20), None, "", f"{len(data):,} bytes"
    )

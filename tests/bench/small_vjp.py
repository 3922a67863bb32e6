"""What the service costs a small gradient: `python tests/bench/small_vjp.py [--repeats N] [--json]`.

Three things are timed in turn, again and again in one run, so that a slow moment of the machine falls on all of them:

    vjp     the tutorial's polynomial, client -> server -> worker and back, as a client of a server on its machine asks,
            which goes without gRPC; in the table also through gRPC alone, as one does of a server elsewhere
    echo    the same request's bytes to a bare grpc.aio server in a process of its own, and back
    eager   the same autograd with torch, in this process

Wanted: p50(vjp) at most 1.5 times p50(echo) + p50(eager). A benchmark, not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import torch

import gradoracle as go
from gradoracle.v1 import graph_pb2, service_pb2, tensor_pb2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import servers, turns
from bench.table import Row, at_most

WANTED = 1.5
POLYNOMIAL = "9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1"


def eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same work with torch alone, from array to arrays."""
    leaf = torch.from_numpy(x).requires_grad_()
    y = 9 * leaf**4 + 2 * leaf**3 + 3 * leaf**2 + 6 * leaf + 1
    (gradient,) = torch.autograd.grad(y, leaf)
    return y.detach().numpy(), gradient.numpy()


def request_bytes(graph: go.Graph, x: np.ndarray) -> bytes:
    """The request as it goes over the wire, for the echo to carry the same load."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, data=x.tobytes())
    primal = tensor_pb2.NamedTensor(name="x", tensor=tensor)
    program = graph_pb2.Graph.FromString(graph.to_bytes())
    return service_pb2.ComputeVjpRequest(graph=program, primals=[primal]).SerializeToString()


def work(client: go.Client, echo: Callable[[bytes], bytes]) -> dict[str, Callable[[], object]]:
    """The three things, each seen to do what it should."""
    graph, x = go.Graph.parse(POLYNOMIAL), np.array(2.0)
    payload = request_bytes(graph, x)
    result = client.vjp(graph, {"x": x})
    value, gradient = eager(x)
    assert result.outputs["out"] == value == 185.0
    assert result.gradients["x"] == gradient == 330.0
    assert echo(payload) == payload
    return {
        "vjp": lambda: client.vjp(graph, {"x": x}),
        "echo": lambda: echo(payload),
        "eager": lambda: eager(x),
    }


def new_graphs(client: go.Client, count: int) -> Callable[[], object]:
    """A call that asks for the gradient of a graph that the server has not seen yet, so many times."""
    graphs = iter([go.Graph.parse(POLYNOMIAL.replace("+ 1", f"+ {place + 2}")) for place in range(count)])
    x = np.array(2.0)
    return lambda: client.vjp(next(graphs), {"x": x})


@contextmanager
def both(shared_memory: bool | None = None) -> Iterator[tuple[go.Client, Callable[[bytes], bytes]]]:
    """A client of a server with one worker, and the echo."""
    torch.set_num_threads(1)
    with (
        go.local_server(1) as server,
        go.Client(server, shared_memory=shared_memory) as client,
        servers.echo_server() as address,
        grpc.insecure_channel(address, options=servers.UNLIMITED) as channel,
    ):
        echo: servers.Echo = channel.unary_unary(servers.ECHO)
        yield client, echo


def rows(quick: bool) -> Iterator[Row]:
    """What a small request costs beside its floor: an echo of its bytes and the same work in process."""
    for alone in (False, True):
        yield from _rows(300 if quick else 3000, alone)


def _rows(repeats: int, alone: bool) -> Iterator[Row]:
    name = ", gRPC alone" if alone else ""
    few = repeats // 10
    with both(False if alone else None) as (client, echo):
        things = work(client, echo)
        found = turns.seconds(things, repeats)
        first = turns.seconds({**things, "first": new_graphs(client, few + 5)}, few, warm=5)
    p50 = {thing: float(np.median(taken)) for thing, taken in found.items()}
    floor = p50["echo"] + p50["eager"]
    beside = f"raw echo {p50['echo'] * 1e3:.2f} ms + eager {p50['eager'] * 1e3:.3f} ms, p50"
    yield Row(f"small vjp, p50{name}", p50["vjp"] / floor, "x", at_most(1.5), at_most(1.25), beside)
    p99 = {thing: float(np.percentile(taken, 99)) for thing, taken in found.items()}
    beside = f"its p50, {p50['vjp'] * 1e3:.2f} ms"
    note = f"the echo's own: {p99['echo'] / p50['echo']:.2f}"
    yield Row(f"small vjp, p99{name}", p99["vjp"] / p50["vjp"], "x", at_most(2), None, beside, note)
    p50 = {thing: float(np.median(taken)) for thing, taken in first.items()}
    floor = p50["echo"] + p50["eager"]
    beside = f"raw echo + eager, {floor * 1e3:.2f} ms"
    yield Row(f"small vjp, first with a new graph{name}", p50["first"] / floor, "x", at_most(3), None, beside)


def report(seconds: dict[str, np.ndarray]) -> dict[str, object]:
    """The figures, in milliseconds."""
    figures = {
        name: {
            "p50_ms": round(float(np.percentile(taken, 50)) * 1e3, 4),
            "p99_ms": round(float(np.percentile(taken, 99)) * 1e3, 4),
        }
        for name, taken in seconds.items()
    }
    p50 = {name: float(np.median(taken)) for name, taken in seconds.items()}
    return {
        **figures,
        "repeats": len(next(iter(seconds.values()))),
        "ratio": round(p50["vjp"] / (p50["echo"] + p50["eager"]), 3),
        "wanted": WANTED,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, grpcio {grpc.__version__}",
    }


def show(figures: dict[str, object]) -> None:
    """Prints the figures as a table."""
    print(f"{figures['machine']}; {figures['versions']}; {figures['repeats']} calls each, in turn\n")
    print(f"{'':<8}{'p50 ms':>10}{'p99 ms':>10}")
    for name in ("vjp", "echo", "eager"):
        row = figures[name]
        assert isinstance(row, dict)
        print(f"{name:<8}{row['p50_ms']:>10.3f}{row['p99_ms']:>10.3f}")
    print(f"\np50(vjp) / (p50(echo) + p50(eager)) = {figures['ratio']} (wanted: at most {figures['wanted']})")


def main() -> None:
    """Starts both servers, measures, prints."""
    parser = argparse.ArgumentParser(description="What the service costs a small gradient.")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with both() as (client, echo):
        seconds = turns.seconds(work(client, echo), arguments.repeats)
    figures = report(seconds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()

"""What the service costs a small gradient: `python tests/bench/small_vjp.py [--repeats N] [--json]`.

Three things are timed in turn, again and again in one run, so that a slow moment of the machine falls on all of them:

    vjp     the tutorial's polynomial, client -> server -> worker and back, over loopback
    echo    the same request's bytes to a bare grpc.aio server in a process of its own, and back
    eager   the same autograd with torch, in this process

Wanted: p50(vjp) at most 1.5 times p50(echo) + p50(eager). A benchmark, not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import torch

import gradoracle as go
from gradoracle.v1 import graph_pb2, service_pb2, tensor_pb2

WANTED = 1.5
POLYNOMIAL = "9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1"
ECHO = "/bench.Echo/Echo"


async def serve_echo() -> None:
    """Answers every call with the bytes that came, and prints its port first. Ends when its stdin does."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    service, method = ECHO[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@contextmanager
def echo_server() -> Iterator[str]:
    """The address of an echo server in its own process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--echo-server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"127.0.0.1:{(process.stdout.readline() if process.stdout else '').strip()}"


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


def measure(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each call, the things taken in turn."""
    seconds = {name: np.empty(repeats) for name in work}
    for i in range(-max(20, repeats // 10), repeats):  # the calls before 0 warm up
        for name, call in work.items():
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if i >= 0:
                seconds[name][i] = taken
    return seconds


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
    parser.add_argument("--echo-server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo_server:
        asyncio.run(serve_echo())
        return
    torch.set_num_threads(1)
    graph = go.Graph.parse(POLYNOMIAL)
    x = np.array(2.0)
    payload = request_bytes(graph, x)
    with go.Client.local() as client, echo_server() as address, grpc.insecure_channel(address) as channel:
        echo = channel.unary_unary(ECHO)
        result = client.vjp(graph, {"x": x})
        assert (result.outputs["out"], result.gradients["x"]) == eager(x) == (185.0, 330.0)
        assert echo(payload) == payload
        seconds = measure(
            {
                "vjp": lambda: client.vjp(graph, {"x": x}),
                "echo": lambda: echo(payload),
                "eager": lambda: eager(x),
            },
            arguments.repeats,
        )
    figures = report(seconds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()

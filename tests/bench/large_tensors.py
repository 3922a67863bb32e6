"""What large tensors cost: an elementwise gradient through the service, beside a raw gRPC echo of the same bytes.

The request is one float32 tensor of so many bytes, the answer a scalar and a gradient of the same size, so that as much
goes each way as with the echo, whose messages are bytes that nobody parses. A client hands tensors over in shared
memory to a server of its user on its machine. To any other it sends what is over its unary limit through a stream, in
chunks: the rows of gRPC alone. A unary message ends at 2 GiB; what is larger has no echo.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import grpc
import numpy as np
import numpy.typing as npt
import torch
from bench import servers, turns
from bench.table import Row, at_most

import gradoracle as go

MIB = 1 << 20
EXPRESSION = "sum(sin(x))"

Array = npt.NDArray[np.float32]


class Limits(TypedDict):
    """Flags of a server."""

    max_tensor_bytes: str
    max_message_bytes: str
    max_memory_bytes: str
    max_queue_bytes: str


LIMITS: Limits = {
    "max_tensor_bytes": "4GiB",
    "max_message_bytes": "2047MiB",
    "max_memory_bytes": "16GiB",
    "max_queue_bytes": "8GiB",
}


def tensor(size: int) -> Array:
    """So many bytes of float32, whole MiB."""
    return np.tile(np.linspace(-1, 1, MIB // 4, dtype=np.float32), size // MIB)


def gradient(client: go.Client, graph: go.Graph, x: Array) -> Callable[[], Array]:
    """The gradient through the service."""

    def call() -> Array:
        found: Array | None = client.vjp(graph, {"x": x}).gradients["x"]
        assert found is not None
        return found

    return call


def is_right(x: Array) -> Callable[[Array], None]:
    """Looks at both ends of a gradient."""
    ends = np.r_[:1000, -1000:0]
    want = torch.cos(torch.from_numpy(x[ends])).numpy()
    return lambda found: np.testing.assert_array_equal(found[ends], want)


def copied(x: Array) -> Callable[[], Array]:
    """The floor of shared memory: one copy in, the computation, one copy out."""
    inside, outside = np.empty_like(x), np.empty_like(x)

    def call() -> Array:
        np.copyto(inside, x)
        leaf = torch.from_numpy(inside).requires_grad_()
        (found,) = torch.autograd.grad(torch.sin(leaf).sum(), leaf)
        np.copyto(outside, found.numpy())
        return outside

    return call


def rows(quick: bool) -> Iterator[Row]:
    """1 MiB to 1 GiB to a server on this machine, the same over gRPC alone and over a Unix socket, and 3 GiB."""
    torch.set_num_threads(1)
    sizes = {MIB: 40, 16 * MIB: 10, 64 * MIB: 5} if quick else {MIB: 100, 16 * MIB: 20, 64 * MIB: 8, 1024 * MIB: 2}
    graph = go.Graph.parse(EXPRESSION)
    with go.local_server(1, **LIMITS) as address:
        for kind, shared_memory in (("", None), (", gRPC alone", False)):
            with go.Client(address, shared_memory=shared_memory) as client:
                yield from beside_an_echo(kind, client, graph, sizes)
    yield from in_shared_memory(sizes)
    if not quick:
        yield three_gib(graph)


def beside_an_echo(kind: str, client: go.Client, graph: go.Graph, sizes: dict[int, int]) -> Iterator[Row]:
    """Rows of one client, in turn with an echo."""
    with (
        servers.echo_server() as address,
        grpc.insecure_channel(address, options=servers.UNLIMITED) as channel,
    ):
        echo: servers.Echo = channel.unary_unary(servers.ECHO)
        for size, repeats in sizes.items():
            x = tensor(size)
            payload = x.tobytes()
            work = {"vjp": gradient(client, graph, x), "echo": lambda: echo(payload)}  # noqa: B023 - called at once
            found = turns.median(work, repeats, warm=min(1, repeats // 5), seen={"vjp": is_right(x)})
            beside = f"raw unary echo, {found['echo'] * 1e3:,.1f} ms; ours {found['vjp'] * 1e3:,.1f} ms"
            title = f"{size // MIB} MiB, elementwise vjp{kind}"
            yield Row(title, found["vjp"] / found["echo"], "x", at_most(1), at_most(0.6), beside)


def in_shared_memory(sizes: dict[int, int]) -> Iterator[Row]:
    """The same in memory shared with a server at `unix:`, beside one copy in, the computation, one copy out."""
    graph = go.Graph.parse(EXPRESSION)
    with tempfile.TemporaryDirectory() as folder:
        listen = f"unix:{Path(folder) / 'gradoracle.sock'}"
        with (
            # One thread, as what it is measured against.
            go.local_server(listen=listen, shared_memory=True, threads=1, **LIMITS) as address,
            go.Client(address, shared_memory=True) as client,
        ):
            for size, repeats in sizes.items():
                x = tensor(size)
                work = {"vjp": gradient(client, graph, x), "copies": copied(x)}
                seen = {"vjp": is_right(x), "copies": is_right(x)}
                found = turns.median(work, repeats, warm=min(1, repeats // 5), seen=seen)
                beside = f"memcpy + work + memcpy, {found['copies'] * 1e3:,.1f} ms; ours {found['vjp'] * 1e3:,.1f} ms"
                name = f"{size // MIB} MiB, shared memory"
                yield Row(name, found["vjp"] / found["copies"], "x", at_most(2), at_most(1.5), beside)


def three_gib(graph: go.Graph) -> Row:
    """A tensor that no message could hold."""
    x = tensor(3 * 1024 * MIB)
    with go.Client.local(shared_memory=False, **LIMITS) as client:
        found = turns.median({"vjp": gradient(client, graph, x)}, 1, warm=0, seen={"vjp": is_right(x)})
    return Row(
        "3 GiB, elementwise vjp", found["vjp"] / 3, "s/GiB", None, None, "nothing: no message holds it", "streamed"
    )

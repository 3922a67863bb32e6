"""The paths that need a GPU: a server that serves one, eager CUDA's bits, the device's memory and seeds."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def client() -> Iterator[go.Client]:
    """A client of a server that was left to choose its devices: the GPUs and the CPU."""
    with go.local_server(device="auto") as address, go.Client(address) as client:
        yield client


def eager(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.tanh(x @ w), dim=-1)


EXPRESSION = "softmax(tanh(x @ w), dim=-1)"


def same_bits(array: Any, tensor: torch.Tensor) -> bool:
    want = tensor.detach().cpu().contiguous().numpy()
    return array.dtype == want.dtype and array.shape == want.shape and array.tobytes() == want.tobytes()


def leaves(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((128, 256), (256, 64))
    first, second = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return first.cuda().requires_grad_(), second.cuda().requires_grad_()


def primals(x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
    return {"x": x.detach().cpu().numpy(), "w": w.detach().cpu().numpy()}


def test_auto_means_cuda(client: go.Client) -> None:
    """Where there is a GPU it is the default device, and the CPU can be named."""
    info = client.server_info()
    assert info.default_device == "cuda:0"
    assert {"cuda:0", "cpu"} <= {device.name for device in info.devices}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_vjp_has_eager_cudas_bits(client: go.Client, dtype: torch.dtype, device: str | None) -> None:
    """Outputs and gradients equal eager autograd on the GPU bit for bit, however the device is named."""
    x, w = leaves(dtype)
    y = eager(x, w)
    want = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    cotangents = {"out": np.ones(y.shape, x.detach().cpu().numpy().dtype)}
    result = client.vjp(EXPRESSION, primals(x, w), cotangents, device=device)
    assert same_bits(result.outputs["out"], y)
    assert same_bits(result.gradients["x"], want[0])
    assert same_bits(result.gradients["w"], want[1])
    assert result.timing.forward > 0
    assert result.timing.backward > 0


def test_the_cpu_of_a_gpu_server_gives_the_cpus_bits(client: go.Client) -> None:
    """A request that names the CPU runs there."""
    x, w = (one.detach().cpu().requires_grad_() for one in leaves(torch.float64))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    y = eager(x, w)
    torch.set_num_threads(before)
    assert same_bits(client.evaluate(EXPRESSION, primals(x, w), device="cpu").outputs["out"], y)


def test_random_operators_follow_the_seed_on_the_gpu(client: go.Client) -> None:
    """The request's seed is torch.manual_seed's, for the GPU's generator too."""
    g = go.Graph()
    x = g.input("x")
    g.output("y", go.ops.dropout(x, 0.5, True))
    result = client.evaluate(g, {"x": np.ones(1000)}, seed=9)
    torch.manual_seed(9)
    assert same_bits(
        result.outputs["y"], torch.nn.functional.dropout(torch.ones(1000, dtype=torch.float64).cuda(), 0.5)
    )


def test_factories_follow_the_request(client: go.Client) -> None:
    """A graph that makes tensors of its own runs on whatever device the request names."""
    g = go.Graph()
    x = g.input("x")
    g.output("y", x * g.ops.arange(4, dtype="float64"))
    for device in ("cpu", "cuda"):
        result = client.vjp(g, {"x": np.ones(4)}, {"y": np.ones(4)}, device=device)
        assert result.gradients["x"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_forward_mode_jacobian_hessian_and_batches(client: go.Client) -> None:
    """Every kind of derivative runs on the GPU and agrees with the CPU's."""
    x = np.linspace(-1, 1, 6)
    for device in ("cpu", "cuda"):
        tangent = client.jvp("sin(x) * x", {"x": x}, {"x": np.ones(6)}, device=device).tangents["out"]
        np.testing.assert_allclose(tangent, np.cos(x) * x + np.sin(x), rtol=1e-12)
        rows = client.jacobian("sin(x) * x", {"x": x}, device=device).jacobian["out", "x"]
        np.testing.assert_allclose(rows, np.diag(np.cos(x) * x + np.sin(x)), rtol=1e-12, atol=1e-15)
        second = client.hessian("sum(sin(x))", {"x": x}, device=device).hessian["x", "x"]
        np.testing.assert_allclose(second, np.diag(-np.sin(x)), rtol=1e-12, atol=1e-15)
        stacked = client.vjp("sum(sin(x))", {"x": np.stack([x, 2 * x])}, batched=("x",), device=device)
        np.testing.assert_allclose(stacked.gradients["x"], np.stack([np.cos(x), np.cos(2 * x)]), rtol=1e-12)


def test_memory_that_the_gpu_does_not_have(client: go.Client) -> None:
    """A tensor larger than the device is a resource limit, and the next request works."""
    g = go.Graph()
    x = g.input("x")
    g.output("y", x.expand([1 << 45]).clone(memory_format="contiguous_format"))
    with pytest.raises(go.ResourceLimitError):
        client.evaluate(g, {"x": np.ones(1)}, device="cuda")
    assert client.evaluate("x + 1", {"x": 1.0}, device="cuda").outputs["out"] == 2.0


def test_the_limit_is_a_fraction_of_the_gpus_memory() -> None:
    """--max-memory-bytes bounds what torch may take of the device: before work, and while it runs."""
    allowed = 512 * 2**20
    with go.local_server(device="cuda", max_memory_bytes=allowed) as address, go.Client(address) as client:
        assert client.server_info().limits.memory_bytes == allowed
        g = go.Graph()
        x = g.input("x")
        kept = x[x > 0]  # of a size that no shape tells
        g.output("y", kept.repeat([100_000]).sum())
        for graph in (g, go.Graph.parse("x.repeat([100000]).sum()")):
            with pytest.raises(go.ResourceLimitError) as caught:
                client.evaluate(graph, {"x": np.ones(10_000)})
            assert (caught.value.metadata["limit"], caught.value.metadata["allowed"]) == (
                "max-memory-bytes",
                str(allowed),
            )
        assert client.evaluate("x + 1", {"x": 1.0}).outputs["out"] == 2.0


def test_the_gpus_memory_is_measured() -> None:
    """/metrics shows the reserved bytes of the GPU after a request ran there."""
    flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--device", "cuda", "--stop-on-stdin-eof"]
    command = [sys.executable, "-m", "gradoracle_server", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address, metrics = re.fullmatch(r"gradoracle listening on (\S+) \(metrics (\S+)\)\n", line).groups()
        with go.Client(address) as client:
            client.vjp("sum(x * x)", {"x": np.ones(1 << 20)})
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
            text = page.read().decode()
        process.stdin.close()
        assert process.wait(30) == 0
    found = re.search(r'gradoracle_device_memory_bytes\{(?=.*device="cuda:0")(?=.*kind="reserved").*\} (\S+)', text)
    assert float(found.group(1)) > 0


@pytest.mark.parametrize("asked", [["x", "w"], ["w"]], ids=["both", "one"])
def test_requests_that_come_again_have_eager_cudas_bits(client: go.Client, asked: list[str]) -> None:
    """Also those that are replayed, which run after a few of their kind, with other numbers each time."""
    for seed in range(8):
        x, w = (one.detach() + 0.01 * seed for one in leaves(torch.float32))
        x, w = x.requires_grad_(), w.requires_grad_()
        y = eager(x, w)
        cotangent = torch.full_like(y, 1.0 + seed)
        want = dict(zip(("x", "w"), torch.autograd.grad(y, (x, w), cotangent), strict=True))
        result = client.vjp(EXPRESSION, primals(x, w), {"out": cotangent.cpu().numpy()}, wrt=asked)
        assert same_bits(result.outputs["out"], y)
        assert set(result.gradients) == set(asked)
        for name in asked:
            assert same_bits(result.gradients[name], want[name])


def test_random_requests_that_come_again_follow_their_seeds(client: go.Client) -> None:
    """They are not replayed, or their numbers would be others."""
    x = np.ones(1000, np.float32)
    graph = go.Graph()
    graph.output("y", graph.call("aten.dropout.default", graph.input("x"), 0.5, True))
    found = [client.vjp(graph, {"x": x}, {"y": x}, seed=seed % 2).gradients["x"] for seed in range(10)]
    assert all(np.array_equal(one, other) for one, other in zip(found[2:], found[:-2], strict=True))
    assert not np.array_equal(found[0], found[1])


def test_what_waits_for_the_device_is_run(client: go.Client) -> None:
    """A boolean mask makes torch wait for its count, which no recording can: as often as it is asked."""
    graph = go.Graph()
    x = graph.input("x")
    graph.output("y", graph.call("aten.sum.default", graph.call("aten.masked_select.default", x, x > 0)))
    for seed in range(6):
        values = np.random.default_rng(seed).normal(size=100).astype(np.float32)
        gradient = client.vjp(graph, {"x": values}).gradients["x"]
        assert gradient is not None
        assert np.array_equal(gradient, (values > 0).astype(np.float32))

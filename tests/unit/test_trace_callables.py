"""Functions as users write them: the graph gives their values and gradients, bit for bit, through a worker."""

from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch.utils.checkpoint import checkpoint
from trace_cases import faithful

F64 = torch.float64


def t(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + 100 * sum(shape)))


def whole(*values):
    return torch.tensor(values)


def polynomial(x):
    return 9 * x**4 + 2 * x**3 + 3 * x**2 + 6 * x + 1


def mlp(x, layers):
    for weight, bias in layers:
        x = torch.tanh(x @ weight + bias)
    return x.square().mean()


def attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(mask, float("-inf")).softmax(dim=-1) @ v


def recurrence(x, w, steps):
    for _ in range(steps):
        x = torch.sigmoid(w @ x) * x
    return x


def newton(x):
    y = torch.ones_like(x)
    while y.dim() < 3:  # a loop that depends on shapes alone
        y = y.unsqueeze(0)
    for _ in range(4):
        y = 0.5 * (y + x.abs() / y)
    return y


def views_then_in_place(x):
    y = x.clone()
    y[0] += 1
    y.T[1].mul_(2)
    y.view(-1)[::3] = 7
    return y * x


def in_place_on_the_argument(x):
    x.mul_(2)
    x.add_(1)
    return x * x


def in_place_through_a_view_of_the_argument(x):
    x[:, 0] = 0
    return x.exp()


def detached_in_place(x):
    x.data[0] = 3
    return x.sin().sum()


def regions(x):
    with torch.no_grad():
        scale = x.abs().max()
        with torch.enable_grad():
            inner = x.sin()
    return x / scale + inner


def inference_region(x):
    with torch.inference_mode():
        scale = x.abs().sum()
    return x * scale.clone()


def decorated():
    @torch.no_grad()
    def frozen(x):
        return x.exp()

    return lambda x: frozen(x) * x


def stop_gradient(x):
    return x.detach() * x + (x - x.detach())


def softmax_temperature(x, *, temperature=2.0, hard=False):
    y = F.softmax(x / temperature, dim=-1)
    return y.round() if hard else y


def masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def selected_mean(x):
    return x[x > 0].mean()


def scatter_mean(x, index):
    total = torch.zeros(4, dtype=x.dtype).scatter_add(0, index, x)
    count = torch.zeros(4, dtype=x.dtype).scatter_add(0, index, torch.ones_like(x))
    return total / count.clamp(min=1)


def contrastive(a, b):
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return F.cross_entropy(a @ b.T * 10, torch.arange(a.shape[0]))


def gradient_penalty(x, w):
    y = torch.tanh(x @ w).sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    return slope.square().sum() + y


def closure():
    offset = torch.arange(4, dtype=F64)
    weights = {"a": torch.full((4,), 2.0, dtype=F64)}
    return lambda x: (x + offset) * weights["a"]


def strided_closure():
    weight = torch.arange(12, dtype=F64).reshape(3, 4).T
    return lambda x: x @ weight


Pair = namedtuple("Pair", "left right")

CENTRE, SPREAD = torch.arange(3.0, dtype=F64), torch.ones(3, dtype=F64)
FUNCTIONS = {
    "polynomial": (polynomial, t(3)),
    "a builtin": (torch.sin, t(3)),
    "a functional": (F.gelu, t(3)),
    "mlp": (mlp, t(5, 4), [(t(4, 8), t(8)), (t(8, 2), t(2))]),
    "attention": (attention, t(2, 3, 4), t(2, 3, 4, seed=1), t(2, 3, 4, seed=2), torch.ones(3, 3).triu(1).bool()),
    "scaled dot product attention": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), t(1, 2, 4, 8), t(1, 2, 4, 8)
    ),
    "a loop": (recurrence, t(3), t(3, 3), 5),
    "a loop on shapes": (newton, t(2, 3)),
    "views, then in place": (views_then_in_place, t(3, 4)),
    "in place on the argument": (in_place_on_the_argument, whole(1, 2, 3)),
    "in place on a tracked argument": (lambda x: in_place_on_the_argument(x.clone()), t(3)),
    "slice assignment": (in_place_through_a_view_of_the_argument, t(2, 3).round().long()),
    "no_grad and enable_grad": (regions, t(3, 4)),
    "inference_mode": (inference_region, t(3, 4)),
    "a decorated no_grad": (decorated(), t(3)),
    "detach": (stop_gradient, t(3)),
    "keyword arguments": (lambda x: softmax_temperature(x, temperature=3.0), t(2, 5)),
    "einsum": (lambda a, b, c: torch.einsum("bij,bjk,k->bi", a, b, c), t(2, 3, 4), t(2, 4, 5), t(5)),
    "gather": (lambda x, i: x.gather(1, i).logsumexp(1), t(3, 5), torch.tensor([[0, 2], [1, 1], [4, 3]])),
    "scatter": (scatter_mean, t(6), whole(0, 1, 1, 3, 0, 1)),
    "index put": (
        lambda x, i: torch.zeros(4, dtype=F64).index_put((i,), x, accumulate=True), t(5), whole(0, 1, 1, 3, 0)
    ),
    "index assignment": (lambda x, i: x.clone().index_fill(0, i, 2.0) * x, t(5), whole(0, 3)),
    "embedding": (lambda w, i: F.embedding(i, w).sum(0), t(5, 3), whole(1, 1, 4)),
    "embedding bag": (lambda w, i: F.embedding_bag(i, w, whole(0, 2)), t(5, 3), whole(1, 1, 4)),
    "fft": (lambda x: torch.fft.rfft(x).abs().square().sum(), t(8)),
    "fft of complex": (lambda z: torch.fft.ifft(torch.fft.fft(z) * 2), t(8, dtype=torch.complex128)),
    "complex": (lambda z: (z * z.conj()).real.sum() + z.angle().sum(), t(4, dtype=torch.complex128)),
    "view as real": (lambda z: torch.view_as_real(z).sin(), t(4, dtype=torch.complex128)),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(3, dtype=F64)), t(3, 3)),
    "solve": (lambda a, b: torch.linalg.solve(a, b), t(3, 3), t(3, 2)),
    "eigenvalues": (lambda a: torch.linalg.eigvalsh(a + a.T), t(4, 4)),
    "singular values": (lambda a: torch.linalg.svdvals(a), t(4, 3)),
    "inverse and determinant": (lambda a: torch.linalg.inv(a) * torch.linalg.slogdet(a)[1], t(3, 3)),
    "matrix exponential": (lambda a: torch.linalg.matrix_exp(a), t(3, 3)),
    "sort": (lambda x: x.sort(dim=-1, descending=True).values[..., :2], t(3, 5)),
    "topk": (lambda x: x.topk(2).values.sum(), t(6)),
    "max with indices": (lambda x: x.max(dim=1)[0] * x.min(dim=1).values, t(3, 4)),
    "cumulative": (lambda x: x.cumsum(0) + x.cumprod(0) + x.logcumsumexp(0), t(5)),
    "where": (lambda x, y: torch.where(x > y, x.exp(), y**2), t(5), t(5)),
    "a mask as argument": (masked_mean, t(6), torch.tensor([True, False, True, True, False, False])),
    "a boolean index": (selected_mean, t(12)),
    "nonzero": (lambda x: x[x.abs() > 0.1].sum() + torch.nonzero(x > 0).sum(), t(12)),
    "convolution": (lambda x, w: F.conv2d(x, w, padding=1, stride=2).relu(), t(1, 2, 6, 6), t(3, 2, 3, 3)),
    "transposed convolution": (lambda x, w: F.conv_transpose1d(x, w, stride=2), t(1, 2, 5), t(2, 3, 3)),
    "pooling": (lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 2), t(1, 2, 4, 4)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), t(1, 2, 3, 3)),
    "grid sample": (lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), t(1, 2, 4, 4), t(1, 3, 3, 2)),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), t(3, 4), t(4), t(4)),
    "batch norm, whose statistics are closed over": (
        lambda x, w: F.batch_norm(x, CENTRE, SPREAD, w), t(6, 3), t(3)
    ),
    "batch norm in training": (
        lambda x, w, m, v: F.batch_norm(x, m.detach(), v.detach().abs(), w, training=True), t(6, 3), t(3), t(3), t(3)
    ),
    "cross entropy": (lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), t(4, 5), whole(0, 3, 1, 4)),
    "ctc loss": (
        lambda x, y: F.ctc_loss(x.log_softmax(-1), y, whole(6, 6), whole(2, 3)),
        t(6, 2, 5), torch.tensor([[1, 2, 0], [3, 1, 2]])
    ),
    "a short-time Fourier transform": (
        lambda x: torch.stft(x, 8, window=torch.hann_window(8, dtype=F64), return_complex=True).abs().sum(), t(32)
    ),
    "a ragged repetition": (lambda x: x.repeat_interleave((x > 0).long() + 1).sum(), t(5)),
    "contrastive loss": (contrastive, t(4, 6), t(4, 6, seed=1)),
    "gaussian nll, which looks at its variance": (
        lambda x, v: F.gaussian_nll_loss(x, torch.zeros(4, dtype=F64), v.abs()), t(4), t(4)
    ),
    "kl divergence of distributions": (
        lambda m, s: torch.distributions.kl_divergence(
            torch.distributions.Normal(m, s.exp()), torch.distributions.Normal(torch.zeros_like(m), torch.ones_like(s))
        ).sum(), t(3), t(3),
    ),
    "a list of tensors": (lambda xs: torch.stack(xs).prod(0), [t(3), t(3, seed=1), t(3, seed=2)]),
    "a dict of tensors": (lambda p: p["w"] @ p["x"] + p["deep"]["b"], {"w": t(3, 4), "x": t(4), "deep": {"b": t(3)}}),
    "a named tuple": (lambda p: p.left * p.right, Pair(t(3), t(3, seed=1))),
    "the same tensor twice": (lambda a, b: a * b.sin(), t(3), t(3)),
    "a closure over constants": (closure(), t(4)),
    "a closure over a strided constant": (strided_closure(), t(2, 4)),
    "new constants": (lambda x: x * torch.tensor([1.0, 2.0, 3.0], dtype=F64) + torch.arange(3), t(3)),
    "a constant that is filled": (lambda x: torch.zeros(3, dtype=F64).copy_(x).mul_(x), t(3)),
    "empty, then filled": (lambda x: torch.empty_like(x).copy_(x) * torch.empty(3, dtype=F64).fill_(2), t(3)),
    "an out argument": (lambda x: x + torch.mul(x.detach(), 2, out=torch.empty(3, dtype=F64)), t(3)),
    "a gradient inside": (lambda x: torch.func.grad(lambda y: (y**3).sum())(x) * x, t(3)),
    "a jacobian inside": (lambda x: torch.func.jacrev(lambda y: y.sin() * y.sum())(x), t(3)),
    "a hessian inside": (lambda x: torch.func.hessian(lambda y: (y**3).sum() * y[0])(x), t(3)),
    "forward mode inside": (lambda x: torch.func.jvp(torch.sin, (x,), (x * 2,))[1], t(3)),
    "autograd.functional inside": (
        lambda x: torch.autograd.functional.jacobian(lambda y: y.sin() * y.sum(), x, create_graph=True), t(3)
    ),
    "vmap inside": (lambda x, w: torch.func.vmap(lambda row: (w @ row).tanh())(x), t(4, 3), t(2, 3)),
    "a gradient penalty": (gradient_penalty, t(4, 3), t(3, 2)),
    "checkpointing": (lambda x: checkpoint(lambda y: y.sin().exp(), x, use_reentrant=False), t(3)),
    "random numbers": (lambda x: x * torch.rand(3, dtype=F64) + torch.randn_like(x), t(3)),
    "dropout": (lambda x: F.dropout(x, 0.4) * torch.rand(()).to(F64), t(20)),
    "a random choice": (lambda x: x[torch.randperm(6)[:3]].sum(), t(6)),
    "an unused draw": (lambda x: (torch.rand(4), x * torch.rand(3, dtype=F64))[1], t(3)),
    "gumbel": (lambda x: F.gumbel_softmax(x, hard=True), t(2, 4)),
    "a straight-through estimator by detach": (lambda x: x + (x.round() - x).detach(), t(5)),
    "printing": (lambda x: (f"{x.sum():.2f} {x}", x.sin())[1], t(3)),
    "bfloat16": (lambda x: (x @ x.T).softmax(-1), t(4, 4, dtype=torch.float32).bfloat16()),
    "float32": (mlp, t(5, 4, dtype=torch.float32), [(t(4, 2, dtype=torch.float32), t(2, dtype=torch.float32))]),
    "a type that promotes": (lambda x, n: x * n / 3 + n // 2, t(3, dtype=torch.float32), whole(1, 2, 3)),
    "a scalar": (lambda x: x.sin() * 2, torch.tensor(0.3, dtype=F64)),
    "an empty tensor": (lambda x: x.sum() + x.numel(), t(0, 3)),
    "an identity": (lambda x: x, t(3)),
    "an output that is constant": (lambda x: (x.sum(), torch.ones(2)), t(3)),
    "sparse and dense": (lambda x: torch.sparse.mm(x.to_sparse(), x.T), t(3, 4).relu()),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    """Outputs and every gradient have the bits of eager torch, at the traced point and at another."""
    fn, *args = FUNCTIONS[name]
    faithful(fn, *args)


def test_autocast():
    """Casts that autocast makes become operators of the graph."""

    def fn(x, w):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ w).float().softmax(-1)

    graph = faithful(fn, t(3, 4, dtype=torch.float32), t(4, 5, dtype=torch.float32))
    assert any(node.target == "aten._to_copy.default" for node in graph.message.nodes)


def test_autocast_around_the_trace():
    """What holds where trace is called holds for the graph, wherever that runs."""

    def fn(x, w):
        return (x @ w).float().softmax(-1)

    def as_traced(x, w):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fn(x, w)

    args = t(3, 4, dtype=torch.float32), t(4, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from gradoracle.tracing import trace

        graph = trace(fn, *args)
    assert graph.to_bytes() == trace(as_traced, *args).to_bytes()


def test_more_than_sixty():
    """The list above is as long as it is said to be."""
    assert len(FUNCTIONS) > 60

"""Backwards that are the right derivative of another function, as where erf's gelu has lent its to tanh's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from conformance.corpus.checkers import Case
from conformance.corpus.planting import Wrong, planted, right
from conformance.corpus.subjects import pulled

Pair = tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]

PAIRS: dict[str, Pair] = {
    "gelu by tanh <- gelu by erf": (lambda x: F.gelu(x, approximate="tanh"), F.gelu),
    "silu <- hardswish": (F.silu, F.hardswish),
    "mish <- silu": (F.mish, F.silu),
    "elu, alpha 1.01 <- elu": (lambda x: F.elu(x, 1.01), F.elu),
    "celu <- selu": (F.celu, F.selu),
    "softplus, beta 1.001 <- softplus": (lambda x: F.softplus(x, 1.001), F.softplus),
    "tanh <- erf": (torch.tanh, torch.erf),
    "erf <- tanh": (torch.erf, torch.tanh),
    "log1p <- log": (lambda x: torch.log1p(x.abs()), lambda x: torch.log(x.abs())),
    "expm1 <- exp of a neighbour": (torch.expm1, lambda x: torch.exp(x + 1e-6)),
    "softmax <- log_softmax": (lambda x: x.softmax(-1), lambda x: x.log_softmax(-1)),
    "std, correction 1 <- correction 0": (lambda x: x.std(-1), lambda x: x.std(-1, correction=0)),
    "var, correction 1 <- correction 0": (lambda x: x.var(-1), lambda x: x.var(-1, correction=0)),
    "layer_norm, eps 1e-5 <- eps 1e-6": (lambda x: F.layer_norm(x, x.shape[-1:]),
                                         lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)),
    "smooth_l1 <- huber, delta 0.5": (lambda x: F.smooth_l1_loss(x, x.new_zeros(x.shape), reduction="none"),
                                      lambda x: F.huber_loss(x, x.new_zeros(x.shape), reduction="none", delta=0.5)),
    "logsumexp <- amax": (lambda x: x.logsumexp(-1), lambda x: x.amax(-1)),
    "norm, p = 3 <- p = 2": (lambda x: x.norm(3, -1), lambda x: x.norm(2, -1)),
    "sinc <- sin(x) / x": (torch.sinc, lambda x: torch.sin(x) / x),
    "atan <- tanh": (torch.atan, torch.tanh),
    "cumprod <- cumsum": (lambda x: x.cumprod(-1), lambda x: x.cumsum(-1)),
}  # fmt: skip
"""By name: the function, and the one whose derivative its backward gives."""


def cases() -> Iterator[Case]:
    """Each function with its own backward, and with the other's."""
    point = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 1.5
    for name, (function, other) in PAIRS.items():
        yield Case("right", planted(function, right), (point,), operator=name)
        yield Case("derivative of another function", planted(function, _of(other)), (point,), operator=name)


def _of(other: Callable[..., torch.Tensor]) -> Wrong:
    return lambda inputs, cotangent, found: pulled(other, inputs, cotangent)

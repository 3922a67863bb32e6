"""Small cases of gradients that are wrong in torch 2.13: what a check must not pass, and a reference not hide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name


def _f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclasses.dataclass(frozen=True, slots=True)
class Minimal:
    """A function at a point, with the gradient that torch gives and the one that is right."""

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    place: int  # of the input whose gradient is wrong
    torchs: object
    right: object
    order: int = 1  # 2: the derivative of the first input's gradient, summed


def _ctc(x: torch.Tensor) -> torch.Tensor:
    return F.ctc_loss(x, torch.tensor([[1]]), [2], [1], reduction="sum")


MINIMAL = (
    Minimal(
        "as_strided_scatter",
        lambda x, s: torch.as_strided_scatter(x, s, (), (), 0),
        (_f64([2.0]), _f64(3.0)),
        0,
        [1.0],
        [0.0],
    ),
    Minimal(
        "as_strided of a view",
        lambda x: x[3:4].as_strided((1,), (1,), 0),
        (_f64([1.0, 2.0, 3.0, 4.0]),),
        0,
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ),
    Minimal("hardsigmoid", F.hardsigmoid, (_f64(0.3),), 0, 0.1666666716337204, 1 / 6),
    Minimal(
        "max_unpool1d, an index twice",
        lambda x: F.max_unpool1d(x, torch.tensor([[0, 0]]), 2),
        (_f64([[1.0, 2.0]]),),
        0,
        [[1.0, 1.0]],
        [[0.0, 1.0]],
    ),
    Minimal(
        "scatter, an index twice",
        lambda x, s: x.scatter(0, torch.tensor([0, 0]), s),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        [0.0, 1.0],
    ),
    Minimal(
        "index_put, an index twice",
        lambda x, s: x.index_put((torch.tensor([0, 0]),), s),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        [0.0, 1.0],
    ),
    Minimal(
        "index_copy, an index twice",
        lambda x, s: x.index_copy(0, torch.tensor([0, 0]), s),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        [0.0, 1.0],
    ),
    Minimal(
        "scatter_reduce(prod), an index shorter than the source",
        lambda x, s: x.scatter_reduce(0, torch.tensor([0]), s, "prod"),
        (_f64([2.0]), _f64([3.0, 7.0])),
        1,
        [2.0, 6.0 / 7.0],
        [2.0, 0.0],
    ),
    Minimal(
        "ctc_loss of what is not normalised",
        _ctc,
        (_f64([[[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]),),
        0,
        [[[2 / 3, 1 / 3, 1.0]], [[2 / 3, 1 / 3, 1.0]]],
        [[[-1 / 3, -2 / 3, 0.0]], [[-1 / 3, -2 / 3, 0.0]]],
    ),
    Minimal("logsigmoid at 40, order 2", F.logsigmoid, (_f64(40.0),), 0, -0.0, -math.exp(-40.0), 2),
    Minimal("sinc at 0, order 2", torch.sinc, (_f64(0.0),), 0, math.nan, -(math.pi**2) / 3, 2),
)

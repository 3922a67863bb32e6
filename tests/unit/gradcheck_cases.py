"""Functions as test-suites check them with gradcheck: right ones, and wrong ones that torch's gradcheck passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

F64 = torch.float64
C128 = torch.complex128


def leaf(*shape: int, dtype: torch.dtype = F64, low: float = 0.3, high: float = 1.7, seed: int = 0) -> torch.Tensor:
    """A tensor that requires grad, away from 0, with both signs where `low` is negative."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(shape, generator=generator, dtype=F64) * (high - low) + low
    if dtype.is_complex:
        real = torch.complex(real, torch.rand(shape, generator=generator, dtype=F64) - 0.5)
    return real.to(dtype).requires_grad_()


def sparse(layout: torch.layout, *, tracked: bool = False) -> torch.Tensor:
    """Four of nine elements, in a sparse layout."""
    dense = torch.tensor([[0.5, 0.0, 2.0], [0.0, 0.0, 0.0], [-1.5, 0.0, 3.0]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR "is in beta state"
        return dense.to_sparse(layout=layout).requires_grad_(tracked)


def uncoalesced() -> torch.Tensor:
    """A sparse tensor, one element of which is a sum."""
    values = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    return torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 0]], values, (2, 2), check_invariants=True).requires_grad_()


class Doubling(torch.Tensor):
    """A subclass with a method that plain tensors do not have."""

    def doubled(self) -> torch.Tensor:
        return self * 2

    @classmethod
    def leaf(cls, *shape: int) -> torch.Tensor:
        return leaf(*shape).detach().as_subclass(cls).requires_grad_()


class Cube(torch.autograd.Function):
    """x**3 by hand, with a backward that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return g * 3 * x**2


class NumpySin(torch.autograd.Function):
    """A kernel that torch cannot see into: numpy."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.numpy() * np.cos(x.detach().numpy()))


class Pair(torch.autograd.Function):
    """Two outputs, one of them not differentiable."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x)
        order = x.argsort()
        ctx.mark_non_differentiable(order)
        return x.exp(), order

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return g * x.exp()


def wrong(
    backward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    forward: Callable[[torch.Tensor], torch.Tensor] = lambda x: x**3,
) -> Callable[..., torch.Tensor]:
    """A function with a planted backward: of the cotangent and the input."""

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return backward(g, *ctx.saved_tensors)

    return Planted.apply  # type: ignore[no-any-return]


class CrossTerm(torch.autograd.Function):
    """Two outputs, whose gradient is wrong where both have a cotangent."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return g * x.cos() - h * x.sin() + 0.1 * g * h


class WrongTangent(torch.autograd.Function):
    """x**2, right in reverse mode and 0.01 % off in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * g * x

    @staticmethod
    def jvp(ctx: Any, t: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2.0002 * t * x


def one_element(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of x**3 with its second element 0.05 % off."""
    found = g * 3 * x**2
    found[1] *= 1.0005
    return found


def strides_ignored(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of x**3 by a kernel that reads its cotangent as if it were contiguous."""
    steps = [1]
    for size in reversed(g.shape[1:]):
        steps.insert(0, steps[0] * size)
    room = g.untyped_storage().nbytes() // g.itemsize - g.storage_offset()
    if room < g.numel():
        return torch.zeros_like(x)  # what lies behind the memory, say
    return torch.as_strided(g, g.shape, steps) * 3 * x**2


def branching(x: torch.Tensor) -> torch.Tensor:
    """Control flow that depends on values."""
    return x.sin() if x.sum().item() > 0 else x.cos()


def _linear_by_closure() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A module whose parameters are among the inputs, and reached by closure only."""
    module = nn.Linear(3, 2).double()
    x = leaf(4, 3)
    return lambda *_: module(x), (x, *module.parameters())


Case = tuple[str, Callable[..., Any], Any, dict[str, Any]]

RIGHT: list[Case] = [
    ("sin", torch.sin, leaf(5), {}),
    ("a list of inputs", lambda x, w: x @ w, [leaf(3, 4), leaf(4, 2, seed=1)], {}),
    ("an input without grad", lambda x, w: x @ w, (leaf(3, 4), leaf(4, 2).detach()), {}),
    ("numbers and flags", lambda x, dim, keep: x.logsumexp(dim, keepdim=keep), (leaf(3, 4), 1, True), {}),
    ("an index", lambda x, i: x[i], (leaf(5), torch.tensor([0, 2, 2])), {}),
    ("custom Function", Cube.apply, leaf(4, low=-2), {}),
    ("numpy inside", NumpySin.apply, leaf(4, low=-2), {}),
    ("control flow", branching, leaf(4), {}),
    ("a part that is not differentiable", Pair.apply, leaf(5), {}),
    ("several outputs", lambda x: (x.sin(), x.cos(), x.sum()), leaf(2, 3), {}),
    ("a detached output", lambda x: (x.sin(), x.detach() * 2), leaf(3), {}),
    ("module", nn.Linear(4, 3).double(), leaf(2, 4), {}),
    ("module and its parameters", *_linear_by_closure(), {}),
    ("convolution", lambda x, w: functional.conv2d(x, w, padding=1), (leaf(1, 2, 4, 4), leaf(2, 2, 3, 3)), {}),
    ("layer norm", lambda x: functional.layer_norm(x, (4,)), leaf(3, 4), {}),
    ("no elements", lambda x: x.sin(), leaf(0, 3), {}),
    ("a scalar", lambda x: x**2, leaf(), {}),
    ("strided input", lambda x: x.exp(), leaf(4, 3).detach().t()[:, ::2].requires_grad_(), {}),
    ("not a leaf", lambda x: x.sin(), leaf(3) * 2, {}),
    ("in place", lambda x: x.clone().mul_(x).add_(1), leaf(3), {}),
    ("complex", lambda z: z * z.conj() + z.exp(), leaf(3, dtype=C128), {}),
    ("complex to real", lambda z: z.abs(), leaf(3, dtype=C128), {}),
    ("real to complex", torch.fft.fft, leaf(4), {}),
    ("solve", torch.linalg.solve, (leaf(3, 3).detach().add(3 * torch.eye(3)).requires_grad_(), leaf(3, 2)), {}),
    ("forward mode", torch.tanh, leaf(4), {"check_forward_ad": True, "check_batched_forward_grad": True}),
    ("forward mode, complex", torch.exp, leaf(3, dtype=C128), {"check_forward_ad": True}),
    ("forward mode alone", torch.tanh, leaf(4), {"check_forward_ad": True, "check_backward_ad": False,
                                                 "check_undefined_grad": False}),
    ("batched gradients", torch.tanh, leaf(4), {"check_batched_grad": True, "check_grad_dtypes": True}),
    ("batched gradients, run twice", torch.tanh, leaf(4), {"check_batched_grad": True, "nondet_tol": 1e-9}),
    ("subclass", lambda x: x.doubled() ** 2, Doubling.leaf(3), {"check_forward_ad": True}),
    ("subclass without grad", lambda c, x: c.doubled() * x, (Doubling.leaf(3).detach(), leaf(3)), {}),
    ("sparse without grad", torch.sparse.mm, (sparse(torch.sparse_coo), leaf(3, 2)), {}),
    ("CSR without grad", torch.sparse.mm, (sparse(torch.sparse_csr), leaf(3, 2)), {}),
    ("CSC without grad", lambda a, x: a @ x, (sparse(torch.sparse_csc), leaf(3, 2)), {}),
    ("mkldnn without grad", lambda a, x: a.to_dense() * x, (torch.ones(3).to_mkldnn(), leaf(3)), {}),
    ("values of a sparse input", torch.sparse.mm, (sparse(torch.sparse_coo, tracked=True), leaf(3, 2)),
     {"masked": True}),
    ("values of a CSR input", torch.sparse.mm, (sparse(torch.sparse_csr, tracked=True), leaf(3, 2)), {"masked": True}),
    ("values of a CSC input", lambda a: a.to_dense() ** 2, sparse(torch.sparse_csc, tracked=True), {"masked": True}),
    ("values that are summed", lambda a: a.to_dense() ** 2, uncoalesced(), {"masked": True}),
    ("all of a sparse input", lambda a, x: a @ x, (sparse(torch.sparse_coo, tracked=True), leaf(3, 2)), {}),
    ("all of a CSR input", lambda a, x: a @ x, (sparse(torch.sparse_csr, tracked=True), leaf(3, 2)), {}),
    ("all of a sum", lambda a: a.to_dense(masked_grad=False) ** 2, uncoalesced(), {}),
    ("fast mode", lambda x: x.cumprod(0), leaf(5), {"fast_mode": True, "nondet_tol": 1e-7}),
]  # fmt: skip
"""Name, function, inputs, options."""

RIGHT_TWICE: list[Case] = [
    ("sin", torch.sin, leaf(4), {}),
    ("a product", lambda x, w: (x @ w).tanh(), (leaf(2, 3), leaf(3, 2, seed=1)), {}),
    ("linear", lambda x: 3 * x, leaf(3), {}),
    ("custom Function", Cube.apply, leaf(3), {}),
    ("complex", lambda z: z * z.conj() + z.exp(), leaf(2, dtype=C128), {}),
    ("sparse without grad", lambda a, x: (a @ x).tanh(), (sparse(torch.sparse_coo), leaf(3, 2)), {}),
    ("all of a sparse input", lambda a, x: a @ x, (sparse(torch.sparse_coo, tracked=True), leaf(3, 2)), {}),
    ("subclass", lambda x: x.doubled() ** 3, Doubling.leaf(3), {}),
    ("strided cotangents", lambda x: (x.sin(), x.cos()), leaf(2, 3), {"gen_non_contig_grad_outputs": True}),
    ("forward over reverse", torch.tanh, leaf(3), {"check_fwd_over_rev": True, "check_batched_grad": True}),
]

MISSED: list[Case] = [
    ("scaled by 1.0001", wrong(lambda g, x: g * 3 * x**2 * 1.0001), leaf(4), {}),
    ("one element", wrong(one_element), leaf(6), {}),
    ("g squared", wrong(lambda g, x: g * g * 3 * x**2), leaf(4), {}),
    ("the sign of g", wrong(lambda g, x: g.sign() * 3 * x**2), leaf(4), {}),
    ("g cut off at 1", wrong(lambda g, x: g.clamp(-1, 1) * 3 * x**2), leaf(4), {}),
    ("strides ignored", wrong(strides_ignored), leaf(2, 3), {}),
    ("a small sum", wrong(lambda g, x: g * (3 * x**2 + 1e-6)), leaf(4), {}),
    ("rounded to float32", wrong(lambda g, x: (g.float() * 3 * x.float() ** 2).double()), leaf(4), {}),
    ("zero for a small gradient", wrong(lambda g, x: 0 * x * g, lambda x: 1e-6 * x**3), leaf(4), {}),
    ("sign of a small gradient", wrong(lambda g, x: -3e-7 * x**2 * g, lambda x: 1e-7 * x**3), leaf(4), {}),
    ("both outputs together", CrossTerm.apply, leaf(3), {}),
    ("a tangent", WrongTangent.apply, leaf(3), {"check_forward_ad": True}),
    ("one of many", wrong(lambda g, x: g * torch.cat([x.cos()[:-1], 0 * x[-1:]]), torch.sin), leaf(2000),
     {"fast_mode": True}),
]  # fmt: skip
"""Wrong gradients that torch's gradcheck passes."""

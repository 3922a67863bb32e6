"""jax's check_grads, where jax is installed: the same operator in jax, with the same wrong backward, at the same point.

An operator counts as the same where its values at the point are torch's. The backward is planted with jax.custom_vjp;
it calls jax's own and then the fault, which is a torch function of arrays.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from conformance.corpus.planting import Wrong
from conformance.corpus.subjects import Subject

_UNARY = """
    sin cos tan asin:arcsin acos:arccos atan:arctan sinh cosh tanh asinh:arcsinh acosh:arccosh atanh:arctanh exp exp2
    expm1 log log10 log1p log2 sqrt reciprocal square sinc neg:negative deg2rad rad2deg abs conj_physical:conj
    real imag angle
"""
_BINARY = """
    add sub:subtract mul:multiply div.no_rounding_mode:divide true_divide pow:power float_power atan2:arctan2
    logaddexp logaddexp2 maximum minimum fmax fmin hypot matmul mm:matmul bmm:matmul mv:matmul dot outer:outer
    inner:inner vdot kron cross xlogy
"""
_SPECIAL = "erf erfc erfinv lgamma:gammaln digamma i0 i0e special.i1:i1 special.i1e:i1e special.ndtr:ndtr logit"


def installed() -> bool:
    """Whether there is a jax."""
    return importlib.util.find_spec("jax") is not None


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """jax's functions by the names of op_db, each called with the sample's arguments."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def axes(dim: Any) -> Any:
        return tuple(dim) if isinstance(dim, (list, tuple)) else dim

    def reduced(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, dim=None, keepdim=False: function(x, axis=axes(dim), keepdims=keepdim)

    def norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None:
            x, dim = x.reshape(-1), 0
        return jnp.linalg.norm(x, ord=None if p == "fro" else p, axis=axes(dim), keepdims=keepdim)

    found: dict[str, Callable[..., Any]] = {
        "sum": reduced(jnp.sum),
        "mean": reduced(jnp.mean),
        "prod": reduced(jnp.prod),
        "amax": reduced(jnp.max),
        "amin": reduced(jnp.min),
        "max.reduction_no_dim": jnp.max,
        "min.reduction_no_dim": jnp.min,
        "logsumexp": reduced(jax.nn.logsumexp),
        "var": lambda x, dim=None, unbiased=True, keepdim=False: jnp.var(x, axes(dim), ddof=1, keepdims=keepdim),
        "std": lambda x, dim=None, unbiased=True, keepdim=False: jnp.std(x, axes(dim), ddof=1, keepdims=keepdim),
        "norm": norm,
        "linalg.vector_norm": lambda x, ord=2: jnp.linalg.norm(x.reshape(-1), ord=ord),
        "softmax": lambda x, dim: jax.nn.softmax(x, axis=dim),
        "log_softmax": lambda x, dim: jax.nn.log_softmax(x, axis=dim),
        "cumsum": lambda x, dim: jnp.cumsum(x, axis=dim),
        "cumprod": lambda x, dim: jnp.cumprod(x, axis=dim),
        "logcumsumexp": lambda x, dim: jax.lax.cumlogsumexp(x, axis=dim),
        "sort": lambda x, dim=-1, descending=False, stable=False: jnp.sort(x, axis=dim, descending=descending),
        "gather": lambda x, dim, index: jnp.take_along_axis(x, index, axis=dim),
        "take_along_dim": lambda x, index, dim: jnp.take_along_axis(x, index, axis=dim),
        "index_select": lambda x, dim, index: jnp.take(x, index, axis=dim),
        "take": lambda x, index: jnp.take(x.reshape(-1), index),
        "linalg.cholesky": lambda x, upper=False: jnp.linalg.cholesky(x + jnp.conj(x.mT), upper=upper),
        "linalg.solve": lambda a, b, left=True: jnp.linalg.solve(a, b),
        "linalg.inv": jnp.linalg.inv,
        "linalg.det": jnp.linalg.det,
        "linalg.slogdet": lambda x: jnp.linalg.slogdet(x)[1],
        "linalg.matrix_power": jnp.linalg.matrix_power,
        "linalg.multi_dot": lambda xs: jnp.linalg.multi_dot(xs),
        "matrix_exp": jax.scipy.linalg.expm,
        "trace": jnp.trace,
        "tril": lambda x, diagonal=0: jnp.tril(x, diagonal),
        "triu": lambda x, diagonal=0: jnp.triu(x, diagonal),
        "transpose": jnp.swapaxes,
        "flip": lambda x, dims: jnp.flip(x, dims),
        "roll": lambda x, shifts, dims=None: jnp.roll(x, shifts, dims),
        "repeat": lambda x, repeats: jnp.tile(x, repeats),
        "tile": jnp.tile,
        "expand": jnp.broadcast_to,
        "cat": lambda xs, dim=0: jnp.concatenate(xs, axis=dim),
        "stack": lambda xs, dim=0: jnp.stack(xs, axis=dim),
        "where": lambda x, condition, y: jnp.where(condition, x, y),
        "rsqrt": jax.lax.rsqrt,
        "sigmoid": jax.nn.sigmoid,
        "nn.functional.logsigmoid": jax.nn.log_sigmoid,
        "nn.functional.softplus": jax.nn.softplus,
        "nn.functional.silu": jax.nn.silu,
        "nn.functional.mish": jax.nn.mish,
        "nn.functional.gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
        "nn.functional.elu": lambda x, alpha=1.0: jax.nn.elu(x, alpha),
        "nn.functional.softsign": jax.nn.soft_sign,
        "nn.functional.linear": lambda x, w, b=0.0: x @ w.T + b,
    }
    for words, module in ((_UNARY, jnp), (_BINARY, jnp), (_SPECIAL, jax.scipy.special)):
        for word in words.split():
            name, _, theirs = word.partition(":")
            function = getattr(module, theirs or name, None)
            if function is not None:
                found.setdefault(name, function)
    return found


def _array(value: Any) -> Any:
    import jax.numpy as jnp

    if isinstance(value, torch.Tensor):
        return jnp.asarray(value.detach().resolve_conj().resolve_neg().numpy())
    return value


def counterpart(subject: Subject) -> Callable[..., Any] | None:
    """The subject as a jax function of its inputs; None where jax lacks it, or gives other values."""
    from torch.utils import _pytree as pytree

    if not installed() or (function := functions().get(subject.operator)) is None:
        return None

    def call(*inputs: Any) -> Any:
        args, kwargs = pytree.tree_map(_array, subject.call(*inputs))
        return function(*args, **kwargs)

    try:
        value = np.asarray(call(*(_array(one) for one in subject.inputs)))
    except Exception:  # other arguments than this sample's
        return None
    expected = subject.output.resolve_conj().numpy()
    same = value.dtype == expected.dtype and value.shape == expected.shape
    return call if same and np.allclose(value, expected, rtol=1e-9, atol=1e-12) else None


_COUNTERPARTS: dict[int, Callable[..., Any] | None] = {}


def judge(subject: Subject, wrong: Wrong) -> str | None:
    """PASS or FAIL, by check_grads with its defaults in reverse mode; None where jax lacks the operator."""
    if not installed():
        return None
    if id(subject) not in _COUNTERPARTS:
        _COUNTERPARTS.clear()
        _COUNTERPARTS[id(subject)] = counterpart(subject)
    function = _COUNTERPARTS[id(subject)]
    if function is None:
        return None
    import jax
    from jax.test_util import check_grads

    planted = jax.custom_vjp(lambda *inputs: function(*inputs))

    def backward(inputs: Any, cotangent: Any) -> Any:
        found = jax.vjp(function, *inputs)[1](cotangent)
        points = [torch.from_numpy(np.array(one)).requires_grad_() for one in inputs]
        along, *right = (torch.from_numpy(np.array(one)) for one in (cotangent, *found))
        changed = wrong(points, along, tuple(right))
        return tuple(_array(one) for one in changed)

    planted.defvjp(lambda *inputs: (function(*inputs), inputs), backward)
    try:
        check_grads(planted, tuple(_array(one) for one in subject.inputs), order=1, modes=["rev"])
    except AssertionError:
        return "FAIL"
    return "PASS"

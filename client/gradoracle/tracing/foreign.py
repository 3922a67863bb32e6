"""Functions of other arrays than torch's: of numpy, of jax, of numbers.

Autograd has no gradient of them, and a claim is judged by differences alone: the function gets what the caller gave in
the place of torch tensors, and what it gives is made into tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from gradoracle import claims
from gradoracle.errors import TensorError, TraceError
from gradoracle.tracing import blame
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.given import of_numpy
from gradoracle.tracing.naming import name_of
from gradoracle.tracing.refusals import refusal

Kinds = frozenset[str]
"""Names of types, as errors about arguments of these types have them."""

TENSORS: Kinds = frozenset({"Tensor"})


def calls(call: Call, inputs: Sequence[Any]) -> Iterator[tuple[Call, Kinds]]:
    """The same call with arrays of the caller's kinds, and then with tensors that require no grad."""
    if not all(isinstance(one, torch.Tensor) for one in inputs):
        yield _converting(call, inputs), TENSORS | {type(one).__name__ for one in inputs}
    yield _converting(call, None), TENSORS


def is_about(error: Exception, kinds: Kinds) -> bool:
    """Whether a function cannot take what it got, or gives no tensors; else it raises for a reason of its own."""
    return isinstance(error, TraceError) or any(kind in str(error) for kind in kinds)


def own_error(found: Sequence[tuple[Exception, Kinds]]) -> Exception:
    """Of the errors that a function raised for arguments of several kinds, the first that is the function's own."""
    return next((error for error, kinds in found if not is_about(error, kinds)), found[0][0])


def no_gradient(function: Callable[..., Any]) -> TraceError:
    """The refusal of such a function where nothing is claimed."""
    return refusal(
        f"{name_of(function)} is no function of torch tensors that gives torch tensors, so that autograd has no "
        "gradient of it",
        blame.of_function(function),
        "give the gradient that you have as claimed=, which is then judged by differences",
        construct="function that autograd does not follow",
    )


def _converting(call: Call, inputs: Sequence[Any] | None) -> Call:
    """The call of a function that gets arrays as those in `inputs`, or detached tensors, and whose results become
    tensors."""
    inner = call.fn

    @functools.wraps(inner, updated=())
    def function(*args: Any, **kwargs: Any) -> Any:
        given = args if inputs is None else map(_as_given, args, inputs)
        return pytree.tree_map(_tensor, inner(*given, **kwargs))

    function.__qualname__ = name_of(inner)
    return call.detached(function)


def _as_given(value: Any, like: Any) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(like, torch.Tensor):
        return value
    return claims.as_given(claims.host_array(value, "inputs"), like)


def _tensor(value: Any) -> Any:
    """A result as a tensor, if it is numbers."""
    numbers = isinstance(value, np.ndarray | np.generic | bool | int | float | complex) or hasattr(value, "__dlpack__")
    if isinstance(value, torch.Tensor) or not numbers:
        return value
    try:
        return of_numpy(np.asarray(value) if isinstance(value, int) else claims.host_array(value, "a result"))
    except (TensorError, TypeError):  # texts or objects, of which whoever asked for tensors will tell
        return value

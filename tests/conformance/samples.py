"""The cases: operators of torch's op_db with their samples, each as a function and what to call it with."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates some of what its own tests use
    from torch.testing._internal import common_methods_invocations
from torch.utils import _pytree as pytree

# Some entries of op_db seed torch themselves. Here the seed is the request's, so they must not.
common_methods_invocations.wrapper_set_seed = (  # type: ignore[attr-defined]  # a name that it imports
    lambda operator, *args, **kwargs: operator(*args, **kwargs)
)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One sample of one operator."""

    operator: str
    index: int
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def operators(dtype: torch.dtype) -> list[Any]:
    """The OpInfos that are differentiable in the dtype, by name."""
    found = [
        one
        for one in common_methods_invocations.op_db
        if one.supports_autograd and dtype in one.supported_backward_dtypes("cpu")  # type: ignore[no-untyped-call]
    ]
    return sorted(found, key=full_name)


def full_name(operator: Any) -> str:
    """ "linalg.norm" with its variant: "linalg.norm.subgradients_at_zero"."""
    variant = operator.variant_test_name
    return f"{operator.name}.{variant}" if variant else str(operator.name)


def cases(operator: Any, dtype: torch.dtype, limit: int | None = None) -> Iterator[Case]:
    """The samples of an operator that have a gradient; only the first `limit` of them, if given.

    The function ends with the sample's own output_process_fn_grad, which op_db's gradient tests use too: the outputs of
    svd, say, are determined only up to a phase, and it keeps what is determined.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # All at once: a generator that is put away half-way ends its no_grad region in the middle of somebody's trace.
        samples = list(operator.sample_inputs("cpu", dtype, requires_grad=True))
        for index, sample in enumerate(samples[:limit]):
            fn = _function(operator, sample.output_process_fn_grad)
            args = (sample.input, *sample.args)
            if operator.name.startswith("as_strided") and _is_part(sample.input):
                fn, args = _on_all_of_the_memory(fn, sample.input), (_memory(sample.input), *sample.args)
            yield Case(full_name(operator), index, fn, args, dict(sample.kwargs))


def _is_part(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.nbytes


def _memory(view: torch.Tensor) -> torch.Tensor:
    """All of the memory that a tensor is a view of, as a tensor of one dimension."""
    return torch.as_strided(view.detach(), (view.untyped_storage().nbytes() // view.itemsize,), (1,), 0)


def _on_all_of_the_memory(fn: Callable[..., Any], view: torch.Tensor) -> Callable[..., Any]:
    """as_strided can leave the tensor that it is called on, and a request carries tensors, not the memory around them:
    so the memory is the argument, and taking the view of it a part of the function."""
    size, stride, offset = tuple(view.shape), view.stride(), int(view.storage_offset())

    def on_memory(memory: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return fn(torch.as_strided(memory, size, stride, offset), *args, **kwargs)

    on_memory.__qualname__ = fn.__qualname__
    return on_memory


def _function(operator: Any, processed: Callable[[Any], Any]) -> Callable[..., Any]:
    def fn(*args: Any, **kwargs: Any) -> Any:
        return tensors_of(processed(operator(*args, **kwargs)))

    fn.__qualname__ = full_name(operator)
    return fn


def tensors_of(result: Any) -> Any:
    """The tensors of a result in a form that the wire knows, in a tuple if they are several."""
    found = [_with_wire_form(one) for one in pytree.tree_leaves(result) if isinstance(one, torch.Tensor)]
    return found[0] if len(found) == 1 else tuple(found)


def _with_wire_form(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    return tensor.to(torch.complex64) if tensor.dtype is torch.complex32 else tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A dense tensor of an argument: the argument itself, or the indices or values of a sparse one."""

    tensor: torch.Tensor
    place: int
    """Of the argument among the leaves of (args, kwargs)."""
    is_values: bool = False


def parts(case: Case) -> list[Part]:
    """The dense tensors behind the arguments, in the order in which go.trace makes inputs of them."""
    found = []
    for place, leaf in enumerate(pytree.tree_leaves((case.args, case.kwargs))):
        if not isinstance(leaf, torch.Tensor):
            continue
        leaf = leaf.detach()
        if leaf.layout is torch.strided:
            found.append(Part(leaf, place))
            continue
        found += [Part(one, place) for one in indices_of(leaf)]
        found.append(Part(values_of(leaf), place, is_values=True))
    return found


def indices_of(sparse: torch.Tensor) -> Sequence[torch.Tensor]:
    """The indices of a sparse tensor: one tensor for COO, two for the others."""
    if sparse.layout is torch.sparse_coo:
        return [sparse._indices()]
    if sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [sparse.crow_indices(), sparse.col_indices()]
    return [sparse.ccol_indices(), sparse.row_indices()]


def values_of(sparse: torch.Tensor) -> torch.Tensor:
    """The values of a sparse tensor."""
    return sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()


def silence() -> None:
    """No warnings in this process, nor those of vmap about operators that have no rule for batches."""
    warnings.simplefilter("ignore")
    torch._C._debug_only_display_vmap_fallback_warnings(False)  # type: ignore[attr-defined]  # not in torch's stubs

"""What a function is called with: which tensors, under which names, and how to call it with others."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.utils import _pytree as pytree

from gradoracle.dtypes import NUMBERS
from gradoracle.errors import TraceError
from gradoracle.tracing import blame
from gradoracle.tracing.modules import swapped
from gradoracle.tracing.naming import name_of, parameter_at
from gradoracle.tracing.refusals import refusal

COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor that the function works on, and that may differ from run to run."""

    name: str
    tensor: torch.Tensor
    """The caller's own; never handed to the function."""
    requires_grad: bool
    is_buffer: bool = False
    """Whether it is a buffer of a module: no input, but a constant that the function may change for itself."""
    is_index: bool = False
    """Whether it holds the indices of a sparse argument, which must stay as they are for the argument to be valid."""

    @property
    def moves(self) -> bool:
        """Whether it is to be moved a little to get to another point."""
        return not self.is_buffer and (self.tensor.dtype.is_floating_point or self.tensor.dtype.is_complex)

    @property
    def shuffles(self) -> bool:
        """Whether its elements are to be put in another order to get to another point."""
        return not (self.is_buffer or self.is_index or self.moves)


@dataclasses.dataclass(frozen=True, slots=True)
class Sparse:
    """How to make a sparse argument of its dense parts, which are leaves."""

    layout: torch.layout
    size: tuple[int, ...]
    parts: tuple[int, ...]
    """Places of the indices and the values among the leaves."""
    is_coalesced: bool = True

    def build(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sparse tensor. Its gradient flows into the values."""
        *indices, values = (tensors[place] for place in self.parts)
        if self.layout is torch.sparse_coo:
            return torch.sparse_coo_tensor(
                indices[0], values, self.size, is_coalesced=self.is_coalesced, check_invariants=False
            )
        return torch.sparse_compressed_tensor(
            indices[0], indices[1], values, self.size, layout=self.layout, check_invariants=False
        )


class Call:
    """A function with its arguments taken apart into named tensors; everything else is baked in."""

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        fn = _plain(fn)
        self.fn = fn
        self.leaves: list[Leaf] = []
        self._names: set[str] = set()
        self._modules: list[torch.nn.Module] = []
        self._swaps: dict[int, int] = {}  # id of a parameter or buffer -> its leaf
        self.copies = False
        """Whether the function gets copies of the leaves that require grad, because it changes them in place."""
        self._detaches = False
        if isinstance(fn, torch.nn.Module):
            self._add_module(fn, ())
        elif inspect.ismethod(fn) and isinstance(fn.__self__, torch.nn.Module):
            self._add_module(fn.__self__, ())
        self._signature = _signature(fn)
        named, self._spec = self._flatten(args, kwargs)
        self._slots: list[Any] = [self._slot(path, value) for path, value in named]
        # Nothing to be put together but a list of arguments, as nearly always.
        self._in_a_row = not kwargs and len(self._slots) == len(args) and all(map(pytree.tree_is_leaf, args))

    # ---- Taking apart

    def _flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[tuple[Any, Any]], pytree.TreeSpec]:
        """Paths and values of everything that was passed."""
        tree: Any
        if self._signature is not None:
            try:
                tree = dict(self._signature.bind(*args, **kwargs).arguments)
            except TypeError as error:
                raise TypeError(f"{name_of(self.fn)}: {error}") from None
        else:
            tree = [list(args), dict(kwargs)]
        pairs, spec = pytree.tree_flatten_with_path(tree)
        return [(self._path(path), value) for path, value in pairs], spec

    def _path(self, path: Sequence[Any]) -> tuple[str, ...]:
        """The parts of the name of a place among the arguments."""
        parts = [_key(one) for one in path]
        if self._signature is None:
            if parts[0] == "1":
                return tuple(parts[1:])
            return (*parameter_at(self.fn, int(parts[1])), *parts[2:])
        parameter = self._signature.parameters[parts[0]]
        if parameter.kind is parameter.VAR_POSITIONAL and len(parts) > 1:
            before = list(self._signature.parameters).index(parts[0])
            return (*parameter_at(self.fn, before + int(parts[1])), *parts[2:])
        if parameter.kind is parameter.VAR_KEYWORD and len(parts) > 1:
            return tuple(parts[1:])
        return tuple(parts)

    def _slot(self, path: tuple[str, ...], value: Any) -> Any:
        """What stands for an argument between runs: the place of its leaf, a recipe, or the value itself."""
        if isinstance(value, torch.nn.Module):
            self._add_module(value, path)
            return value
        if not isinstance(value, torch.Tensor):
            return value
        _check_tensor(value, ".".join(path))
        tracked = value.dtype.is_floating_point or value.dtype.is_complex
        if value.layout is torch.strided:
            return _Place(self._add(path, value, tracked))
        return self._add_sparse(path, value, tracked)

    def _add(
        self,
        path: Iterable[str],
        tensor: torch.Tensor,
        requires_grad: bool,
        *,
        is_buffer: bool = False,
        is_index: bool = False,
    ) -> int:
        base = name = _shortened(".".join(path))
        count = 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        self.leaves.append(Leaf(name, tensor, requires_grad, is_buffer, is_index))
        return len(self.leaves) - 1

    def _add_sparse(self, path: tuple[str, ...], value: torch.Tensor, tracked: bool) -> Sparse:
        value = value.detach()
        tracked = (
            tracked and not value.dtype.is_complex
        )  # torch cannot differentiate by complex values of sparse tensors
        places = tuple(
            self._add((*path, name), one, tracked and name == "values", is_index=name != "values")
            for name, one in parts_of(value).items()
        )
        return Sparse(value.layout, tuple(value.shape), places, _is_coalesced(value))

    def _add_module(self, module: torch.nn.Module, path: tuple[str, ...]) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise refusal(
                f"{type(module).__name__} is a TorchScript module, whose parameters cannot be exchanged",
                blame.place(),
                "trace the Python module that it was made from",
                construct="TorchScript module",
            )
        self._modules.append(module)
        for is_buffer, pairs in ((False, module.named_parameters()), (True, module.named_buffers())):
            for name, tensor in pairs:
                if id(tensor) in self._swaps:
                    continue  # another module that was passed has it too
                _check_tensor(tensor, name)
                self._swaps[id(tensor)] = self._add((*path, name), tensor, tensor.requires_grad, is_buffer=is_buffer)

    def differentiable_by(self, place: int, wanted: bool) -> None:
        """Whether gradients by a leaf are wanted."""
        self.leaves[place] = dataclasses.replace(self.leaves[place], requires_grad=wanted)

    def detached(self, fn: Callable[..., Any]) -> Call:
        """The same call of another function that takes the same arguments, which gets tensors that require no grad."""
        found = copy.copy(self)
        found.leaves, found.fn, found._detaches = list(self.leaves), fn, True
        return found

    # ---- Calling

    @property
    def device(self) -> torch.device:
        """Where the function runs: where its first tensor is."""
        return self.leaves[0].tensor.device if self.leaves else torch.device("cpu")

    def fresh(self, values: Sequence[torch.Tensor] | None = None, *, hooks: bool = True) -> list[torch.Tensor]:
        """New tensors for one run, row-major, with the caller's values or those given; leaves of autograd.

        They have the hooks that the caller put on the originals, unless it is for a graph, which brings them itself.
        """
        found = []
        for place, leaf in enumerate(self.leaves):
            source = leaf.tensor if values is None else values[place]
            own = source.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            own.requires_grad_(leaf.requires_grad)
            if hooks and leaf.requires_grad:
                for hook in (getattr(leaf.tensor, "_backward_hooks", None) or {}).values():
                    own.register_hook(hook)  # type: ignore[no-untyped-call]
            found.append(own)
        return found

    def started(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the function gets for the leaves of one run."""
        return [one.clone() if self.copies and one.requires_grad else one for one in leaves]

    def run(self, tensors: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """Calls the function on the leaves in `tensors`. Its results under their names."""
        if self._detaches:
            tensors = [one.detach() for one in tensors]
        given = [_filled(slot, tensors) for slot in self._slots]
        if not self._modules:
            return self._outputs(self._called(given))
        with swapped(self._modules, {key: tensors[place] for key, place in self._swaps.items()}):
            return self._outputs(self._called(given))

    def _called(self, given: Sequence[Any]) -> Any:
        if self._in_a_row:
            return self.fn(*given)
        tree = pytree.tree_unflatten(given, self._spec)
        if self._signature is None:
            return self.fn(*tree[0], **tree[1])
        bound = inspect.BoundArguments(self._signature, OrderedDict(tree))
        return self.fn(*bound.args, **bound.kwargs)

    def _outputs(self, result: Any) -> list[tuple[str, torch.Tensor]]:
        if type(result) is torch.Tensor and _has_wire_form(result.dtype):
            return [("out", result)]
        pairs, _ = pytree.tree_flatten_with_path(result)
        pairs = [(path, value) for path, value in pairs if value is not None]
        for path, value in pairs:
            if not isinstance(value, torch.Tensor):
                at = ".".join(_key(one) for one in path)
                raise refusal(
                    f"{name_of(self.fn)} returned {_described(value)}{f' at {at}' if at else ''}, "
                    "and a graph gives tensors",
                    blame.of_function(self.fn),
                    "return tensors, alone or in tuples, lists and dicts",
                    construct="result that is no tensor",
                )
            if not _has_wire_form(value.dtype):
                dtype = str(value.dtype).removeprefix("torch.")
                raise refusal(
                    f"{name_of(self.fn)} returned a tensor of {dtype}, for which there is no wire form",
                    blame.of_function(self.fn),
                    "convert it before it is returned",
                    construct="result without a wire form",
                )
        if not pairs:
            raise refusal(
                f"{name_of(self.fn)} returned no tensor",
                blame.of_function(self.fn),
                "return the tensors that the graph is to give",
                construct="no results",
            )
        if isinstance(result, dict):
            return [(_shortened(".".join(_key(one) for one in path)), value) for path, value in pairs]
        if len(pairs) == 1:
            return [("out", pairs[0][1])]
        return [(f"out{place}", value) for place, (_, value) in enumerate(pairs)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """An argument that is a leaf."""

    index: int


def parts_of(sparse: torch.Tensor) -> dict[str, torch.Tensor]:
    """The dense parts of a sparse tensor by name, its values last."""
    if sparse.layout is torch.sparse_coo:
        return {"indices": sparse._indices(), "values": sparse._values()}
    return {name: getattr(sparse, name)() for name in (*COMPRESSED[sparse.layout], "values")}


def sparse_like(sparse: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same sparse tensor with other values."""
    *indices, _ = parts_of(sparse).values()
    recipe = Sparse(sparse.layout, tuple(sparse.shape), tuple(range(len(indices) + 1)), _is_coalesced(sparse))
    return recipe.build([*indices, values])


def _is_coalesced(sparse: torch.Tensor) -> bool:
    return sparse.layout is not torch.sparse_coo or sparse.is_coalesced()


def _filled(slot: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(slot, _Place):
        return tensors[slot.index]
    return slot.build(tensors) if isinstance(slot, Sparse) else slot


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind one that torch.compile made, which is what it promises to be equal to."""
    original = getattr(fn, "_orig_mod", None) or getattr(fn, "_torchdynamo_orig_callable", None)
    return original if original is not None else fn


def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn)
    except (ValueError, TypeError):  # written in C
        return None


def _key(key: Any) -> str:
    """One step of a path through containers."""
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _shortened(name: str) -> str:
    """Within the 200 bytes and the printable characters that graphs allow."""
    clean = "".join(letter if letter.isprintable() else "_" for letter in name) or "_"
    while len(clean.encode()) > 190:
        clean = clean[:-1]
    return clean


def _described(value: object) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"the {kind} {text}" if len(text) <= 40 else f"an object of type {kind}"


def _check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Refuses tensors that have no wire form."""
    kind = type(tensor)
    problem = ""
    if isinstance(tensor, UninitializedTensorMixin):
        raise _no_wire_form(name, "is not initialised yet", "run the module once before tracing it")
    if kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        problem = f"is a {kind.__name__}, a subclass of Tensor"
    elif tensor.is_quantized:
        problem = "is quantized"
    elif tensor.is_nested:
        problem = "is nested"
    elif tensor.device.type == "meta":
        problem = "is on the meta device and has no values"
    elif tensor.layout is not torch.strided and tensor.layout not in (torch.sparse_coo, *COMPRESSED):
        problem = f"has the layout {str(tensor.layout).removeprefix('torch.')}"
    elif not _has_wire_form(tensor.dtype):
        problem = f"is of {str(tensor.dtype).removeprefix('torch.')}"
    if problem:
        raise _no_wire_form(name, problem, "pass a plain dense tensor")


def _no_wire_form(name: str, problem: str, next_step: str) -> TraceError:
    text = f'the tensor "{name}" {problem}, for which there is no wire form'
    return refusal(text, blame.place(), next_step, construct="tensor without a wire form")


@functools.cache
def _has_wire_form(dtype: torch.dtype) -> bool:
    return str(dtype).removeprefix("torch.") in NUMBERS

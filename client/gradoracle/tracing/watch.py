"""Watches a function run: what it reads out of tensors, what it changes, and what it asks of autograd.

Two of torch's modes see different things. `Guard` sees calls of torch's Python functions, so also reads that no
operator tells of (`x.numpy()`, `x.shape`) and `register_hook`. `Observer` sees every operator that runs, below
autograd, so also writes into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental import proxy_tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gradoracle.errors import TraceError
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.blame import UNKNOWN, Place, of_function, place
from gradoracle.tracing.modes import Guard, Observer, tensors_in
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.refusals import refusal

INPUT, RANDOM, DYNAMIC = 1, 2, 4
"""What a node's value depends on: an input, the random numbers; and whether its size depends on values."""

_READING_OPERATORS = frozenset(
    {"aten::item", "aten::_local_scalar_dense", "aten::equal", "aten::allclose", "aten::is_nonzero"}
)
_TRUSTED = ("distributions/distribution.py", "nn/functional.py")
"""Parts of torch that look at values only to refuse bad ones: they may read a truth value."""


@dataclasses.dataclass(slots=True)
class Mark:
    """What is noted of a node when it is recorded."""

    tracked: bool
    """Whether autograd was recording."""
    depends: int
    place: Place


def mark_of(node: fx.Node) -> Mark:
    """The note of a node."""
    found: Mark = node.meta["gradoracle"]
    return found


@dataclasses.dataclass(slots=True)
class Hook:
    """A hook that the function put on the gradient of a value."""

    function: Callable[[torch.Tensor], torch.Tensor | None]
    value: torch.Tensor
    """As it was then."""
    node: fx.Node
    place: Place
    handle: Any = None

    @property
    def is_active(self) -> bool:
        """Whether it has not been taken away since."""
        if self.handle is None:
            return True
        known = self.handle.hooks_dict_ref()
        return known is not None and self.handle.id in known


class Watch:
    """One run under watch."""

    def __init__(self, call: Call, tensors: Sequence[torch.Tensor], reporter: Reporter) -> None:
        self.call = call
        self.hooks: list[Hook] = []
        self.lost_hooks: list[Place] = []
        """Hooks on tensors of which the tracer had lost sight."""
        self.saved_tensor_hooks: list[Place] = []
        self.random: list[tuple[str, Place]] = []
        self.changed: set[int] = set()
        """Places of the leaves that were changed in place."""
        self._reporter = reporter
        self._buffers = {place for place, leaf in enumerate(call.leaves) if leaf.is_buffer}
        self._inputs = {_storage_key(tensor): place for place, tensor in enumerate(tensors)}
        self._created = {_reference(one) for one in tensors}
        self._created_keys = {one.cdata for one in self._created}
        self._outside: set[StorageWeakRef] = set()
        self._outside_keys: set[int] = set()
        self._tracer: Any = None
        self._refused: TraceError | None = None
        self._failed: TraceError | None = None
        self._current = 0  # what the operator depends on that runs now
        self._wrote = 0  # what all the values depend on that were written into tensors
        self._written: dict[int, int] = {}  # and those that were written into each storage
        self._approved = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches what is traced inside; to be entered by the function that make_fx traces."""
        self._tracer = proxy_tensor.get_innermost_proxy_mode().tracer  # type: ignore[union-attr]
        for index, node in enumerate(self._tracer.graph.find_nodes(op="placeholder")):
            node.meta["gradoracle"] = Mark(True, 0 if index in self._buffers else INPUT, UNKNOWN)
        create = self._tracer.create_node
        self._tracer.create_node = functools.partial(self._record, create)
        try:
            with Guard(self):
                yield
        finally:
            self._tracer.create_node = create

    def observing(self) -> contextlib.AbstractContextManager[Any]:
        """Watches the operators that run; to be entered around make_fx."""
        return Observer(self)

    def check(self, *, completed: bool = False) -> None:
        """Raises the first refusal, which the function may have caught."""
        if self._refused is not None:
            raise self._refused
        if completed and self._failed is not None:
            raise self._failed
        if completed:
            self._check_shared()

    def _check_shared(self) -> None:
        """No argument that was changed in place shares memory with another one, which would have to change as well."""
        leaves = self.call.leaves
        for place_ in self.changed:
            for other, leaf in enumerate(leaves):
                if other != place_ and _share_memory(leaves[place_].tensor, leaf.tensor):
                    raise refusal(
                        f'the function changes "{leaves[place_].name}" in place, which shares memory with '
                        f'"{leaf.name}"; in a graph, inputs are apart',
                        of_function(self.call.fn),
                        "pass one of them and make the other of it, or pass copies",
                        construct="arguments that share memory",
                    )

    def refuse(self, what: str, next_step: str, *, construct: str) -> TraceError:
        """A refusal at the line that runs now. Kept, in case the caller's code catches it."""
        error = refusal(what, place(), next_step, construct=construct)
        self._refused = self._refused or error
        return error

    # ---- Nodes

    def _record(self, create: Callable[..., fx.Node], kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = create(kind, target, *args, **kwargs)
        depends = 0
        for source in node.all_input_nodes:
            depends |= mark_of(source).depends
        here = place() if kind == "call_function" else UNKNOWN
        if isinstance(target, torch._ops.OpOverload):
            depends = self._operator(node, target, depends, here)
        node.meta["gradoracle"] = Mark(torch.is_grad_enabled(), depends, here)
        self._reporter.operator()
        return node

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload, depends: int, here: Place) -> int:
        """What the node's value depends on."""
        if torch.Tag.nondeterministic_seeded in target.tags:
            self.random.append((str(target), here))
            depends |= RANDOM
        if target._schema.is_mutable:
            self._wrote |= depends
        if depends & (INPUT | RANDOM) and _size_depends_on_values(node, target):
            depends |= DYNAMIC
        self._current = depends
        if target._schema.name in _READING_OPERATORS:
            suspect = not self._approved and (depends | self._wrote) & (INPUT | RANDOM)
            if suspect and not self._is_validation(node, here):
                raise self.refuse_read(str(target.overloadpacket), depends)
        elif depends & DYNAMIC and any(str(one.type) == "List[Tensor]" for one in target._schema.returns):
            raise self._refuse_size(f"{target} takes apart")
        return depends

    @staticmethod
    def _is_validation(node: fx.Node, here: Place) -> bool:
        """Whether one of torch's own functions looks at a truth value, to raise an error if it is false."""
        if not here.library.startswith(_TRUSTED):
            return False
        meta = node.all_input_nodes[0].meta.get("tensor_meta")
        return meta is not None and meta.dtype is torch.bool

    def refuse_read(self, how: str, depends: int) -> TraceError:
        """A value goes from a tensor into Python, where tracing loses sight of it."""
        source = "random numbers" if depends & RANDOM and not depends & INPUT else "the inputs"
        return self.refuse(
            f"{how} takes a value that depends on {source} out of a tensor, and the graph would keep the value of this "
            "one run",
            "compute with tensors instead: torch.where for a branch, a 0-dimensional tensor for a number",
            construct=how,
        )

    def _refuse_size(self, how: str) -> TraceError:
        return self.refuse(
            f"{how} a tensor whose size depends on values, and the graph would keep the size of this one run",
            "compute the size with tensors, such as mask.sum(), or give every result a fixed size with torch.where",
            construct="size that depends on values",
        )

    # ---- Reads, as the guard sees them

    def node_of(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node that a tensor is the value of, as far as the tracer knows it."""
        slot = proxy_tensor.get_proxy_slot(tensor, self._tracer, None)
        if slot is None:
            return None
        found: fx.Node = slot.proxy.node
        return found

    def depends(self, tensor: torch.Tensor) -> int:
        """What a tensor's value depends on."""
        node = self.node_of(tensor)
        if node is not None:
            return mark_of(node).depends | self._written.get(_storage_key(tensor) or 0, 0)
        return INPUT if self.created(tensor) else 0

    @contextlib.contextmanager
    def reading(self, how: str, tensor: object) -> Iterator[None]:
        """Raises TraceError where a value that may differ from run to run leaves a tensor; else the operators inside,
        which read it, are let through."""
        before = self._approved
        if isinstance(tensor, torch.Tensor):
            validation = tensor.dtype is torch.bool and place().library.startswith(_TRUSTED)
            depends = self.depends(tensor)
            if depends & (INPUT | RANDOM) and not (how == "Tensor.__bool__" and validation):
                raise self.refuse_read(how, depends)
            self._approved = True
        try:
            yield
        finally:
            self._approved = before

    def read_size(self, how: str, tensor: object) -> None:
        """Raises TraceError where a size that may differ from run to run is looked at."""
        if isinstance(tensor, torch.Tensor) and self.depends(tensor) & DYNAMIC and not place().library:
            raise self._refuse_size(f"{how} reads the size of")

    def hooked(self, tensor: torch.Tensor, function: Callable[[torch.Tensor], Any], handle: Any) -> None:
        """Notes a hook on a gradient."""
        node = self.node_of(tensor)
        if node is None:
            self.lost_hooks.append(place())
            return
        with proxy_tensor.disable_proxy_modes_tracing():
            value = tensor.detach().clone()
        self.hooks.append(Hook(function, value, node, place(), handle))

    # ---- Memory, as the observer sees it

    def created(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's memory is a leaf's or came into being during the run."""
        key = _storage_key(tensor)
        return key is None or key in self._created_keys

    def takes(self, args: Any) -> None:
        """Notes memory that an operator gets and that nothing here made: the caller's."""
        for one in tensors_in(args):
            key = _storage_key(one)
            if key is not None and key not in self._created_keys:
                reference = _reference(one)
                self._outside.add(reference)
                self._outside_keys.add(reference.cdata)

    def ran(self, result: Any) -> None:
        """Notes the memory that an operator made, and who keeps what for the backward pass."""
        for one in tensors_in((result,)):
            key = _storage_key(one)
            if key is not None and key not in self._outside_keys:
                reference = _reference(one)
                self._created.add(reference)
                self._created_keys.add(reference.cdata)
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is not None and not str(getattr(hooks[0], "__module__", "")).startswith("torch."):
            here = place()
            if here not in self.saved_tensor_hooks:
                self.saved_tensor_hooks.append(here)

    def wrote(self, tensor: torch.Tensor) -> None:
        """Notes what the values depend on that are in a tensor's memory now."""
        key = _storage_key(tensor)
        if key is not None:
            self._written[key] = self._written.get(key, 0) | self._current

    def failed(self, func: torch._ops.OpOverload, error: Exception) -> None:
        """Notes an operator that raised. Where the function catches that, it may depend on values which way it goes."""
        if self._failed is None:
            name, kind = func._schema.name.removeprefix("aten::"), type(error).__name__.lstrip("_")
            self._failed = refusal(
                f"{name} raised {kind}, and the function went on: the graph would always go the way of this one run",
                place(),
                "let the error out, or compute a condition for torch.where",
                construct="an operator's error that is caught",
            )

    def writes(self, func: torch._ops.OpOverload, tensor: torch.Tensor) -> None:
        """Notes a write. Raises TraceError, before it happens, where it would change what is the caller's."""
        key = _storage_key(tensor)
        if key in self._inputs:
            self.changed.add(self._inputs[key])
        elif not self.created(tensor):
            name = func._schema.name.removeprefix("aten::")
            raise self.refuse(
                f"{name} changes a tensor of shape {list(tensor.shape)} that the function did not make and did not "
                "get as an argument, so that its result would depend on how often it ran",
                "pass the tensor as an argument and return its new value; if it is a module's, pass the module",
                construct="in-place change of a closed-over tensor",
            )


def _reference(tensor: torch.Tensor) -> StorageWeakRef:
    """Keeps the address of a tensor's storage from being used again, and not its memory."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    key = _storage_key(one)
    return one.numel() > 0 and key is not None and key == _storage_key(other)


def _storage_key(tensor: torch.Tensor) -> int | None:
    """Tells memory apart; None for tensors that have no one storage: sparse ones, and torch.func's wrappers."""
    if tensor.layout is not torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    key: int = tensor.untyped_storage()._cdata
    return key


def _size_depends_on_values(node: fx.Node, target: torch._ops.OpOverload) -> bool:
    if torch.Tag.dynamic_output_shape not in target.tags:
        return False
    if target._schema.name not in ("aten::index", "aten::_unsafe_index"):
        return True
    metas = [one.meta.get("tensor_meta") for one in node.all_input_nodes[1:]]
    return any(meta is not None and meta.dtype in (torch.bool, torch.uint8) for meta in metas)

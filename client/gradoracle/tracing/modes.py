"""The two of torch's modes through which a run is watched: what they see, and what they make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradoracle.errors import TraceError

if TYPE_CHECKING:
    from gradoracle.tracing.watch import Watch

_STATE = ("running_mean", "running_var")
"""Parameters that normalisations change in training, which their schemas do not say."""

_READING = ("_backward", "_functional", "_no_training", "_no_update")
"""Parts of the names of such as only read them."""


class Guard(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self._watch, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    supports_higher_order_operators = True

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        # In the backward pass the guard would take the looks at memory here for the caller's.
        with torch._C.DisableTorchFunction():
            self._watch.takes((*args, *kwargs.values()))
            written = list(_written(func, args, kwargs))
            for tensor in written:
                self._watch.writes(func, tensor)
        try:
            result = func(*args, **kwargs)
        except TraceError:
            raise
        except Exception as error:
            self._watch.failed(func, error)
            raise
        with torch._C.DisableTorchFunction():
            self._watch.ran(result)
            for tensor in written:
                self._watch.wrote(tensor)
        return result


def _written(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that a call may change."""
    for position, name in _writable(func):
        if name not in _STATE or _trains(func, args, kwargs):
            yield from tensors_in((args[position] if position < len(args) else kwargs.get(name),))


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among arguments or results, those in lists too."""
    for one in values:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from (each for each in one if isinstance(each, torch.Tensor))


@functools.cache
def _writable(func: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Positions and names of the parameters that an operator may change."""
    reads = any(part in func._schema.name for part in _READING)
    return tuple(
        (position, one.name)
        for position, one in enumerate(func._schema.arguments)
        if (one.alias_info is not None and one.alias_info.is_write) or (one.name in _STATE and not reads)
    )


def _trains(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a normalisation changes its running statistics."""
    for position, one in enumerate(func._schema.arguments):
        if one.name in ("training", "train", "use_input_stats"):
            return bool(args[position] if position < len(args) else kwargs.get(one.name))
    return True


# ---- What the guard does about a call


def _value(how: str) -> Callable[..., Any]:
    def handle(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
        with watch.reading(how, args[0]):
            return func(*args, **kwargs)

    return handle


def _size(how: str) -> Callable[..., Any]:
    def handle(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
        watch.read_size(how, args[0])
        return func(*args, **kwargs)

    return handle


def _data(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """x.data, of which the tracer would lose sight: the same memory without autograd, as detach gives it."""
    return args[0].detach()


def _set_data(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    raise watch.refuse(
        "assigning to .data exchanges a tensor's memory, which no operator expresses",
        "use copy_() under torch.no_grad()",
        construct="assignment to .data",
    )


def _printed(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """Text is for people. The operators that read the values are not part of the function, and where these may differ
    from run to run, no value gets into the text: what would be made of it differs from what the function makes."""
    if isinstance(args[0], torch.Tensor) and watch.depends(args[0]):
        return f"<traced tensor of shape {list(args[0].shape)}>"
    with proxy_tensor.disable_proxy_modes_tracing():
        return func(*args, **kwargs)


def _hook(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    handle = func(*args, **kwargs)
    watch.hooked(args[0], args[1] if len(args) > 1 else kwargs["hook"], handle)
    return handle


_READS = (
    "item tolist numpy __bool__ __int__ __float__ __complex__ __index__ __array__ __dlpack__ __deepcopy__ "
    "__reduce_ex__ data_ptr untyped_storage storage _typed_storage"
)
_SIZES = "size numel nelement __len__ __iter__"

_HANDLERS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch.Tensor, name): _value(f"Tensor.{name}") for name in _READS.split()},
    **{getattr(torch.Tensor, name): _size(f"Tensor.{name}") for name in _SIZES.split()},
    torch.numel: _size("torch.numel"),
    torch.Tensor.shape.__get__: _size("Tensor.shape"),  # type: ignore[attr-defined]
    torch.Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.Tensor.__repr__: _printed,
    torch.Tensor.__format__: _printed,
    torch.Tensor.register_hook: _hook,
}

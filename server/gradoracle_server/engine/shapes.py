"""Shape propagation: what each node of a graph would allocate, found without allocating anything.

An operator's results are those of the same call on torch's meta tensors, which have a shape and no memory. Such a call
costs 10 to 130 us, so results are remembered by operator and shapes, and elementwise operators, which most nodes are,
are worked out here by broadcasting. What meta tensors cannot tell (`nonzero` and all that depends on values) is
unknown, and so is all that follows from it: to be bounded by the limit of the process itself.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import _compile

from gradoracle_server.engine import arguments, memory, meter

_META = torch.device("meta")
_REMEMBERED = 8192  # results of calls, kept by a process
_TENSOR = 512  # bytes of host memory that a tensor takes beside its elements
_WORTH_A_LOOK = 1 << 20  # bytes of arguments from which on what a composite operator does inside is looked at
_LONGEST_RANK = 64  # torch has no tensors of more axes


class Shape(NamedTuple):
    """A tensor without its elements."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...] | None = None  # None: row-major, without gaps

    @property
    def bytes(self) -> int:
        """What its elements take."""
        return math.prod(self.sizes) * self.dtype.itemsize


Value: TypeAlias = "Shape | tuple[Shape | None, ...] | None"
"""What a node returns: a tensor, several, or something unknown."""


class Call(NamedTuple):
    """What a call returns, the bytes that it allocates for that, and which of the tensors among its arguments, counted
    from 0, each result is a view of; -1 where of none."""

    value: Value
    allocated: int
    views: tuple[int, ...] = (-1,)
    passing: int = 0  # bytes that it holds on the way beside what it returns


UNKNOWN = Call(None, 0)
_known: dict[object, Call] = {}


def of(tensor: torch.Tensor) -> Shape:
    """The shape of a tensor that there is."""
    strides = None if tensor.is_contiguous() else tensor.stride()
    return Shape(tuple(tensor.shape), tensor.dtype, strides)


def on_meta(shape: Shape) -> torch.Tensor:
    """A meta tensor of that shape."""
    if shape.strides is None:
        return torch.empty(shape.sizes, dtype=shape.dtype, device=_META)
    return torch.empty_strided(shape.sizes, shape.strides, dtype=shape.dtype, device=_META)


def load() -> None:
    """Loads what torch loads at the first call on meta tensors, which takes a quarter of a second."""
    _leave_the_compiler_out()
    _on_meta(torch.ops.aten.mul.Tensor, (Shape((2,), torch.float32), Shape((2,), torch.float32)), {})


def _leave_the_compiler_out() -> None:
    """Marks the functions that torch keeps from its compiler as being kept from it.

    The Python code that most operators run on meta tensors is among them, and torch would import its compiler, 500
    modules in 0.7 s, to mark each at its first call. Nothing is compiled in a worker. Where a release of torch does
    this in another way, the marks mean nothing, and the compiler is imported after all.
    """
    code = getattr(_compile._disable_dynamo(lambda: None), "__code__", None)
    if code is None or "fn" not in code.co_freevars:
        return
    place = code.co_freevars.index("fn")
    for one in gc.get_referrers(code):
        if isinstance(one, types.FunctionType) and one.__code__ is code and one.__closure__:
            kept = one.__closure__[place].cell_contents
            kept.__dynamo_disable = kept


def call(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """What a call would do; tensors among its arguments are given as `Shape`.

    Raises OverflowError where a result has more bytes than can be counted.
    """
    args, kwargs = arguments.in_order(overload._schema, args, kwargs)
    special = _RULES.get(overload._schema.name) or (_none if overload._schema.name.startswith(_SKIPPED) else None)
    if special is None and torch.Tag.pointwise in overload.tags:
        special = _pointwise
    if special is not None:
        return special(overload, args, kwargs)
    return _remembered(overload, args, kwargs)


def _remembered(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    key = (overload, *map(_frozen, args), *((name, _frozen(one)) for name, one in kwargs.items()))
    found = _known.get(key)
    if found is None:
        if len(_known) >= _REMEMBERED:
            for old in list(itertools.islice(_known, _REMEMBERED // 2)):
                del _known[old]
        found = _known[key] = _on_meta(overload, args, kwargs)
    return found


def _frozen(argument: Any) -> Any:
    if isinstance(argument, list):
        return ("list", *map(_frozen, argument))
    if isinstance(argument, Shape):
        return argument
    return (type(argument), argument)  # 1, 1.0 and True are equal, and mean different dtypes


def _on_meta(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    tensors: list[torch.Tensor] = []

    def made(argument: Any) -> Any:
        if not isinstance(argument, Shape):
            return argument
        tensors.append(on_meta(argument))
        return tensors[-1]

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if not _is_composite(overload):
                return _described(invoke(overload, args, kwargs, made), tensors)
            lifted = [_each(made, one) for one in args], {name: _each(made, one) for name, one in kwargs.items()}
            if sum(one.nbytes for one in tensors) < _WORTH_A_LOOK:
                return _described(invoke(overload, *lifted, _itself), tensors)
            with meter.Meter(None, *tensors) as inside:
                call = _described(invoke(overload, *lifted, _itself), tensors)
            return call._replace(passing=max(0, inside.peak - call.allocated))
    except Exception as error:
        if memory.is_overflow(error):
            raise OverflowError(str(error)) from None
        return UNKNOWN  # the run itself will say what is wrong, or get along with values


def _each(function: Callable[[Any], Any], argument: Any) -> Any:
    return [_each(function, one) for one in argument] if isinstance(argument, list) else function(argument)


def _itself(argument: Any) -> Any:
    return argument


@functools.cache
def _is_composite(overload: torch._ops.OpOverload) -> bool:
    """Whether it is made of other operators, whose results take memory, too."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(str(overload._name), "CompositeImplicitAutograd"))


def invoke(
    overload: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    resolve: Callable[[Any], Any],
) -> Any:
    """Calls an operator on meta tensors, which `resolve` gives for the arguments that stand for tensors."""

    def lifted(argument: Any) -> Any:
        if isinstance(argument, list):
            return [lifted(one) for one in argument]
        return _META if isinstance(argument, torch.device) else resolve(argument)

    named = {name: lifted(one) for name, one in kwargs.items()}
    if _makes_tensors(overload):
        named["device"] = _META
    return overload(*map(lifted, args), **named)


@functools.cache
def _makes_tensors(overload: torch._ops.OpOverload) -> bool:
    """Whether it makes a tensor out of none, on a device that it is told."""
    parameters = overload._schema.arguments
    tensors = any("Tensor" in str(one.type) for one in parameters)
    return not tensors and any(one.name == "device" and one.kwarg_only for one in parameters)


def _described(made: Any, arguments: Sequence[torch.Tensor]) -> Call:
    results = made if isinstance(made, tuple | list) else (made,)
    places = {one.untyped_storage()._cdata: place for place, one in enumerate(arguments)}
    allocated: dict[int, int] = {}
    views = []
    for one in results:
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            views.append(places.get(storage._cdata, -1))
            if views[-1] < 0:
                allocated[storage._cdata] = storage.nbytes()
        else:
            views.append(-1)
    shapes = tuple(of(one) if isinstance(one, torch.Tensor) else None for one in results)
    total = sum(allocated.values())
    return Call(shapes if isinstance(made, tuple | list) else shapes[0], total, tuple(views))


def _pointwise(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """By broadcasting; the dtype of the result is what it is for tensors of one element."""
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, Shape)]
    if not given or len(overload._schema.returns) != 1:
        return _remembered(overload, args, kwargs)
    first = overload._schema.arguments[0].alias_info
    if first is not None and first.is_write:
        return Call(given[0], 0, (0,))
    sizes = broadcast([one.sizes for one in given])
    if sizes is None:
        return UNKNOWN
    # Which of the results is taken for a view is of no matter: elementwise operators return none.
    few = _remembered(overload, [_small(one) for one in args], {name: _small(one) for name, one in kwargs.items()})
    if not isinstance(few.value, Shape):
        return UNKNOWN
    value = Shape(sizes, few.value.dtype)
    return Call(value, value.bytes if few.views == (-1,) else 0, few.views)


def _small(argument: Any) -> Any:
    """An argument that makes the same dtype, from few possible ones, so that there is little to remember."""
    if isinstance(argument, Shape):
        return Shape((1,) if argument.sizes else (), argument.dtype)
    kind = type(argument)
    return kind(1) if kind in (int, float, complex) else argument


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The common shape, or None where there is none."""
    if all(one == shapes[0] for one in shapes):
        return shapes[0]
    rank = max(map(len, shapes))
    found = []
    for axis in range(-rank, 0):
        sizes = {one[axis] for one in shapes if len(one) >= -axis} - {1}
        if len(sizes) > 1:
            return None
        found.append(sizes.pop() if sizes else 1)
    return tuple(found)


def _argument(
    overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str
) -> Any:
    """An argument by its place or name, or its default; None where there is no such parameter."""
    if place < len(args):
        return args[place]
    if name in kwargs or place >= len(overload._schema.arguments):
        return kwargs.get(name)
    return overload._schema.arguments[place].default_value


def _none(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    return UNKNOWN


def _combinations(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """A mask over the r-fold product is made before what it selects."""
    tensor, count = args[0], _argument(overload, args, kwargs, 1, "r")
    if not isinstance(tensor, Shape) or not isinstance(count, int) or count < 0:
        return UNKNOWN
    mask = math.prod(tensor.sizes) ** min(count, _LONGEST_RANK)
    return Call(None, mask + count * _TENSOR)


def _counts(place: int, name: str) -> Callable[..., Call]:
    """A rule for operators that return as many numbers as an argument says, or more."""

    def rule(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        count = _argument(overload, args, kwargs, place, name)
        return Call(None, 8 * count) if isinstance(count, int) and count > 0 else UNKNOWN

    return rule


def _pieces(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Operators that take a tensor apart: what costs is the number of views."""
    tensor = args[0]
    if not isinstance(tensor, Shape):
        return UNKNOWN
    count = _number_of_pieces(overload, args, kwargs, tensor)
    if count > _MANY:
        return Call(None, count * _TENSOR)
    return _remembered(overload, args, kwargs)


_MANY = 4096
"""Views from which on they are counted but not looked at."""


def _number_of_pieces(
    overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Shape
) -> int:
    base = overload._schema.name.removeprefix("aten::").removesuffix("_copy")
    if base == "unbind":
        axis, per_piece = _argument(overload, args, kwargs, 1, "dim"), 1
    else:
        axis, per_piece = _argument(overload, args, kwargs, 2, "dim"), _argument(overload, args, kwargs, 1, "")
    if not isinstance(per_piece, int):
        return 0  # sizes that the request itself lists
    if base in ("tensor_split", "hsplit", "vsplit", "dsplit"):
        return per_piece
    if not isinstance(axis, int) or not -len(tensor.sizes) <= axis < len(tensor.sizes):
        return 0
    size = tensor.sizes[axis]
    return min(size, per_piece) if base == "chunk" else -(-size // max(1, per_piece))


_PIECES = ("unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind_copy", "split_copy")

_RULES: Mapping[str, Callable[..., Call]] = {
    "aten::combinations": _combinations,
    "aten::bincount": _counts(2, "minlength"),
    "aten::histogram": _counts(1, "bins"),
    **{f"aten::{name}": _pieces for name in _PIECES},
}
"""Operators whose need depends on values, by what their arguments tell; a bound from below."""

_SKIPPED = ("aten::_foreach", "aten::lstm", "aten::gru", "aten::rnn_")
"""Operators that do as much as many nodes, and whose results are no larger than their arguments: on meta tensors they
would take longer than for real."""

"""x[…] as torch reads it: ints, slices, None, …, lists, arrays and Values, as select, slice, unsqueeze and index nodes.

torch walks the items from the left and knows each one's dimension. The number of dimensions is not known here, so what
stands after "…" is counted from the end, and what cannot be expressed so is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from gradoracle import tensors
from gradoracle.binding import describe
from gradoracle.errors import InvalidGraphError
from gradoracle.values import Value

_END = 2**63 - 1
"""Where torch's slices end that name no end."""


def index(value: Value, key: object) -> Value:
    """value[key]. Raises InvalidGraphError where the index cannot be expressed without knowing the dimensions."""
    items = [_item(value, item) for item in (key if isinstance(key, tuple) else (key,))]
    ellipses = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        _refuse(value, "an index has one … at most")
    before, after = (items[: ellipses[0]], items[ellipses[0] + 1 :]) if ellipses else (items, [])
    if all(isinstance(item, slice) and _is_whole(item) for item in before) and not after:
        return _nothing_to_do(value, before)
    # From the right, where dimensions are counted from the end: so no step moves another's dimensions.
    result, late = _from_the_end(value, after)
    return _from_the_front(result, before, late)


def _item(value: Value, item: object) -> Any:
    """The item as one of int, bool, slice, None, Ellipsis, Value, or an array of integers or bools."""
    if isinstance(item, np.generic):
        item = item.item()
    if item is None or item is Ellipsis or isinstance(item, bool | int | Value):
        return item
    if isinstance(item, slice):
        bounds = [_bound(value, bound) for bound in (item.start, item.stop, item.step)]
        if bounds[2] is not None and bounds[2] <= 0:
            _refuse(value, f"a slice's step must be greater than zero, got {bounds[2]}; flip(dim) reverses")
        return slice(*bounds)
    if not isinstance(item, list | np.ndarray) and not hasattr(item, "__dlpack__"):
        _refuse(value, f"expected ints, slices, None, …, lists, arrays or Values in the index, got {describe(item)}")
    array = tensors.as_array(item, f'index of "{value.name}"', floating=False)
    if array.size == 0 and isinstance(item, list):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu":
        _refuse(value, f"expected integers or bools in the index, got {array.dtype}")
    # torch indexes with int32, int64, uint8 and bool alone.
    return array if array.dtype.kind == "b" else array.astype(np.int64)


def _bound(value: Value, bound: object) -> int | None:
    if bound is None or (isinstance(bound, int) and not isinstance(bound, bool)):
        return bound
    if isinstance(bound, Value) or not hasattr(bound, "__index__"):
        _refuse(value, f"expected ints as the bounds of a slice, got {describe(bound)}")
    return int(bound.__index__())


def _is_whole(item: slice) -> bool:
    return item.start in (None, 0) and item.stop in (None, _END) and item.step in (None, 1)


def _nothing_to_do(value: Value, items: Sequence[slice]) -> Value:
    """x[:] and x[...], for which torch makes a view of everything."""
    if items:
        return _slice(value, 0, items[0])
    result: Value = value.graph.apply("alias", (value,), {})
    return result


def _slice(value: Value, dim: int, item: slice) -> Value:
    bounds = [item.start or 0, _END if item.stop is None else item.stop]
    step = [] if item.step in (None, 1) else [item.step]
    result: Value = value.graph.apply("slice", (value, dim, *bounds, *step), {})
    return result


def _select(value: Value, dim: int, place: int) -> Value:
    result: Value = value.graph.apply("select", (value, dim, place), {})
    return result


def _unsqueeze(value: Value, dim: int) -> Value:
    result: Value = value.graph.apply("unsqueeze", (value, dim), {})
    return result


# ---- After the ellipsis


def _from_the_end(value: Value, items: Sequence[Any]) -> tuple[Value, tuple[int, Any] | None]:
    """Carries out the items after an ellipsis. Gives what is left of it: (dimension from the end, array or Value)."""
    kept, late = 0, None  # dimensions of the result to the right of the item
    for item in reversed(items):
        dim = -1 - kept
        if item is None:
            value = _unsqueeze(value, dim)
            kept += 1
        elif isinstance(item, slice):
            if not _is_whole(item):
                value = _slice(value, dim, item)
            kept += 1
        elif isinstance(item, int) and not isinstance(item, bool):
            value = _select(value, dim, item)
        elif late is None and isinstance(item, np.ndarray) and item.dtype.kind != "b":
            late = (dim, item)
            kept += 1
        else:
            what = "a second list or array" if late is not None else describe(item)
            _refuse(value, f"after … ints, slices, None and one list of integers can stand, got {what}")
    return value, late


# ---- Before it


def _from_the_front(value: Value, items: Sequence[Any], late: tuple[int, Any] | None) -> Value:
    """Carries out the items that are counted from the front, then the one list that was counted from the end."""
    dim = 0
    indices: list[Any] = []  # of index.Tensor; a mask is one of them, however many dimensions it takes up
    place = 0  # of the item among them
    unsure: Value | None = None  # a Value, which may be a mask
    for item in items:
        if unsure is not None and not _fits_behind(item, adjacent=place == len(indices)):
            _refuse(
                value,
                f'which dimension {_shown(item)} means depends on how many "{unsure.name}" takes up, if it is a mask; '
                "index in two steps, or count from the end, behind …",
            )
        if isinstance(item, int) and not isinstance(item, bool):
            if unsure is None:
                value = _select(value, dim, item)
                continue
            item = np.array(item)  # torch selects; beside the other lists, a list of one does the same
        if item is None:
            value = _unsqueeze(value, dim)
        elif isinstance(item, slice):
            value = value if _is_whole(item) else _slice(value, dim, item)
        else:
            if isinstance(item, bool):
                value = _unsqueeze(value, dim)
                item = np.zeros(int(item), np.int64)
            indices += [None] * (place - len(indices))
            indices.append(item)
            unsure = item if isinstance(item, Value) else unsure
        dim += item.ndim if isinstance(item, np.ndarray) and item.dtype.kind == "b" else 1
        place += 1
    if late is not None:
        return _late(value, indices, late)
    return _gather(value, indices) if indices else value


def _fits_behind(item: Any, *, adjacent: bool) -> bool:
    """Whether an item can stand behind a Value whose number of dimensions is not known.

    An int can, as a list of one, right beside the other lists; apart from them torch would order the result's
    dimensions otherwise.
    """
    if isinstance(item, slice):
        return _is_whole(item)
    if isinstance(item, int) and not isinstance(item, bool):
        return adjacent
    return item is not None and not isinstance(item, bool)


def _gather(value: Value, indices: Sequence[Any]) -> Value:
    result: Value = value.graph.apply("index", (value, list(indices)), {})
    return result


def _late(value: Value, indices: Sequence[Any], late: tuple[int, Any]) -> Value:
    """value[…, list]: the dimension is moved to the front, indexed, and what came of it moved back."""
    dim, item = late
    if any(one is not None for one in indices):
        _refuse(value, "lists, arrays and Values cannot stand on both sides of …")
    moved: Value = value.graph.apply("movedim", (value, dim, 0), {})
    result = _gather(moved, [item])
    # The list's own dimensions take the place of the one that it indexed.
    source = list(range(item.ndim))
    destination = [dim - item.ndim + 1 + place for place in source]
    if item.ndim == 0:
        return result
    back: Value = value.graph.apply("movedim", (result, source, destination), {})
    return back


def _shown(item: object) -> str:
    if isinstance(item, slice):
        return ":".join("" if bound is None else str(bound) for bound in (item.start, item.stop))
    return str(item)


def _refuse(value: Value, why: str) -> NoReturn:
    raise InvalidGraphError(
        f'index of "{value.name}": {why}', reason="INVALID_GRAPH", metadata={"reference": value.name}
    )

"""Arrays by name from what a caller has: a dict, a sequence in order, a single array, or a function that makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from gradoracle import tensors
from gradoracle.errors import InvalidRequestError
from gradoracle.tensors import Array, ArrayLike

_CPU = 1  # DLPack's number of the device


def by_name(
    given: Any, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], field: str, of: str
) -> dict[str, ArrayLike]:
    """The arrays of a mapping by name, of a sequence in the order of `names` (None: nothing for that one), or a single
    one where there is one name.

    `field` and `of` are for errors: "claimed" and "input". `shapes` tells a single array that is written as nested
    lists from a sequence of arrays. Raises InvalidRequestError.
    """
    if isinstance(given, Mapping):
        found = dict(given)
    elif len(names) == 1 and _is_single(given, shapes.get(names[0])):
        found = {names[0]: given}
    elif isinstance(given, list | tuple):
        if len(given) != len(names):
            _refuse(
                f"{field}: expected {_counted(len(names), field, of, names)}, got a sequence of {len(given)}",
                field=field,
                expected=str(len(names)),
                got=str(len(given)),
            )
        found = dict(zip(names, given, strict=True))
    else:
        expected = f"a dict by name, or a sequence for {_listed(names)}"
        got = f"one {type(given).__name__}" + (f" of shape {list(given.shape)}" if hasattr(given, "shape") else "")
        _refuse(f"{field}: expected {expected}, got {got}", field=field, expected=expected, got=got)
    kept = {name: one for name, one in found.items() if one is not None}
    if not kept:
        expected = f"an array for one {of} at least of {_listed(names)}"
        _refuse(f"{field}: expected {expected}, got none", field=field, expected=expected, got="none")
    return kept


def claimed_by(claimed: Any, inputs: Sequence[Any]) -> Any:
    """The claims themselves: what a hand-written backward returns for the inputs, where that is what was given.

    Raises InvalidRequestError where it returns nothing, which is not the same as claiming nothing.
    """
    if not callable(claimed):
        return claimed
    found = claimed(*inputs)
    if found is None:
        name = getattr(getattr(claimed, "func", claimed), "__name__", None) or type(claimed).__name__
        expected = "the gradients, one for each input on trial"
        _refuse(f"claimed: {name} returned None; return {expected}", field="claimed", expected=expected, got="None")
    return found


def host_array(value: ArrayLike, place: str) -> Array:
    """A numpy array from whatever the caller has, from the memory of another device too. Raises TensorError."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # torch
        value = value.detach()
        value = value if value.device.type == "meta" else value.cpu()  # that has nothing to bring, and is refused
    elif not isinstance(value, np.ndarray) and hasattr(value, "__dlpack_device__") and _device(value) != _CPU:
        with contextlib.suppress(BufferError, RuntimeError, TypeError, ValueError):  # the next one says what to do
            value = np.from_dlpack(value, device="cpu")
    return tensors.as_array(value, place, floating=True)


def _device(value: Any) -> int:
    return int(value.__dlpack_device__()[0])


def as_given(array: Array, like: Any) -> Any:
    """An array in the form in which the caller gave another one: an array of its library, or a Python number; numpy's
    for lists, and for libraries that do not follow the array API."""
    if isinstance(like, np.generic):  # first: some of numpy's are Python's numbers, too
        return array[()]
    if isinstance(like, bool | int | float | complex):
        return array.item()
    if isinstance(like, np.ndarray | list | tuple) or not hasattr(like, "__array_namespace__"):
        return array
    return like.__array_namespace__().asarray(array)


def like(values: Mapping[str, ArrayLike], originals: Mapping[str, Array], field: str) -> dict[str, Array]:
    """Claims as arrays; numbers among them, which have no dtype of their own, in that of the input."""
    found = {}
    for name, value in values.items():
        array = host_array(value, f'{field}["{name}"]')
        original = originals.get(name)
        plain = isinstance(value, bool | int | float | complex | list | tuple)
        if plain and original is not None and (original.dtype.kind in "cV" or array.dtype.kind != "c"):
            array = array.astype(original.dtype) if original.dtype.kind in "fcV" else array
        found[name] = array
    return found


def _is_single(given: Any, shape: tuple[int, ...] | None) -> bool:
    """Whether it is one array, and not a sequence that holds one."""
    if not isinstance(given, list | tuple):
        return True
    if len(given) != 1:
        return not any(one is None or hasattr(one, "shape") or hasattr(one, "__dlpack__") for one in given)
    if given[0] is None or hasattr(given[0], "__dlpack__") or hasattr(given[0], "shape"):
        return False
    try:
        return np.shape(given) == shape
    except ValueError:
        return False


def _counted(count: int, field: str, of: str, names: Sequence[str]) -> str:
    what = "gradient" if field == "claimed" else "array"
    return f"{count} {what}{'s' if count != 1 else ''}, for the {of}{'s' if count != 1 else ''} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"


def _refuse(message: str, **metadata: str) -> NoReturn:
    raise InvalidRequestError(message, reason="INVALID_SELECTION", metadata=metadata)

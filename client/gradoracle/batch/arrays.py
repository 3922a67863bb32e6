"""A case's arrays: JSON to what a request carries.

    <array> = nested numbers                     float64 for inputs that require grad, else as numpy takes them
            | {"data": nested, "dtype": "float32"}            in that dtype; complex numbers as [real, imaginary]
            | {"npy": path} | {"npz": path, "key": …} | {"safetensors": path, "key": …}     from a file
            | {"random": "normal", "shape": [8, 64], "dtype": "float64", "seed": 0, "mean": 0, "std": 1}
            | {"random": "uniform", …, "low": 0, "high": 1} | {"random": "integers", …, "low": 0, "high": 10}
            | {"fill": 2.5, "shape": [3], "dtype": "float64"}                            the last four: by the server

"NaN", "Infinity" and "-Infinity" stand for numbers. A file's `key` may be left out where the file holds one array, or
one of the tensor's own name; with "dtype" its bytes are read as that type, which .npy files of a bfloat16 need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gradoracle import dtypes, tensors
from gradoracle.batch.array_files import KINDS, ArrayFiles
from gradoracle.errors import InvalidRequestError, TensorError
from gradoracle.tensors import Array, ArrayLike

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_RANDOM: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "normal": (tensors.normal, ("mean", "std")),
    "uniform": (tensors.uniform, ("low", "high")),
    "integers": (tensors.integers, ("low", "high")),
}
_FORMS = 'nested numbers, {"data": …}, {"npy": …}, {"npz": …}, {"safetensors": …}, {"random": …} or {"fill": …}'


class CaseError(InvalidRequestError):
    """A case that cannot be read. `line` is its line in the file of cases, where known."""

    line: int | None = None

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message, reason="BAD_CASE", metadata={"field": field} if field else None)


def sources(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The (name, array) of those among arrays by name that come from files."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            if isinstance(value, Mapping) and any(kind in value for kind in KINDS):
                yield name, value


def arrays(document: Any, field: str, files: ArrayFiles) -> dict[str, ArrayLike]:
    """A group of arrays by name, such as a case's inputs. Raises CaseError."""
    if not isinstance(document, Mapping):
        raise CaseError(f"{field}: expected arrays by name, got {type(document).__name__}", field=field)
    return {name: array(value, f'{field}["{name}"]', files, name) for name, value in document.items()}


def array(value: Any, place: str, files: ArrayFiles, name: str) -> ArrayLike:
    """One array. `place` is where it stands, for errors, and `name` the key in a file where none is given."""
    if isinstance(value, Mapping):
        return _described(value, place, files, name)
    if isinstance(value, str) or value is None:
        return _number(value, place)
    return _words(value, place) if isinstance(value, list) and _has_words(value) else value


def _described(value: Mapping[str, Any], place: str, files: ArrayFiles, name: str) -> ArrayLike:
    try:
        for kind in KINDS:
            if kind in value:
                _only(value, place, kind, "key", "dtype")
                return _viewed(files.load(kind, value, name), value.get("dtype"), place)
        if "data" in value:
            _only(value, place, "data", "dtype", "shape")
            return _data(value, place)
        if "random" in value:
            return _random(value, place)
        if "fill" in value:
            _only(value, place, "fill", "shape", "dtype")
            return tensors.fill(_shape(value, place), _number(value["fill"], place), value.get("dtype", "float64"))
    except CaseError:
        raise
    except (TensorError, ValueError, TypeError, OverflowError) as error:
        raise CaseError(f"{place}: {error}", field=place) from error
    raise CaseError(f"{place}: expected {_FORMS}, got an object of {', '.join(value) or 'nothing'}", field=place)


def _only(value: Mapping[str, Any], place: str, *known: str) -> None:
    for key in value:
        if key not in known:
            hint = dtypes.suggestion(dtypes.nearest(key, known))
            raise CaseError(f'{place}: expected {", ".join(known)}, got "{key}"{hint}', field=place)


def _shape(value: Mapping[str, Any], place: str) -> list[int]:
    shape = value.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CaseError(f"{place}: expected a shape such as [8, 64], got {shape!r}", field=place)
    return shape


def _random(value: Mapping[str, Any], place: str) -> ArrayLike:
    kind = value["random"]
    if not isinstance(kind, str) or kind not in _RANDOM:
        raise CaseError(f"{place}: expected one of {', '.join(_RANDOM)} as random, got {kind!r}", field=place)
    make, names = _RANDOM[kind]
    _only(value, place, "random", "shape", "dtype", "seed", *names)
    settings = {key: value[key] for key in ("dtype", "seed", *names) if key in value}
    for key, setting in settings.items():
        whole = key == "seed" or kind == "integers"
        if key != "dtype" and type(setting) is not int and (whole or type(setting) is not float):
            expected = "a whole number" if whole else "a number"
            raise CaseError(f"{place}: expected {expected} as {key}, got {setting!r}", field=place)
    if kind == "integers" and not {"low", "high"} <= set(settings):
        settings = {"low": 0, **settings}
        if "high" not in settings:
            raise CaseError(f"{place}: expected high, one more than the largest number, got none", field=place)
    return make(_shape(value, place), **settings)


def _data(value: Mapping[str, Any], place: str) -> Array:
    """Numbers in a dtype of their own."""
    data = value["data"]
    data = _words(data, place) if isinstance(data, list) else _number(data, place)
    if "dtype" not in value:
        found = tensors.as_array(data, place, floating=True)
    else:
        found = _in_dtype(data, _dtype(value["dtype"], place), place)
    return found.reshape(_shape(value, place)) if "shape" in value else found


def _in_dtype(data: Any, dtype: np.dtype[Any], place: str) -> Array:
    if dtype.kind == "c":
        pairs = np.asarray(data, np.float64)
        if not pairs.shape or pairs.shape[-1] != 2:
            raise CaseError(f"{place}: expected [real, imaginary] for each number of {dtype.name}", field=place)
        return (pairs[..., 0] + 1j * pairs[..., 1]).astype(dtype)
    found = np.asarray(data)
    if dtype.kind in "iu" and found.size and found.dtype.kind not in "biu":
        raise CaseError(f"{place}: expected whole numbers for {dtype.name}, got {str(data)[:80]}", field=place)
    return np.asarray(data, dtype)


def _dtype(name: object, place: str) -> np.dtype[Any]:
    number = dtypes.number_of(name) if isinstance(name, str) else None
    if number is None:
        raise CaseError(f"{place}: expected a dtype, got {dtypes.unknown(name)}", field=place)
    return dtypes.TO_NUMPY[number]


def _viewed(found: Array, name: object, place: str) -> Array:
    """An array of a file; what numpy took for raw bytes, or any of the same width, as the dtype that is named."""
    if name is None:
        if found.dtype.kind == "V" and found.dtype.newbyteorder("<") not in dtypes.FROM_NUMPY:
            raise CaseError(
                f"{place}: numpy's files forget what a bfloat16 is, and this one holds {found.dtype.itemsize} raw "
                'bytes an element; say which type they are with "dtype"',
                field=place,
            )
        return found
    dtype = _dtype(name, place)
    if found.dtype == dtype:
        return found
    if found.dtype.kind == "V" and found.dtype.itemsize == dtype.itemsize:
        return found.view(dtype)
    raise CaseError(f"{place}: expected {dtype.name} in the file, got {found.dtype.name}", field=place)


def _number(value: Any, place: str) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    raise CaseError(f"{place}: expected {_FORMS}, got {value!r}", field=place)


def _has_words(nested: list[Any]) -> bool:
    """Whether a text stands among the numbers; what numpy refuses is for the request to tell."""
    kinds = set(map(type, nested))
    return str in kinds or (list in kinds and any(_has_words(one) for one in nested if type(one) is list))


def _words(nested: Any, place: str) -> Any:
    return [_words(one, place) for one in nested] if isinstance(nested, list) else _number(nested, place)

"""Element types: torch's names, numpy's types, the proto's numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import ml_dtypes
import numpy as np

from gradoracle.v1 import tensor_pb2

NUMBERS: Mapping[str, tensor_pb2.Dtype] = {
    key.removeprefix("DTYPE_").lower(): cast("tensor_pb2.Dtype", value)
    for key, value in tensor_pb2.Dtype.items()
    if value != tensor_pb2.DTYPE_UNSPECIFIED
}
"""The proto's number by torch's name."""

NAMES: Mapping[int, str] = {number: name for name, number in NUMBERS.items()}
"""torch's name by the proto's number."""

TO_NUMPY: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(getattr(ml_dtypes, name, None) or name).newbyteorder("<") for name, number in NUMBERS.items()
}
"""numpy's type by the proto's number, of the wire's byte order."""

FROM_NUMPY: Mapping[np.dtype[Any], int] = {dtype: number for number, dtype in TO_NUMPY.items()}
"""The proto's number by numpy's type, of the wire's byte order."""

_ALIASES: Mapping[str, str] = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "cfloat": "complex64",
    "cdouble": "complex128",
}
"""torch's second names: torch.float is torch.float32."""

_PYTHON: Mapping[object, str] = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}
"""What torch makes of Python's own types as dtypes."""


def name_of(value: object) -> str | None:
    """torch's name of a dtype, or None where the value names no dtype that has a wire form.

    It may be given as "float32", "torch.float32", torch.float32, np.float32, np.dtype("float32") or float.
    """
    if isinstance(value, type):
        if value in _PYTHON:
            return _PYTHON[value]
        if not issubclass(value, np.generic):
            return None
        value = np.dtype(value)
    if isinstance(value, np.dtype):
        text = value.name
    elif isinstance(value, str) or type(value).__module__ == "torch":
        text = str(value).removeprefix("torch.")
        text = _ALIASES.get(text, text)
    else:
        return None
    return text if text in NUMBERS else None


def number_of(value: object) -> tensor_pb2.Dtype | None:
    """The proto's number of a dtype that is given in any of the ways that `name_of` knows, or None."""
    name = name_of(value)
    return None if name is None else NUMBERS[name]


def nearest(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """Those of the words that are likest to one."""
    return difflib.get_close_matches(word, list(words), n=count, cutoff=0.6)


def suggestion(near: Iterable[str]) -> str:
    """The end of an error: '; did you mean "float32"?', or nothing."""
    quoted = " or ".join(f'"{word}"' for word in near)
    return f"; did you mean {quoted}?" if quoted else ""


def unknown(value: object) -> str:
    """The words for a dtype that does not exist: what was got, and what may have been meant."""
    text = str(value).removeprefix("torch.")
    hint = suggestion(nearest(text, NUMBERS))
    return f"{str(value)[:60]!r}{hint or '; one of ' + ', '.join(NUMBERS)}"

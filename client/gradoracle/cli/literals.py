"""Numbers as they are typed, and their dtypes."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradoracle import dtypes
from gradoracle.cli.failures import InputError

Array = npt.NDArray[Any]

WORDS: Mapping[str, bool | float] = {
    "nan": math.nan,
    "inf": math.inf,
    "true": True,
    "false": False,
    "True": True,
    "False": False,
}
"""Words that stand for numbers."""


def literal(text: str) -> Any:
    """Numbers and nested lists of them, read without evaluating anything. Raises ValueError."""
    try:
        return _walk(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(text) from error


def _walk(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_walk(item) for item in items]
        case ast.Constant(value=bool() | int() | float() | complex() as value):
            return value
        case ast.Name(id=word) if word in WORDS:
            return WORDS[word]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant() | ast.Name() as operand):
            value = _walk(operand)
            if isinstance(value, int | float | complex) and not isinstance(value, bool):
                return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as sign, right=ast.Constant(value=complex() as imaginary)):
            value = _walk(left)
            if isinstance(value, int | float):
                return value + imaginary if isinstance(sign, ast.Add) else value - imaginary
    raise ValueError(ast.unparse(node))


def in_own_dtype(name: str, nested: object, *, floating: bool) -> Array:
    """Numbers as an array of the dtype that fits how they were typed."""
    array = _array(name, nested)
    if array.dtype.kind == "O":  # whole numbers beyond 64 bits
        array = in_dtype(name, nested, np.dtype(np.float64))
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "iu" and not floating:
        return in_dtype(name, nested, np.dtype(np.int64))
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def in_dtype(name: str, nested: object, dtype: np.dtype[Any]) -> Array:
    """Numbers as an array of a given dtype. What it cannot hold is refused, not bent: 2.5 or 300 in a uint8."""
    source = _array(name, nested)
    if dtype.kind in "iu" and source.dtype.kind not in "Oiub" and source.size:
        raise bad(name, f"whole numbers for {dtype}", repr(nested))
    if dtype.kind != "c" and source.dtype.kind == "c":
        raise bad(name, f"real numbers for {dtype}", repr(nested))
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(nested, dtype=dtype)
            lost = ~np.isfinite(array.astype(np.complex128)) & np.isfinite(source.astype(np.complex128))
    except (ValueError, OverflowError, TypeError) as error:
        raise bad(name, f"numbers that {dtype} can hold", repr(nested)) from error
    if lost.any():
        raise bad(name, f"numbers that {dtype} can hold", repr(nested))
    return array


def _array(name: str, nested: object) -> Array:
    try:
        return np.asarray(nested)
    except ValueError as error:
        raise bad(name, "rows of equal length", repr(nested)) from error


def dtype_named(name: str, text: str) -> np.dtype[Any]:
    """The dtype of that name. `name` is the tensor's, for errors."""
    number = dtypes.number_of(text)
    if number is None:
        raise bad(name, "a dtype", dtypes.unknown(text))
    return dtypes.TO_NUMPY[number]


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for the end of an error: which of the words may have been meant."""
    return dtypes.suggestion(dtypes.nearest(word, words, 1))


def bad(name: str, expected: str, got: str) -> InputError:
    """The error for a tensor that cannot be read."""
    shown = got if len(got) <= 160 else f"{got[:100]} … {got[-40:]}"
    return InputError(f"{name}: expected {expected}, got {shown}")

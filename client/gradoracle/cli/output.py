"""Arrays and results as text for people, and as JSON for programs.

Text shows 15 significant digits of a double, all that every double is sure to have, and the shortest exact spelling of
smaller floats. So 6 * 0.1 shows as 0.6. JSON is exact always.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., object])

ELEMENTS = 1000
"""Larger arrays are shown by their edges alone."""


def number(value: Any) -> str:
    """One element."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, complex | np.complexfloating):
        real, imaginary = number(value.real), number(value.imag)
        return f"{real}{'' if imaginary[0] == '-' else '+'}{imaginary}j"
    if isinstance(value, np.float16 | np.float32):
        size = abs(float(value))
        spell = np.format_float_positional if 1e-4 <= size < 1e16 or size == 0 else np.format_float_scientific
        return spell(value, trim="-")
    if isinstance(value, float):  # np.float64 too
        return f"{value:.15g}"
    return f"{float(value):g}"  # the types of ml_dtypes, which have three digits at most


def text(array: Array, *, indent: int = 0, width: int | None = None) -> str:
    """An array as nested lists; the rows after the first are indented."""
    if array.ndim == 0:
        return number(array[()])
    if array.size == 0:
        return f"[] (shape {shape(array.shape)})"
    columns = width or shutil.get_terminal_size().columns
    return np.array2string(
        array,
        separator=", ",
        prefix=" " * indent,
        max_line_width=max(columns, indent + 20),
        threshold=ELEMENTS,
        formatter={"all": number},
    )


def shape(sizes: tuple[int, ...]) -> str:
    """A shape as it is typed: 8x64, or scalar."""
    return "x".join(map(str, sizes)) or "scalar"


def show(arrays: Mapping[str, Array | None], none: Mapping[str, str] | None = None) -> None:
    """Prints `name: array` for each. `none` holds by name why there is no array, where the outputs may depend on it."""
    for name, array in arrays.items():
        why = (none or {}).get(name, "the outputs do not depend on it")
        value = f"None ({why})" if array is None else text(array, indent=len(name) + 2)
        click.echo(f"{name}: {value}")


def plain(array: Array | None) -> Any:
    """An array as what JSON can say: nested numbers. NaN and infinities become strings, a complex number a pair."""
    if array is None:
        return None
    if array.dtype.kind == "c":
        return finite(np.stack([array.real, array.imag], axis=-1).tolist())
    if array.dtype.kind == "V":  # the types of ml_dtypes, each of which fits into a double
        array = array.astype(np.float64)
    return finite(array.tolist())


def finite(nested: Any) -> Any:
    """Nested lists and dicts with what JSON cannot say, as in `plain`."""
    if isinstance(nested, list):
        return [finite(item) for item in nested]
    if isinstance(nested, dict):
        return {key: finite(item) for key, item in nested.items()}
    if isinstance(nested, tuple):
        return [finite(item) for item in nested]
    if isinstance(nested, complex):
        return [finite(nested.real), finite(nested.imag)]
    if isinstance(nested, float) and not math.isfinite(nested):
        return "NaN" if math.isnan(nested) else "Infinity" if nested > 0 else "-Infinity"
    return nested


def arrays_json(**groups: Mapping[str, Array | None]) -> dict[str, Any]:
    """Groups of arrays as `{"outputs": {"y": 185.0}, "dtypes": {"outputs": {"y": "float64"}}}`."""
    document: dict[str, Any] = {
        group: {name: plain(array) for name, array in arrays.items()} for group, arrays in groups.items()
    }
    document["dtypes"] = {
        group: {name: str(array.dtype) for name, array in arrays.items() if array is not None}
        for group, arrays in groups.items()
    }
    return document


def print_json(document: Any) -> None:
    """Prints a document on one line, for line-wise tools."""
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


def json_option(function: Function) -> Function:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(function)

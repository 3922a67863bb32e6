"""Tensors of recipes as arrays of cases. The server draws them, but for those with a structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradoracle.sweep.recipes import Tensor

STRUCTURES: Mapping[str, str] = {
    "spd": "positive_definite",
    "tril": "lower_triangular",
    "triu": "upper_triangular",
    "sym": "symmetric",
}
"""The structure of an input by the kind of its tensor."""


def structure(tensor: Tensor, dtype: str) -> str | None:
    """The structure that the input is to have."""
    found = STRUCTURES.get(tensor.kind)
    return "hermitian" if found == "symmetric" and dtype.startswith("complex") else found


def array(tensor: Tensor, shape: tuple[int, ...], dtype: str, seed: int) -> dict[str, Any]:
    """The array of a case for a tensor of that shape."""
    sizes = list(shape)
    match tensor.kind:
        case "n":
            return {"random": "normal", "shape": sizes, "dtype": dtype, "seed": seed}
        case "u" | "p":
            low, high = tensor.bounds or (0.5, 2.0)
            return {"random": "uniform", "shape": sizes, "dtype": dtype, "seed": seed, "low": low, "high": high}
        case "i":
            low, high = map(int, tensor.bounds)
            return {"random": "integers", "shape": sizes, "dtype": "int64", "seed": seed, "low": low, "high": high}
        case "b":
            return {"random": "integers", "shape": sizes, "dtype": "bool", "seed": seed, "low": 0, "high": 2}
        case "d" | "m":
            return {"data": tensor.data, "dtype": "int64" if tensor.kind == "d" else "bool"}
    return _structured(tensor.kind, shape, dtype, seed)


def _structured(kind: str, shape: tuple[int, ...], dtype: str, seed: int) -> dict[str, Any]:
    """A matrix, or several, that no server draws. Eigenvalues are well apart and away from 0."""
    generator = np.random.default_rng(seed)
    size = shape[-1]
    matrix: npt.NDArray[Any] = generator.standard_normal(shape)
    if dtype.startswith("complex"):
        matrix = matrix + 1j * generator.standard_normal(shape)
    if kind in ("spd", "sym"):
        basis, _ = np.linalg.qr(matrix)
        values = np.arange(1, size + 1) * (1.0 if kind == "spd" else (-1.0) ** np.arange(size))
        matrix = (basis * values) @ basis.conj().swapaxes(-1, -2)
        matrix = (matrix + matrix.conj().swapaxes(-1, -2)) / 2
    else:
        matrix = (np.tril if kind == "tril" else np.triu)(matrix)
        matrix[..., range(size), range(size)] = 1.0 + np.arange(size) / size
    rounded = np.round(matrix, 4)
    if kind == "sym" or kind == "spd":
        rounded = (rounded + rounded.conj().swapaxes(-1, -2)) / 2
    if rounded.dtype.kind == "c":
        rounded = np.stack([rounded.real, rounded.imag], axis=-1)
    return {"data": rounded.tolist(), "dtype": dtype}

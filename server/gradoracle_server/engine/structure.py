"""Inputs that may move only within a set of matrices: their derivatives are projected onto its tangent space.

The projections are orthogonal for the inner product <A, B> = Re tr(A^H B) in which autograd's gradients live, so the
projected gradient is the gradient of the function restricted to the set (P.-A. Absil, R. Mahony, R. Sepulchre,
"Optimization Algorithms on Matrix Manifolds", 2008, section 3.6.1). For symmetric and Hermitian matrices that is the
form in which torch.linalg gives the gradients of cholesky and eigh. Positive definite matrices are an open set among
the Hermitian ones and share their tangents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec

_SQUARE = ("symmetric", "hermitian", "positive_definite")

Projected = TypeVar("Projected", torch.Tensor, torch.Tensor | None)


def check(spec: InputSpec, tensor: torch.Tensor, *, batch_axes: int = 0) -> None:
    """Raises Fault where an input cannot have the structure that the graph declares, by its shape."""
    if not spec.structure:
        return
    shape = list(tensor.shape[batch_axes:])
    fits = len(shape) >= 2 and (spec.structure not in _SQUARE or shape[-1] == shape[-2])
    if not fits:
        kind = "square matrices" if spec.structure in _SQUARE else "matrices"
        message = (
            f'primals["{spec.name}"]: the graph declares it {spec.structure}: '
            f"expected {kind} in the last two dimensions, got shape {shape}"
        )
        raise Fault("INVALID_TENSOR", message, field="primals", name=spec.name, expected=kind, got=shape)


def project(tensor: torch.Tensor, structure: str, *, trailing: int = 0) -> torch.Tensor:
    """The part of a derivative along the set. The matrix axes are the last two before `trailing` further axes."""
    if not structure:
        return tensor
    row, column = -2 - trailing, -1 - trailing
    if structure == "symmetric":
        return (tensor + tensor.transpose(row, column)) / 2
    if structure in ("hermitian", "positive_definite"):
        return (tensor + tensor.transpose(row, column).conj()) / 2
    matrices = tensor.movedim((row, column), (-2, -1))
    kept = matrices.tril() if structure == "lower_triangular" else matrices.triu()
    return kept.movedim((-2, -1), (row, column))


def project_named(tensors: Mapping[str, Projected], structures: Mapping[str, str]) -> dict[str, Projected]:
    """Each tensor projected as the input of its name is declared; None, and what is no input, stays as it is."""
    return {
        name: tensor if tensor is None else project(tensor, structures.get(name, ""))
        for name, tensor in tensors.items()
    }

"""The root of a sum of squares, also of numbers whose squares overflow, or vanish."""

from __future__ import annotations

import math

import torch


def norm(tensor: torch.Tensor) -> float:
    """Of all elements."""
    found = float(torch.linalg.vector_norm(tensor))
    if 0 < found < math.inf or not tensor.numel():
        return found
    largest = float(torch.linalg.vector_norm(tensor, math.inf))
    return largest * float(torch.linalg.vector_norm(tensor / largest)) if 0 < largest < math.inf else found


def norms(tensor: torch.Tensor) -> torch.Tensor:
    """(P,): of each row of (P, C)."""
    found: torch.Tensor = torch.linalg.vector_norm(tensor, dim=1)
    if not found.numel() or not tensor.shape[1]:
        return found
    least, most = torch.aminmax(found)
    if bool((least > 0) & (most < math.inf)):
        return found
    largest = torch.linalg.vector_norm(tensor, math.inf, dim=1, keepdim=True)
    unit = torch.where((largest > 0) & (largest < math.inf), largest, 1.0)
    return unit[:, 0].mul_(torch.linalg.vector_norm(tensor / unit, dim=1))

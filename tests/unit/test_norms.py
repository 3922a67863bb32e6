"""Norms of numbers whose squares are none."""

from __future__ import annotations

import math

import pytest
import torch
from check_cases import F64

from gradoracle_server.engine.norms import norm, norms


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_squares_may_overflow_and_vanish(size):
    values = torch.tensor([3.0, -4.0, 0.0], dtype=F64) * size
    assert norm(values) == pytest.approx(5 * size, rel=1e-12)
    assert norm(values * 1j) == pytest.approx(5 * size, rel=1e-12)
    rows = torch.stack([values, values.flip(0) / size, torch.zeros(3, dtype=F64)])
    assert norms(rows).tolist() == pytest.approx([5 * size, 5.0, 0.0], rel=1e-12)


def test_of_usual_numbers_they_are_torchs_own():
    rows = torch.randn(5, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norms(rows), torch.linalg.vector_norm(rows, dim=1))
    assert norm(rows) == float(torch.linalg.vector_norm(rows))


def test_what_is_no_number_stays_none():
    assert norm(torch.zeros(3)) == 0.0
    assert norm(torch.empty(0)) == 0.0
    assert math.isinf(norm(torch.tensor([math.inf, 1.0])))
    assert math.isnan(norm(torch.tensor([math.nan, 1.0])))
    found = norms(torch.tensor([[math.inf, 1.0], [math.nan, 1.0], [3e-200, 4e-200]], dtype=F64))
    assert math.isinf(found[0])
    assert math.isnan(found[1])
    assert float(found[2]) == pytest.approx(5e-200, rel=1e-12)
    assert norms(torch.empty(0, 3)).shape == (0,)
    assert norms(torch.empty(2, 0)).tolist() == [0.0, 0.0]

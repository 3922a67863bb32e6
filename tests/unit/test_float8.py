"""float8, in which torch has conversions and no arithmetic."""

from __future__ import annotations

import pytest
import torch
from check_cases import check

from gradoracle_server.engine.pullback import rows
from gradoracle_server.engine.report import Verdict

FLOAT8 = [torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz]


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize(
    "function", [lambda x: x.view_as(x), lambda x: x.to(torch.float32) * 2], ids=["to float8", "to float32"]
)
def test_a_check_has_no_verdict(function, dtype):
    report = check(function, torch.tensor([1.0, 2.0]).to(dtype))
    assert report.verdict is Verdict.INCONCLUSIVE
    text = (
        "An input, or an output, is of float8, in which torch has no arithmetic; take float32, and round in the graph."
    )
    assert report.inputs[0].explanation == text


@pytest.mark.parametrize("dtype", FLOAT8)
def test_an_output_of_float8(dtype):
    report = check(lambda x: x.to(dtype), torch.tensor([1.0, 2.0]))
    assert report.verdict is Verdict.INCONCLUSIVE
    through = check(lambda x: x.to(dtype).to(torch.float32), torch.tensor([1.0, 2.0]))
    assert "float8" not in through.inputs[0].explanation


@pytest.mark.parametrize("dtype", FLOAT8)
def test_rows_of_a_jacobian(dtype):
    x = torch.tensor([1.0, 2.0]).to(dtype).requires_grad_()
    (found,) = rows(x.to(torch.float32) * 2, [x])
    assert found.dtype is dtype
    assert found.float().tolist() == [[2.0, 0.0], [0.0, 2.0]]

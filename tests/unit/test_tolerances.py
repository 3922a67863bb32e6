"""What a check takes pains to see, by the precision of what is on trial."""

from __future__ import annotations

import pytest
import torch
from check_cases import check, planted

from gradoracle_server.engine import tolerances
from gradoracle_server.engine.report import Verdict


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, 1e-8), (torch.float32, 1e-7), (torch.bfloat16, 1e-7), (torch.float16, 1e-7)],
)
def test_the_smallest_fault(dtype: torch.dtype, expected: float) -> None:
    """In float64 1e-8; in lower precision no less than a tenth of a millionth, which is below the last place."""
    assert tolerances.fault(torch.finfo(dtype).eps) == expected


@pytest.mark.parametrize(("place", "fault"), [(0, 4e-6), (20, 1e-5), (77, 1e-4)])
def test_one_element_in_float32(place: int, fault: float) -> None:
    """One that is off by more than eight last places of the typical element, itself 1, 0.4 or 0.03, is found."""
    scale = torch.logspace(0, -2, 100, dtype=torch.float64)

    def function(x):
        return (x * scale.to(x.dtype)).sin()

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found[place] *= 1 + fault
        return (found,)

    x = torch.linspace(0.5, 1.5, 100)
    assert check(function, x).verdict is Verdict.PASS
    report = check(planted(function, wrong), x)
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].worst[0].index == (place,)

"""The column of autograd's gradient among a report's worst elements: there where it says something."""

from __future__ import annotations

import math

import pytest
from batch_cases import input_report, report

from gradoracle.checks import CheckReport, Mismatch, Number

NAN = complex(math.nan, 1.0)


def of(*rows: tuple[Number, Number]) -> CheckReport:
    """A report whose worst elements are claimed so, beside autograd's."""
    worst = [Mismatch((k,), claimed, reference, 0.5, 0.25, 1e-9) for k, (claimed, reference) in enumerate(rows)]
    return report(input_report(verdict="FAIL", worst=worst))


@pytest.mark.parametrize(
    ("rows", "is_there"),
    [
        ([(1.0, 2.0), (3.0, 0.0)], True),
        ([(0.0, 2.0), (3.0, 3.0)], True),
        ([(1.0, 0.0), (0.0, 0.0)], False),  # a function that autograd does not follow
        ([(1.0, -0.0), (2j, 0j)], False),
        ([(math.nan, 0.0)], False),
        ([(1.0, 1.0), (2.0, 2.0)], False),  # autograd's own is on trial
        ([(math.nan, math.nan), (NAN, NAN), (1.0, 1.0)], False),
        ([(math.nan, 1.0), (1.0, 1.0)], True),
    ],
)
def test_autograds_column(rows: list[tuple[Number, Number]], is_there: bool) -> None:
    """It is left out where it is 0 throughout, or repeats what is on trial; in the terminal, narrow or not, and on the
    page."""
    found = of(*rows)
    for text in (found.render(width=120), found.render(width=30), found.to_html()):
        assert is_there is ("autograd" in text)
        for other in ("claimed", "numerical", "error", "bound"):
            assert other in text

"""Steps longer than the usual ones: which of them are believed, output by output."""

from __future__ import annotations

import pytest
import torch
from check_cases import F64

from gradoracle_server.engine import longer
from gradoracle_server.engine.finite_difference import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.slopes import Slopes


def passes_of(outputs):
    """Passes with so many outputs, all of weight 1."""
    x = torch.ones(outputs, dtype=F64)
    return Passes(lambda point: point, [x], [torch.ones(outputs, dtype=F64)], device=x.device, seed=0)


def slopes_of(values, bars, *, kinked=False):
    """Slopes along P directions of M outputs, from lists of lists."""
    value, bar = (torch.tensor(one, dtype=F64) for one in (values, bars))
    total, wide = value.sum(1), bar.sum(1)
    kinks = torch.full((len(values),), kinked)
    return Slopes(total, wide, total, total, kinks, Derivative(value, bar), smooth=not kinked)


def sharper(found, first, second):
    """What becomes of slopes where the first of each pair of longer steps gives one thing, and the second another."""

    def measured(directions):
        factor = float(directions[0, 0])
        return (first if factor in (8.0, 64.0) else second).scaled(factor)

    count = found.coordinates.value.shape
    directions = torch.eye(max(count), dtype=F64)[: count[0]]
    return longer.sharper(passes_of(count[1]), measured, directions, found)


@pytest.mark.parametrize(
    ("first", "second", "value", "bar"),
    [
        (1.0 + 1e-8, 1.0 + 2e-8, 1.0 + 1e-8, 1e-7),
        (1.0 + 1e-8, 1.5, 1.0, 1e-6),
        (1.5, 1.5, 1.0, 0.5),
        (1.5, 1.4, 1.0, 1e-6),
    ],
    ids=["they agree", "the two of a pair do not", "they contradict the usual ones", "neither"],
)
def test_what_longer_steps_are_believed(first, second, value, bar):
    """Two of them that agree; against the usual ones nothing is known but the distance."""
    usual = slopes_of([[1.0], [2.0]], [[1e-6], [1e-6]])
    longer_ones = [slopes_of([[one], [2.0]], [[1e-7], [1e-7]]) for one in (first, second)]
    found, reach = sharper(usual, *longer_ones)
    torch.testing.assert_close(found.value, torch.tensor([value, 2.0], dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.bar, torch.tensor([bar, 1e-7], dtype=F64), rtol=1e-9, atol=0)
    assert (reach > 1).flatten().tolist() == [bar == 1e-7, True]


def test_each_output_decides_for_itself():
    """Those that stand still bear longer steps than the one that bends too much for them."""
    usual = slopes_of([[1.0, 0.0, 0.0]], [[1e-9, 1e-9, 1e-9]])
    bent = slopes_of([[1.5, 0.0, 0.0]], [[2.0, 1e-11, 1e-11]])
    found, reach = sharper(usual, bent, bent)
    assert float(found.value) == 1.0
    assert float(found.bar) == pytest.approx(1e-9 + 2e-11)
    assert reach.tolist() == [[1.0, 8.0, 8.0]]


@pytest.mark.parametrize("odd", ["a kink", "an edge of the domain"])
def test_where_one_side_alone_is_known_nothing_changes(odd):
    """Sums of two-sided derivatives would be another thing there."""
    bars = [[1e-9, float("inf") if odd != "a kink" else 1e-9]]
    usual = slopes_of([[1.0, 1.0]], bars, kinked=odd == "a kink")
    sure = slopes_of([[1.0, 1.0]], [[1e-11, 1e-11]])
    found, reach = sharper(usual, sure, sure)
    assert found is usual
    assert reach.tolist() == [[1.0, 1.0]]

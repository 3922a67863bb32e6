"""Full mode's limits: what is refused, and in which words."""

from __future__ import annotations

import pytest
import torch
from check_cases import check

from gradoracle_server.engine import jacobians
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.report import Mode


def refused(function, *inputs):
    """The fault of a check in full mode."""
    with pytest.raises(Fault) as caught:
        check(function, *inputs, mode=Mode.FULL)
    return caught.value


def test_an_input_of_too_many_elements():
    """However few the outputs, the limit that is named is the one of elements, and what was asked is their number."""
    x = torch.ones(8193, dtype=torch.float64)
    found = refused(lambda x: x.tanh().sum(), x)
    assert found.message == (
        'mode: full moves every element alone: expected at most 8192 in an input, but input "x" has 8193 real '
        "numbers; choose probe mode, which has no such limit, or fewer elements"
    )
    assert found.metadata == {"limit": "full mode", "allowed": "8192", "asked": "8193"}


def test_a_jacobian_of_too_many_elements(monkeypatch):
    """Where the input may be as large, but not with so many outputs, the limit that is named is the one of products."""
    monkeypatch.setattr(jacobians, "MOST", 100)
    found = refused(lambda x: x.repeat(4).sin(), torch.ones(6, dtype=torch.float64))
    assert found.message == (
        "mode: full measures every element of the Jacobian: expected at most 100 products of outputs and inputs, "
        'got 144; input "x" has 6 real numbers, and the outputs 24; choose probe mode, which has no such limit, or '
        "fewer elements"
    )
    assert found.metadata == {"limit": "full mode", "allowed": "100", "asked": "144"}

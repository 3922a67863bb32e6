"""The pytest plugin against real servers: the tests' own, and a private one."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from gradoracle.pytest_plugin import (
    asking,  # noqa: F401  # loaded here, or every inner run loads its own
    streamed,  # noqa: F401  # the same
)

pytest_plugins = ["pytester"]

CASES = """
import numpy as np
import pytest
import torch

import gradoracle as go
from gradoracle.pytest_plugin import case

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad * x.cos()


def test_torch(assert_gradients):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    assert assert_gradients(lambda x: (x.tanh() * x).sum(), x).passed


def test_client(gradoracle):
    assert 6.0 == gradoracle.vjp("x**2", {"x": 3.0}).gradients["x"]


@pytest.mark.gradoracle_cases
@pytest.mark.parametrize("n", range(1, 81))
def test_cube(n):
    x = np.linspace(1.0, 2.0, n)
    claim = 3 * x**2
    if n == 7:
        claim[3] *= 1.5
    return case("sum(x**3)", x, claimed=claim)


@pytest.mark.gradoracle_cases
def test_functions():
    x = torch.linspace(0.1, 1, 4, dtype=torch.float64, requires_grad=True)
    right = case(torch.special.expm1, x)
    return [right, case(Doubled.apply, x), right]


@pytest.mark.gradoracle_cases
def test_shapes():
    return case("x @ y", np.ones((2, 3)), np.ones((4, 3)))


@pytest.mark.gradoracle_cases(allow_inconclusive=True)
def test_kink():
    return case("relu(x)", 0.0)
"""


def test_verdicts_of_a_server(server: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs, torch callables and functions with a backward of their own get the verdicts that they deserve, over more
    cases than go at a time; what the service refuses is that test's failure alone."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makepyfile(CASES)
    result = pytester.runpytest_inprocess(
        *("-p", "gradoracle.pytest_plugin", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-v"),
        f"--gradoracle-address={server}",
    )
    result.assert_outcomes(passed=82, failed=3)
    result.stdout.fnmatch_lines(
        [
            f"gradoracle: {server}",
            "*::test_cube[[]7[]] FAILED*",
            "*_ test_cube[[]7[]] _*",
            "x: *; error * at [[]3[]], bound *",
            "*_ test_functions _*",
            "case 2 of 3: *SCALED by 2; *",
            "*_ test_shapes _*",
            "gradoracle.errors.ComputationError: *mat1 and mat2 shapes cannot be multiplied (2x3 and 4x3)",
        ]
    )


def test_a_private_server(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an address a server is started at first use, serves the whole session, and has ended with it."""
    monkeypatch.delenv("GRADORACLE_ADDRESS", raising=False)
    pytester.makepyfile(
        "import os, pathlib\n"
        "from gradoracle.pytest_plugin import assert_gradients, case\nimport pytest\n"
        "def test_one(gradoracle, assert_gradients):\n"
        f"    pathlib.Path({str(tmp_path / 'address')!r}).write_text(gradoracle.address)\n"
        "    assert_gradients('sin(x)', 1.0)\n"
        "def test_two(gradoracle):\n"
        f"    assert gradoracle.address == pathlib.Path({str(tmp_path / 'address')!r}).read_text()\n"
        "@pytest.mark.gradoracle_cases\ndef test_three(): return case('cos(x)', 1.0)\n"
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=3)
    address = (tmp_path / "address").read_text()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert not listens(address)


def test_listening_would_be_noticed(server: str) -> None:
    """The test above can tell a server that still runs."""
    assert listens(server)


def listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0

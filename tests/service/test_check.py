"""Gradient checks through the client and the command line, against a real server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradoracle as go
from gradoracle.cli import main

X = np.linspace(-2.0, 2.0, 20).reshape(4, 5)


def test_autograds_own_gradient_passes(client: go.Client) -> None:
    """A right operator passes, with figures: passes spent, detection power, the ladder, second opinions, timing."""
    report = client.check("softmax(x, dim=-1)", {"x": X})
    assert report.passed
    assert report.verdict is go.Verdict.PASS
    assert report.verdict == "PASS"
    assert report.inputs["x"].passed
    assert 0 < report.detection_power < 1e-7
    assert report.evaluations > 12
    assert len(report.ladder) == 6
    assert {one.name for one in report.opinions} >= {"linear_zero", "linear_strided"}
    assert report.timing.check > 0


def test_a_wrong_claim_fails_where_it_is_wrong(client: go.Client) -> None:
    """One wrong element of a claim is named with its values, and every element's error is known."""
    claim = np.cos(X)
    claim[2, 3] *= 2
    report = client.check("sin(x).sum()", {"x": X}, claimed={"x": claim})
    found = report.inputs["x"]
    assert report.verdict is found.verdict is go.Verdict.FAIL
    assert found.diagnosis is go.Diagnosis.SINGLE_ELEMENTS
    (worst,) = found.worst
    assert worst.index == (2, 3)
    assert worst.claimed == claim[2, 3]
    assert worst.reference == pytest.approx(np.cos(X)[2, 3], rel=1e-12)
    assert worst.numerical == pytest.approx(np.cos(X)[2, 3], rel=1e-9)
    assert worst.error > worst.error_bound
    assert found.errors is not None
    assert np.argwhere(found.errors > 1e-6).tolist() == [[2, 3]]


def test_a_kink(client: go.Client) -> None:
    """At a kink the report has the one-sided slopes, and whether the claim lies between."""
    for claim, inside in ((0.5, True), (2.0, False)):
        found = client.check("relu(x)", {"x": 0.0}, claimed={"x": claim}).inputs["x"]
        assert found.verdict is go.Verdict.NON_DIFFERENTIABLE
        assert found.kink == pytest.approx((0, 1), abs=1e-7)
        assert found.claim_inside is inside


def test_claims_that_are_numbers_take_their_inputs_dtype(client: go.Client) -> None:
    """A Python number has no dtype of its own, and is no claim of the wrong dtype."""
    x = np.array(3.0, np.float32)
    assert client.check("x * x", {"x": x}, claimed={"x": 6.0}).passed
    assert client.check("x * x", {"x": x}, claimed={"x": 6.5}).verdict is go.Verdict.FAIL


@pytest.mark.parametrize(
    ("claimed", "kind", "text"),
    [
        ({"y": 1.0}, go.InvalidRequestError, 'claimed: the graph has no input "y"; inputs: "x"'),
        ({"x": np.zeros(3)}, go.TensorError, 'input "x" has shape [4, 5], got a tensor of shape [3]'),
        ({"x": np.zeros((4, 5), np.int64)}, go.TensorError, 'input "x" is float64, got int64'),
        ({"x": np.zeros((4, 5), np.complex128)}, go.TensorError, 'input "x" is float64, got complex128'),
    ],
)
def test_bad_claims(client: go.Client, claimed: dict[str, object], kind: type[Exception], text: str) -> None:
    """Claims that cannot be meant are errors with names and shapes, not verdicts."""
    with pytest.raises(kind) as caught:
        client.check("sin(x).sum()", {"x": X}, claimed=claimed)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert isinstance(caught.value, go.InvalidRequestError)


def test_claims_need_cotangents(client: go.Client) -> None:
    """A claim for the gradient of a vector needs a cotangent; the message is torch's own."""
    with pytest.raises(go.InvalidRequestError, match="grad can be implicitly created only for scalar outputs"):
        client.check("sin(x)", {"x": X}, claimed={"x": X})


@pytest.mark.parametrize(
    "options",
    [{"mode": "hard"}, {"order": 3}, {"order": 2, "forward_mode": True}, {"order": 2, "claimed": {"x": X}}],
    ids=lambda options: " ".join(options),
)
def test_unknown_options(client: go.Client, options: dict[str, object]) -> None:
    """An option that does not exist is refused with what there is."""
    with pytest.raises(go.InvalidRequestError, match="expected"):
        client.check("sin(x)", {"x": X}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "options", "at_random"),
    [
        ("sin(x)", {}, True),
        ("sum(sin(x))", {}, False),
        ("sin(x)", {"cotangents": {"out": np.ones_like(X)}}, False),
        ("sum(sin(x))", {"claimed": {"x": X}}, False),
    ],
)
def test_a_report_says_whether_cotangents_are_random(
    client: go.Client, expression: str, options: dict[str, Any], at_random: bool
) -> None:
    """They are where neither they nor claims are given, and an output is no scalar."""
    assert at_random is client.check(expression, {"x": X}, **options).random_cotangents


def test_nothing_can_be_claimed_at_order_2(client: go.Client) -> None:
    """First gradients are weighted there with numbers that no caller knows."""
    with pytest.raises(go.InvalidRequestError, match="claimed: expected order 1 with it, got order 2"):
        client.check("sum(x**2)", {"x": X}, order=2, claimed={"x": X})


async def test_the_asyncio_client(server: str) -> None:
    """`check` is awaited, and gives the same report."""
    async with go.AsyncClient(server) as client:
        assert (await client.check("tanh(x)", {"x": X}, order=2)).passed


def test_checks_in_a_map(client: go.Client) -> None:
    """Checks can be requests among others."""
    asked = [go.request("check", text, {"x": X}) for text in ("sin(x)", "x.exp()")]
    assert [one.passed for one in client.map(asked)] == [True, True]


def test_the_report_as_text_and_html(client: go.Client) -> None:
    """Text names verdict, diagnosis and worst elements; HTML adds a curve and a heat map, and escapes names."""
    graph = go.Graph()
    x = graph.input("<x>")
    graph.output("y", x.sin().sum())
    claim = np.cos(X)
    claim[1] *= -1
    report = client.check(graph, {"<x>": X}, claimed={"<x>": claim})
    text = report.render()
    assert "\x1b" not in text
    assert all(part in text for part in ("FAIL", "SIGN_FLIPPED", "Worst elements of <x>", "[1, 0]", "forward passes"))
    assert "\x1b[" in report.render(color=True)
    page = report.to_html()
    assert page.count("<svg") == 2
    assert "&lt;x&gt;" in page
    assert "<x>" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        (["softmax(x, dim=-1)", "x=normal:8x64:float64"], 0, "PASS"),
        (["x * x", "x=2", "--claim", "x=5"], 1, "FAIL"),
        (["relu(x)", "x=0"], 4, "NON_DIFFERENTIABLE"),
        (["relu(x)", "x=0", "--allow-inconclusive"], 0, "NON_DIFFERENTIABLE"),
        (["sum(relu(x))", "x=[0,1]", "--claim", "x=[2,1]"], 4, "NON_DIFFERENTIABLE"),
        (["sum(relu(x))", "x=[0,1]", "--claim", "x=[2,1]", "--allow-inconclusive"], 1, "NON_DIFFERENTIABLE"),
        (["log(x)", "x=-1"], 4, "INCONCLUSIVE"),
        (["sin(x)", "x=[1,2]", "--order", "2", "--mode", "full"], 0, "PASS"),
    ],
)
def test_the_command(
    server: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, verdict: str
) -> None:
    """`gradoracle check` prints the report, and its exit code is the verdict."""
    assert main(["check", *arguments, "--address", server]) == code
    assert capsys.readouterr().out.startswith(verdict)
    assert main(["check", *arguments, "--address", server, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_claims_from_a_file(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--claimed takes a .npz file, --html writes a page, and JSON says NaN as text."""
    claim = np.cos(X)
    claim[0, 0] = math.nan
    np.savez(tmp_path / "x.npz", x=X)
    np.savez(tmp_path / "claims.npz", x=claim)
    files = ["--inputs", str(tmp_path / "x.npz"), "--claimed", str(tmp_path / "claims.npz")]
    page = tmp_path / "report.html"
    assert main(["check", "sin(x).sum()", *files, "--address", server, "--json", "--html", str(page)]) == 1
    found = json.loads(capsys.readouterr().out)["inputs"]["x"]
    assert found["diagnosis"] == "NAN"
    assert found["worst"][0]["claimed"] == "NaN"
    assert "NAN" in page.read_text(encoding="utf-8")


def test_a_claim_file_that_is_none(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing is bad input: exit code 2 and one line."""
    assert main(["check", "x", "x=1", "--claimed", str(tmp_path / "none.npz"), "--address", server]) == 2
    assert "none.npz" in capsys.readouterr().err

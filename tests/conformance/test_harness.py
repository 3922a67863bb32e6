"""The suite itself: what it must call wrong, planted; and what it must not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go
from conformance import run, table
from conformance.judge import Ask, Judgement, Outcome, compare, judge
from conformance.processes import judged, judgements
from conformance.samples import Case, operators, parts
from gradoracle.results import Timing, VjpResult

NOTHING = Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The operator under test."""
    return x * y


CASE = Case("product", 0, product, (torch.tensor([1.5, -2.5]), torch.tensor([3.0, 0.25])), {})


def right(graph: go.Graph, primals: Mapping[str, Any], cotangents: Mapping[str, Any], seed: int) -> VjpResult:
    """What a right server answers to CASE."""
    x, y = (primals[name] for name in graph.inputs)
    (name,), (g,) = graph.outputs, cotangents.values()
    return VjpResult(timing=NOTHING, outputs={name: x * y}, gradients={"x": g * y, "y": g * x})


def changed(field: str, name: str, change: Any) -> Ask:
    """A server with a fault in one array."""

    def ask(*request: Any) -> VjpResult:
        answer = right(*request)
        arrays: dict[str, Any] = getattr(answer, field)
        arrays[name] = change(arrays[name])
        return answer

    return ask


def one_bit(array: Any) -> Any:
    """The same with the last bit of its last element turned."""
    bits = array.copy().view(np.uint32)
    bits[-1] ^= 1
    return bits.view(array.dtype)


def test_a_right_answer_is_exact() -> None:
    """The same bits are exact."""
    assert judge(CASE, right) == Judgement("product", 0, Outcome.EXACT)


@pytest.mark.parametrize(
    ("field", "name", "change", "outcome"),
    [
        ("gradients", "x", one_bit, Outcome.CLOSE),
        ("outputs", "out", one_bit, Outcome.CLOSE),
        ("gradients", "x", lambda array: -array, Outcome.WRONG),
        ("gradients", "y", lambda array: array * np.float32(1.001), Outcome.WRONG),
        ("gradients", "y", lambda array: None, Outcome.WRONG),
        ("gradients", "x", lambda array: array.astype(np.float64), Outcome.WRONG),
        ("gradients", "x", lambda array: array[:, None], Outcome.WRONG),
        ("outputs", "out", lambda array: array * np.float32("nan"), Outcome.WRONG),
        ("outputs", "out", lambda array: array[::-1], Outcome.WRONG),
    ],
)
def test_a_planted_fault(field: str, name: str, change: Any, outcome: Outcome) -> None:
    """One bit is never exact; a sign, a factor, a missing gradient, a dtype, a shape, NaN, an order are wrong."""
    found = judge(CASE, changed(field, name, change))
    assert found.outcome is outcome
    assert name in found.reason


def test_a_fault_of_the_server() -> None:
    """A real server that is sent another program than was traced gives itself away."""
    with go.local_server(workers=1, threads=1) as address, go.Client(address) as client:

        def ask(graph: go.Graph, primals: Any, cotangents: Any, seed: int) -> VjpResult:
            other = graph.message
            other.nodes[0].target = "aten.div.Tensor"
            return client.vjp(go.Graph.from_message(other), primals, cotangents, seed=seed)

        assert judge(CASE, ask).outcome is Outcome.WRONG
        assert judge(CASE, lambda *request: client.vjp(*request[:3], seed=request[3])).outcome is Outcome.EXACT


def test_refusals() -> None:
    """What is not traced or not served is refused, with the reason."""

    def branch(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    def unserved(*request: Any) -> VjpResult:
        raise go.UnsupportedOperatorError("no such operator")

    found = judge(Case("branch", 3, branch, CASE.args[:1], {}), right)
    assert (found.outcome, found.index) == (Outcome.REFUSED, 3)
    assert "Tensor.__bool__" in found.reason
    found = judge(CASE, unserved)
    assert found == Judgement("product", 0, Outcome.REFUSED, "server: UnsupportedOperatorError: no such operator")


def test_what_fails_is_wrong() -> None:
    """An error of the suite's own never counts as a pass."""

    def failing(*request: Any) -> VjpResult:
        raise ZeroDivisionError("planted")

    found = judged(CASE, failing)
    assert found.outcome is Outcome.WRONG
    assert found.reason.startswith("the harness failed: ZeroDivisionError: planted (test_harness.py:")


def test_nan_and_zero() -> None:
    """Any NaN equals any other; zeros of two signs differ, and so do real and imaginary parts."""
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert compare("x", torch.tensor([float(quiet)]), np.array([other]))[0] is Outcome.EXACT
    assert compare("x", torch.tensor([0.0]), np.array([-0.0], np.float32))[0] is Outcome.CLOSE
    assert compare("x", torch.tensor([1 + 2j]), np.array([1 - 2j], np.complex64))[0] is Outcome.WRONG
    assert compare("x", torch.tensor([1, 2]), np.array([1, 3]))[0] is Outcome.WRONG
    assert compare("x", torch.tensor([1.0]), np.array([float("nan")], np.float32))[0] is Outcome.WRONG
    assert compare("x", None, None)[0] is Outcome.EXACT


def test_operators_and_parts() -> None:
    """All of op_db that is differentiable, and the tensors of a case in the order of the graph's inputs."""
    assert len(operators(torch.float64)) > 500
    case = Case("nested", 0, product, (torch.ones(1), [torch.zeros(2), 3]), {"other": torch.ones(3)})
    assert [piece.tensor.numel() for piece in parts(case)] == [1, 2, 3]


def dying(address: str, dtype: str, limit: int | None, pipe: Connection) -> None:
    """A process of the suite that ends when it is asked for "bad"."""
    while True:
        name = pipe.recv()
        pipe.send(Judgement(name, 0, Outcome.EXACT))
        if name == "bad":
            os._exit(3)
        pipe.send(None)


def test_a_process_that_dies() -> None:
    """The operator that ends its process is wrong, and the others are judged all the same."""
    found = dict(judgements("", "float64", ["good", "bad", "better"], serve=dying))
    assert {name: [one.outcome for one in group] for name, group in found.items()} == {
        "good": [Outcome.EXACT],
        "bad": [Outcome.EXACT, Outcome.WRONG],
        "better": [Outcome.EXACT],
    }
    assert found["bad"][1].reason == "the process of the suite ended with code 3"


def test_the_table(tmp_path: Path) -> None:
    """Counts samples by outcome and operators that are exact in every sample; the page names the others."""
    sweep = table.Sweep(
        "float64",
        [
            Judgement("b", 1, Outcome.CLOSE, "a | bit"),
            Judgement("b", 0, Outcome.EXACT),
            Judgement("a", 0, Outcome.EXACT),
            Judgement("c", 0, Outcome.WRONG, "other\nnumbers"),
        ],
    )
    assert sweep.row() == ("float64", "3", "1", "4", "2", "1", "0", "1")
    assert (
        table.text([sweep]).splitlines()[2]
        == "| float64 |         3 |         1 |       4 |     2 |     1 |       0 |     1 |"
    )
    table.write([sweep], "the command", tmp_path)
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| b | 1 of 2 | close | a \\| bit |" in page
    assert "| c | 1 of 1 | wrong | other numbers |" in page
    document = json.loads((tmp_path / "RESULTS.json").read_text(encoding="utf-8"))
    assert document["dtypes"]["float64"]["wrong"] == 1
    assert [one["operator"] for one in document["dtypes"]["float64"]["not exact"]] == ["b", "c"]


def test_memory_is_filled() -> None:
    """The command starts itself again with malloc's fill, and only once."""
    environment = run.filled({"HOME": "/"})
    assert environment == {"HOME": "/", "MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    assert run.filled(environment or {}) is None


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Ends with the table, and with exit code 0 where nothing is wrong."""
    assert run.main(["--dtype", "float32", "--only", "sinh", "--quick"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("|")[1:9] == [
        " float32 ", "         1 ", "         1 ", "       1 ", "     1 ", "     0 ", "       0 ", "     0 "
    ]  # fmt: skip

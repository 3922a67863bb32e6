"""Sweeps: what cases are made of operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradoracle import cli
from gradoracle.batch import cases as batch_cases
from gradoracle.batch.array_files import ArrayFiles
from gradoracle.batch.cases import Requests
from gradoracle.graph import Graph
from gradoracle.operators import table
from gradoracle.sweep import Sweep, cases
from gradoracle.sweep.recipes import Recipe, Tensor, read, reason, recipes

COVERED = 940
"""Differentiable overloads that must have a sample; the others say why they have none."""


def one(name: str, **sweep: Any) -> dict[str, Any]:
    """The first case of an operator."""
    return next(cases([name], Sweep(**sweep)))


def graph_of(case: dict[str, Any]) -> Graph:
    return Graph.from_json(case["graph"])


def test_every_recipe_fits_its_schema_and_makes_a_request() -> None:
    """A sweep of everything gives cases with ids of their own, each a request."""
    make, ids = Requests(ArrayFiles(Path())), set()
    for number, case in enumerate(cases(["all"], Sweep(shapes=((3, 4),))), 1):
        parsed = batch_cases.parse(json.dumps(case).encode(), number)
        make.make(parsed)
        assert parsed.id not in ids
        ids.add(parsed.id)
    assert len(ids) > COVERED


def test_differentiable_operators_are_covered_or_say_why_not() -> None:
    """No overload is silently left out."""
    operators = [one for one in table().served.values() if one.differentiable]
    without = {one.name: reason(one) for one in operators if not recipes(one)}
    assert len(operators) - len(without) >= COVERED
    assert [] == [name for name, why in without.items() if why == "no sample for it"]


def test_recipes_name_overloads_that_there_are() -> None:
    """A recipe of an overload that torch no longer has is an error, not dead text."""
    from gradoracle.sweep.recipes import _file

    assert [] == [name for name in _file().recipes if name not in table().served]


@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        (
            "lerp.Scalar n:S u:-1:2:3x4! 0.3",
            Recipe("aten.lerp.Scalar", (Tensor("n", None), Tensor("u", (3, 4), (-1, 2), requires_grad=False), 0.3)),
        ),
        (
            'einsum.default "a b,c" [n:2,i:0:5:scalar] #2',
            Recipe(
                "aten.einsum.default",
                ("a b,c", [Tensor("n", (2,)), Tensor("i", (), (0, 5), requires_grad=False)]),
                elements=2,
            ),
        ),
        (
            "pad.default d:[[1,2]] [1,2] value=null",
            Recipe(
                "aten.pad.default",
                (Tensor("d", None, data=[[1, 2]], requires_grad=False), [1, 2]),
                {"value": None},
            ),
        ),
    ],
)
def test_recipes_are_read(line: str, recipe: Recipe) -> None:
    """Tensors, lists of them, JSON, names, and how many elements to use."""
    assert [recipe] == read(line).recipes[recipe.target]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.b n:3y4", "expected a shape such as 3x4 or scalar"),
        ("a.b u:1:3", "expected u:…:SHAPE"),
        ("a.b oops", "Expe"),
    ],
)
def test_recipes_that_cannot_be_read_are_told(line: str, message: str) -> None:
    """The line stands in the error."""
    with pytest.raises(ValueError, match=rf"recipes, line 2: {message}.*{line.split()[1]}"):
        read(f"# a comment\n{line}\n")


def test_shapes_dtypes_devices_and_layouts_are_swept() -> None:
    """Their product, each case with labels to select by."""
    sweep = Sweep(
        shapes=((3, 4), ()),
        dtypes=("float64", "bfloat16"),
        devices=("cpu", "cuda:1"),
        layouts=("contiguous", "transposed"),
    )
    made = list(cases(["aten.tanh.default"], sweep))
    assert 12 == len(made)  # a scalar has no transpose
    last = made[-1]
    assert "tanh scalar bfloat16 cuda:1" == last["id"]
    assert {
        "operator": "aten.tanh.default",
        "dtype": "bfloat16",
        "layout": "contiguous",
        "shape": "scalar",
        "device": "cuda:1",
    } == last["labels"]
    assert {"device": "cuda:1"} == last["options"]
    assert "bfloat16" == last["inputs"]["x0"]["dtype"]


@pytest.mark.parametrize(
    ("operator", "layout", "sent", "targets"),
    [
        ("aten.tanh.default", "contiguous", [3, 4], ["aten.tanh.default"]),
        ("aten.tanh.default", "transposed", [4, 3], ["aten.transpose.int", "aten.tanh.default"]),
        ("aten.tanh.default", "strided", [3, 8], ["aten.slice.Tensor", "aten.tanh.default"]),
        (
            "aten.max_pool2d.default",
            "channels_last",
            [1, 2, 6, 6],
            ["aten.contiguous.default", "aten.max_pool2d.default"],
        ),
        ("aten.tanh_.default", "contiguous", [3, 4], ["aten.clone.default", "aten.tanh_.default"]),
    ],
)
def test_layouts_are_made_in_the_graph(operator: str, layout: str, sent: list[int], targets: list[str]) -> None:
    """The input is sent so that the view of it has the shape and strides wanted; what works in place gets a copy."""
    case = one(operator, shapes=((3, 4),), layouts=(layout,))
    assert sent == case["inputs"]["x0"]["shape"]
    assert targets == [node.target for node in graph_of(case).message.nodes]


def test_a_layout_that_changes_nothing_makes_no_case() -> None:
    """tanh of a matrix has no channels."""
    assert [] == list(cases(["aten.tanh.default"], Sweep(layouts=("channels_last",))))


def test_matrices_have_the_structure_that_they_claim() -> None:
    """Positive definite, triangular or symmetric, exactly, and the input says so."""
    for name, structure, check in (
        ("aten.linalg_cholesky.default", "STRUCTURE_POSITIVE_DEFINITE", lambda m: np.linalg.eigvalsh(m).min() > 0.5),
        ("aten.linalg_solve_triangular.default", "STRUCTURE_UPPER_TRIANGULAR", lambda m: np.array_equal(m, np.triu(m))),
        ("aten.linalg_eigvalsh.default", "STRUCTURE_SYMMETRIC", lambda m: np.array_equal(m, m.T)),
    ):
        case = one(name)
        assert structure == case["graph"]["inputs"][0]["structure"]
        assert check(np.array(case["inputs"]["x0"]["data"])), name


def test_a_sweep_is_the_same_every_time() -> None:
    """Seeds depend on the operator and the sweep's seed alone."""
    first, again = one("aten.mul.Tensor"), one("aten.mul.Tensor")
    assert first == again
    seeds = {case["inputs"][name]["seed"] for case in (first, one("aten.mul.Tensor", seed=1)) for name in ("x0", "x1")}
    assert 4 == len(seeds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["softmxa"], 'no operator "softmxa"; did you mean "softmax"'),
        (["aten.linalg_eig.default"], '"aten.linalg_eig.default" cannot be swept: eigenvectors have a phase'),
        (["aten.argmax.default"], '"aten.argmax.default" cannot be swept: autograd has no derivative for it'),
        (["tanh", "--dtypes", "int32"], "dtypes: expected a floating or complex dtype, got 'int32'"),
        (["tanh", "--layouts", "transpose"], "got 'transpose'; did you mean \"transposed\"?"),
        (["tanh", "--shapes", "3y4"], "--shapes: expected a shape such as 3x4 or scalar, got '3y4'"),
    ],
)
def test_what_cannot_be_swept_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what may have been meant."""
    assert 2 == cli.main(["sweep", *arguments])
    assert message in capsys.readouterr().err


def test_the_command_prints_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, with the options of the check."""
    assert 0 == cli.main(
        ["sweep", "tanh", "aten.mul.Tensor", "--shapes", "2,3x1", "--dtypes", "float32", "--order", "2"]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["tanh 2 float32", "tanh 3x1 float32"] == [line["id"] for line in lines[:2]]
    assert all({"order": 2} == line["options"] for line in lines)


def test_the_command_tells_what_is_not_covered(capsys: pytest.CaptureFixture[str]) -> None:
    """Each overload with the reason."""
    assert 0 == cli.main(["sweep", "linalg_eig", "tanh", "--uncovered"])
    out = capsys.readouterr().out
    assert "aten.linalg_eig.default" in out
    assert "aten.tanh" not in out


def test_the_corpus_is_the_sweep_over_everything() -> None:
    """What ships as data is what `gradoracle sweep all` prints, and has an id for each case."""
    from gradoracle.batch.case_files import CaseFile

    shipped = [entry.case for entry in CaseFile("corpus:float64").entries()]
    made = [batch_cases.parse(json.dumps(case).encode(), k) for k, case in enumerate(cases(["all"], Sweep()), 1)]
    assert [(one.id, one.graph, one.arrays) for one in made] == [
        (one.id, one.graph, one.arrays) for one in shipped if one is not None
    ]


def test_complex_sweeps_leave_out_what_is_for_real_numbers() -> None:
    """softmax has no order to take a maximum in; exp has a complex derivative."""
    made = [case["labels"]["operator"] for case in cases(["softmax", "exp"], Sweep(dtypes=("complex128",)))]
    assert {"aten.exp.default"} == set(made)

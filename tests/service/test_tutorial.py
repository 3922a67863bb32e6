"""The ten cases of an introductory autograd course, through a real server: from Python and from the command line.

The expected numbers are the course's, written here by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradoracle as go

POLYNOMIAL = "9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1"
SQUARE = np.array([[1.0, 2.0], [3.0, 4.0]])


class CommandLine:
    """Runs `gradoracle` against the session's server."""

    def __init__(self, server: str) -> None:
        self.server = server

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        command = [sys.executable, "-m", "gradoracle.cli", *arguments, "--address", self.server]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr

    def json(self, *arguments: str) -> Any:
        """The document that --json prints."""
        code, out, err = self(*arguments, "--json")
        assert (0, "") == (code, err)
        return json.loads(out)


@pytest.fixture
def gradoracle(server: str) -> CommandLine:
    """The command line."""
    return CommandLine(server)


def test_1_untracked_inputs_get_no_gradient(client: go.Client) -> None:
    """An input with requires_grad=False gets no gradient; inspect shows the flag of every value."""
    graph = go.Graph()
    x = graph.input("x", requires_grad=False)
    w = graph.input("w")
    doubled = x * 2
    product = doubled * w
    graph.output("y", product.sum(name="total"))
    primals = {"x": np.array([1.0, 2.0]), "w": np.array([3.0, 4.0])}

    result = client.vjp(graph, primals)
    state = client.inspect(graph, primals)

    assert {"w"} == set(result.gradients)
    assert [2.0, 4.0] == result.gradients["w"].tolist()
    assert {"x": False, "w": True, doubled.name: False, product.name: True, "total": True} == {
        name: info.requires_grad for name, info in state.items()
    }


def test_1_switched_on_it_tracks(client: go.Client) -> None:
    """The same input with requires_grad on gets its gradient."""
    result = client.vjp("(x * 2 * w).sum()", {"x": np.array([1.0, 2.0]), "w": np.array([3.0, 4.0])})

    assert [6.0, 8.0] == result.gradients["x"].tolist()


def test_1_on_the_command_line(gradoracle: CommandLine) -> None:
    """--no-grad-input switches tracking off, and the input gets no line."""
    expression = ("grad", "(x * 2 * w).sum()", "x=[1,2]", "w=[3,4]")

    assert (0, "x: [6, 8]\nw: [2, 4]\n", "") == gradoracle(*expression)
    assert (0, "w: [2, 4]\n", "") == gradoracle(*expression, "--no-grad-input", "x")


def test_2_grad_fn(client: go.Client) -> None:
    """Each result knows what made it; a leaf has no grad_fn."""
    graph = go.Graph()
    a = graph.input("a")
    squared = a * a
    graph.output("b", squared.sum(name="b"))

    state = client.inspect(graph, {"a": np.ones((3, 3))})

    assert "SumBackward0" == state["b"].grad_fn
    assert "MulBackward0" == state[squared.name].grad_fn
    assert None is state["a"].grad_fn
    assert (True, False, False) == (state["a"].is_leaf, state[squared.name].is_leaf, state["b"].is_leaf)
    assert ((3, 3), (3, 3), ()) == (state["a"].shape, state[squared.name].shape, state["b"].shape)


def test_3_polynomial(client: go.Client) -> None:
    """y = 185 and dy/dx = 330 at x = 2."""
    result = client.vjp(POLYNOMIAL, {"x": np.array(2.0)})

    assert (185.0, 330.0) == (result.outputs["out"], result.gradients["x"])


def test_3_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed."""
    assert (0, "x: 330\n", "") == gradoracle("grad", POLYNOMIAL, "x=2")
    assert (0, "out: 185\n", "") == gradoracle("eval", POLYNOMIAL, "x=2")

    document = gradoracle.json("grad", POLYNOMIAL, "x=2")

    assert ({"out": 185.0}, {"x": 330.0}) == (document["outputs"], document["gradients"])


def test_4_only_scalars_start_a_backward_pass(client: go.Client) -> None:
    """Without a cotangent a 2x2 output is refused, in torch's words, with its name and shape."""
    graph = go.Graph()
    graph.output("z", (graph.input("x") + 2) ** 2)

    with pytest.raises(
        go.InvalidRequestError, match="grad can be implicitly created only for scalar outputs"
    ) as caught:
        client.vjp(graph, {"x": SQUARE})

    assert '"z"' in str(caught.value)
    assert "(2, 2)" in str(caught.value)


def test_4_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed: bad input, told in one line."""
    code, out, err = gradoracle("grad", "(x + 2)**2", "x=[[1,2],[3,4]]")

    assert (2, "") == (code, out)
    assert err.startswith("error: ")
    assert "grad can be implicitly created only for scalar outputs" in err
    assert "(2, 2)" in err
    assert 1 == err.count("\n")


def test_5_only_leaves_get_gradients(client: go.Client) -> None:
    """x.grad = 2(x + 2); y and z have no gradient unless retained."""
    graph = go.Graph()
    y = graph.input("x") + 2
    graph.output("out", (y**2).sum(name="z"))

    plain = client.vjp(graph, {"x": SQUARE})
    retained = client.vjp(graph, {"x": SQUARE}, retain=[y.name, "z"])

    assert {"x"} == set(plain.gradients)
    assert [[6.0, 8.0], [10.0, 12.0]] == plain.gradients["x"].tolist()
    assert {"x", y.name, "z"} == set(retained.gradients)
    assert [[6.0, 8.0], [10.0, 12.0]] == retained.gradients[y.name].tolist()
    assert 1.0 == retained.gradients["z"]


def test_5_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed, with the output retained."""
    assert (0, "x: [[6, 8],\n    [10, 12]]\nout: 1\n", "") == gradoracle(
        "grad", "((x + 2)**2).sum()", "x=[[1,2],[3,4]]", "--retain", "out"
    )


def test_6_cotangent(client: go.Client) -> None:
    """z = 3x² with cotangent [0.1, 1, 10] gives [0.6, 6, 60]."""
    result = client.vjp("3*x**2", {"x": np.ones(3)}, {"out": np.array([0.1, 1.0, 10.0])})

    assert [3.0, 3.0, 3.0] == result.outputs["out"].tolist()
    assert [0.1 * 3 * 2, 6.0, 60.0] == result.gradients["x"].tolist()


def test_6_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed."""
    assert (0, "x: [0.6, 6, 60]\n", "") == gradoracle("grad", "3*x**2", "x=[1,1,1]", "--cotangent", "out=[0.1,1,10]")


def test_7_no_grad_region(client: go.Client) -> None:
    """A no_grad region passes no gradient: of x² + x only the second x counts."""
    graph = go.Graph()
    x = graph.input("x")
    with graph.no_grad():
        squared = x**2
    graph.output("y", squared + x)
    primals = {"x": np.array(3.0)}

    result = client.vjp(graph, primals)
    state = client.inspect(graph, primals)

    assert (12.0, 1.0) == (result.outputs["y"], result.gradients["x"])
    assert (False, None) == (state[squared.name].requires_grad, state[squared.name].grad_fn)


def test_7_evaluate(client: go.Client, gradoracle: CommandLine) -> None:
    """evaluate gives the value alone, from Python and typed."""
    assert 9.0 == client.evaluate("x**2", {"x": np.array(3.0)}).outputs["out"]
    assert (0, "out: 9\n", "") == gradoracle("eval", "x**2", "x=3")


def test_8_detach(client: go.Client) -> None:
    """y = x.detach() has x's values and stops the gradient: d(x·y)/dx = y."""
    graph = go.Graph()
    x = graph.input("x")
    y = x.detach()
    graph.output("y", y)
    graph.output("product", (x * y).sum())

    result = client.vjp(graph, {"x": SQUARE}, {"product": np.array(1.0)})

    assert SQUARE.tolist() == result.outputs["y"].tolist()
    assert SQUARE.tolist() == result.gradients["x"].tolist()


def test_8_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed."""
    assert (0, "x: [1, 2, 3]\n", "") == gradoracle("grad", "(x * detach(x)).sum()", "x=[1,2,3]")


def test_9_retained_gradients(client: go.Client) -> None:
    """b = a + 2, c = b², out = c.sum() for ones(2, 2): out = 36, a.grad all 6; b, c and out have one if retained."""
    graph = go.Graph()
    b = graph.input("a") + 2
    c = b**2
    graph.output("out", c.sum())
    ones = np.ones((2, 2))

    plain = client.vjp(graph, {"a": ones})
    retained = client.vjp(graph, {"a": ones}, retain=[b.name, c.name, "out"])

    assert 36.0 == plain.outputs["out"]
    assert {"a": (6 * ones).tolist()} == {name: gradient.tolist() for name, gradient in plain.gradients.items()}
    assert {
        "a": (6 * ones).tolist(),
        b.name: (6 * ones).tolist(),
        c.name: ones.tolist(),
        "out": 1.0,
    } == {name: gradient.tolist() for name, gradient in retained.gradients.items()}


def test_10_the_cotangent_of_a_scalar_is_1(client: go.Client) -> None:
    """Leaving the cotangent out is the same as giving 1."""
    graph = go.Graph()
    graph.output("y", (graph.input("x") ** 3).sum())

    left_out = client.vjp(graph, {"x": SQUARE})
    given = client.vjp(graph, {"x": SQUARE}, {"y": 1.0})

    assert (3 * SQUARE**2).tolist() == left_out.gradients["x"].tolist() == given.gradients["x"].tolist()


def test_10_on_the_command_line(gradoracle: CommandLine) -> None:
    """The same, typed."""
    plain = gradoracle("grad", POLYNOMIAL, "x=2")
    given = gradoracle("grad", POLYNOMIAL, "x=2", "--cotangent", "out=1")

    assert (0, "x: 330\n", "") == plain == given

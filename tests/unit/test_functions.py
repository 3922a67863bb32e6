"""Operators that bring their own gradient: autograd uses what was given, at every order and under vmap."""

from __future__ import annotations

import pytest
import torch
from engine_cases import CPU, graph, node, phases, same_bits

from gradoracle_server.engine import autodiff, batching, plan
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import FunctionSpec, GraphSpec, InputSpec

F64 = torch.float64


def straight_through(**changes):
    """round, whose gradient is given as that of x**3 / 3: g * x**2."""
    forward = graph("x", [node("y", "round.default", "%x")], "y")
    nodes = [node("q", "mul.Tensor", "%x", "%x"), node("p", "mul.Tensor", "%g", "%q")]
    return FunctionSpec(**{"name": "ste", "forward": forward, "backward": graph("x g", nodes, {"x": "p"}), **changes})


def build(functions, nodes, outputs, inputs="x"):
    spec = graph(inputs, nodes, outputs)
    return plan.build(GraphSpec(spec.inputs, spec.nodes, spec.outputs, (), tuple(functions)), CPU)


def rounded():
    return build([straight_through()], [node("r", "function.ste", "%x"), node("s", "sum.default", "%r")], "r s")


X = torch.tensor([0.6, -1.4, 2.2], dtype=F64)
ONE = {"s": torch.ones((), dtype=F64)}


def test_the_given_gradient_is_used():
    """The values are forward's and the gradient is backward's, not the derivative of forward."""
    found = autodiff.vjp(rounded(), {"x": X}, phases(), cotangents=ONE)
    assert found.outputs[0].tolist() == [1.0, -1.0, 2.0]
    assert same_bits(found.gradients["x"], X * X)


def test_the_given_gradient_is_differentiated_in_its_turn():
    """Second derivatives, tangents and Jacobians follow from backward."""
    _, blocks = autodiff.hessian(rounded(), {"x": X}, phases(), cotangents=ONE)
    torch.testing.assert_close(blocks["x", "x"], torch.diag(2 * X))
    v = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    moved = autodiff.jvp(rounded(), {"x": X}, phases(), tangents={"x": v}).gradients
    torch.testing.assert_close(moved["r"], X * X * v)
    _, rows = autodiff.jacobian(rounded(), {"x": X}, phases())
    torch.testing.assert_close(rows["r", "x"], torch.diag(X * X))


def test_examples_in_a_batch():
    """Per-example gradients go through backward under vmap."""
    stacked = torch.stack([X, X + 1])
    found = batching.vjp(rounded(), {"x": stacked}, phases(), batched=["x"], cotangents=ONE)
    torch.testing.assert_close(found.gradients["x"], stacked**2)


def test_several_results_and_inputs_without_a_gradient():
    """A function with two outputs gives a tuple; an input that backward does not name has no gradient."""
    forward = graph("a b", [node("s", "add.Tensor", "%a", "%b"), node("k", "argmax.default", "%s")], "s k")
    backward = graph("a b ds dk", [node("t", "mul.Tensor", "%ds", 5)], {"a": "t"})
    nodes = [node("f", "function.two", "%a", "%b"), node("s", "getitem", "%f", 0), node("k", "getitem", "%f", 1)]
    made = build([FunctionSpec("two", forward, backward)], nodes, "s k", "a b")
    found = autodiff.vjp(made, {"a": X, "b": X}, phases(), cotangents={"s": torch.ones_like(X)})
    assert found.outputs[1].item() == 2
    assert found.gradients["a"].tolist() == [5.0] * 3
    assert found.gradients["b"] is None


CALL = [node("r", "function.ste", "%x")]
BROKEN = {
    "unknown function": (
        [straight_through()],
        [node("r", "function.stf", "%x")],
        'node "r": the graph has no function "stf"; did you mean "ste"?',
        "graph.nodes[0].target",
    ),
    "wrong arity": (
        [straight_through()],
        [node("r", "function.ste", "%x", "%x")],
        'node "r": function.ste expects 1 positional tensor, got the tensor "x", the tensor "x"',
        "graph.nodes[0]",
    ),
    "a number": (
        [straight_through()],
        [node("r", "function.ste", 2.0)],
        'node "r": function.ste expects 1 positional tensor, got float 2.0',
        "graph.nodes[0]",
    ),
    "bad name": (
        [straight_through(name="a b")],
        CALL,
        "graph.functions[0].name: expected letters, digits and underscores, got 'a b'",
        "graph.functions[0].name",
    ),
    "twice": (
        [straight_through(), straight_through()],
        CALL,
        'graph.functions[1].name: the name "ste" stands twice among the functions',
        "graph.functions[1].name",
    ),
    "broken inside": (
        [straight_through(forward=graph("x", [node("y", "round.default", "%z")], "y"))],
        CALL,
        'function "ste", forward: node "y": refers to "z", and nothing has that name; known here: "x"',
        "graph.functions[0].forward.nodes[0].args[0]",
    ),
    "backward without a cotangent": (
        [straight_through(backward=graph("x", [], {"x": "x"}))],
        CALL,
        'function "ste", backward: expected 2 inputs, '
        "the forward graph's 1 and a cotangent for each of its 1 outputs, got 1",
        "graph.functions[0].backward.inputs",
    ),
    "gradient by nothing": (
        [straight_through(backward=graph("x g", [], {"w": "g"}))],
        CALL,
        'function "ste", backward: the forward graph has no input "w"; there is "x"',
        "graph.functions[0].backward.outputs",
    ),
    "nested": (
        [straight_through(forward=GraphSpec((InputSpec("x"),), (), (("y", "x"),), (), (straight_through(),)))],
        CALL,
        'function "ste": its forward graph must not have functions of its own',
        "graph.functions[0].forward.functions",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_functions_are_refused(case):
    """A function that does not fit its call, or whose graphs do not fit each other, is told by place."""
    functions, nodes, message, field = BROKEN[case]
    with pytest.raises(Fault) as caught:
        build(functions, nodes, "r")
    assert (caught.value.message, caught.value.field) == (message, field)

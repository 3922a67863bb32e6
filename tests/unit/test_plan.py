"""Graphs: what is refused when they arrive, with which words, and what the program does."""

from __future__ import annotations

import pytest
import torch
from engine_cases import CPU, build, graph, node, phases, same_bits

from gradoracle_server.engine import autodiff, evaluate, limits, plan
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec

NEG = node("y", "neg.default", "%x")


def fault(*args, **kwargs) -> Fault:
    with pytest.raises(Fault) as caught:
        build(*args, **kwargs)
    return caught.value


BROKEN = {
    "unknown reference": (
        ("x weights", [node("y", "mul.Tensor", "%x", "%weight")], "y"),
        "UNKNOWN_REFERENCE",
        'node "y": refers to "weight", and nothing has that name; did you mean "weights"?',
        "graph.nodes[0].args[1]",
    ),
    "unknown reference without a likeness": (
        ("x", [node("y", "neg.default", "%qqq")], "y"),
        "UNKNOWN_REFERENCE",
        'node "y": refers to "qqq", and nothing has that name; known here: "x"',
        "graph.nodes[0].args[0]",
    ),
    "reference inside a list": (
        ("x", [node("y", "cat.default", ["%x", "%zzz"])], "y"),
        "UNKNOWN_REFERENCE",
        'node "y": refers to "zzz", and nothing has that name; known here: "x"',
        "graph.nodes[0].args[0].list.items[1]",
    ),
    "reference forward": (
        ("x", [node("y", "neg.default", "%z"), node("z", "neg.default", "%x")], "y"),
        "UNKNOWN_REFERENCE",
        'node "y": refers to "z", which stands after it; nodes run in the order given',
        "graph.nodes[0].args[0]",
    ),
    "cycle of two": (
        ("x", [node("y", "mul.Tensor", "%x", "%z"), node("z", "neg.default", "%y")], "z"),
        "CYCLE",
        'node "y": its arguments depend on its own result: y -> z -> y',
        "graph.nodes[0].args[1]",
    ),
    "cycle of one": (
        ("x", [node("y", "mul.Tensor", "%x", "%y")], "y"),
        "CYCLE",
        'node "y": its arguments depend on its own result: y -> y',
        "graph.nodes[0].args[1]",
    ),
    "duplicate node": (
        ("x", [NEG, NEG], "y"),
        "DUPLICATE_NAME",
        'graph.nodes[1].name: the name "y" stands twice; inputs, constants and nodes share one set of names',
        "graph.nodes[1].name",
    ),
    "node named as an input": (
        ("x", [node("x", "neg.default", "%x")], "x"),
        "DUPLICATE_NAME",
        'graph.nodes[0].name: the name "x" stands twice; inputs, constants and nodes share one set of names',
        "graph.nodes[0].name",
    ),
    "empty name": (
        ("x", [node("", "neg.default", "%x")], {"y": "x"}),
        "INVALID_GRAPH",
        "graph.nodes[0].name: expected a name, got an empty string",
        "graph.nodes[0].name",
    ),
    "name with a control character": (
        ([InputSpec("x\n")], [], {"y": "x\n"}),
        "INVALID_GRAPH",
        "graph.inputs[0].name: expected a name without control characters, got 'x\\n'",
        "graph.inputs[0].name",
    ),
    "long name": (
        ([InputSpec("é" * 101)], [], {"y": "x"}),
        "INVALID_GRAPH",
        f"graph.inputs[0].name: expected a name of at most 200 bytes, got 202: '{'é' * 40}'…",
        "graph.inputs[0].name",
    ),
    "unknown overload": (
        ("x", [node("y", "mul.Tenser", "%x", "%x")], "y"),
        "UNKNOWN_OPERATOR",
        f'node "y": no operator "aten.mul.Tenser" in torch {torch.__version__}; '
        'did you mean "aten.mul.Tensor" or "aten.mul.Scalar"?',
        "graph.nodes[0].target",
    ),
    "unknown operator": (
        ("x", [node("y", "aten.sofmax.int", "%x", 0)], "y"),
        "UNKNOWN_OPERATOR",
        f'node "y": no operator "aten.sofmax.int" in torch {torch.__version__}; did you mean "aten.softmax.int"',
        "graph.nodes[0].target",
    ),
    "refused operator": (
        ("x", [node("y", "set_.source_Tensor", "%x", "%x")], "y"),
        "OPERATOR_REFUSED",
        'node "y": "aten.set_.source_Tensor" is not served: it swaps a tensor\'s storage or reaches past its bounds',
        "graph.nodes[0].target",
    ),
    "jit-only operator": (
        ("x", [node("y", "save.default", "%x", "f")], "y"),
        "UNKNOWN_OPERATOR",
        f'node "y": no operator "aten.save.default" in torch {torch.__version__}',
        "graph.nodes[0].target",
    ),
    "too many arguments": (
        ("x", [node("y", "neg.default", "%x", "%x")], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.neg.default takes at most 1 positional argument, got 2',
        "graph.nodes[0]",
    ),
    "too few arguments": (
        ("x", [node("y", "mm.default", "%x")], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.mm.default is missing its argument "mat2", got 1',
        "graph.nodes[0]",
    ),
    "unknown keyword": (
        ("x", [node("y", "sum.dim_IntList", "%x", [0], keepdims=True)], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.sum.dim_IntList has no parameter \'keepdims\'; did you mean "keepdim"?',
        "graph.nodes[0].kwargs[0]",
    ),
    "argument twice": (
        ("x", [node("y", "mm.default", "%x", "%x", mat2="%x")], "y"),
        "INVALID_ARGUMENT",
        "node \"y\": aten.mm.default got 'mat2' both by position and by name, got two",
        "graph.nodes[0].kwargs[0]",
    ),
    "number for a tensor": (
        ("x", [node("y", "mm.default", "%x", 3)], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.mm.default argument 1 "mat2" expects a tensor, got int 3',
        "graph.nodes[0].args[1]",
    ),
    "float for an int": (
        ("x", [node("y", "softmax.int", "%x", 1.5)], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.softmax.int argument 1 "dim" expects an int, got float 1.5',
        "graph.nodes[0].args[1]",
    ),
    "string for ints": (
        ("x", [node("y", "sum.dim_IntList", "%x", "rows")], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.sum.dim_IntList argument 1 "dim" expects a list of ints or one int or None, '
        "got the string 'rows'",
        "graph.nodes[0].args[1]",
    ),
    "keyword of the wrong kind": (
        ("x", [node("y", "softmax.int", "%x", 0, dtype=3)], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.softmax.int keyword argument "dtype" expects a dtype or None, got int 3',
        "graph.nodes[0].kwargs[0]",
    ),
    "tuple for a tensor": (
        ("x", [node("t", "max.dim", "%x", 0), node("y", "neg.default", "%t")], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.neg.default argument "self" expects a tensor, '
        'got "t", which is a tuple or list; take it apart with getitem',
        "graph.nodes[1]",
    ),
    "tensor for a list": (
        ("x", [node("y", "cat.default", "%x")], "y"),
        "INVALID_ARGUMENT",
        'node "y": aten.cat.default argument "tensors" expects a list of tensors, got the tensor "x"',
        "graph.nodes[0]",
    ),
    "getitem of a tensor": (
        ("x", [node("y", "getitem", "%x", 0)], "y"),
        "INVALID_ARGUMENT",
        'node "y": getitem expects a tuple or list, got the tensor "x"; use aten.select.int',
        "graph.nodes[0].args[0]",
    ),
    "getitem beyond the tuple": (
        ("x", [node("t", "max.dim", "%x", 0), node("y", "getitem", "%t", 2)], "y"),
        "INVALID_ARGUMENT",
        'node "y": "t" has 2 results, got index 2',
        "graph.nodes[1].args[1]",
    ),
    "getitem with a float": (
        ("x", [node("t", "max.dim", "%x", 0), node("y", "getitem", "%t", 1.0)], "y"),
        "INVALID_ARGUMENT",
        'node "y": getitem expects a reference and an int, got the tensor "t", float 1.0',
        "graph.nodes[1]",
    ),
    "another device": (
        ("x", [node("y", "zeros.default", [2], device=torch.device("cuda:7"))], "y"),
        "INVALID_ARGUMENT",
        'node "y": expected device "cpu" (the request\'s) or "cpu", got "cuda:7"',
        "graph.nodes[0]",
    ),
    "no outputs": (
        ("x", [NEG], {}),
        "INVALID_GRAPH",
        "graph.outputs: expected at least one output, got none",
        "graph.outputs",
    ),
    "output that does not exist": (
        ("x", [NEG], {"out": "why"}),
        "UNKNOWN_REFERENCE",
        'output "out": refers to "why", and nothing has that name',
        "graph.outputs[0].value",
    ),
    "output that is a tuple": (
        ("x", [node("t", "max.dim", "%x", 0)], {"out": "t"}),
        "INVALID_GRAPH",
        'output "out": expected a tensor, got "t", which is a tuple or list; take it apart with getitem',
        "graph.outputs[0].value",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused_with_location_expected_and_got(case):
    """Each rule of graph.proto is held, before anything runs, and the message says which was broken where."""
    arguments, reason, message, field = BROKEN[case]
    found = fault(*arguments)
    assert found.reason == reason
    assert found.message.startswith(message)
    assert found.field == field


def test_output_names_are_unique():
    """Two outputs may show one value, but not under one name."""
    spec = graph("x", [NEG], "y")
    twice = plan.GraphSpec(spec.inputs, spec.nodes, (("y", "y"), ("y", "x")))
    with pytest.raises(Fault, match=r'graph.outputs\[1\].name: the name "y" stands twice among the outputs'):
        plan.build(twice, CPU)
    made = build("x", [NEG], {"a": "y", "b": "y"})
    assert len(evaluate.evaluate(made, {"x": torch.ones(1)}, phases())) == 2


def test_a_deep_chain_is_no_deep_recursion():
    """The length of a graph is bounded by memory, not by Python's stack: also where it is searched for a ring."""
    size = 5000
    nodes = [node(f"n{i}", "neg.default", f"%n{i - 1}" if i else f"%n{size - 1}") for i in range(size)]
    found = fault("x", nodes, {"y": f"n{size - 1}"})
    assert found.reason == "CYCLE"


def test_torch_errors_name_the_node():
    """Where torch raises, its message is kept and the node that raised is named, no_grad regions and all."""
    nodes = [
        node("a", "neg.default", "%x", no_grad=True),
        node("b", "neg.default", "%x"),
        node("c", "mm.default", "%a", "%b"),
        node("d", "neg.default", "%c"),
    ]
    made = build("x", nodes, "d")
    with pytest.raises(Fault) as caught:
        evaluate.evaluate(made, {"x": torch.ones(2, 3)}, phases())
    assert caught.value.reason == "COMPUTATION_FAILED"
    message = 'node "c": aten.mm.default: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)'
    assert caught.value.message.startswith(message)
    assert caught.value.metadata["exception"] == "RuntimeError"


def test_grad_mode_is_restored_after_a_failure_in_a_no_grad_region():
    """A program leaves grad mode as it found it, also where it raises in the middle of a region."""
    made = build("x", [node("y", "mm.default", "%x", "%x", no_grad=True)], "y")
    with pytest.raises(Fault):
        made.program()([torch.ones(2, 3)])
    assert torch.is_grad_enabled()
    assert torch._C._is_fwd_grad_enabled()


def test_factories_make_tensors_on_the_requests_device():
    """A factory that names no device follows the request, as a user of a device-agnostic graph expects."""
    meta = torch.device("meta")
    made = plan.build(graph("x", [node("y", "zeros.default", [2])], "y"), meta)
    (value,) = made.program()([torch.ones(2, device=meta)])
    assert value.device == meta


def test_every_argument_kind_reaches_torch():
    """int, int[], bool, float, dtype, str, None, Tensor[], Tensor?[], device, layout, memory format, float[], complex:
    each arrives as torch would take it."""
    x = torch.arange(24, dtype=torch.float64).reshape(1, 2, 3, 4)
    nodes = [
        node("a", "sum.dim_IntList", "%x", [0, 1], True, dtype=torch.float32),
        node("b", "div.Tensor_mode", "%x", 3, rounding_mode="floor"),
        node("c", "cat.default", ["%b", "%x"], 1),
        node("d", "index.Tensor", "%c", [None, "%i"]),
        node("e", "zeros.default", [2], dtype=torch.float64, layout=torch.strided, device=CPU, pin_memory=False),
        node("f", "clone.default", "%x", memory_format=torch.channels_last),
        node("g", "upsample_bilinear2d.vec", "%x", None, False, [2.0, 2.0]),
        node("h", "mul.Tensor", "%x", 2 + 1j),
    ]
    made = build([InputSpec("x"), InputSpec("i", False)], nodes, "a b c d e f g h")
    i = torch.tensor([0, 3])
    got = evaluate.evaluate(made, {"x": x, "i": i}, phases())
    b = torch.div(x, 3, rounding_mode="floor")
    c = torch.cat([b, x], 1)
    want = [
        x.sum((0, 1), True, dtype=torch.float32),
        b,
        c,
        c[:, i],
        torch.zeros(2, dtype=torch.float64),
        x.clone(memory_format=torch.channels_last),
        torch.nn.functional.interpolate(x, scale_factor=(2.0, 2.0), mode="bilinear"),
        x * (2 + 1j),
    ]
    assert all(same_bits(left, right) for left, right in zip(got, want, strict=True))


def test_tuples_and_lists_are_taken_apart_by_getitem():
    """A tuple result and a list result both give their elements to getitem, and a list can stand whole for a list."""
    nodes = [
        node("t", "max.dim", "%x", 0),
        node("values", "getitem", "%t", 0),
        node("where", "getitem", "%t", -1),
        node("parts", "split.Tensor", "%x", 1),
        node("last", "getitem", "%parts", 1),
        node("back", "cat.default", "%parts"),
    ]
    x = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    made = build("x", nodes, "values where last back")
    values, where, last, back = evaluate.evaluate(made, {"x": x}, phases())
    assert same_bits(values, x.max(0).values)
    assert same_bits(where, x.max(0).indices)
    assert same_bits(last, x[1:])
    assert same_bits(back, x)


def test_unwanted_nodes_still_run():
    """A node that nobody reads still draws its random numbers, so the bits of what follows are those of eager torch."""
    nodes = [node("unused", "rand_like.default", "%x"), node("y", "rand_like.default", "%x")]
    made = build("x", nodes, "y")
    evaluate.seed_everything(3, CPU)
    (got,) = evaluate.evaluate(made, {"x": torch.zeros(4)}, phases())
    torch.manual_seed(3)
    torch.rand(4)
    assert same_bits(got, torch.rand(4))


def test_constants_are_part_of_the_graph_and_carry_no_gradient():
    """A constant takes part in the values, and a gradient does not flow into it."""
    made = build(
        "x", [node("y", "mul.Tensor", "%x", "%c"), node("z", "sum.default", "%y")], "z", {"c": torch.tensor([2.0, 3.0])}
    )
    found = autodiff.vjp(made, {"x": torch.ones(2)}, phases(), cotangents={})
    assert found.gradients.keys() == {"x"}
    assert same_bits(found.gradients["x"], torch.tensor([2.0, 3.0]))


def test_wrong_primals():
    """A tensor for no input and an input without a tensor are told by name."""
    made = build("x weight", [NEG], "y")
    with pytest.raises(Fault, match=r'primals: the graph has no input "weigth"; did you mean "weight"\?'):
        evaluate.evaluate(made, {"x": torch.ones(1), "weigth": torch.ones(1)}, phases())
    with pytest.raises(Fault, match='primals: no tensor for the input "weight"'):
        evaluate.evaluate(made, {"x": torch.ones(1)}, phases())


def test_sparse_outputs_are_refused_with_the_next_step():
    """Outputs are dense; the message says how to make them so."""
    made = build("x", [node("y", "to_sparse.default", "%x")], "y")
    with pytest.raises(Fault, match=r'output "y": expected a dense tensor, got layout sparse_coo; add aten.to_dense'):
        evaluate.evaluate(made, {"x": torch.ones(2, 2)}, phases())


def test_in_place_operators_change_only_what_the_graph_made():
    """add_ on a fresh value works as in eager torch, gradient and all; through a view too."""
    nodes = [
        node("y", "mul.Tensor", "%x", 2),
        node("row", "select.int", "%y", 0, 0),
        node("changed", "mul_.Tensor", "%row", 3),
        node("z", "add_.Tensor", "%y", 1),
        node("s", "sum.default", "%y"),
    ]
    made = build("x", nodes, "y s")
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = autodiff.vjp(made, {"x": x}, phases(), cotangents={"s": torch.ones(())})
    leaf = x.clone().requires_grad_()
    y = leaf * 2
    y[0].mul_(3)
    y.add_(1)
    y.sum().backward()
    assert same_bits(found.outputs[0], y)
    assert same_bits(found.gradients["x"], leaf.grad)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("y", "add_.Tensor", "%x", 1)],
        [node("y", "add_.Tensor", "%c", 1)],
        [node("v", "view.default", "%c", [-1]), node("y", "zero_.default", "%v")],
        [node("d", "dropout.default", "%c", 0.5, False), node("y", "zero_.default", "%d")],
        [node("l", "atleast_2d.default", "%x"), node("y", "fill_.Scalar", "%l", 7)],
        [node("l", "chunk.default", "%x", 2), node("v", "getitem", "%l", 1), node("y", "neg_.default", "%v")],
    ],
    ids=["input", "constant", "view", "dropout that drops nothing", "atleast_2d", "chunk"],
)
def test_inputs_and_constants_are_never_changed(nodes):
    """An in-place operator on an input or a constant, or on any view of one, annotated or not, is refused; the
    tensors keep their values."""
    x, c = torch.ones(4), torch.full((4,), 2.0)
    made = build([InputSpec("x", False)], nodes, "y", {"c": c})
    with pytest.raises(Fault) as caught:
        evaluate.evaluate(made, {"x": x}, phases())
    message = (
        f'node "y": {nodes[-1].target} would change an input or a constant in place, which never change; '
        "clone it first (aten.clone.default)"
    )
    assert (caught.value.reason, caught.value.message) == ("OPERATOR_REFUSED", message)
    assert x.tolist() == [1.0] * 4
    assert made.constants["c"].tolist() == [2.0] * 4


def test_running_statistics_are_not_changed_behind_the_schemas_back():
    """batch_norm in training updates its statistics in place without saying so: here only a copy of them, so that the
    next request with the same graph sees what the graph says."""
    statistics = {"mean": torch.zeros(3), "var": torch.ones(3)}
    nodes = [node("y", "batch_norm.default", "%x", None, None, "%mean", "%v", True, 0.1, 1e-5, False)]
    nodes += [node("m", "clone.default", "%mean")]
    made = build([InputSpec("x"), InputSpec("v", False)], nodes, "y m", {"mean": statistics["mean"]})
    x, v = torch.randn(5, 3), torch.ones(3)
    first = evaluate.evaluate(made, {"x": x, "v": v}, phases())
    second = evaluate.evaluate(made, {"x": x, "v": v}, phases())
    mean = torch.zeros(3)
    want = torch.batch_norm(x, None, None, mean, torch.ones(3), True, 0.1, 1e-5, False)
    assert all(same_bits(left, right) for left, right in zip(first, second, strict=True))
    assert same_bits(first[0], want)
    assert same_bits(first[1], mean)
    assert not made.constants["mean"].any()
    assert v.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("uniform.default", {"self": "%x", "from": 2.0, "to": 3.0}),  # "from" is a word of Python's own
        ("hsplit.int", {"self": "%x", "sections": 2}),
        ("unbind.int", {"self": "%x", "dim": 0}),
        ("combinations.default", {"self": "%row", "r": 2}),
    ],
)
def test_arguments_by_name_are_those_in_their_places(target, named):
    """A node may give every argument by name, and is estimated and run as if they stood in their places."""
    x = torch.arange(6.0).reshape(1, 6)
    nodes = [node("row", "reshape.default", "%x", [-1])]

    def value(*args, **kwargs):
        many = target in ("hsplit.int", "unbind.int")
        last = [node("y", "getitem", "%several", 0)] if many else []
        called = node("several" if many else "y", target, *args, **kwargs)
        made = build([InputSpec("x")], [*nodes, called, *last], "y")
        limits.require(made, {"x": x}, 1 << 30, limits.Work.EVALUATE)
        torch.manual_seed(0)
        return evaluate.evaluate(made, {"x": x}, phases())[0]

    assert same_bits(value(*named.values()), value(**named))

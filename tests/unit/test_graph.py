"""Graphs, built by computing with Values."""

from __future__ import annotations

import copy
import operator
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import replay
import torch
from hypothesis import given, settings
from torch.fx.experimental.proxy_tensor import make_fx

import gradoracle as go

X = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4) / 7 - 1.5
Y = torch.linspace(0.5, 3, 24, dtype=torch.float64).reshape(2, 3, 4)


def graph_of(function: Callable[..., Any], *names: str) -> go.Graph:
    """The graph of a function of Values, its one output named "out"."""
    graph = go.Graph()
    graph.output("out", function(*[graph.input(name) for name in names]))
    return graph


def recorded(graph: go.Graph) -> list[str]:
    """The graph's nodes but getitem as torch would print their calls."""
    lines = [line.partition(" = ")[2] for line in str(graph).splitlines()]
    return [line for line in lines if line.startswith("aten.")]


def traced(function: Callable[..., Any], *tensors: torch.Tensor) -> list[str]:
    """The same of what torch itself records."""
    module = make_fx(function, pre_dispatch=True)(*tensors)
    named = {node: node.name.removesuffix("_1") for node in module.graph.nodes if node.op == "placeholder"}
    found, counts = [], Counter[str]()
    for node in module.graph.nodes:
        if node.op == "call_function" and "getitem" not in str(node.target):
            base = str(node.target).split(".")[1].strip("_")
            named[node] = f"{base}_{counts[base]}" if counts[base] else base
            counts[base] += 1
            given = [str(torch.fx.node.map_arg(one, lambda a: _Name(named[a]))) for one in node.args]
            # Tracing fills in the pinning of new tensors.
            given += [f"{key}={value!r}" for key, value in node.kwargs.items() if key != "pin_memory"]
            found.append(f"{node.target}({', '.join(given)})".replace("torch.", ""))
    return found


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal in dtype, shape and every element; NaN equals NaN."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


class _Name(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


# ---- Operators are torch's


AS_TORCH: list[Callable[..., Any]] = [
    lambda x, y: x * 2,
    lambda x, y: 2 * x,
    lambda x, y: x + 2.5,
    lambda x, y: 1 + x,
    lambda x, y: x - 1,
    lambda x, y: 1 - x,
    lambda x, y: x / 2,
    lambda x, y: 1 / x,
    lambda x, y: x / y,
    lambda x, y: x // 2,
    lambda x, y: 2 // x,
    lambda x, y: x % 2,
    lambda x, y: 2 % x,
    lambda x, y: x**2,
    lambda x, y: x**y,
    lambda x, y: 2**x,
    lambda x, y: x @ y.mT,
    lambda x, y: x < 2,
    lambda x, y: 2 < x,
    lambda x, y: x >= y,
    lambda x, y: x == 2,
    lambda x, y: x != y,
    lambda x, y: -x,
    lambda x, y: +x,
    lambda x, y: abs(x),
    lambda x, y: (x > 0) & (y > 0),
    lambda x, y: (x > 0) | True,
    lambda x, y: True ^ (x > 0),
    lambda x, y: ~(x > 0),
    lambda x, y: x * True,
    lambda x, y: x.sum(),
    lambda x, y: x.sum(0),
    lambda x, y: x.sum(dim=0, keepdim=True),
    lambda x, y: x.sum((0, 1)),
    lambda x, y: x.mean(-1),
    lambda x, y: x.std(),
    lambda x, y: x.std(0),
    lambda x, y: x.std(unbiased=False),
    lambda x, y: x.var(dim=0, correction=0),
    lambda x, y: x.max(),
    lambda x, y: x.max(y),
    lambda x, y: x.max(dim=0)[0],
    lambda x, y: x.max(dim=0).values,
    lambda x, y: x.reshape(4, -1),
    lambda x, y: x.reshape((4, 6)),
    lambda x, y: x.view(24),
    lambda x, y: x.permute(2, 0, 1),
    lambda x, y: x.expand(3, 2, 3, 4),
    lambda x, y: x.flip(0, 1),
    lambda x, y: x.transpose(0, 1),
    lambda x, y: x.softmax(-1),
    lambda x, y: x.pow(2),
    lambda x, y: x.clamp(min=0),
    lambda x, y: x.clamp(y),
    lambda x, y: x.where(y > 1, y),
    lambda x, y: x.add(y, alpha=2),
    lambda x, y: x.div(y, rounding_mode="floor"),
    lambda x, y: x.double(),
    lambda x, y: x.detach() * x,
    lambda x, y: x.round(decimals=2),
    lambda x, y: x.logsumexp(0),
    lambda x, y: x.roll(1, 0),
    lambda x, y: x.split(2)[0],
    lambda x, y: x.chunk(2, dim=1)[1],
    lambda x, y: x.any(),
    lambda x, y: x.masked_fill(y > 1, 0),
    lambda x, y: x.lerp(y, 0.5),
    lambda x, y: x.sort(-1, True)[0],
    lambda x, y: x.cumsum(0),
    lambda x, y: x.squeeze(0),
    lambda x, y: x.squeeze((0, 1)),
    lambda x, y: x.mT,
    lambda x, y: x.new_zeros(2, 3) + 1,
    lambda x, y: x[0],
    lambda x, y: x[:, -1],
    lambda x, y: x[1:],
    lambda x, y: x[:, ::2],
    lambda x, y: x[:, :-1],
    lambda x, y: x[None],
    lambda x, y: x[:],
    lambda x, y: x[...],
]


@pytest.mark.parametrize("function", AS_TORCH, ids=range(len(AS_TORCH)))
def test_records_what_torch_records(function: Callable[..., Any]) -> None:
    """Python's operators, methods and indexing give the overloads and arguments that torch's own tracer records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = traced(function, X, Y)
    graph = graph_of(function, "x", "y")
    assert recorded(graph) == expected
    assert_same(replay.output(graph, x=X, y=Y), function(X, Y))


def test_shifts_and_bits_of_integers() -> None:
    """Shifts and bit operations take torch's overloads, reflected ones too."""
    graph = graph_of(lambda i: ((i << 1) >> 1) + (1 << i) + (64 >> i) + (i & 1) + (1 & i) + (2 | i) + (i ^ 3), "i")
    i = torch.arange(5)
    expected = ((i << 1) >> 1) + (1 << i) + (64 >> i) + (i & 1) + (1 & i) + (2 | i) + (i ^ 3)
    assert torch.equal(replay.output(graph, i=i), expected)


@pytest.mark.parametrize("reflected", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
def test_arrays_become_constants(reflected: Callable[[Any, Any], Any]) -> None:
    """numpy arrays and lists among the operands, on either side, become constants of the graph."""
    array = np.array([1.0, 2.0, 3.0, 4.0])
    graph = graph_of(lambda x: reflected(reflected(array, x), [1.0, 2.0, 3.0, 4.0]), "x")
    expected = reflected(reflected(torch.from_numpy(array), Y), torch.from_numpy(array))
    assert torch.equal(replay.output(graph, x=Y), expected)
    assert str(graph).splitlines()[1:3] == ["constant = constant(float64[4])", "constant_1 = constant(float64[4])"]


def test_numpy_scalars_are_numbers() -> None:
    """A numpy scalar on either side is a number to torch's type promotion."""
    graph = graph_of(lambda x: np.float64(2) * x * np.float32(3), "x")
    assert recorded(graph) == ["aten.mul.Tensor(x, 2.0)", "aten.mul.Tensor(mul, 3.0)"]


def test_no_meaning() -> None:
    """What no torch tensor could be combined with is Python's own TypeError; equality with it is identity."""
    x = go.Graph().input("x")
    with pytest.raises(TypeError, match="unsupported operand"):
        x + "a"
    assert (x == "a") is False
    assert (x != None) is True  # noqa: E711  # the operator itself is tested


# ---- Indexing


INDICES: list[Any] = [
    0,
    -1,
    slice(None),
    Ellipsis,
    (),
    None,
    (Ellipsis, 0),
    (Ellipsis, None),
    (0, Ellipsis, 1),
    (Ellipsis, slice(1, None), 0),
    (Ellipsis, None, 0),
    (Ellipsis, 0, None),
    (Ellipsis, 0, slice(None, None, 2)),
    (slice(None), None, 1),
    (slice(0, 1), slice(1, 3), slice(None, None, 3)),
    [0, 1],
    [[0, 1], [1, 0]],
    (slice(None), [2, 0]),
    ([0, 1], [2, 0]),
    ([0, 1], slice(None), [1, 3]),
    (0, [2, 0]),
    ([0, 1], 0),
    (slice(None), [2, 0], 1),
    ([0, 1], slice(None), 1),
    (Ellipsis, [3, 0]),
    (Ellipsis, [[3, 0], [1, 1]]),
    (Ellipsis, [2, 0], slice(None)),
    (Ellipsis, [2, 0], 1),
    (Ellipsis, [2, 0], None),
    (0, Ellipsis, [3, 0]),
    (slice(1, None), Ellipsis, np.array(2)),
    True,
    False,
    (slice(None), True, 0),
    [],
    [True, False],
    (slice(None), [True, False, True]),
    (np.array([[True, False, True], [False, True, True]]), 0),
    (np.array([[True, False, True], [False, True, True]]), slice(1, 3)),
    (None, np.array([[True, False, True], [False, True, True]])),
    (np.array([0, 1], np.int32), Ellipsis),
    (np.int64(1), np.int8(2)),
    (slice(np.int64(0), np.int64(2)),),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_torchs(index: Any) -> None:
    """Every kind of index selects what it selects of a torch tensor."""
    graph = graph_of(lambda x: x[index], "x")
    items = index if isinstance(index, tuple) else (index,)
    expected = X[tuple(torch.from_numpy(item) if isinstance(item, np.ndarray) else item for item in items)]
    assert torch.equal(replay.output(graph, x=X), expected)


@st.composite
def basic_indices(draw: st.DrawFn) -> tuple[Any, ...]:
    """Ints, slices, None and an ellipsis that fit a tensor of three dimensions."""
    bound = st.none() | st.integers(-3, 3)
    item = st.one_of(
        st.integers(-2, 1), st.builds(slice, bound, bound, st.none() | st.integers(1, 3)), st.just(slice(None))
    )
    items: list[Any] = draw(st.lists(item, max_size=3))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), Ellipsis)
    return tuple(items)


@settings(deadline=None)
@given(basic_indices())
def test_basic_indexing_is_torchs(index: tuple[Any, ...]) -> None:
    """Any mixture of ints, slices, None and an ellipsis does what it does to a torch tensor."""
    graph = graph_of(lambda x: x[index], "x")
    assert torch.equal(replay.output(graph, x=X), X[index])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, v: x[v],
        lambda x, v: x[v, 0],
        lambda x, v: x[v, [0, 1]],
        lambda x, v: x[v, :],
        lambda x, v: x[v, ..., 0],
        lambda x, v: x[0, v],
        lambda x, v: x[:, v],
        lambda x, v: x[:, v, 0],
    ],
)
def test_values_as_indices(function: Callable[..., Any]) -> None:
    """A Value may be an index, of integers or a mask; what stands beside it means what it means to torch."""
    graph = graph_of(function, "x", "v")
    integers = torch.tensor([1, 0])
    assert torch.equal(replay.output(graph, x=X, v=integers), function(X, integers))


def test_masks_take_up_dimensions() -> None:
    """Behind a Value an int means the right dimension even if the Value turns out to be a mask of several."""
    graph = graph_of(lambda x, v: x[v, 0], "x", "v")
    mask = X[..., 0] > 0
    assert torch.equal(replay.output(graph, x=X, v=mask), X[mask, 0])


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (lambda v: (..., 0, ...), "an index has one … at most"),
        (lambda v: slice(None, None, -1), "a slice's step must be greater than zero, got -1; flip(dim) reverses"),
        (
            lambda v: 1.5,
            "expected ints, slices, None, …, lists, arrays or Values in the index, got float 1.5",
        ),
        (lambda v: [1.5], "expected integers or bools in the index, got float64"),
        (lambda v: slice(v, None), 'expected ints as the bounds of a slice, got the tensor "v"'),
        (
            lambda v: (v, slice(1, 2)),
            'which dimension 1:2 means depends on how many "v" takes up, if it is a mask; index in two steps, or count '
            "from the end, behind …",
        ),
        (
            lambda v: (v, slice(None), 0),
            'which dimension 0 means depends on how many "v" takes up, if it is a mask; index in two steps, or count '
            "from the end, behind …",
        ),
        (
            lambda v: (..., v),
            'after … ints, slices, None and one list of integers can stand, got the tensor "v"',
        ),
        (lambda v: ([0], ..., [1]), "lists, arrays and Values cannot stand on both sides of …"),
    ],
)
def test_indices_that_are_refused(index: Callable[[go.Value], Any], text: str) -> None:
    """What cannot be expressed without knowing the dimensions is refused, never guessed."""
    graph = go.Graph()
    x, v = graph.input("x"), graph.input("v")
    with pytest.raises(go.InvalidGraphError) as caught:
        x[index(v)]
    assert str(caught.value) == f'index of "x": {text}'


# ---- Calls


def test_call_names_an_overload() -> None:
    """`call` takes exactly the overload that it names."""
    graph = go.Graph()
    x = graph.input("x")
    assert graph.call("aten.mul.Scalar", x, 2, name="twice").name == "twice"
    assert recorded(graph) == ["aten.mul.Scalar(x, 2)"]


def test_tuples() -> None:
    """A tuple's elements are Values of getitem nodes, under the schema's names; `name` names the node."""
    graph = go.Graph()
    found = graph.input("x").max(dim=0, name="top")
    assert isinstance(found, tuple)
    assert (found.values.name, found.indices.name) == ("top.0", "top.1")
    values, indices = found
    assert values is found.values
    assert indices is found[1]
    assert str(graph).splitlines()[1:] == [
        "top = aten.max.dim(x, 0)",
        "top.0 = getitem(top, 0)",
        "top.1 = getitem(top, 1)",
    ]


def test_lists() -> None:
    """A list's elements are Values by index; the list may stand for a list of tensors; its length is not known."""
    graph = go.Graph()
    parts = graph.input("x").split(1)
    assert isinstance(parts, go.ValueList)
    assert parts[1] is parts[1]
    assert (parts[1].name, parts[-1].name) == ("split.1", "split.-1")
    graph.output("out", go.ops.cat(parts, dim=1))
    assert recorded(graph)[-1] == "aten.cat.default(split, 1)"
    assert torch.equal(replay.output(graph, x=X), torch.cat(X.split(1), 1))
    for use in (len, list, bool):
        with pytest.raises(TypeError) as caught:
            use(parts)
        assert str(caught.value) == (
            'ValueList "split": how many tensors aten.split.Tensor returns is known only when the graph runs; '
            "take them by index: parts[0], parts[1]"
        )
    with pytest.raises(TypeError, match="takes an int as index, got str"):
        parts["a"]  # type: ignore[index]


def test_lists_of_arguments() -> None:
    """Tensors are gathered where torch takes them one by one; None may stand in a list of optional tensors."""
    graph = go.Graph()
    x, y = graph.input("x"), graph.input("y")
    go.ops.einsum("ij,ij->i", x, y)
    go.ops.einsum("ij,ij->i", [x, y])
    graph.call("aten.index.Tensor", x, [None, [0, 1]])
    go.ops.conv1d(x, y, stride=2)
    go.ops.mse_loss(x, y, reduction="sum")
    go.ops.sum(x, axis=0, keepdims=True)
    assert recorded(graph) == [
        "aten.einsum.default('ij,ij->i', [x, y])",
        "aten.einsum.default('ij,ij->i', [x, y])",
        "aten.index.Tensor(x, [None, constant])",
        "aten.conv1d.default(x, y, stride=[2])",
        "aten.mse_loss.default(x, y, 2)",
        "aten.sum.dim_IntList(x, [0], True)",
    ]


def test_words_for_torchs_constants() -> None:
    """dtypes, layouts, memory formats and devices are words, as torch spells them, or torch's own objects."""
    graph = go.Graph()
    x = graph.input("x")
    for dtype in ("float32", "torch.float32", "float", np.float32, np.dtype("float32"), torch.float32):
        x.sum(dtype=dtype)
    assert set(recorded(graph)) == {"aten.sum.default(x, dtype=float32)"}
    x.clone(memory_format="torch.channels_last")
    x.clone(memory_format=torch.contiguous_format)
    graph.ops.zeros(2, 3, dtype=float, layout="strided", device="cpu")
    x.type("int8")
    assert recorded(graph)[-4:] == [
        "aten.clone.default(x, memory_format=channels_last)",
        "aten.clone.default(x, memory_format=contiguous)",
        "aten.zeros.default([2, 3], dtype=float64, layout=strided, device=cpu)",
        "aten.to.dtype(x, int8)",
    ]


def test_numbers_keep_their_kind() -> None:
    """bool, int, float and complex stay apart, since torch's type promotion tells them apart."""
    graph = go.Graph()
    x = graph.input("x")
    for number in (True, 1, 1.0, 1j):
        x * number
    kinds = [node.args[1].WhichOneof("kind") for node in graph.message.nodes]
    assert kinds == ["boolean", "integer", "real", "complex"]


def test_no_graph_to_go_to() -> None:
    """An operator without a Value among its arguments needs a graph of its own."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.ops.zeros(2)
    assert str(caught.value) == (
        "ops.zeros: expected a Value among the arguments, to know the graph by; "
        "g.ops.zeros adds to the graph g without one"
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda x: x.softmax(1.5),
            'aten.softmax.int argument 1 "dim" expects an int, got float 1.5',
        ),
        (lambda x: x.softmax(), 'aten.softmax.int is missing its argument "dim"'),
        (
            lambda x: x.exp(1),
            "aten.exp.default takes at most 1 positional argument, got 2",
        ),
        (
            lambda x: x.softmax(0, dmi=1),
            'aten.softmax.int has no parameter "dmi"; did you mean "dim"?',
        ),
        (lambda x: x.softmax(0, dim=0), 'aten.softmax.int got "dim" twice'),
        (
            lambda x: x.softmax(0, dtype="flaot32"),
            'aten.softmax.int argument "dtype" expects a dtype or None, got \'flaot32\'; did you mean "float32"?',
        ),
        (
            lambda x: x.maximum(0),
            'aten.maximum.default argument 1 "other" expects a tensor, got int 0; constant(0) makes a tensor of it',
        ),
        (
            lambda x: x.roll([1, "a"]),
            'aten.roll.default argument 1 "shifts" expects a list of ints or one int, got a list with int 1',
        ),
        (
            lambda x: x.unsqueeze(2**70),
            f'aten.unsqueeze.default argument 1 "dim" expects an int, got int {2**70}, which has more than 64 bits',
        ),
        (
            lambda x: x.lt(None),
            'no overload of "lt" takes (the tensor "x", None)\n'
            '  lt.Tensor(Tensor self, Tensor other) -> Tensor: argument 1 "other" expects a tensor, got None\n'
            '  lt.Scalar(Tensor self, Scalar other) -> Tensor: argument 1 "other" expects a number, got None',
        ),
        (
            lambda x: x.graph.call("aten.mul.Tensor", x, "a"),
            "aten.mul.Tensor argument 1 \"other\" expects a tensor, got the string 'a'",
        ),
    ],
)
def test_arguments_that_do_not_fit(call: Callable[[go.Value], Any], text: str) -> None:
    """Arguments that fit no overload are refused with position or name, what was expected and what came."""
    graph = go.Graph()
    x = graph.input("x")
    before = graph.to_bytes()
    with pytest.raises(go.InvalidGraphError) as caught:
        call(x)
    assert str(caught.value) == text
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert graph.to_bytes() == before


def test_unknown_methods() -> None:
    """An unknown method is an unknown operator, and an AttributeError to Python."""
    x = go.Graph().input("x")
    assert not hasattr(x, "sofmax")
    with pytest.raises(go.UnsupportedOperatorError, match=r'Value "x": no operator "sofmax"; did you mean "softmax"'):
        x.sofmax(0)
    with pytest.raises(go.UnsupportedOperatorError, match='no operator "sofmax"'):
        go.ops.sofmax(x, 0)
    with pytest.raises(go.UnsupportedOperatorError, match='"item" is not served: it '):
        x.item()
    with pytest.raises(AttributeError, match=r"its shape is known only when the graph runs; Client.inspect tells it"):
        _ = x.shape


@pytest.mark.parametrize("use", [bool, float, int, len, list, np.asarray, lambda x: 1 in x])
def test_values_have_no_numbers(use: Callable[[Any], Any]) -> None:
    """What asks a Value for numbers is refused, with what to do instead."""
    with pytest.raises(TypeError, match='Value "x" has no numbers until the graph runs; '):
        use(go.Graph().input("x"))


def test_values_cannot_be_changed() -> None:
    """Assigning to a Value's elements is refused."""
    x = go.Graph().input("x")
    with pytest.raises(TypeError, match='Value "x" cannot be changed'):
        x[0] = 1


def test_values_and_operators_list_themselves() -> None:
    """dir() gives every operator, for people who complete with the tab key."""
    assert {"softmax", "sum", "double"} <= set(dir(go.Graph().input("x")))
    assert "linalg_det" in dir(go.ops)
    assert go.ops.exp.__doc__ == "exp(Tensor self) -> Tensor"


# ---- Names


def test_made_up_names() -> None:
    """Names that are made up are readable and unique, beside names that were given."""
    graph = go.Graph()
    x = graph.input("mul")
    names = [(x * 2).name, (x * 2).name, go.ops.mul(x, 2, name="mul_3").name, (x * 2).name, (x & x).name]
    assert names == ["mul_1", "mul_2", "mul_3", "mul_4", "and"]
    assert graph.names == ("mul", *names)


@pytest.mark.parametrize(
    ("name", "got"), [("", "an empty string"), ("é" * 101, "202 bytes"), ("a\nb", "'a\\nb'"), ("\x7f", "'\\x7f'")]
)
def test_bad_names(name: str, got: str) -> None:
    """Names have 1 to 200 bytes and no control characters."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.Graph().input(name)
    assert str(caught.value) == f"expected a name of 1 to 200 bytes without control characters, got {got}"


def test_names_stand_once() -> None:
    """Inputs, constants and nodes share one set of names; outputs have another."""
    graph = go.Graph()
    x = graph.input("x")
    for again in (lambda: graph.input("x"), lambda: graph.constant(1, name="x"), lambda: x.exp(name="x")):
        with pytest.raises(go.InvalidGraphError) as caught:
            again()
        assert str(caught.value) == ('the name "x" stands already; inputs, constants and nodes share one set of names')
        assert caught.value.reason == "DUPLICATE_NAME"
    graph.output("x", x)
    with pytest.raises(go.InvalidGraphError) as caught:
        graph.output("x", x)
    assert str(caught.value) == 'output "x" stands already'


def test_graphs_do_not_mix() -> None:
    """A Value of another graph is refused, as an argument and as an output."""
    graph, other = go.Graph(), go.Graph()
    x, y = graph.input("x"), other.input("y")
    for mix in (lambda: x + y, lambda: go.ops.cat([x, y]), lambda: graph.output("y", y)):
        with pytest.raises(go.InvalidGraphError) as caught:
            mix()
        assert str(caught.value) == '"y" is a value of another graph; values of two graphs cannot be mixed'


def test_outputs_are_values() -> None:
    """An output is one tensor."""
    graph = go.Graph()
    x = graph.input("x")
    with pytest.raises(TypeError, match=r'output "a": expected a Value, got int 3; g\.constant'):
        graph.output("a", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"index it: parts\[0\]"):
        graph.output("a", x.split(1))


def test_structures() -> None:
    """An input's structure is one of a known set."""
    graph = go.Graph()
    graph.input("a", structure="symmetric")
    graph.input("b", requires_grad=False)
    assert str(graph) == "a = input(structure=symmetric)\nb = input(requires_grad=False)"
    assert (graph.requires_grad("a"), graph.requires_grad("b"), graph.requires_grad("c")) == (True, False, False)
    with pytest.raises(go.InvalidGraphError) as caught:
        graph.input("c", structure="symetric")
    assert str(caught.value) == (
        'input "c": expected one of symmetric, hermitian, lower_triangular, upper_triangular, positive_definite as '
        "structure, got 'symetric'; did you mean \"symmetric\"?"
    )


def test_no_grad() -> None:
    """Nodes made in a no_grad region are marked, those after it are not."""
    graph = go.Graph()
    x = graph.input("x")
    with graph.no_grad():
        square = x**2
        with graph.no_grad():
            x.max(dim=0)
        x.exp()
    graph.output("y", square * x)
    assert [node.no_grad for node in graph.message.nodes] == [True, True, True, True, True, False]
    leaf = torch.tensor(3.0, requires_grad=True)
    replay.output(graph, x=leaf.reshape(1)).backward()
    assert leaf.grad == 9


# ---- To and fro


FLOATS = st.floats(allow_nan=False) | st.just(float("nan"))  # JSON has one NaN only


@st.composite
def graphs(draw: st.DrawFn) -> go.Graph:
    """Graphs of a few nodes, with every kind of argument."""
    graph = go.Graph()
    values = [graph.input(name, requires_grad=draw(st.booleans())) for name in ("x", "ß y")]
    values.append(graph.constant(draw(st.lists(st.floats(), max_size=3))))
    makers: list[Callable[[go.Value, go.Value], go.Value]] = [
        lambda a, b: a + b,
        lambda a, b: a * draw(st.one_of(st.integers(-(2**63), 2**63 - 1), FLOATS, st.booleans())),
        lambda a, b: a * complex(draw(FLOATS), 1),
        lambda a, b: a[draw(st.integers(-3, 3)), ..., None],
        lambda a, b: a[b],
        lambda a, b: a.split(1)[0],
        lambda a, b: a.max(dim=0).values,
        lambda a, b: go.ops.einsum("...,...->...", a, b),
        lambda a, b: a.sum(dtype=draw(st.sampled_from(["float32", "complex128"]))),
        lambda a, b: a.clone(memory_format="contiguous_format"),
        lambda a, b: a.clamp(None, b),
        lambda a, b: a.reshape([]),
    ]
    for _ in range(draw(st.integers(0, 6))):
        make = draw(st.sampled_from(makers))
        pick = st.sampled_from(values)
        if draw(st.booleans()):
            with graph.no_grad():
                values.append(make(draw(pick), draw(pick)))
        else:
            values.append(make(draw(pick), draw(pick)))
    graph.output("out put", draw(st.sampled_from(values)))
    return graph


@settings(deadline=None)
@given(graphs())
def test_round_trips(graph: go.Graph) -> None:
    """Bytes, JSON and pickles give back the same program, and the same fingerprint."""
    data = graph.to_bytes()
    for again in (
        go.Graph.from_bytes(data),
        go.Graph.from_json(graph.to_json()),
        go.Graph.from_json(graph.to_json(indent=2).encode()),
        go.Graph.from_message(graph.message),
        pickle.loads(pickle.dumps(graph)),  # noqa: S301  # what was just made here
        copy.deepcopy(graph),
    ):
        assert again.to_bytes() == data
        assert again.fingerprint == graph.fingerprint
        assert str(again) == str(graph)
        assert again.inputs == graph.inputs
        assert [again.requires_grad(name) for name in again.inputs] == [
            graph.requires_grad(name) for name in graph.inputs
        ]


def test_going_on_from_a_graph_that_was_read() -> None:
    """A graph that was read can grow; its values are found by name."""
    graph = go.Graph.from_bytes(go.Graph.parse("x**2").to_bytes())
    graph.output("more", graph.value("pow") * graph.value("x"))
    assert graph.names == ("x", "pow", "mul")
    with pytest.raises(go.InvalidGraphError) as caught:
        graph.value("powe")
    assert str(caught.value) == 'no value "powe" in the graph; did you mean "pow"?'


def test_what_is_no_graph() -> None:
    """Bytes and JSON that are no graph are refused."""
    with pytest.raises(go.InvalidGraphError, match=r"expected a serialized gradoracle\.v1\.Graph, got 3 bytes"):
        go.Graph.from_bytes(b"abc")
    with pytest.raises(go.InvalidGraphError, match=r"expected a gradoracle.v1.Graph in the proto's JSON: .*inputz"):
        go.Graph.from_json({"inputz": []})
    with pytest.raises(go.InvalidGraphError, match=r"expected a gradoracle\.v1\.Graph in the proto's JSON"):
        go.Graph.from_json("{")


def test_fingerprint_follows_the_program() -> None:
    """A graph's fingerprint and bytes are those of what it holds now."""
    graph = go.Graph()
    x = graph.input("x")
    seen = {graph.fingerprint}
    field = graph.request_field()
    graph.output("y", x.exp())
    assert graph.fingerprint not in seen
    assert graph.request_field() != field
    assert graph.request_field() is graph.request_field()
    assert graph.fingerprint == go.Graph.from_bytes(graph.to_bytes()).fingerprint


def test_printed() -> None:
    """A printed graph has one line for each input, constant, node and output."""
    graph = go.Graph()
    x = graph.input("x")
    with graph.no_grad():
        y = x * graph.constant(2.5, name="c")
    graph.output("out", go.ops.cat([x, y], dim=-1).sum(dim=0, dtype="float32"))
    assert str(graph).splitlines() == [
        "x = input()",
        "c = constant(float64[] 2.5)",
        "mul = aten.mul.Tensor(x, c)  # no_grad",
        "cat = aten.cat.default([x, mul], -1)",
        "sum = aten.sum.dim_IntList(cat, [0], dtype=float32)",
        "output out = sum",
    ]
    assert repr(graph) == "<Graph (x) -> (out), 3 nodes>"


def test_dot() -> None:
    """The picture has a line for each input, node, output and edge; names are quoted."""
    graph = go.Graph()
    graph.output("out", graph.input('a "b"') * 2)
    assert graph.to_dot() == (
        'digraph gradoracle {\n  rankdir=TB;\n  node [fontname="Helvetica"];\n'
        '  "v:a \\"b\\"" [shape=box, label="a \\"b\\""];\n'
        '  "v:mul" [shape=ellipse, label="mul\\naten.mul.Tensor"];\n'
        '  "v:a \\"b\\"" -> "v:mul";\n'
        '  "o:out" [shape=box, peripheries=2, label="out"];\n'
        '  "v:mul" -> "o:out";\n}\n'
    )

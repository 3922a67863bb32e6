"""Expressions as graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import replay
import torch
from hypothesis import given, settings

import gradoracle as go
from gradoracle import expression

A = torch.tensor([[0.5, 1.5], [2.5, 3.0]], dtype=torch.float64)
B = torch.tensor([[1.0, -2.0], [0.25, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1", lambda x: 9 * x**4 + 2 * x**3 + 3 * x**2 + 6 * x + 1),
        ("-x + +x - ~(x > 1) % 2", lambda x: -x + +x - ~(x > 1) % 2),
        ("x @ y / 2 // 3", lambda x, y: x @ y / 2 // 3),
        ("2 ** x ** 2", lambda x: 2**x**2),
        ("1 - x - 2 - (3 - x)", lambda x: 1 - x - 2 - (3 - x)),
        ("(x < y) | (x >= 1) & (y != 0.25)", lambda x, y: (x < y) | (x >= 1) & (y != 0.25)),
        ("softmax(x @ y, dim=-1).sum()", lambda x, y: torch.softmax(x @ y, dim=-1).sum()),
        ("x.T @ y.mT[..., 0]", lambda x, y: x.T @ y.mT[..., 0]),
        ("x[0, :, None] + y[[1, 0]][:, 1:]", lambda x, y: x[0, :, None] + y[[1, 0]][:, 1:]),
        ("max(x, dim=0)[1] + sort(y, 0)[-1][0]", lambda x, y: torch.max(x, dim=0)[1] + torch.sort(y, 0)[-1][0]),
        ("split(x, 1)[1] * 2", lambda x: torch.split(x, 1)[1] * 2),
        ("cat([x, y], dim=1)", lambda x, y: torch.cat([x, y], dim=1)),
        ("x.reshape(4).sum(dtype='float32')", lambda x: x.reshape(4).sum(dtype=torch.float32)),
        ("x.reshape((1, -1)).clamp(None, 2)", lambda x: x.reshape((1, -1)).clamp(None, 2)),
        ("sin(pi * x) + where(x > 1, x, inf)", lambda x: torch.sin(math.pi * x) + torch.where(x > 1, x, math.inf)),
        ("einsum('ij,jk->ik', x, y)", lambda x, y: torch.einsum("ij,jk->ik", x, y)),
        ("x * 1j * (2**3 - 1/4)", lambda x: x * 1j * (2**3 - 1 / 4)),
        ("x.double().detach()", lambda x: x.double().detach()),
        (" x +\n y", lambda x, y: x + y),
        ("x + 1  # a comment", lambda x: x + 1),
        ("e * x", lambda e, x: e * x),
        ("x\t*(y)", lambda x, y: x * y),
    ],
)
def test_means_what_torch_means(text: str, function: Callable[..., torch.Tensor]) -> None:
    """An expression gives what the same text gives in Python with torch's names."""
    graph = go.Graph.parse(text)
    tensors = dict(zip(graph.inputs, (A, B), strict=False))
    result = replay.output(graph, **tensors)
    torch.testing.assert_close(result, function(*tensors.values()), rtol=0, atol=0, equal_nan=True)
    assert graph.outputs == ("out",)


def test_inputs_stand_in_order() -> None:
    """Free names are inputs in the order of the text, functions and constants are none, and no node takes a name."""
    graph = go.Graph.parse("exp(b)*a*mul*pi + b")
    assert graph.inputs == ("b", "a", "mul")
    assert graph.names == ("b", "a", "mul", "exp", "mul_1", "mul_2", "mul_3", "add")


def test_numbers_alone() -> None:
    """An expression of numbers is a constant; whole numbers stay whole."""
    assert str(go.Graph.parse("2*3 + 1")) == "constant = constant(int64[] 7)\noutput out = constant"
    assert replay.output(go.Graph.parse("nan")).isnan()


def test_names_of_values() -> None:
    """name= in a call names its value."""
    assert go.Graph.parse("exp(x, name='h') * x.sin(name='s')").names == ("x", "h", "s", "mul")


@given(
    st.recursive(
        st.sampled_from(["x", "y", "2", "0.5"]),
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    )
)
@settings(deadline=None, max_examples=50)
def test_arithmetic(text: str) -> None:
    """Any arithmetic gives what Python gives with tensors of one element."""
    x, y = torch.tensor(1.5, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    expected = eval(text, {"__builtins__": {}}, {"x": x, "y": y})  # noqa: S307  # of what was made above
    graph = go.Graph.parse(text)
    result = replay.output(graph, **{name: {"x": x, "y": y}[name] for name in graph.inputs})
    assert result.item() == (expected.item() if isinstance(expected, torch.Tensor) else expected)


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("9*x^4", '"^" is no power; write ** (or bitwise_xor(a, b))', 3),
        ("é + 2*é^4", '"^" is no power; write ** (or bitwise_xor(a, b))', 7),
        ("(x + 1) ^ 2", '"^" is no power; write ** (or bitwise_xor(a, b))', 8),
        ("a<b<c", "expected one of < <= > >= == != between two operands; a chain is written (a < b) & (b < c)", 1),
        ("a in b", "expected one of < <= > >= == != between two operands; a chain is written (a < b) & (b < c)", 2),
        ("x and y", '"and" and "or" ask for one truth value; write & or | between parentheses', 0),
        ("2 + (not x)", '"not" asks for one truth value; write ~', 5),
        ("x if y else z", '"if" asks for one truth value; write where(condition, a, b)', 0),
        ("1 + (lambda: x)", "functions cannot be made here", 5),
        ("(y := x)", 'names cannot be given here; name="h" in a call names its result', 1),
        ("f'{x}'", "strings are taken as they stand", 0),
        ("[a for a in x]", "ListComp cannot stand in an expression", 0),
        ("{'a': x}", "expected tensors, numbers, strings and lists of them", 0),
        ("exp(*x)", '"*" cannot unpack here', 4),
        ("exp(**x)", '"**" cannot unpack here', 0),
        ("torch.exp(x)", "write exp(…): operators have plain names here", 0),
        ("1 + linalg.det(x)", "write linalg_det(…): operators have plain names here", 4),
        ("torch.pi", "write pi: operators have plain names here", 0),
        ("x.shape", 'expected one of .T, .mT, .H, .mH, .real, .imag, got ".shape"', 0),
        ("x.exp", 'expected one of .T, .mT, .H, .mH, .real, .imag, got ".exp"; it is a method: .exp(…)', 0),
        ("x.__class__", 'expected one of .T, .mT, .H, .mH, .real, .imag, got ".__class__"', 0),
        ("x.graph()", '"graph" is no method of the tensor "x"', 0),
        ("(1).real", 'expected one of .T, .mT, .H, .mH, .real, .imag, got ".real"', 0),
        ("exp(x)(y)", "expected an operator's name before the parenthesis", 0),
        ("x + 'a'", "expected tensors or numbers on both sides, got the tensor \"x\" and the string 'a'", 2),
        ("[1] * 2", "expected tensors or numbers on both sides, got a list with int 1 and int 2", 4),
        ("x + max(x, dim=0)", 'expected tensors or numbers on both sides, got the tensor "x" and 2 tensors', 2),
        ("-'a'", "expected a tensor, got the string 'a'", 0),
        ("~2", "expected a tensor, got int 2", 0),
        ("1 << 2", "this operator needs a tensor on one side", 2),
        ("x * 2**64", "a whole number of more than 64 bits", 5),
        ("x * 9**9**9**9", "a whole number of more than 64 bits", 8),
        ("x * 99999999999999999999", "a whole number of more than 64 bits", 4),
        ("x * (9**19 * 10)", "a whole number of more than 64 bits", 11),
        ("x * (1/0)", "division by zero, in a computation with numbers alone", 6),
        ("x * 10.0**999", "(34, 'Numerical result out of range'), in a computation with numbers alone", 8),
        ("x * b'a'", "expected a number, a string, True, False or None", 4),
        ("max(x, dim=0)", "the expression gives 2 tensors; take one of them: (…)[0]", 0),
        ("max(x, dim=0)[2]", "expected an index from 0 to 1, got 2", 0),
        ("split(x, 1)", "the expression gives a list of tensors; take one of them: (…)[0]", 0),
        ("(x, y)", "expected an expression that gives a tensor, got list", 0),
        ("'x'", "expected an expression that gives a tensor, got str", 0),
        ("2[0]", "expected a tensor before the bracket, got int 2", 0),
        ("1 + x[::-1]", 'index of "x": a slice\'s step must be greater than zero, got -1; flip(dim) reverses', 4),
        ("1 + sum(x, 1.5)", None, 4),
        ("1 + exp(x, name='x')", 'the name "x" stands already; inputs, constants and nodes share one set of names', 4),
        ("1 + x.foo()", 'Value "x": no operator "foo"; did you mean "floor" or "floor_"?', 4),
        ("1 + sofmax(x)", 'no operator "sofmax"; did you mean "softmax" or "fmax" or "log_softmax"?', 4),
    ],
)  # fmt: skip
def test_errors_show_the_place(text: str, message: str | None, caret: int) -> None:
    """What cannot be read is refused, over the text with a caret under the place."""
    with pytest.raises(go.InvalidRequestError) as caught:
        go.Graph.parse(text)
    first, *rest = str(caught.value).split("\n")
    if message is not None:
        assert first == f"expression: {message}"
    assert rest[-2:] == [f"  {text}", "  " + " " * caret + "^"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an expression, got nothing"),
        (" \n", "expected an expression, got nothing"),
        ("x +" * 40_000, "expected 100000 characters at most, got 120000"),
        ("x + # one\n y", "comments cannot stand in an expression of several lines"),
        ("x\0", "expected text, got a null character in it"),
        ("+".join("x" * 50_000), "nested too deeply, or too long a chain; build a Graph step by step instead"),
        ("-" * 50_000 + "x", "nested too deeply, or too long a chain; build a Graph step by step instead"),
        ("(" * 5_000 + "x" + ")" * 5_000, "nested too deeply, or too long a chain; build a Graph step by step instead"),
        ("x" + "[0]" * 33_000, "nested too deeply, or too long a chain; build a Graph step by step instead"),
        ("x" + "**x" * 33_000, "nested too deeply, or too long a chain; build a Graph step by step instead"),
    ],
    ids=range(10),
)
def test_bounds(text: str, message: str) -> None:
    """Length and depth are bounded, with an error that says so."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.Graph.parse(text)
    assert str(caught.value) == f"expression: {message}"


@pytest.mark.parametrize("text", ["x +", "exp(x", "x y", "x = 1", "import os", "x..", "1a", "(x))", "'a", "\\"])
def test_what_python_cannot_read(text: str) -> None:
    """What is no expression of Python's is refused in Python's words, with the text."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.Graph.parse(text)
    first, shown, caret = str(caught.value).split("\n")
    assert len(first) > len("expression: ")
    assert shown == f"  {text}"
    assert caret.strip() == "^"


def test_depth_and_length() -> None:
    """Nesting is bounded by depth; a chain of many terms is not nested."""
    deepest = expression.DEEPEST
    assert len(go.Graph.parse("-" * deepest + "x").names) == deepest + 1
    with pytest.raises(go.InvalidGraphError, match=f"nested more than {deepest} levels deep"):
        go.Graph.parse("-" * (deepest + 1) + "x")
    assert len(go.Graph.parse(" + ".join(["x"] * 800)).names) == 800


def test_long_expressions_are_cut_around_the_place() -> None:
    """An error shows the neighbourhood of the place alone."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.Graph.parse(f"{'x + ' * 100}y^2{' + x' * 100}")
    shown, caret = str(caught.value).split("\n")[1:]
    assert len(shown) == 2 + 1 + 60 + 60 + 1
    assert shown[caret.index("^")] == "^"


def test_metadata_is_kept() -> None:
    """An error in an operator keeps its kind, reason and metadata."""
    with pytest.raises(go.InvalidGraphError) as caught:
        go.Graph.parse("softmax(x, dim=1.5)")
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert caught.value.metadata["argument"] == "dim"
    with pytest.raises(go.UnsupportedOperatorError) as unsupported:
        go.Graph.parse("x.sofmax(0)")
    assert type(unsupported.value) is go.UnsupportedOperatorError
    assert unsupported.value.reason == "UNKNOWN_OPERATOR"


@given(st.text(alphabet="xy01.+-*/%@()[]:,'\" \n<>=&|~^#_é", max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text(text: str) -> None:
    """Any text is read or refused by an error of this library's, never by Python's own."""
    try:
        outcome: object = go.Graph.parse(text).outputs
    except go.InvalidRequestError as error:
        outcome = str(error).partition(":")[0]
    assert outcome in (("out",), "expression")


def test_not_text() -> None:
    """What is no text is a mistake in the program."""
    nothing: Any = None
    with pytest.raises(TypeError, match="expected an expression, got NoneType"):
        go.Graph.parse(nothing)

"""Selections: an expression over cases, read without evaluating anything.

softmax and not float32                    words: found in the id or in a label, whatever the case of the letters
dtype == float32 or operator != aten.mul.Tensor        fields: id, method, device, and labels by name
"mul" in operator, dtype in (float32, bfloat16)        what a field holds, or is one of
line < 100                                 the place in the file
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gradoracle.batch.cases import Case
from gradoracle.errors import InvalidRequestError

_Test = Callable[[Case], bool]

_ORDERS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


FIELDS = ("id", "method", "device", "line")
"""What can be compared of any case; every other field is a label."""


class Selection:
    """The cases that an expression describes. Raises InvalidRequestError where it cannot be read."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            self._test = _test(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = f" ({error.msg})" if isinstance(error, SyntaxError) else f", got {error}"
            raise InvalidRequestError(
                f"select: expected words and comparisons, such as 'softmax and dtype == float32', in {text!r}{reason}"
            ) from error

        self.labels = tuple(dict.fromkeys(name for name in _fields(tree) if name not in FIELDS))
        """The labels that it names, in its order."""

    def matches(self, case: Case) -> bool:
        """Whether a case is among them."""
        return self._test(case)

    def __str__(self) -> str:
        return self.text


def _test(node: ast.expr) -> _Test:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            parts = [_test(value) for value in values]
            return lambda case: all(part(case) for part in parts)
        case ast.BoolOp(values=values):
            parts = [_test(value) for value in values]
            return lambda case: any(part(case) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _test(operand)
            return lambda case: not part(case)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _comparison(left, op, right)
        case _:
            word = _text(node).lower()
            return lambda case: any(word in one.lower() for one in (case.id, *case.labels.values()))


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Test:
    if isinstance(op, ast.In | ast.NotIn):
        wanted = isinstance(op, ast.In)
        if isinstance(right, ast.Tuple | ast.List | ast.Set):
            texts = {_text(one) for one in right.elts}
            field = _text(left)
            return lambda case: (_field(case, field) in texts) is wanted
        part, field = _text(left), _text(right)
        return lambda case: (part in _field(case, field)) is wanted
    compare = _ORDERS.get(type(op))
    if compare is None:
        raise ValueError(f"the comparison {ast.unparse(left)} {type(op).__name__} {ast.unparse(right)}")
    field, value = _text(left), _text(right)
    if field == "line":
        number = int(value) if value.isdigit() else None
        if number is None:
            raise ValueError(f"line and {value!r}, which is no number")
        return lambda case: compare(case.line, number)
    if not isinstance(op, ast.Eq | ast.NotEq):
        raise ValueError(f"an order for {field!r}, which only line has")
    return lambda case: compare(_field(case, field), value)


def _fields(tree: ast.expr) -> Iterator[str]:
    """The fields that are compared."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(
                ops=[ast.In() | ast.NotIn()], comparators=[ast.Name() | ast.Attribute() | ast.Constant() as field]
            ):
                yield _text(field)
            case ast.Compare(left=field):
                yield _text(field)


def _field(case: Case, name: str) -> str:
    """A field of a case, or a label; empty where it has none."""
    match name:
        case "id":
            return case.id
        case "method":
            return case.method
        case "device":
            return case.device or case.labels.get(name, "")
        case "line":
            return str(case.line)
        case _:
            return case.labels.get(name, "")


def _text(node: ast.expr) -> str:
    """A word, with or without quotes: float32, aten.mul.Tensor, "8x64"."""
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return str(value)
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
    raise ValueError(ast.unparse(node))

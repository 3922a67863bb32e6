"""Expressions: `softmax(x @ w, dim=-1).sum()` as a graph.

The text is read by Python's parser and walked; nothing in it is run by Python. What is not listed here is refused, with
the place in the text.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from gradoracle.errors import InvalidGraphError, InvalidRequestError, UnsupportedOperatorError
from gradoracle.operators import table
from gradoracle.values import Value, ValueList

if TYPE_CHECKING:
    from gradoracle.graph import Graph

LONGEST = 100_000
"""Characters of an expression."""

DEEPEST = 100
"""Levels of parentheses, calls, indices within one another. Chains such as a + b + c + … count as one."""

OUTPUT = "out"
"""The name of the result."""

NUMBERS: Mapping[str, float] = {"pi": math.pi, "inf": math.inf, "nan": math.nan}
"""Names that stand for numbers."""

_TOO_DEEP = "nested too deeply, or too long a chain; build a Graph step by step instead"
_WINDOW = 60  # characters shown on either side of an error

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ON_NUMBERS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
"""What may be computed from numbers alone."""

_NUMBER = (bool, int, float, complex)

_ATTRIBUTES = ("T", "mT", "H", "mH", "real", "imag")

_INSTEAD: Mapping[type[ast.AST], str] = {
    ast.BoolOp: '"and" and "or" ask for one truth value; write & or | between parentheses',
    ast.Not: '"not" asks for one truth value; write ~',
    ast.IfExp: '"if" asks for one truth value; write where(condition, a, b)',
    ast.BitXor: '"^" is no power; write ** (or bitwise_xor(a, b))',
    ast.Compare: "expected one of < <= > >= == != between two operands; a chain is written (a < b) & (b < c)",
    ast.Starred: '"*" cannot unpack here',
    ast.Dict: "expected tensors, numbers, strings and lists of them",
    ast.Lambda: "functions cannot be made here",
    ast.NamedExpr: 'names cannot be given here; name="h" in a call names its result',
    ast.JoinedStr: "strings are taken as they stand",
}
"""What to write instead of what is refused."""


def parse(text: str, graph: Graph) -> Graph:
    """Adds an expression to an empty graph: its free names as inputs, its value as the output "out"."""
    reader = _Reader(text, graph)
    try:
        reader.read()
    except RecursionError:
        # The caller's own stack was nearly used up.
        raise InvalidGraphError(f"expression: {_TOO_DEEP}", reason="INVALID_GRAPH") from None
    return graph


class _Reader:
    def __init__(self, text: str, graph: Graph) -> None:
        if not isinstance(text, str):
            raise TypeError(f"expected an expression, got {type(text).__name__}")
        self._text = text
        self._graph = graph
        self._values: dict[str, Value] = {}

    def read(self) -> None:
        tree = self._tree()
        # Inputs first, so that no node takes the name of one that comes later.
        for name in self._free_names(tree):
            self._values[name] = self._graph.input(name)
        result = self._walk(tree, 0)
        if isinstance(result, tuple):
            self._fail(tree, f"the expression gives {len(result)} tensors; take one of them: (…)[0]")
        if isinstance(result, ValueList):
            self._fail(tree, "the expression gives a list of tensors; take one of them: (…)[0]")
        if isinstance(result, bool | int | float | complex):
            result = self._carried_out(tree, lambda: self._graph.constant(result))
        if not isinstance(result, Value):
            self._fail(tree, f"expected an expression that gives a tensor, got {type(result).__name__}")
        self._graph.output(OUTPUT, result)

    def _tree(self) -> ast.expr:
        text = self._text
        if len(text) > LONGEST:
            self._fail(None, f"expected {LONGEST} characters at most, got {len(text)}")
        if not text.strip():
            self._fail(None, "expected an expression, got nothing")
        if "\0" in text:
            self._fail(None, "expected text, got a null character in it")
        if "\n" in text or "\r" in text:
            if "#" in text:
                self._fail(None, "comments cannot stand in an expression of several lines")
            text = text.replace("\n", " ").replace("\r", " ")
        # Leading blanks would be indentation to Python. Each letter stays in its place.
        start = len(text) - len(text.lstrip())
        self._text, self._start = text, start
        try:
            return ast.parse(text[start:], mode="eval").body
        except SyntaxError as error:
            if "too many nested" in (error.msg or ""):
                self._fail_at(None, _TOO_DEEP)
            self._fail_at(start + (error.offset or 1) - 1, error.msg.removesuffix(" (<unknown>, line 1)"))
        except ValueError as error:
            self._fail_at(None, str(error))
        except (RecursionError, MemoryError):
            self._fail_at(None, _TOO_DEEP)

    def _free_names(self, tree: ast.expr) -> list[str]:
        """Names that stand for tensors, in the order of the text."""
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
        # "torch" in torch.exp(x) is no input, and is refused where it is met.
        modules = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in _MODULES
        }
        names = [node for node in names if node.id not in NUMBERS and id(node) not in modules]
        names.sort(key=lambda node: (node.lineno, node.col_offset))
        return list(dict.fromkeys(node.id for node in names))

    # ---- Walking

    def _walk(self, node: ast.expr, depth: int) -> Any:
        if depth > DEEPEST:
            self._fail(node, f"nested more than {DEEPEST} levels deep; build a Graph step by step instead")
        match node:
            case ast.BinOp() | ast.UnaryOp() | ast.Compare():
                return self._operation(node, depth)
            case ast.Constant():
                return self._constant(node)
            case ast.Name(id=name):
                return NUMBERS[name] if name in NUMBERS else self._values[name]
            case ast.Call():
                return self._call(node, depth)
            case ast.Subscript(value=value, slice=key):
                return self._subscript(node, self._walk(value, depth + 1), self._key(key, depth + 1))
            case ast.Attribute(value=value, attr=attribute):
                return self._attribute(node, value, attribute, depth)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._walk(item, depth + 1) for item in items]
            case _:
                return self._refuse(node)

    def _operation(self, node: ast.BinOp | ast.UnaryOp | ast.Compare, depth: int) -> Any:
        if isinstance(node, ast.BinOp):
            return self._chain(node, depth)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, node.op, self._walk(node.operand, depth + 1))
        return self._compare(node, depth)

    def _compare(self, node: ast.Compare, depth: int) -> Any:
        if len(node.ops) > 1 or type(node.ops[0]) not in _COMPARISONS:
            self._refuse(node)
        a, b = self._walk(node.left, depth + 1), self._walk(node.comparators[0], depth + 1)
        return self._binary(node, _COMPARISONS[type(node.ops[0])], a, b)

    def _chain(self, node: ast.BinOp, depth: int) -> Any:
        """a + b + c + …: as deep as it is long in the tree, so it is walked in a loop."""
        links = [node]
        while isinstance(links[-1].left, ast.BinOp):
            links.append(links[-1].left)
        result = self._walk(links[-1].left, depth + 1)
        for link in reversed(links):
            right = self._walk(link.right, depth + 1)
            if type(link.op) not in _BINARY:
                self._refuse(link.op, link)
            numbers = _is_number(result) and _is_number(right)
            if numbers and not isinstance(link.op, _ON_NUMBERS):
                self._fail(link, "this operator needs a tensor on one side")
            if numbers and isinstance(link.op, ast.Pow):
                result = self._power(link, result, right)
            else:
                result = self._binary(link, _BINARY[type(link.op)], result, right)
        return result

    def _binary(self, node: ast.expr, function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        # A list of numbers is as good as a tensor beside one.
        kinds = (Value, list, bool, int, float, complex) if isinstance(a, Value) or isinstance(b, Value) else _NUMBER
        if not isinstance(a, kinds) or not isinstance(b, kinds):
            self._fail(node, f"expected tensors or numbers on both sides, got {_kind(a)} and {_kind(b)}")
        return self._carried_out(node, lambda: function(a, b))

    def _power(self, node: ast.expr, base: Any, exponent: Any) -> Any:
        """Of numbers. 9**9**9**9 would not end."""
        whole = isinstance(base, int) and isinstance(exponent, int)
        if whole and exponent > 0 and base.bit_length() * exponent > 128:
            self._fail(node, "a whole number of more than 64 bits")
        return self._carried_out(node, lambda: base**exponent)

    def _unary(self, node: ast.UnaryOp, op: ast.unaryop, operand: Any) -> Any:
        if type(op) not in _UNARY:
            self._refuse(op, node)
        if not isinstance(operand, Value) and (isinstance(op, ast.Invert) or not _is_number(operand)):
            self._fail(node, f"expected a tensor, got {_kind(operand)}")
        return self._carried_out(node, lambda: _UNARY[type(op)](operand))

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value <= 2**63:
            self._fail(node, "a whole number of more than 64 bits")
        if value is not None and not isinstance(value, bool | int | float | complex | str):
            self._fail(node, "expected a number, a string, True, False or None")
        return value

    def _call(self, node: ast.Call, depth: int) -> Any:
        args = [self._walk(argument, depth + 1) for argument in node.args]
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self._fail(node, '"**" cannot unpack here')
            kwargs[keyword.arg] = self._walk(keyword.value, depth + 1)
        name = kwargs.pop("name", None)
        match node.func:
            case ast.Name(id=operation):
                apply = self._graph.apply
                return self._carried_out(node, lambda: apply(operation, args, kwargs, name=name))
            case ast.Attribute(value=ast.Name(id=module), attr=operation) if module in _MODULES:
                return self._fail(node, f"write {_MODULES[module]}{operation}(…): operators have plain names here")
            case ast.Attribute(value=value, attr=method):
                target = self._walk(value, depth + 1)
                # Methods are what Value makes up as it is asked, never an attribute of the class.
                if not isinstance(target, Value) or method.startswith("_") or hasattr(Value, method):
                    self._fail(node, f'"{method}" is no method of {_kind(target)}')
                return self._carried_out(node, lambda: getattr(target, method)(*args, name=name, **kwargs))
            case _:
                return self._fail(node, "expected an operator's name before the parenthesis")

    def _attribute(self, node: ast.Attribute, value: ast.expr, attribute: str, depth: int) -> Any:
        if isinstance(value, ast.Name) and value.id in _MODULES:
            self._fail(node, f"write {_MODULES[value.id]}{attribute}: operators have plain names here")
        target = self._walk(value, depth + 1)
        if not isinstance(target, Value) or attribute not in _ATTRIBUTES:
            is_method = isinstance(target, Value) and attribute in table().families
            hint = f"; it is a method: .{attribute}(…)" if is_method else ""
            self._fail(node, f'expected one of .{", .".join(_ATTRIBUTES)}, got ".{attribute}"{hint}')
        return self._carried_out(node, lambda: getattr(target, attribute))

    def _subscript(self, node: ast.Subscript, target: Any, key: Any) -> Any:
        if isinstance(target, tuple):
            if not isinstance(key, int) or isinstance(key, bool) or not -len(target) <= key < len(target):
                self._fail(node, f"expected an index from 0 to {len(target) - 1}, got {key!r}")
            return target[key]
        if not isinstance(target, Value | ValueList):
            self._fail(node, f"expected a tensor before the bracket, got {_kind(target)}")
        return self._carried_out(node, lambda: target[key])

    def _key(self, node: ast.expr, depth: int) -> Any:
        if isinstance(node, ast.Tuple):
            return tuple(self._key(item, depth + 1) for item in node.elts)
        if isinstance(node, ast.Slice):
            bounds = (node.lower, node.upper, node.step)
            return slice(*(None if bound is None else self._walk(bound, depth + 1) for bound in bounds))
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return Ellipsis
        return self._walk(node, depth)

    # ---- Errors

    def _carried_out(self, node: ast.expr, action: Callable[[], Any]) -> Any:
        """Does it, and shows the place in the text where it fails."""
        try:
            result = action()
        except InvalidRequestError as error:
            unsupported = isinstance(error, UnsupportedOperatorError)  # and maybe an AttributeError, which this is not
            kind = UnsupportedOperatorError if unsupported else type(error)
            raise kind(
                self._shown(self._offset(node), str(error)),
                reason=error.reason,
                node=error.node,
                metadata=error.metadata,
            ) from None
        except (TypeError, AttributeError) as error:
            self._fail(node, str(error))
        except (ArithmeticError, ValueError) as error:
            self._fail(node, f"{error}, in a computation with numbers alone")
        if isinstance(result, int) and not isinstance(result, bool) and not -(2**63) <= result < 2**63:
            self._fail(node, "a whole number of more than 64 bits")
        return result

    def _refuse(self, node: ast.AST, place: ast.expr | None = None) -> NoReturn:
        where = place if place is not None else node
        instead = _INSTEAD.get(type(node), f"{type(node).__name__} cannot stand in an expression")
        self._fail(where if isinstance(where, ast.expr) else None, instead)

    def _fail(self, node: ast.expr | None, message: str) -> NoReturn:
        self._fail_at(None if node is None else self._offset(node), message)

    def _fail_at(self, offset: int | None, message: str) -> NoReturn:
        raise InvalidGraphError(
            self._shown(offset, message), reason="INVALID_GRAPH", metadata={"field": "expression"}
        ) from None

    def _offset(self, node: ast.expr) -> int:
        """Where a node begins, in characters; Python counts bytes. An operator's own place is behind its left side."""
        offset = node.col_offset
        if isinstance(node, ast.BinOp | ast.Compare):
            offset = node.left.end_col_offset or offset
        before = self._text[self._start :].encode()[:offset].decode(errors="replace")
        place = self._start + len(before)
        if isinstance(node, ast.BinOp | ast.Compare):
            while place < len(self._text) - 1 and self._text[place] in " )":
                place += 1
        return place

    def _shown(self, offset: int | None, message: str) -> str:
        """The message over the text, with a caret under the place."""
        if offset is None:
            return f"expression: {message}"
        first, last = max(0, offset - _WINDOW), min(len(self._text), offset + _WINDOW)
        before = "…" if first > 0 else ""
        after = "…" if last < len(self._text) else ""
        excerpt = self._text[first:last].replace("\t", " ")
        caret = " " * (len(before) + offset - first) + "^"
        return f"expression: {message}\n  {before}{excerpt}{after}\n  {caret}"


_MODULES: Mapping[str, str] = {
    "torch": "",
    "aten": "",
    "np": "",
    "jnp": "",
    "math": "",
    "linalg": "linalg_",
    "fft": "fft_",
    "special": "special_",
}
"""Modules that people write before an operator's name, and how its plain name begins."""


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBER)


def _kind(value: object) -> str:
    from gradoracle.binding import describe

    return f"{len(value)} tensors" if isinstance(value, tuple) else describe(value)

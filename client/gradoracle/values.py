"""Values: what a graph's inputs, constants and operators give, to compute with as with torch tensors.

A Value has a name and a graph, and no numbers until the graph runs. Each operation on it adds a node to its graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gradoracle.errors import UnsupportedOperatorError, _NoSuchOperatorError
from gradoracle.operators import table

if TYPE_CHECKING:
    from gradoracle.graph import Graph

_CASTS = {
    "bool": "bool",
    "byte": "uint8",
    "char": "int8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
    "cfloat": "complex64",
    "cdouble": "complex128",
}
"""Methods that convert: x.double()."""

_NOT_HERE = {
    "shape": "its shape is known only when the graph runs; Client.inspect tells it",
    "ndim": "its number of dimensions is known only when the graph runs; Client.inspect tells it",
    "dtype": "its dtype is known only when the graph runs; Client.inspect tells it",
    "device": "its device is chosen with each request, by device=",
    "requires_grad": "it is known only when the graph runs; Client.inspect tells it",
    "is_leaf": "it is known only when the graph runs; Client.inspect tells it",
    "grad_fn": "it is known only when the graph runs; Client.inspect tells it",
    "grad": "gradients come from Client.vjp; name the value in retain= for that of one that is no input",
    "backward": "gradients come from Client.vjp",
    "data": "it has no numbers until the graph runs; detach() stops the gradient",
    "numpy": "it has no numbers until the graph runs; Client.evaluate gives them",
    "tolist": "it has no numbers until the graph runs; Client.evaluate gives them",
}
"""What a torch tensor has and a Value cannot have, and where to turn."""


class Value:
    """One tensor of a graph, before it has numbers.

    Python's operators, indexing and methods under torch's names (`x.sum(dim=0)`, `x.exp()`, `x.reshape(2, 3)`) give
    further Values. Each takes `name=` for the result. dtypes are spelled as strings: `x.sum(dtype="float32")`.
    numpy arrays among the operands become constants of the graph.
    """

    __slots__ = ("_graph", "_name")

    __array_ufunc__ = None  # so that array * value comes here, instead of becoming an array of Values

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph = graph
        self._name = name

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self._name

    @property
    def graph(self) -> Graph:
        """The graph that it is part of."""
        return self._graph

    def __repr__(self) -> str:
        return f'Value("{self._name}")'

    def __hash__(self) -> int:
        return id(self)

    # ---- Operators, each as torch's tensors carry it out

    def _apply(self, operator: str, *args: Any) -> Value:
        result: Value = self._graph.apply(operator, args, {})
        return result

    def _binary(self, operator: str, other: object) -> Value:
        if not _is_operand(other):
            return NotImplemented  # type: ignore[no-any-return]
        return self._apply(operator, self, other)

    def _reflected(self, operator: str, other: object, method: str, swapped: bool = False) -> Value:
        """other OPERATOR self. Where other is a number torch calls `method`, with the operands as `swapped` says."""
        if not _is_operand(other):
            return NotImplemented  # type: ignore[no-any-return]
        if not isinstance(other, bool | int | float | complex | np.generic):
            return self._apply(operator, self._graph.constant(other), self)
        return self._apply(method, self, other) if swapped else self._apply(method, other, self)

    def __add__(self, other: object) -> Value:
        return self._binary("add", other)

    def __radd__(self, other: object) -> Value:
        return self._reflected("add", other, "add", swapped=True)

    def __sub__(self, other: object) -> Value:
        return self._binary("sub", other)

    def __rsub__(self, other: object) -> Value:
        return self._reflected("sub", other, "rsub", swapped=True)

    def __mul__(self, other: object) -> Value:
        return self._binary("mul", other)

    def __rmul__(self, other: object) -> Value:
        return self._reflected("mul", other, "mul", swapped=True)

    def __truediv__(self, other: object) -> Value:
        return self._binary("div", other)

    def __rtruediv__(self, other: object) -> Value:
        if isinstance(other, bool | int | float | complex | np.generic):
            return self._apply("reciprocal", self) * other
        return self._reflected("div", other, "div")

    def __floordiv__(self, other: object) -> Value:
        return self._binary("floor_divide", other)

    def __rfloordiv__(self, other: object) -> Value:
        return self._reflected("floor_divide", other, "floor_divide")

    def __mod__(self, other: object) -> Value:
        return self._binary("remainder", other)

    def __rmod__(self, other: object) -> Value:
        return self._reflected("remainder", other, "remainder")

    def __pow__(self, other: object) -> Value:
        return self._binary("pow", other)

    def __rpow__(self, other: object) -> Value:
        return self._reflected("pow", other, "pow")

    def __matmul__(self, other: object) -> Value:
        return self._binary("matmul", other)

    def __rmatmul__(self, other: object) -> Value:
        return self._reflected("matmul", other, "matmul")

    def __and__(self, other: object) -> Value:
        return self._binary("__and__", other)

    def __rand__(self, other: object) -> Value:
        return self._reflected("__and__", other, "bitwise_and", swapped=True)

    def __or__(self, other: object) -> Value:
        return self._binary("__or__", other)

    def __ror__(self, other: object) -> Value:
        return self._reflected("__or__", other, "bitwise_or", swapped=True)

    def __xor__(self, other: object) -> Value:
        return self._binary("__xor__", other)

    def __rxor__(self, other: object) -> Value:
        return self._reflected("__xor__", other, "bitwise_xor", swapped=True)

    def __lshift__(self, other: object) -> Value:
        return self._binary("__lshift__", other)

    def __rlshift__(self, other: object) -> Value:
        return self._reflected("__lshift__", other, "bitwise_left_shift")

    def __rshift__(self, other: object) -> Value:
        return self._binary("__rshift__", other)

    def __rrshift__(self, other: object) -> Value:
        return self._reflected("__rshift__", other, "bitwise_right_shift")

    def __lt__(self, other: object) -> Value:
        return self._binary("lt", other)

    def __le__(self, other: object) -> Value:
        return self._binary("le", other)

    def __gt__(self, other: object) -> Value:
        return self._binary("gt", other)

    def __ge__(self, other: object) -> Value:
        return self._binary("ge", other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]  # as torch's: a tensor of bools
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return self._binary("ne", other)

    def __neg__(self) -> Value:
        return self._apply("neg", self)

    def __pos__(self) -> Value:
        return self._apply("positive", self)

    def __invert__(self) -> Value:
        return self._apply("bitwise_not", self)

    def __abs__(self) -> Value:
        return self._apply("abs", self)

    def __getitem__(self, key: object) -> Value:
        from gradoracle import indexing

        return indexing.index(self, key)

    # ---- Views that torch spells as attributes

    @property
    def T(self) -> Value:  # noqa: N802  # torch's name
        """All dimensions in reverse order."""
        return self._apply("numpy_T", self)

    @property
    def mT(self) -> Value:  # noqa: N802  # torch's name
        """The last two dimensions transposed."""
        return self._apply("mT", self)

    @property
    def H(self) -> Value:  # noqa: N802  # torch's name
        """A matrix, transposed and conjugated."""
        return self._apply("matrix_H", self)

    @property
    def mH(self) -> Value:  # noqa: N802  # torch's name
        """The last two dimensions transposed, and conjugated."""
        return self._apply("mH", self)

    @property
    def real(self) -> Value:
        """Real parts."""
        return self._apply("real", self)

    @property
    def imag(self) -> Value:
        """Imaginary parts."""
        return self._apply("imag", self)

    # ---- Methods under torch's names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _NOT_HERE:
            raise AttributeError(f'Value "{self._name}" has no attribute "{name}": {_NOT_HERE[name]}')
        if name in _CASTS:
            return _Cast(self, _CASTS[name])
        if name == "type":
            return _Method(self, "to")
        if name not in table().families:
            try:
                table().family(name)
            except UnsupportedOperatorError as error:
                raise _NoSuchOperatorError(
                    f'Value "{self._name}": {error}', reason=error.reason, metadata=error.metadata
                ) from None
        return _Method(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *table().families, *_CASTS, "type"})

    # ---- What needs numbers

    def _no_numbers(self, instead: str) -> NoReturn:
        raise TypeError(f'Value "{self._name}" has no numbers until the graph runs; {instead}')

    def __bool__(self) -> NoReturn:
        self._no_numbers("where(condition, a, b) chooses elements inside a graph, & | ~ combine conditions")

    def __iter__(self) -> NoReturn:
        self._no_numbers("x[0], x[1], … or x.unbind(dim)[0] take it apart")

    def __len__(self) -> NoReturn:
        self._no_numbers("Client.inspect tells its shape")

    def __contains__(self, item: object) -> NoReturn:
        self._no_numbers("(x == item).any() tells inside a graph")

    def __float__(self) -> NoReturn:
        self._no_numbers("Client.evaluate gives them")

    def __int__(self) -> NoReturn:
        self._no_numbers("Client.evaluate gives them")

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        self._no_numbers("Client.evaluate gives them")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TypeError(
            f'Value "{self._name}" cannot be changed; x.index_put([indices], values), '
            "x.select_scatter(values, dim, index) or where(mask, values, x) give a changed copy"
        )


def _is_operand(other: object) -> bool:
    """Whether arithmetic with it makes sense: a Value, a number, an array, a list of numbers."""
    return isinstance(other, Value | bool | int | float | complex | np.generic | np.ndarray | list | tuple) or hasattr(
        other, "__dlpack__"
    )


class _Method:
    """A method of a Value under an operator's name."""

    __slots__ = ("_operator", "_value")

    def __init__(self, value: Value, operator: str) -> None:
        self._value = value
        self._operator = operator

    def __call__(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        graph = self._value.graph
        return graph.apply(self._operator, (self._value, *args), kwargs, name=name, method=True)

    def __repr__(self) -> str:
        return f"<method {self._operator} of {self._value!r}>"


class _Cast:
    """x.double() and its kin."""

    __slots__ = ("_dtype", "_value")

    def __init__(self, value: Value, dtype: str) -> None:
        self._value = value
        self._dtype = dtype

    def __call__(self, *, name: str | None = None) -> Value:
        result: Value = self._value.graph.apply("to", (self._value, self._dtype), {}, name=name)
        return result


class ValueList:
    """The result of an operator that returns a list of tensors, such as split: how many is known only when it runs.

    `parts[0]` is the first of them, a Value. The list as a whole may stand where an operator takes a list of tensors.
    """

    __slots__ = ("_graph", "_items", "_name", "_target")

    def __init__(self, graph: Graph, name: str, target: str) -> None:
        self._graph = graph
        self._name = name
        self._target = target
        self._items: dict[int, Value] = {}

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self._name

    @property
    def graph(self) -> Graph:
        """The graph that it is part of."""
        return self._graph

    def __repr__(self) -> str:
        return f'ValueList("{self._name}")'

    def __getitem__(self, index: int) -> Value:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise TypeError(f'ValueList "{self._name}" takes an int as index, got {type(index).__name__}')
        index = int(index)
        if index not in self._items:
            self._items[index] = self._graph.take(self._name, index)
        return self._items[index]

    def _unknown_length(self) -> NoReturn:
        raise TypeError(
            f'ValueList "{self._name}": how many tensors {self._target} returns is known only when the graph runs; '
            "take them by index: parts[0], parts[1]"
        )

    def __iter__(self) -> NoReturn:
        self._unknown_length()

    def __len__(self) -> NoReturn:
        self._unknown_length()

    def __bool__(self) -> NoReturn:
        self._unknown_length()

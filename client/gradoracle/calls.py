"""Operators by name: `gradoracle.ops.softmax(x, dim=-1)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradoracle.errors import InvalidGraphError
from gradoracle.operators import table
from gradoracle.values import Value, ValueList

if TYPE_CHECKING:
    from gradoracle.graph import Graph


class Operation:
    """One ATen operator, to call with Values. Its overload is picked from the arguments as torch would.

    Gives a Value; a tuple of Values where the overload returns one; a ValueList where it returns a list of tensors.
    `name=` names the result. Raises InvalidGraphError where no overload fits the arguments.
    """

    def __init__(self, name: str, graph: Graph | None) -> None:
        self.__name__ = name
        self.__doc__ = "\n".join(operator.text.removeprefix("aten::") for operator in table().family(name))
        self._graph = graph

    def __call__(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        graph = self._graph or _graph_of((*args, *kwargs.values()))
        if graph is None:
            raise InvalidGraphError(
                f"ops.{self.__name__}: expected a Value among the arguments, to know the graph by; "
                f"g.ops.{self.__name__} adds to the graph g without one",
                reason="INVALID_GRAPH",
            )
        return graph.apply(self.__name__, args, kwargs, name=name)

    def __repr__(self) -> str:
        return f"<operator {self.__name__}>"


class Operations:
    """Every operator that servers serve, under torch's own name: `ops.softmax`, `ops.linalg_det`, `ops.fft_fft`."""

    def __init__(self, graph: Graph | None = None) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Operation:
        """Raises UnsupportedOperatorError with the likest names, or the reason why the operator is not served."""
        if name.startswith("__") and name not in table().families:
            raise AttributeError(name)
        return Operation(name, self._graph)

    def __dir__(self) -> list[str]:
        return sorted(table().families)


def _graph_of(values: Iterable[Any]) -> Graph | None:
    for value in values:
        if isinstance(value, Value | ValueList):
            return value.graph
        if isinstance(value, list | tuple):
            found = _graph_of(value)
            if found is not None:
                return found
    return None


ops = Operations()
"""Operators by name, in the graph of the Values that they are given."""

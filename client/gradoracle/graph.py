"""Op graphs: built by computing with Values, read from expressions, JSON or bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from gradoracle import binding, tensors, wire
from gradoracle.calls import Operations
from gradoracle.dtypes import nearest, suggestion
from gradoracle.errors import InvalidGraphError
from gradoracle.operators import Operator, table
from gradoracle.v1 import graph_pb2
from gradoracle.values import Value, ValueList

if TYPE_CHECKING:
    from gradoracle.schema import Schema

_LONGEST_NAME = 200  # bytes
_STRUCTURES: Mapping[str, graph_pb2.Structure] = {
    key.removeprefix("STRUCTURE_").lower(): cast("graph_pb2.Structure", value)
    for key, value in graph_pb2.Structure.items()
    if value
}
_GRAPH_FIELD = 1  # of every request


class Graph:
    """A straight-line program over ATen operators: named inputs, constants and nodes in order, named outputs.

        g = Graph()
        x = g.input("x")
        g.output("y", (x**2).sum())

    A graph may be sent while it is being built, and again after it has grown. It belongs to one thread at a time.
    """

    def __init__(self) -> None:
        self._message = graph_pb2.Graph()
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}  # by base name: how many were made of it
        self._inputs: dict[str, bool] = {}  # whether each requires grad
        self._no_grad = 0  # depth of no_grad regions
        self._serialized: bytes | None = None

    # ---- Building

    def input(self, name: str, *, requires_grad: bool = True, structure: str | None = None) -> Value:
        """A tensor that comes with each request: a leaf.

        `requires_grad` says whether gradients with respect to it are wanted; where the tensor is of integers or bools
        there is none in any case. `structure` is the set in which it may move, for operators such as cholesky whose
        gradient is defined only there: "symmetric", "hermitian", "lower_triangular", "upper_triangular" or
        "positive_definite". Raises InvalidGraphError for a name that stands already, or an unknown structure.
        """
        if structure is not None and structure not in _STRUCTURES:
            hint = suggestion(nearest(str(structure), _STRUCTURES))
            raise InvalidGraphError(
                f'input "{name}": expected one of {", ".join(_STRUCTURES)} as structure, got {structure!r}{hint}',
                reason="INVALID_GRAPH",
                metadata={"field": f'graph.inputs["{name}"].structure'},
            )
        self._claim(name)
        message = self._changed().inputs.add(name=name)
        if not requires_grad:
            message.requires_grad = False
        if structure is not None:
            message.structure = _STRUCTURES[structure]
        self._inputs[name] = requires_grad
        return Value(self, name)

    def constant(self, value: tensors.ArrayLike, *, name: str | None = None) -> Value:
        """A tensor that is part of the program. It never requires grad.

        Arrays keep their dtype; Python numbers and lists become float64, complex128, int64 or bool, as they are.
        Raises TensorError where the value is no tensor.
        """
        encoded = tensors.encode(value, "graph.constants", name or "constant", floating=False)
        name = self._name(name, "constant")
        self._changed().constants.add(name=name).value.CopyFrom(tensors.message_of(encoded))
        return Value(self, name)

    def output(self, name: str, value: Value) -> Value:
        """Makes a value a result of the program under a name, and gives it back.

        Raises InvalidGraphError where an output has that name already, or the value is another graph's.
        """
        if not isinstance(value, Value):
            what = (
                "index it: parts[0]" if isinstance(value, ValueList | tuple) else "g.constant() makes one of a number"
            )
            raise TypeError(f'output "{name}": expected a Value, got {binding.describe(value)}; {what}')
        self._own(value)
        _check_name(name)
        if any(output.name == name for output in self._message.outputs):
            raise InvalidGraphError(
                f'output "{name}" stands already',
                reason="DUPLICATE_NAME",
                metadata={"field": f"graph.outputs[{len(self._message.outputs)}].name", "name": name},
            )
        self._changed().outputs.add(name=name, value=value.name)
        return value

    def call(self, target: str, /, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        """Calls exactly one overload: `g.call("aten.mul.Tensor", a, b)`.

        Gives a Value; a tuple of Values where the overload returns one (None in the place of what is no tensor); a
        ValueList where it returns a list. `name` names the result. Raises UnsupportedOperatorError for an overload that
        is not served, InvalidGraphError for arguments that do not fit it.
        """
        operator = table().overload(target)
        return self._add(operator, binding.bind(operator, args, kwargs), name)

    def apply(
        self,
        operator: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str | None = None,
        method: bool = False,
    ) -> Any:
        """Calls an operator by its base name; its overload is picked from the arguments as torch would.

        `g.ops.softmax(x, dim=-1)` and `x.softmax(dim=-1)` are other ways of writing it. With `method`, the first
        argument is the schema's `self`, wherever that stands.
        """
        chosen, bound = binding.choose(operator, table().family(operator), args, kwargs, method=method)
        return self._add(chosen, bound, name)

    @cached_property
    def ops(self) -> Operations:
        """Operators by name, in this graph: `g.ops.zeros(2, 3)`. Needed only where no argument is a Value."""
        return Operations(self)

    @contextlib.contextmanager
    def no_grad(self) -> Iterator[None]:
        """A region whose nodes run under torch.no_grad(): their results carry no gradient."""
        self._no_grad += 1
        try:
            yield
        finally:
            self._no_grad -= 1

    def value(self, name: str) -> Value:
        """The value of that name, to go on from in a graph that was read. Raises InvalidGraphError if there is none."""
        if name not in self._names:
            near = nearest(name, self._names)
            raise InvalidGraphError(
                f'no value "{name}" in the graph{suggestion(near)}',
                reason="UNKNOWN_REFERENCE",
                metadata={"reference": name, "nearest": ", ".join(near)},
            )
        return Value(self, name)

    def take(self, name: str, index: int, *, element_name: str | None = None) -> Value:
        """One element of the tuple or list that the node `name` returns."""
        element = self._name(element_name, f"{name}.{index}")
        node = self._changed().nodes.add(name=element, target="getitem", no_grad=self._no_grad > 0)
        node.args.add().value = name
        node.args.add().integer = index
        return Value(self, element)

    # ---- Looking

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(output.name for output in self._message.outputs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of every input, constant and node, in order."""
        message = self._message
        return tuple(one.name for group in (message.inputs, message.constants, message.nodes) for one in group)

    @property
    def message(self) -> graph_pb2.Graph:
        """The graph as a message of its own: gradoracle.v1.Graph."""
        copy = graph_pb2.Graph()
        copy.CopyFrom(self._message)
        return copy

    @property
    def fingerprint(self) -> str:
        """sha256 of `to_bytes()` in hexadecimal: equal for equal programs."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def requires_grad(self, name: str) -> bool:
        """Whether the input of that name asks for a gradient. False where there is no such input."""
        return self._inputs.get(name, False)

    def __repr__(self) -> str:
        message = self._message
        return (
            f"<Graph ({', '.join(self._inputs)}) -> ({', '.join(self.outputs)}), "
            f"{len(message.nodes)} node{'s' if len(message.nodes) != 1 else ''}>"
        )

    def __str__(self) -> str:
        from gradoracle import render

        return render.text(self._message)

    def to_dot(self) -> str:
        """The graph in Graphviz' language."""
        from gradoracle import render

        return render.dot(self._message)

    # ---- To and from bytes

    def to_bytes(self) -> bytes:
        """The graph as a serialized gradoracle.v1.Graph; equal graphs give equal bytes."""
        return self._message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> Graph:
        """The graph of `to_bytes()`. Raises InvalidGraphError where the bytes are no graph."""
        try:
            return cls.from_message(graph_pb2.Graph.FromString(data))
        except DecodeError as error:
            raise InvalidGraphError(
                f"expected a serialized gradoracle.v1.Graph, got {len(data)} bytes that are none",
                reason="INVALID_GRAPH",
            ) from error

    def to_json(self, *, indent: int | None = None) -> str:
        """The graph in the proto's JSON, on one line unless `indent` is given."""
        text: str = json_format.MessageToJson(self._message, indent=indent)
        return text

    @classmethod
    def from_json(cls, document: str | bytes | Mapping[str, Any]) -> Graph:
        """The graph of `to_json()`, or of the same already parsed. Raises InvalidGraphError where it is none."""
        message = graph_pb2.Graph()
        try:
            if isinstance(document, Mapping):
                json_format.ParseDict(dict(document), message)
            else:
                json_format.Parse(document, message)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise InvalidGraphError(
                f"expected a gradoracle.v1.Graph in the proto's JSON: {error}", reason="INVALID_GRAPH"
            ) from error
        return cls.from_message(message)

    @classmethod
    def from_message(cls, message: graph_pb2.Graph) -> Graph:
        """The graph of a message, which is copied. Whether it keeps the rules is for the server to say."""
        graph = cls()
        graph._message.CopyFrom(message)
        graph._inputs = {
            one.name: one.requires_grad if one.HasField("requires_grad") else True for one in message.inputs
        }
        graph._names = set(graph.names)
        return graph

    @classmethod
    def parse(cls, expression: str) -> Graph:
        """The graph of an expression such as "softmax(x @ w, dim=-1).sum()".

        Free names are inputs, in the order of their appearance; calls are operators under torch's names, as functions
        or as methods; `pi`, `inf` and `nan` are numbers; the output is named "out". The text is parsed, never run by
        Python. Raises InvalidGraphError, or UnsupportedOperatorError, with the place in the text.
        """
        from gradoracle import expression as language

        return language.parse(expression, cls())

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return Graph.from_bytes, (self.to_bytes(),)

    def request_field(self) -> bytes:
        """The graph as the field `graph` of a request. Kept until the graph changes."""
        if self._serialized is None:
            self._serialized = wire.bytes_field(_GRAPH_FIELD, self.to_bytes())
        return self._serialized

    # ---- Inside

    def _changed(self) -> graph_pb2.Graph:
        self._serialized = None
        return self._message

    def _add(self, operator: Operator, bound: binding.Bound, name: str | None) -> Any:
        arguments = [value for _, value in (*bound.positional, *bound.keyword)]
        for value in arguments:
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, Value | ValueList):
                    self._own(one)
        # The name first, so that a bad one leaves nothing behind; constants next, since they may fail too.
        node = graph_pb2.Node(target=operator.name, no_grad=self._no_grad > 0)
        if name is not None:
            self._check_free(name)
        for parameter, value in bound.positional:
            binding.write(node.args.add(), parameter, value, self._constant_name)
        for parameter, value in bound.keyword:
            named = node.kwargs.add(name=parameter.name)
            binding.write(named.argument, parameter, value, self._constant_name)
        node.name = self._name(name, operator.name.split(".")[1].strip("_"))
        self._changed().nodes.append(node)
        return self._result(operator.schema, node.name)

    def _result(self, schema: Schema, name: str) -> Any:
        if schema.returns_tensor:
            return Value(self, name)
        if schema.returns_list:
            return ValueList(self, name, schema.target)
        elements = [
            self.take(name, place) if one.is_tensor and not one.is_list else None
            for place, one in enumerate(schema.returns)
        ]
        labels = tuple(one.name or "" for one in schema.returns)
        return _tuple_type(labels)(*elements) if all(labels) else tuple(elements)

    def _constant_name(self, value: Any) -> str:
        return self.constant(value).name

    def _own(self, value: Value | ValueList) -> None:
        if value.graph is not self:
            raise InvalidGraphError(
                f'"{value.name}" is a value of another graph; values of two graphs cannot be mixed',
                reason="INVALID_GRAPH",
                metadata={"reference": value.name},
            )

    def _name(self, given: str | None, base: str) -> str:
        """The given name, or one made of `base` that nothing has yet; taken in either case."""
        name = given
        if name is None:
            name, count = base, self._counts.get(base, 0)
            while name in self._names:
                count += 1
                name = f"{base}_{count}"
            self._counts[base] = count
        self._claim(name)
        return name

    def _claim(self, name: str) -> None:
        self._check_free(name)
        self._names.add(name)

    def _check_free(self, name: str) -> None:
        _check_name(name)
        if name in self._names:
            raise InvalidGraphError(
                f'the name "{name}" stands already; inputs, constants and nodes share one set of names',
                reason="DUPLICATE_NAME",
                metadata={"name": name},
            )


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"expected a name, got {type(name).__name__}")
    size = len(name.encode(errors="replace"))
    if not name or size > _LONGEST_NAME or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        got = "an empty string" if not name else f"{size} bytes" if size > _LONGEST_NAME else repr(name)
        raise InvalidGraphError(
            f"expected a name of 1 to {_LONGEST_NAME} bytes without control characters, got {got}",
            reason="INVALID_GRAPH",
        )


@cache  # bounded by the table of operators
def _tuple_type(labels: tuple[str, ...]) -> Any:
    """What torch.return_types is to torch: a tuple whose elements have names too."""
    return namedtuple("Results", labels, rename=True)  # made at run time

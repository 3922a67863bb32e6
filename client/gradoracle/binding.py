"""Arguments of an operator: which overload they fit, and how they are written into a node.

torch tries an operator's overloads in order and takes the first whose parameters fit. So does `choose`, on kinds alone:
shapes and dtypes are known only when the graph runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gradoracle import dtypes
from gradoracle.errors import InvalidGraphError
from gradoracle.operators import Operator
from gradoracle.schema import Parameter, Schema
from gradoracle.v1 import graph_pb2, tensor_pb2
from gradoracle.values import Value, ValueList

_NUMPY_NAMES = {"input": "self", "axis": "dim", "keepdims": "keepdim"}
"""Names that torch's Python functions accept for parameters that the schemas call otherwise."""

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
"""Losses take their reduction as a number; torch.nn.functional takes it as a word."""

_LAYOUTS = {
    key.removeprefix("LAYOUT_").lower(): cast("graph_pb2.Layout", value)
    for key, value in graph_pb2.Layout.items()
    if value != graph_pb2.LAYOUT_UNSPECIFIED
}
_MEMORY_FORMATS = {
    "contiguous_format": graph_pb2.MEMORY_FORMAT_CONTIGUOUS,
    "preserve_format": graph_pb2.MEMORY_FORMAT_PRESERVE,
    "channels_last": graph_pb2.MEMORY_FORMAT_CHANNELS_LAST,
    "channels_last_3d": graph_pb2.MEMORY_FORMAT_CHANNELS_LAST_3D,
}
_DEVICE = re.compile(r"[a-z]+(:\d+)?")

_EXPECTED = {
    "Tensor": "a tensor",
    "int": "an int",
    "float": "a float",
    "Scalar": "a number",
    "bool": "a bool",
    "str": "a string",
    "dtype": "a dtype",
    "device": "a device",
    "layout": "a layout",
    "memory_format": "a memory format",
}


class Bound(NamedTuple):
    """Arguments, each with the parameter that it stands for."""

    positional: list[tuple[Parameter, Any]]
    keyword: list[tuple[Parameter, Any]]


class Mismatch(Exception):  # noqa: N818  # never leaves this module: an outcome, not an error
    """Arguments that do not fit a schema."""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


# ---- Which overload


def choose(
    name: str, family: Sequence[Operator], args: Sequence[Any], kwargs: Mapping[str, Any], *, method: bool = False
) -> tuple[Operator, Bound]:
    """The overload that torch would take for these arguments. Raises InvalidGraphError where none fits.

    With `method`, the first argument is the tensor whose method is called, wherever the schema has its `self`.
    """
    args = [_plain(value) for value in args]
    kwargs = {key: _plain(value) for key, value in kwargs.items()}
    # A list stands for a tensor only where it cannot stand for anything else.
    for lists_are_tensors in (False, True):
        for operator in family:
            try:
                return operator, _bind(operator, args, kwargs, method, lists_are_tensors)
            except Mismatch:
                continue
    raise _no_overload(name, family, args, kwargs, method)


def bind(operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
    """The arguments of one overload. Raises InvalidGraphError where they do not fit."""
    args = [_plain(value) for value in args]
    kwargs = {key: _plain(value) for key, value in kwargs.items()}
    try:
        return _bind(operator, args, kwargs, method=False, lists_are_tensors=True)
    except Mismatch as mismatch:
        raise _invalid(f"{operator.name} {mismatch}", operator.name, mismatch.metadata) from None


def _no_overload(
    name: str, family: Sequence[Operator], args: Sequence[Any], kwargs: Mapping[str, Any], method: bool
) -> InvalidGraphError:
    found = []
    for operator in family:
        try:
            _bind(operator, args, kwargs, method, lists_are_tensors=True)
        except Mismatch as mismatch:
            found.append((operator, mismatch))
    if len(found) == 1:
        operator, outcome = found[0]
        return _invalid(f"{operator.name} {outcome}", operator.name, outcome.metadata)
    given = [describe(value) for value in args] + [f"{key}={describe(value)}" for key, value in kwargs.items()]
    lines = [f'no overload of "{name}" takes ({", ".join(given)})']
    lines += [f"  {operator.text.removeprefix('aten::')}: {outcome}" for operator, outcome in found]
    return _invalid("\n".join(lines), name, {})


def _invalid(message: str, target: str, metadata: Mapping[str, str]) -> InvalidGraphError:
    return InvalidGraphError(message, reason="INVALID_ARGUMENT", metadata={"target": target, **metadata})


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


# ---- Arguments to parameters


def _bind(
    operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], method: bool, lists_are_tensors: bool
) -> Bound:
    schema = operator.schema
    given: dict[str, Any] = {}
    positional = [parameter for parameter in schema.parameters if not parameter.keyword_only]
    if method and any(parameter.name == "self" for parameter in positional):
        given["self"], args = args[0], args[1:]
        positional = [parameter for parameter in positional if parameter.name != "self"]
    args = _gathered(positional, args)
    if len(args) > len(positional):
        limit = len(positional) + len(given)
        raise Mismatch(
            f"takes at most {limit} positional argument{'s' if limit != 1 else ''}, got {len(args) + len(given)}",
            expected=f"at most {limit} positional arguments",
            got=str(len(args) + len(given)),
        )
    given.update((parameter.name, value) for parameter, value in zip(positional, args, strict=False))
    _add_keywords(schema, given, kwargs)
    return _checked(operator, given, kwargs, lists_are_tensors)


def _gathered(positional: Sequence[Parameter], args: Sequence[Any]) -> Sequence[Any]:
    """Sizes or tensors that are written one after another, where torch wants a list: x.reshape(2, 3)."""
    if not positional or len(args) < len(positional):
        return args
    last, before = positional[-1], len(positional) - 1
    rest = args[before:]
    if not last.is_list:
        return args
    only_sizes = all(parameter.name == "self" for parameter in positional[:-1])
    sizes = last.kind == "int" and last.size is None and only_sizes and all(_is_int(value) for value in rest)
    tensors = last.kind == "Tensor" and all(isinstance(value, Value) for value in rest)
    return [*args[:before], list(rest)] if sizes or tensors else args


def _add_keywords(schema: Schema, given: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
    known = {parameter.name for parameter in schema.parameters}
    for key, value in kwargs.items():
        name = key if key in known else _NUMPY_NAMES.get(key, key)
        if name not in known:
            hint = dtypes.suggestion(dtypes.nearest(key, known, 1))
            raise Mismatch(f'has no parameter "{key}"{hint}', argument=key, expected=", ".join(known), got=key)
        if name in given:
            raise Mismatch(f'got "{name}" twice', argument=name, expected="one value", got="two")
        given[name] = value


def _checked(operator: Operator, given: Mapping[str, Any], kwargs: Mapping[str, Any], lists_are_tensors: bool) -> Bound:
    """The arguments in the schema's order: by position as long as none is left out, then by name."""
    bound = Bound([], [])
    gap = False
    for place, parameter in enumerate(operator.schema.parameters):
        if parameter.name not in given:
            if parameter.required:
                needed = ", ".join(f'"{one.name}"' for one in operator.schema.parameters if one.required)
                raise Mismatch(f'is missing its argument "{parameter.name}"', argument=parameter.name, expected=needed)
            gap = True
            continue
        value = given[parameter.name]
        if not _accepts(parameter, value, operator.numbers, lists_are_tensors):
            expected, got = expectation(parameter), _got(parameter, value)
            where = "argument" if parameter.name in kwargs else f"argument {place}"
            raise Mismatch(
                f'{where} "{parameter.name}" expects {expected}, got {got}',
                argument=parameter.name,
                expected=expected,
                got=got,
            )
        (bound.keyword if gap or parameter.keyword_only else bound.positional).append((parameter, value))
    return bound


# ---- Kinds


def _accepts(parameter: Parameter, value: Any, numbers: bool, lists_are_tensors: bool) -> bool:
    if value is None:
        return parameter.optional
    if not parameter.is_list:
        lists = isinstance(value, list | tuple) and lists_are_tensors and _is_numeric(value)
        return (parameter.kind == "Tensor" and lists) or _accepts_one(parameter, value, numbers)
    if isinstance(value, ValueList):
        return parameter.kind == "Tensor"
    if isinstance(value, np.ndarray) and value.ndim == 1 and parameter.kind != "Tensor":
        value = value.tolist()
    if isinstance(value, list | tuple):
        item_parameter = dataclasses.replace(parameter, is_list=False, optional=parameter.optional_items)
        return all(_accepts(item_parameter, _plain(item), False, lists_are_tensors) for item in value)
    return parameter.size is not None and _accepts_one(parameter, value, False)


def _accepts_one(parameter: Parameter, value: Any, numbers: bool) -> bool:
    """Whether one value is of the parameter's kind. `numbers` lets numbers stand for tensors."""
    if parameter.kind == "Tensor":
        return _is_tensor(value) or (numbers and _is_number(value))
    if parameter.name == "reduction" and isinstance(value, str) and parameter.kind == "int":
        return value in _REDUCTIONS
    # A kind without a wire form, such as Generator, has no test: only its default will do.
    test = _TESTS.get(parameter.kind)
    return test is not None and test(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Value | np.ndarray | tensor_pb2.Tensor) or hasattr(value, "__dlpack__")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, bool | float | complex)


def _is_numeric(value: Sequence[Any]) -> bool:
    """Whether nested lists hold numbers alone."""
    return all(_is_numeric(one) if isinstance(one, list | tuple) else _is_number(_plain(one)) for one in value)


def _is_torch(value: Any) -> bool:
    """Whether it is a word, or one of torch's own constants, whose str() is that word."""
    return isinstance(value, str) or type(value).__module__ == "torch"


def _torch_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


_TESTS: Mapping[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": lambda value: _is_int(value) or isinstance(value, float),
    "Scalar": _is_number,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "dtype": lambda value: dtypes.name_of(value) is not None,
    "device": lambda value: _is_torch(value) and _DEVICE.fullmatch(str(value)) is not None,
    "layout": lambda value: _is_torch(value) and _torch_name(value) in _LAYOUTS,
    "memory_format": lambda value: _is_torch(value) and _torch_name(value) in _MEMORY_FORMATS,
}
"""Whether a value is of a kind."""


def expectation(parameter: Parameter) -> str:
    """What a parameter takes, in words."""
    one = _EXPECTED.get(parameter.kind, parameter.kind)
    if parameter.is_list:
        item = one.removeprefix("a ").removeprefix("an ")
        plural = item + ("s or None" if parameter.optional_items else "s")
        one = f"a list of {plural}" + (f" or one {item}" if parameter.size is not None else "")
    return one + (" or None" if parameter.optional else "")


def describe(value: Any) -> str:
    """A value in words, for "got …"."""
    if isinstance(value, Value):
        return f'the tensor "{value.name}"'
    if isinstance(value, ValueList):
        return f'the list of tensors "{value.name}"'
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        return f"a list with {describe(_plain(value[0]))}" if value else "an empty list"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, str):
        return f"the string {value[:60]!r}"
    if isinstance(value, bool | int | float | complex):
        return f"{type(value).__name__} {str(value)[:40]}"
    return f"a {type(value).__name__}"


def _got(parameter: Parameter, value: Any) -> str:
    if parameter.kind == "dtype" and isinstance(value, str):
        return dtypes.unknown(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{describe(value)}, which has more than 64 bits"
    if parameter.kind == "Tensor" and isinstance(value, bool | int | float | complex):
        return f"{describe(value)}; constant({value}) makes a tensor of it"
    return describe(value)


# ---- Into messages


def write(argument: graph_pb2.Argument, parameter: Parameter, value: Any, constant: Callable[[Any], str]) -> None:
    """Puts a value that fits the parameter into a node's argument. `constant` makes a constant and gives its name."""
    if value is None:
        argument.none.SetInParent()
    elif isinstance(value, Value | ValueList):
        if parameter.is_list and isinstance(value, Value):
            argument.list.items.add().value = value.name
        else:
            argument.value = value.name
    elif parameter.is_list:
        _write_list(argument, parameter, value, constant)
    else:
        _write_one(argument, parameter, value, constant)


def _write_list(argument: graph_pb2.Argument, parameter: Parameter, value: Any, constant: Callable[[Any], str]) -> None:
    if isinstance(value, np.ndarray) and parameter.kind != "Tensor":
        value = value.tolist()
    items = [_plain(item) for item in value] if isinstance(value, list | tuple) else [value] * (parameter.size or 1)
    if parameter.kind == "int":
        argument.integers.values.extend(items)
        argument.integers.SetInParent()  # an empty list is there too
        return
    argument.list.SetInParent()
    for item in items:
        place = argument.list.items.add()
        if item is None:
            place.none.SetInParent()
        elif isinstance(item, Value):
            place.value = item.name
        else:
            _write_one(place, parameter, item, constant)


def _write_one(argument: graph_pb2.Argument, parameter: Parameter, value: Any, constant: Callable[[Any], str]) -> None:
    match parameter.kind:
        case "Tensor" if not isinstance(value, bool | int | float | complex):
            argument.value = constant(value)
        case "int":
            argument.integer = _REDUCTIONS[value] if isinstance(value, str) else value
        case "float":
            argument.real = value
        case "bool":
            argument.boolean = value
        case "str":
            argument.text = value
        case "dtype":
            argument.dtype = dtypes.NUMBERS[dtypes.name_of(value) or ""]
        case "device":
            argument.device = str(value)
        case "layout":
            argument.layout = _LAYOUTS[_torch_name(value)]
        case "memory_format":
            argument.memory_format = _MEMORY_FORMATS[_torch_name(value)]
        case _:
            write_number(argument, value)


def write_number(argument: graph_pb2.Argument, value: bool | int | float | complex) -> None:
    """A number in the kind in which Python has it: torch's type promotion tells them apart."""
    match value:
        case bool():
            argument.boolean = value
        case int():
            argument.integer = value
        case float():
            argument.real = value
        case complex():
            argument.complex.real, argument.complex.imag = value.real, value.imag

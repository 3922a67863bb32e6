"""Holds a node's arguments to its operator's schema, before torch sees them.

Torch's own binding would find most of these mistakes too, but only when the node runs, with a message about C++ types;
here they are found when the graph arrives, for every node, with the argument's position and name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from gradoracle_server.engine.errors import Fault, nearest, suggestion
from gradoracle_server.engine.graph import Argument, NodeSpec, Ref
from gradoracle_server.engine.operators import Operator

T = TypeVar("T")

_EXPECTED = {
    "Tensor": "a tensor",
    "int": "an int",
    "float": "a float",
    "number": "a number",
    "bool": "a bool",
    "str": "a string",
    "ScalarType": "a dtype",
    "Device": "a device",
    "Layout": "a layout",
    "MemoryFormat": "a memory format",
}


def in_order(schema: torch.FunctionSchema, args: Sequence[T], kwargs: Mapping[str, T]) -> tuple[list[T], dict[str, T]]:
    """The arguments with those in their places that were given by name: a name may be a word of Python's own."""
    found, named = list(args), dict(kwargs)
    for parameter in schema.arguments[len(found) :]:
        if parameter.kwarg_only or parameter.name not in named:
            break
        found.append(named.pop(parameter.name))
    return found, named


def check(node: NodeSpec, operator: Operator, field: str) -> None:
    """Raises Fault where the node's arguments do not fit the operator: too many, unknown, missing, wrong kind."""
    parameters = operator.schema.arguments
    positional = [parameter for parameter in parameters if not parameter.kwarg_only]
    if len(node.args) > len(positional):
        expected = f"at most {len(positional)} positional argument{'s' if len(positional) != 1 else ''}"
        raise _fault(node, field, f"takes {expected}", expected=expected, got=f"{len(node.args)}")
    for position, (parameter, argument) in enumerate(zip(positional, node.args, strict=False)):
        _check_kind(node, operator, parameter, argument, f"argument {position}", f"{field}.args[{position}]")
    given = {parameter.name for parameter in positional[: len(node.args)]}
    by_name = {parameter.name: parameter for parameter in parameters}
    for position, (name, argument) in enumerate(node.kwargs.items()):
        place = f"{field}.kwargs[{position}]"
        if name not in by_name:
            near = nearest(name, by_name)
            message = f"has no parameter {name!r}{suggestion(near)}"
            raise _fault(node, place, message, argument=name, expected=", ".join(by_name), got=name)
        if name in given:
            message = f"got {name!r} both by position and by name"
            raise _fault(node, place, message, argument=name, expected="one value", got="two")
        _check_kind(node, operator, by_name[name], argument, "keyword argument", place)
    _check_present(node, parameters, given | node.kwargs.keys(), field)


def with_device(node: NodeSpec, operator: Operator, device: torch.device) -> Mapping[str, Argument]:
    """The node's keyword arguments, with `device` where it makes a tensor out of none and names no device.

    torch would put such a tensor on the CPU, and a graph that is sent to a GPU would then mix devices.
    """
    parameters = {parameter.name: parameter for parameter in operator.schema.arguments}
    if "device" not in parameters or node.kwargs.get("device") is not None:
        return node.kwargs
    if any("Tensor" in str(parameter.real_type) for parameter in parameters.values()):
        return node.kwargs
    return {**node.kwargs, "device": device}


def _check_present(node: NodeSpec, parameters: list[torch._C.Argument], given: set[str], field: str) -> None:
    missing = [one.name for one in parameters if one.name not in given and not one.has_default_value()]
    if missing:
        names = ", ".join(f'"{name}"' for name in missing)
        message = f"is missing its argument{'s' if len(missing) > 1 else ''} {names}"
        needed = sum(not one.has_default_value() for one in parameters)
        raise _fault(node, field, message, argument=missing[0], expected=f"{needed} or more", got=f"{len(given)}")


def _check_kind(
    node: NodeSpec, operator: Operator, parameter: torch._C.Argument, argument: Argument, place: str, field: str
) -> None:
    kind = str(parameter.real_type)
    if _fits(kind, argument, list_size(parameter), operator.numbers):
        return
    expected, got = expectation(kind, list_size(parameter)), description(argument)
    message = f'{place} "{parameter.name}" expects {expected}, got {got}'
    raise _fault(node, field, message, argument=parameter.name, expected=expected, got=got)


def list_size(parameter: torch._C.Argument) -> int | None:
    """The N of a parameter of type int[N], for which one int may stand; else None."""
    size: int | None = parameter.N  # type: ignore[attr-defined]
    return size


def _fault(node: NodeSpec, field: str, message: str, **metadata: str) -> Fault:
    text = f'node "{node.name}": {node.target} {message}'
    if "got" in metadata and metadata["got"] not in text:
        text += f", got {metadata['got']}"
    return Fault("INVALID_ARGUMENT", text, field=field, node=node.name, target=node.target, **metadata)


def _fits(kind: str, argument: Argument, size: int | None, numbers: bool) -> bool:
    """Whether an argument may stand for a parameter of that type; `size` is the N of int[N]."""
    if kind.startswith("Optional["):
        return argument is None or _fits(kind[9:-1], argument, size, numbers)
    if kind.startswith("List["):
        element = kind[5:-1]
        if isinstance(argument, list):
            return all(_fits(element, item, None, False) for item in argument)
        if isinstance(argument, Ref):
            return "Tensor" in element  # a node that returns a list; the plan checks that it does
        return size is not None and _fits(element, argument, None, False)
    if kind == "Tensor":
        is_number = isinstance(argument, bool | int | float | complex)
        return isinstance(argument, Ref) or (numbers and is_number)
    if kind == "int":
        return isinstance(argument, int) and not isinstance(argument, bool)
    if kind == "float":
        return isinstance(argument, int | float) and not isinstance(argument, bool)
    if kind == "number":
        return isinstance(argument, bool | int | float | complex)
    types = {
        "bool": bool,
        "str": str,
        "ScalarType": torch.dtype,
        "Device": torch.device,
        "Layout": torch.layout,
        "MemoryFormat": torch.memory_format,
    }
    return kind in types and isinstance(argument, types[kind])


def expectation(kind: str, size: int | None = None) -> str:
    """A parameter's type in words."""
    if kind.startswith("Optional["):
        return f"{expectation(kind[9:-1], size)} or None"
    if kind.startswith("List["):
        element = expectation(kind[5:-1]).removeprefix("a ").removeprefix("an ")
        plural = element.replace(" or None", "s or None") if " or None" in element else element + "s"
        return f"a list of {plural}" + (f" or one {element}" if size is not None and element != "tensor" else "")
    return _EXPECTED.get(kind, kind)


def description(argument: Argument) -> str:
    """An argument in words, for "got …"."""
    if isinstance(argument, Ref):
        return f'the tensor "{argument.name}"'
    if isinstance(argument, list):
        return "an empty list" if not argument else f"a list with {description(argument[0])}"
    if argument is None:
        return "None"
    if isinstance(argument, str):
        return f"the string {argument[:40]!r}"
    return f"{type(argument).__name__} {argument}"

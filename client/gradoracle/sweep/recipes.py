"""Sample arguments of operators.

`corpus/recipes.txt` says how they are written. An overload that does not stand there takes normal tensors, where its
schema tells that these may do; one that works in place takes the recipe of the one that does not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Any

from gradoracle.operators import Operator, table
from gradoracle.schema import Parameter

KINDS = ("n", "u", "p", "i", "d", "m", "b", "spd", "tril", "triu", "sym")
SWEPT = "S"


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor among the arguments."""

    kind: str
    """One of KINDS."""
    shape: tuple[int, ...] | None
    """None for each of the shapes of the sweep."""
    bounds: tuple[float, ...] = ()
    """Of u and i."""
    data: Any = None
    """Of d and m."""
    requires_grad: bool = True
    """False where it is not to be differentiated by."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Arguments of one overload."""

    target: str
    """The overload: "aten.add.Tensor"."""
    args: tuple[Any, ...]
    """By position: Tensors, lists of them, or plain values."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """By name."""
    elements: int = 1
    """How many elements of a returned list to use."""
    in_place: bool = False
    """Whether the first tensor is to be copied before, since the operator changes it."""

    @property
    def swept(self) -> bool:
        """Whether its tensors take the shapes of the sweep."""
        return any(one.shape is None and one.kind not in ("d", "m") for one in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """The tensors among the arguments, in order."""
        for value in (*self.args, *self.kwargs.values()):
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, Tensor):
                    yield one


def recipes(operator: Operator) -> list[Recipe]:
    """The recipes of an overload. None where there is no sample for it; `reason` tells why."""
    name = operator.name
    if not operator.differentiable:
        return []
    found = _file().recipes.get(name)
    if found is not None:
        return [dataclasses.replace(one, in_place=True) for one in found] if _works_in_place(name) else found
    if _file().skipped(name) is not None:
        return []
    base = _functional(name)
    if base is not None:
        return [
            dataclasses.replace(one, target=name, in_place=True)
            for one in recipes(base)
            if isinstance(one.args[0], Tensor | list)
        ]
    made = _generic(operator)
    return [] if made is None else [made]


def reason(operator: Operator) -> str | None:
    """Why an overload has no recipe, or None where it has."""
    if recipes(operator):
        return None
    if not operator.differentiable:
        return "autograd has no derivative for it"
    base = _functional(operator.name)
    told = _file().skipped(operator.name) or (base and _file().skipped(base.name))
    return told or "no sample for it"


def _functional(name: str) -> Operator | None:
    """The overload of which this one is the kind that works in place."""
    if not _works_in_place(name):
        return None
    namespace, base, overload = name.split(".")
    return table().served.get(f"{namespace}.{base[:-1]}.{overload}")


def takes_complex(operator: Operator) -> bool:
    """Whether torch has the overload for complex numbers, as far as `corpus/not_complex.txt` knows."""
    return operator.name not in _real_alone()


@lru_cache(maxsize=1)
def _real_alone() -> frozenset[str]:
    text = resources.files("gradoracle").joinpath("corpus/not_complex.txt").read_text(encoding="utf-8")
    return frozenset(f"aten.{line}" for line in text.splitlines() if not line.startswith("#"))


def _works_in_place(name: str) -> bool:
    base = name.split(".")[1]
    return base.endswith("_") and not base.startswith("__")


# ---- From schemas


def _generic(operator: Operator) -> Recipe | None:
    """Normal tensors for every tensor, where nothing else is required but numbers that are usual."""
    args: list[Any] = []
    for parameter in operator.schema.parameters:
        if not parameter.required:
            break
        value = _usual(parameter)
        if value is None:
            return None
        args.append(value)
    if "!" in operator.text or not any(isinstance(one, Tensor | list) for one in args):
        return None
    return Recipe(operator.name, tuple(args))


def _usual(parameter: Parameter) -> Any:
    tensor = Tensor("n", None)
    if parameter.kind == "Tensor" and not parameter.optional:
        return [tensor, tensor] if parameter.is_list else tensor
    if parameter.kind == "Scalar" and not parameter.optional:
        return [0.7, 1.3] if parameter.is_list else 0.7
    if parameter.kind == "int" and parameter.name == "dim" and not parameter.is_list:
        return -1
    return None


# ---- From the file


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    recipes: dict[str, list[Recipe]]
    reasons: dict[str, str]

    def skipped(self, name: str) -> str | None:
        """Why the overload has no sample, where the file says so."""
        return next((why for pattern, why in self.reasons.items() if fnmatchcase(name, pattern)), None)


@lru_cache(maxsize=1)
def _file() -> _File:
    text = resources.files("gradoracle").joinpath("corpus/recipes.txt").read_text(encoding="utf-8")
    return read(text)


def read(text: str) -> _File:
    """Reads recipes. Raises ValueError, with the line, where one is none."""
    found = _File({}, {})
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if line.startswith("- "):
                target, _, why = line[2:].partition(" ")
                found.reasons[f"aten.{target}"] = why.strip()
            else:
                recipe = _recipe(line)
                found.recipes.setdefault(recipe.target, []).append(recipe)
        except ValueError as error:
            raise ValueError(f"recipes, line {number}: {error}, in {line!r}") from error
    return found


def _recipe(line: str) -> Recipe:
    target, *tokens = _split(line, " ")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    elements = 1
    for token in tokens:
        name, equals, rest = token.partition("=")
        if token.startswith("#"):
            elements = int(token[1:])
        elif equals and name.isidentifier():
            kwargs[name] = _value(rest)
        else:
            args.append(_value(token))
    return Recipe(f"aten.{target}", tuple(args), kwargs, elements)


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand in no bracket and no quotes."""
    parts, start, depth, quoted = [], 0, 0, False
    for place, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
        if letter == separator and not depth and not quoted:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in (*parts, text[start:]) if part]


def _value(token: str) -> Any:
    if token.startswith("[") and any(f"{kind}:" in token for kind in KINDS):
        return [_value(one) for one in _split(token[1:-1], ",")]
    kind, colon, rest = token.partition(":")
    if colon and kind in KINDS:
        return _tensor(kind, rest)
    return json.loads(token)


def _tensor(kind: str, text: str) -> Tensor:
    requires_grad = not text.endswith("!")
    text = text.removesuffix("!")
    if kind in ("d", "m"):
        return Tensor(kind, None, data=json.loads(text), requires_grad=False)
    *bounds, shape = text.split(":")
    if len(bounds) != (2 if kind in ("u", "i") else 0):
        raise ValueError(f"expected {kind}:…:SHAPE, got {text!r}")
    sizes = None if shape == SWEPT else shape_of(shape)
    return Tensor(kind, sizes, tuple(map(float, bounds)), requires_grad=requires_grad and kind not in ("i", "b"))


def shape_of(text: str) -> tuple[int, ...]:
    """A shape such as 3x4 or scalar. Raises ValueError."""
    if text == "scalar":
        return ()
    if not all(size.isascii() and size.isdigit() for size in text.split("x")):
        raise ValueError(f"expected a shape such as 3x4 or scalar, got {text!r}")
    return tuple(map(int, text.split("x")))

"""torch's operator schemas, read from their text.

aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache

_KINDS = {
    "SymInt": "int",
    "ScalarType": "dtype",
    "Device": "device",
    "Layout": "layout",
    "MemoryFormat": "memory_format",
}
"""Kinds that are called otherwise here than in a schema."""

_ALIASING = re.compile(r"\([^()]*\)")  # Tensor(a), Tensor(a!), Tensor(a -> *)
_TYPE = re.compile(r"(?P<kind>\w+)(?P<optional_items>\?)?(?P<list>\[(?P<size>\d*)\])?(?P<optional>\?)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operator."""

    name: str
    kind: str
    """Tensor, int, float, Scalar, bool, str, dtype, device, layout, memory_format, or a type without a wire form."""
    is_list: bool = False
    size: int | None = None
    """N of int[N]: one number may stand for N of them."""
    optional: bool = False
    optional_items: bool = False
    required: bool = True
    keyword_only: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Return:
    """One result of an operator."""

    name: str | None
    is_tensor: bool
    is_list: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """One overload."""

    target: str
    """As graphs name it: "aten.add.Tensor"."""
    text: str
    """As torch writes it."""
    parameters: tuple[Parameter, ...]
    returns: tuple[Return, ...]

    @property
    def returns_tensor(self) -> bool:
        """Whether the result is one tensor, not a tuple or list of them."""
        return len(self.returns) == 1 and not self.returns[0].is_list

    @property
    def returns_list(self) -> bool:
        """Whether the result is a list of tensors, whose length is known only when it runs."""
        return len(self.returns) == 1 and self.returns[0].is_list


@cache  # bounded by the table of operators
def parse(text: str) -> Schema:
    """Reads a schema. Raises ValueError where the text is none."""
    head, opening, rest = text.partition("(")
    arguments, arrow, returns = rest.rpartition(") -> ")
    namespace, colons, name = head.partition("::")
    if not (opening and arrow and colons):
        raise ValueError(f"expected a schema such as aten::relu(Tensor self) -> Tensor, got {text!r}")
    base, _, overload = name.partition(".")
    return Schema(
        target=f"{namespace}.{base}.{overload or 'default'}",
        text=text,
        parameters=tuple(_parameters(arguments)),
        returns=tuple(_return(item) for item in _split(_unwrapped(returns))),
    )


def _parameters(text: str) -> Iterator[Parameter]:
    keyword_only = False
    for item in _split(text):
        if item == "*":
            keyword_only = True
            continue
        declaration, default, _ = item.partition("=")
        kind, _, name = _ALIASING.sub("", declaration).strip().rpartition(" ")
        found = _TYPE.fullmatch(kind)
        if found is None:
            raise ValueError(f"expected a type of a parameter, got {kind!r} in {text!r}")
        is_list = found["list"] is not None
        # "Tensor?" is optional itself; in "Tensor?[]" the items are.
        optional = found["optional"] is not None or (found["optional_items"] is not None and not is_list)
        yield Parameter(
            name=name,
            kind=_KINDS.get(found["kind"], found["kind"]),
            is_list=is_list,
            size=int(found["size"]) if found["size"] else None,
            optional=optional,
            optional_items=is_list and found["optional_items"] is not None,
            required=not default,
            keyword_only=keyword_only,
        )


def _return(text: str) -> Return:
    kind, _, name = _ALIASING.sub("", text).strip().partition(" ")
    return Return(name=name or None, is_tensor=kind.startswith("Tensor"), is_list=kind.endswith("]"))


def _unwrapped(text: str) -> str:
    """(Tensor values, Tensor indices) without its parentheses."""
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _split(text: str) -> Iterator[str]:
    """The text between the commas that stand in no bracket and no quotes."""
    depth, start, quote = 0, 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    if text[start:].strip():
        yield text[start:].strip()

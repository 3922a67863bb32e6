"""Which inputs, outputs and other values a call is about, by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn, TypeAlias

from gradoracle.errors import InvalidRequestError
from gradoracle.values import Value

Name: TypeAlias = str | Value
Names: TypeAlias = Name | Iterable[Name]

_DEFAULTS = {
    "wrt": "every input that requires grad",
    "of": "every floating or complex output",
    "claimed": "autograd's own gradients",
}
"""What not to give a selection means; on the wire an empty one would mean the same."""


def chosen(names: Names, field: str) -> list[str]:
    """Names for a field of a request. Raises TypeError for what is none, InvalidRequestError where there is no name,
    and one is needed."""
    found = [name_of(one, field) for one in ((names,) if isinstance(names, str | Value) else names)]
    if not found and field in _DEFAULTS:
        nothing_chosen(field)
    return found


def name_of(name: object, field: str) -> str:
    """The name of a value, or the name that it is."""
    if isinstance(name, str):
        return name
    if isinstance(name, Value):
        return name.name
    raise TypeError(f"{field}: expected names or Values, got {type(name).__name__}")


def nothing_chosen(field: str) -> NoReturn:
    """Raises InvalidRequestError: nobody means all by choosing none."""
    expected = "one name at least"
    text = f"{field}: expected {expected}, got none; leave it out for {_DEFAULTS[field]}"
    metadata = {"field": field, "expected": expected, "got": "none"}
    raise InvalidRequestError(text, reason="INVALID_SELECTION", metadata=metadata)

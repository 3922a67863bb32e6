"""What functions and their parameters are called, in names of inputs and in messages."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

_TORCHS = "_VariableFunctionsClass."
"""Before the names of torch's functions that are written in C."""


def name_of(function: Callable[..., Any]) -> str:
    """What to call a function, module, partial or autograd.Function in a message."""
    if isinstance(function, torch.nn.Module):
        return type(function).__name__
    if isinstance(function, functools.partial):
        return name_of(function.func)
    if (owner := _owner(function)) is not None:
        return owner.__name__
    name = str(getattr(function, "__qualname__", None) or type(function).__name__)
    return f"torch.{name.removeprefix(_TORCHS)}" if name.startswith(_TORCHS) else name


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of what is called in the end; None where it has none."""
    skipped = 0
    if (owner := _owner(function)) is not None:
        function = owner.forward
        with_context = owner.setup_context is torch.autograd.Function.setup_context
        skipped = 1 if with_context else 0  # ctx
    elif isinstance(function, torch.nn.Module):
        function = function.forward
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return None
    return signature.replace(parameters=list(signature.parameters.values())[skipped:])


def parameter_at(function: Callable[..., Any], place: int) -> tuple[str, ...]:
    """The parts of the name of a positional argument: of the parameter that takes it in what is called in the end, and
    its number where that takes several."""
    while isinstance(function, functools.partial):
        place += len(function.args)
        function = function.func
    signature = signature_of(function)
    if signature is None:
        return (_documented(function, place),)
    several = None
    names = []
    for one in signature.parameters.values():
        if one.kind is one.VAR_POSITIONAL:
            several = one.name
        elif one.kind is not one.KEYWORD_ONLY and one.kind is not one.VAR_KEYWORD:
            names.append(one.name)
    if place < len(names):
        return (names[place],)
    return (f"arg{place}",) if several is None else (several, str(place - len(names)))


def _owner(function: Callable[..., Any]) -> type[torch.autograd.Function] | None:
    """The autograd.Function whose `apply` a function is."""
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) else None


def _documented(function: Callable[..., Any], place: int) -> str:
    """A positional parameter's name by the first line of the documentation, "sin(input, *, out=None) -> Tensor"."""
    text = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
    inside = re.match(r"\w+\((.*?)\)", text)
    names = [one.partition("=")[0].strip() for one in inside[1].split(",")] if inside else []
    names = names[: names.index("*")] if "*" in names else names
    if place < len(names) and names[place].isidentifier():
        return names[place]
    return f"arg{place}"

"""Where in the caller's code something happened, and under which name a closed-over tensor is known there."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 - compared with the strings of code objects
_OWN = os.path.dirname(__file__) + os.sep  # noqa: PTH120
_PLUMBING = tuple(
    _TORCH + part.replace("/", os.sep)
    for part in (
        "_tensor.py",
        "_ops.py",
        "_compile.py",
        "_subclasses/",
        "_library/",
        "_dynamo/",
        "_functorch/",
        "overrides.py",
        "autograd/",
        "fx/",
        "utils/_python_dispatch.py",
        "utils/_contextlib.py",
        "utils/_pytree.py",
        "utils/_device.py",
        "utils/_stats.py",
    )
)
"""Parts of torch between a call of an operator and the code that meant to call it."""


class Place(NamedTuple):
    """A line of somebody's code."""

    file: str
    line: int
    library: str = ""
    """The file of torch's own, relative to the package, that asked for the operator on its behalf, if one did."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


UNKNOWN = Place("<unknown>", 0)


def place() -> Place:
    """The innermost line on the stack that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    library = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_TORCH):
            if not library and not file.startswith(_PLUMBING):
                library = file[len(_TORCH) :].replace(os.sep, "/")
        elif not file.startswith((_OWN, contextlib.__file__, "<")):
            return Place(file, frame.f_lineno, library)
        frame = frame.f_back  # type: ignore[assignment]
    return UNKNOWN._replace(library=library)


def of_traceback(trace: types.TracebackType | None) -> Place | None:
    """The innermost line of an error's way that is neither torch's nor this package's."""
    found = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((_TORCH, _OWN, contextlib.__file__, "<")):
            found = Place(file, trace.tb_lineno)
        trace = trace.tb_next
    return found


def of_function(fn: object) -> Place:
    """The line where a function or class is defined, as far as it is known."""
    try:
        plain = inspect.unwrap(fn) if callable(fn) else fn
        file = inspect.getsourcefile(plain)  # type: ignore[arg-type]
        _, line = inspect.getsourcelines(plain)  # type: ignore[arg-type]
    except (TypeError, OSError, ValueError):
        return UNKNOWN
    return Place(file or UNKNOWN.file, line)


def closed_over(fn: Callable[..., Any], tensor: torch.Tensor) -> tuple[str, bool]:
    """(the name under which a function can see a tensor, whether it is a parameter of a module that it sees).

    Looks through closures, globals, defaults, partials and bound methods, a function within a function included. The
    name is "" where none is found.
    """
    for name, value in _visible(fn, set()):
        if value is tensor:
            return name, False
        for inner, one in _held(value):
            if one is tensor:
                return name + inner, isinstance(value, torch.nn.Module)
    return "", False


def _held(value: object) -> Iterator[tuple[str, object]]:
    """What a module, a container or another object holds, with the way to it."""
    if isinstance(value, torch.nn.Module):
        yield from ((f".{name}", one) for name, one in (*value.named_parameters(), *value.named_buffers()))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", one) for index, one in enumerate(value))
    elif not isinstance(value, torch.Tensor | type(sys)) and hasattr(value, "__dict__"):
        yield from ((f".{name}", one) for name, one in vars(value).items())


def _visible(fn: object, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Names and values that a function's code can reach without its arguments."""
    if id(fn) in seen or len(seen) > 100:
        return
    seen.add(id(fn))
    if isinstance(fn, functools.partial):
        yield from ((f"argument {index} of the partial", value) for index, value in enumerate(fn.args))
        yield from fn.keywords.items()
        yield from _visible(fn.func, seen)
    elif inspect.ismethod(fn):
        yield "self", fn.__self__
        yield from _visible(fn.__func__, seen)
    elif inspect.isfunction(fn):
        found = _closure(fn)
        yield from found.items()
        for value in found.values():
            if inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, functools.partial):
                yield from _visible(value, seen)
    elif callable(fn) and not isinstance(fn, torch.nn.Module | type):
        yield "self", fn
        yield from _visible(type(fn).__dict__.get("__call__"), seen)


def _closure(fn: types.FunctionType) -> dict[str, object]:
    """The variables around a function that its code names, and its defaults."""
    found: dict[str, object] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    found.update({name: fn.__globals__[name] for name in fn.__code__.co_names if name in fn.__globals__})
    parameters = inspect.signature(fn).parameters.values()
    found.update({one.name: one.default for one in parameters if one.default is not one.empty})
    return found

"""The small language in which tensors are typed: NAME=VALUE."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gradoracle.cli import drawn, literals
from gradoracle.cli.failures import InputError
from gradoracle.cli.literals import Array, bad
from gradoracle.v1 import tensor_pb2

HELP = """\b
Tensors are typed NAME=VALUE, where VALUE is one of
  2   [1,2.5,-1e3]   [[1,2],[3,4]]   [1+2j]   numbers: float64 or complex128
  [1,2]:int64   2:float32                     ... or the dtype that follows
  @file.npy   @file.npz:KEY                   from a file
  normal:8x64   normal:8x64:float32:std=0.1   drawn by the server; also mean=
  uniform:5   uniform:5:low=-1:high=1
  integers:0:10:8x64                          whole numbers from 0 to 9, int64
  ones:3x3   zeros:3   fill:2.5:3x3           all the same
A size is 8x64, 5, 0x3 or scalar. Random tensors take seed=N; those without
take 0, 1, 2, ... in the order in which they are typed.
"""
"""The same for people, at the end of each command's --help."""

Tensor = Array | tensor_pb2.Tensor


def assignments(texts: Iterable[str], what: str) -> dict[str, str]:
    """NAME=VALUE texts by name. `what` says in errors what they are: "input"."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise InputError(f"{what}: expected NAME=VALUE, such as x=2 or x=[1,2,3], got {text!r}")
        if name in found:
            raise InputError(f"{what} {name}: expected one value, got {found[name]!r} and {value!r}")
        found[name] = value
    return found


def parse(name: str, text: str, *, seeds: Iterator[int], floating: bool = True) -> Tensor:
    """The tensor that `text` describes.

    Numbers typed without a dtype become float64, or complex128 where they are complex; with `floating` off, whole
    numbers become int64. `name` is for errors, `seeds` for random tensors that name none.
    """
    word, _, dtype = text.partition(":")
    if text.startswith("@"):
        return from_file(name, text[1:])
    if word in drawn.KINDS:
        return drawn.drawn(name, text, seeds)
    if word.isidentifier() and word not in literals.WORDS:
        raise bad(
            name,
            f"numbers, @FILE, or one of {', '.join(drawn.KINDS)}",
            f"{text!r}{literals.nearest(word, drawn.KINDS)}",
        )
    try:
        nested = literals.literal(word)
    except ValueError as error:
        raise bad(name, "a number or nested lists of numbers, such as [[1,2],[3,4]]", repr(text)) from error
    if ":" in text:
        return literals.in_dtype(name, nested, literals.dtype_named(name, dtype))
    return literals.in_own_dtype(name, nested, floating=floating)


def from_file(name: str, text: str) -> Array:
    """FILE.npy, FILE.npy:DTYPE, FILE.npz or FILE.npz:KEY."""
    path, key = Path(text), ""
    if not path.exists() and ":" in text:
        before, _, key = text.rpartition(":")
        path = Path(before)
    loaded = load(path)
    if isinstance(loaded, dict):
        if not key and len(loaded) == 1:
            return next(iter(loaded.values()))
        if key not in loaded:
            raise bad(name, f"@{path}:KEY with KEY one of {', '.join(loaded) or 'none'}", f"@{text}")
        return loaded[key]
    if not key:
        return loaded
    dtype = literals.dtype_named(name, key)
    if loaded.dtype.kind == "V" and loaded.dtype.itemsize == dtype.itemsize:
        return loaded.view(dtype)  # numpy's files forget what a bfloat16 is and give its bytes back
    return literals.in_dtype(name, loaded, dtype)


def load(path: Path) -> dict[str, Array] | Array:
    """The arrays of a .npz file by name, or the one array of a .npy file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except FileNotFoundError as error:
        raise bad(str(path), "a .npy or .npz file", "no file of that name") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise bad(str(path), "a .npy or .npz file of numbers", f"one that numpy refuses ({error})") from error

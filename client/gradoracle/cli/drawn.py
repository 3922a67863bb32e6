"""Contents that the server makes itself: KIND:[…:]SIZE[:DTYPE][:KEY=VALUE…]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradoracle import tensors
from gradoracle.cli.literals import bad, dtype_named, literal
from gradoracle.errors import TensorError
from gradoracle.v1 import tensor_pb2


def whole(text: str) -> int:
    """A whole number that is not negative. Raises ValueError."""
    if not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)


def number(text: str) -> bool | int | float | complex:
    """Any number. Raises ValueError."""
    value = literal(text)
    if not isinstance(value, bool | int | float | complex):
        raise ValueError(text)
    return value


def ones(shape: Sequence[int], dtype: str) -> tensor_pb2.Tensor:
    """A tensor of ones."""
    return tensors.fill(shape, 1, dtype)


def zeros(shape: Sequence[int], dtype: str) -> tensor_pb2.Tensor:
    """A tensor of zeros."""
    return tensors.fill(shape, 0, dtype)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of contents."""

    make: Callable[..., tensor_pb2.Tensor]
    before: Mapping[str, Callable[[str], Any]] = dataclasses.field(default_factory=dict)  # typed before the size
    after: Mapping[str, Callable[[str], Any]] = dataclasses.field(default_factory=dict)  # typed KEY=VALUE
    dtype: str = "float64"  # where none is typed

    def usage(self, name: str) -> str:
        """How it is typed."""
        before = "".join(f"{key.upper()}:" for key in self.before)
        after = "".join(f"[:{key}={key.upper()}]" for key in self.after)
        return f"{name}:{before}SIZE[:DTYPE]{after}"


KINDS: Mapping[str, Kind] = {
    "normal": Kind(tensors.normal, after={"mean": float, "std": float, "seed": whole}),
    "uniform": Kind(tensors.uniform, after={"low": float, "high": float, "seed": whole}),
    "integers": Kind(tensors.integers, before={"low": int, "high": int}, after={"seed": whole}, dtype="int64"),
    "ones": Kind(ones),
    "zeros": Kind(zeros),
    "fill": Kind(tensors.fill, before={"value": number}),
}


def drawn(name: str, text: str, seeds: Iterator[int]) -> tensor_pb2.Tensor:
    """The tensor that `text` describes. `seeds` yields the seed of a random one that names none."""
    word, *fields = text.split(":")
    kind = KINDS[word]
    usage = kind.usage(word)
    plain = [field for field in fields if "=" not in field]
    pairs = [field.split("=", 1) for field in fields if "=" in field]
    if not len(kind.before) < len(plain) <= len(kind.before) + 2:
        raise bad(name, usage, repr(text))
    settings: dict[str, Any] = {}
    for key, value in [*zip(kind.before, plain, strict=False), *pairs]:
        if key in settings or key not in {**kind.before, **kind.after}:
            raise bad(name, usage, f"{key}={value} in {text!r}")
        try:
            settings[key] = {**kind.before, **kind.after}[key](value)
        except ValueError as error:
            raise bad(name, usage, f"{value!r} for {key}") from error
    size, *dtype = plain[len(kind.before) :]
    if dtype:
        dtype_named(name, dtype[0])
    if "seed" in kind.after and "seed" not in settings:
        settings["seed"] = next(seeds)
    try:
        return kind.make(shape=shape(name, size), dtype=dtype[0] if dtype else kind.dtype, **settings)
    except (TensorError, ValueError) as error:  # a number of more than 64 bits
        raise bad(name, usage, f"{text!r}: {error}") from error


def shape(name: str, text: str) -> list[int]:
    """A size: 8x64, 5, 0x3 or scalar."""
    try:
        return [] if text == "scalar" else [whole(size) for size in text.split("x")]
    except ValueError as error:
        raise bad(name, "a size such as 8x64, 5 or scalar", repr(text)) from error

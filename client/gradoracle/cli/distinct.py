"""Whether the files that a command names are different ones, told before it reads or writes any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from gradoracle.cli.failures import InputError

Named: TypeAlias = tuple[str, Path]
"""An argument, and the path that it gives."""


def check(pairs: Iterable[tuple[Named, Named]]) -> None:
    """Raises InputError where the two of a pair are one file."""
    for (one, first), (other, second) in pairs:
        if _are_one(first, second):
            raise InputError(
                f"{other} {second}: expected a file of its own, got that of {one}"
                f"{'' if first == second else f' ({first})'}; nothing was run, give one of them another name"
            )


def _are_one(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, which need not be there. Pipes, terminals and /dev/null take from many."""
    with contextlib.suppress(OSError):
        return first.samefile(second) and first.is_file()
    return os.path.realpath(first) == os.path.realpath(second)

"""Tables for people. rich is imported when one is drawn, not before."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED = 1000
"""Columns of what goes to no terminal, where COLUMNS says no other: tables there are as wide as their contents."""


def duration(seconds: float) -> str:
    """A time in the unit that suits it, with three figures."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def size(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_:
            return f"{count / bytes_:.4g} {unit}"
    return f"{count} B"


def console() -> Console:
    """A console on stdout, as wide as the terminal. It prints strings as they are: names may look like markup.

    Lines that go to no terminal do not end in blanks, with which tables are filled up.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # the error that is being handled: main knows what becomes of it

        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                super().print(*objects, **options)
                return
            with self.capture() as found:
                super().print(*objects, **options)
            self.file.write("\n".join(line.rstrip() for line in found.get().split("\n")))

    screen = Plain(highlight=False, markup=False, emoji=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = PIPED
    return screen


def table(*heads: str, right: bool = False, whole: Collection[str] = ()) -> Table:
    """An empty table in the house's style. Cells below the heads in `whole` are never split."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for head in heads:
        made.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=head in whole)
    return made

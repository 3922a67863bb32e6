"""`gradoracle demo`: the tutorial cases, through a server, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gradoracle.cli import connection, output, tables
from gradoracle.cli.tutorial import Case, run, spelled

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 110
"""From this many columns on, a case's lesson has a column of its own."""


@click.command("demo")
@connection.options
@output.json_option
def command(as_json: bool, **where: Any) -> int:
    """Run the ten cases of an introductory autograd course through a server, and show what it answers.

    Ends with 1 if an answer is not what the course says.
    """
    with connection.client(**where) as client:
        cases = run(client)
        info = client.server_info()
    passed = all(case.passed for case in cases)
    if as_json:
        output.print_json({"passed": passed, "cases": [document(case) for case in cases]})
        return 0 if passed else 1
    screen = tables.console()
    screen.print(results(cases, wide=screen.width >= WIDE))
    screen.print(timings(cases))
    right = sum(case.passed for case in cases)
    verdict = (
        f"{right} of {len(cases)} cases as expected" if passed else f"ONLY {right} of {len(cases)} cases as expected"
    )
    seconds = sum(case.seconds for case in cases)
    click.echo(
        f"{verdict}, in {tables.duration(seconds)} on {info.default_device} with torch {info.torch_version}; "
        f"{cases[2].found[1].name} = {spelled(cases[2].found[1].got)}"
    )
    return 0 if passed else 1


def document(case: Case) -> dict[str, Any]:
    """A case for --json."""
    return {
        "number": case.number,
        "case": case.title,
        "shows": case.lesson,
        "found": [
            {"name": one.name, "got": plain(one.got), "expected": plain(one.expected), "passed": one.right}
            for one in case.found
        ],
        "passed": case.passed,
        "timing": case.timing,
        "seconds": case.seconds,
    }


def plain(value: Any) -> Any:
    """An array or word for JSON."""
    return value if value is None or isinstance(value, str) else output.plain(np.asarray(value))


def results(cases: Sequence[Case], *, wide: bool) -> Table:
    """What was found, beside what was expected."""
    from rich.text import Text

    heads = ["case", "what it shows"] if wide else ["case"]
    table = tables.table("#", *heads, "", "answer", "expected", "")
    for case in cases:
        title, lesson = Text(case.title), Text(case.lesson, style="dim")
        table.add_row(
            str(case.number),
            *([title, lesson] if wide else [Text("\n").join([title, lesson])]),
            Text("\n".join(one.name for one in case.found)),
            Text("\n").join(Text(spelled(one.got), style="bold" if one.right else "bold red") for one in case.found),
            Text("\n".join(spelled(one.expected) for one in case.found), style="dim"),
            Text("\n").join(
                Text("ok", style="green") if one.right else Text("WRONG", style="bold red") for one in case.found
            ),
        )
    return table


def timings(cases: Sequence[Case]) -> Table:
    """Where the time of each case went."""
    phases = [phase for phase in cases[0].timing if any(case.timing.get(phase) for case in cases)]
    table = tables.table("#", *phases, "wall clock", right=True)
    for case in cases:
        spent = (tables.duration(case.timing.get(phase, 0.0)) for phase in phases)
        table.add_row(str(case.number), *spent, tables.duration(case.seconds))
    return table

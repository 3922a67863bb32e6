"""`gradoracle ops`: the operators that a graph may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gradoracle import dtypes
from gradoracle.cli import connection, output, tables
from gradoracle.cli.failures import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from gradoracle import OperatorInfo


@click.command("ops")
@click.argument("name", default="")
@click.option("--refused", is_flag=True, help="Show the operators that are refused, with the reason.")
@connection.options
@output.json_option
def command(name: str, refused: bool, as_json: bool, **where: Any) -> None:
    """Show the operators that a graph may use, with torch's schemas; with NAME, those that have it in their name."""
    with connection.client(**where) as client:
        every = client.operators(include_refused=True)
    found = [one for one in every if name in one.name and bool(one.refused) is refused]
    if not found:
        raise InputError(unknown(name, refused, every))
    if as_json:
        output.print_json([dataclasses.asdict(one) for one in found])
        return
    tables.console().print(refusals(found) if refused else served(found))
    click.echo(f"{len(found)} {'refused' if refused else 'served'}")


def unknown(name: str, refused: bool, every: Sequence[OperatorInfo]) -> str:
    """What to say where no operator has that name."""
    elsewhere = [one for one in every if name in one.name]
    if elsewhere and refused:
        return f"no refused operator has {name!r} in its name; without --refused there is {elsewhere[0].name}"
    if elsewhere:
        return f"{elsewhere[0].name} is not served: it {elsewhere[0].refused}"
    bases = dict.fromkeys(one.name.split(".")[1] for one in every if bool(one.refused) is refused)
    near = dtypes.nearest(name.removeprefix("aten.").split(".")[0], bases)
    return f"no operator has {name!r} in its name{dtypes.suggestion(near)}"


def served(found: Sequence[OperatorInfo]) -> Table:
    """Operators with what they take and give."""
    table = tables.table("operator", "schema", "gradient", "random")
    for one in found:
        schema = one.schema[one.schema.index("(") :]
        table.add_row(one.name, schema, "yes" if one.differentiable else "no", "yes" if one.random else "")
    return table


def refusals(found: Sequence[OperatorInfo]) -> Table:
    """Operators with why they are refused."""
    table = tables.table("operator", "is refused because it")
    for one in found:
        table.add_row(one.name, one.refused)
    return table

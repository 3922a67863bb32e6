"""`gradoracle compare`: what changed between two batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradoracle.cli import output, tables
from gradoracle.cli.failures import WRONG, InputError

if TYPE_CHECKING:
    from gradoracle.batch.compare import Brief, Change, Comparison

_FILE = click.Path(path_type=Path)


@click.command("compare")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("--allow-missing", is_flag=True, help="Cases of OLD that NEW lacks are no regression.")
@output.json_option
def command(old: Path, new: Path, allow_missing: bool, as_json: bool) -> int:
    """Compare the results files OLD and NEW of `gradoracle batch`, case by case.

    Exit codes: 0 nothing became worse; 1 regressions: a worse outcome, a new case that fails, a case that is gone;
    2 a file that is none of results.
    """
    from gradoracle.batch import compare

    try:
        found = compare.compare(old, new)
    except OSError as error:
        raise InputError(f"{error.filename}: expected a results file, got: {error.strerror}") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if as_json:
        output.print_json(output.finite(compare.document(found, allow_missing=allow_missing)))
    else:
        _show(found)
    return 0 if found.is_good(allow_missing=allow_missing) else WRONG


def _show(found: Comparison) -> None:
    regressions = found.regressions
    _list("worse", map(_change, regressions))
    _list("better", (_change(one) for one in found.changes if one.is_improvement))
    others = (one for one in found.changes if not one.is_improvement and not one.is_regression)
    _list("changed", map(_change, others))
    _list("larger error, still within its bound", map(_error, found.errors))
    _list("new", (f"{name}: {_brief(one)}" for name, one in found.added.items()))
    _list("gone", found.missing)
    for method, (before, after, ratio) in found.latency.items():
        click.echo(
            f"{method}: median {tables.duration(before)} before, {tables.duration(after)} now "
            f"({ratio:.2f} times case by case)"
        )
    click.echo(
        f"{len(regressions)} worse, {sum(one.is_improvement for one in found.changes)} better, {found.same} the same, "
        f"{len(found.added)} new, {len(found.missing)} gone"
    )


def _list(title: str, lines: Iterable[str]) -> None:
    from gradoracle.batch.text import one_line

    for place, line in enumerate(lines):
        if place == 0:
            click.echo(f"{title}:")
        click.echo(f"  {one_line(line)}")


def _change(one: Change) -> str:
    return f"{one.id}: {_brief(one.before)} -> {_brief(one.after)}"


def _brief(one: Brief) -> str:
    return f"{one.outcome} ({one.text})" if one.text else one.outcome


def _error(one: Change) -> str:
    return f"{one.id}: {one.before.error:.2g} -> {one.after.error:.2g} of the bound"

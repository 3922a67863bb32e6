"""`gradoracle sweep`: cases that check operators, for `gradoracle batch`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from gradoracle.cli import tables
from gradoracle.cli.failures import InputError


@click.command("sweep")
@click.argument("operators", nargs=-1, metavar="[OPERATOR]...")
@click.option("--shapes", multiple=True, metavar="SHAPES", help="Shapes such as 7,3x4,scalar. May be repeated.")
@click.option(
    "--dtypes", multiple=True, metavar="DTYPES", help="Such as float64,bfloat16,complex128 [default: float64]"
)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Where the cases run. May be repeated.")
@click.option(
    "--layouts",
    multiple=True,
    metavar="LAYOUTS",
    help="How arguments lie in memory: contiguous, transposed, strided, channels_last [default: contiguous]",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="From which all tensors are drawn.")
@click.option("--order", type=click.IntRange(1, 2), default=1, help="2 checks gradients of gradients.")
@click.option("--mode", type=click.Choice(["probe", "full"]), default="probe", help="As in gradoracle check.")
@click.option("--forward-mode", is_flag=True, help="Check forward mode too.")
@click.option("--batched-gradients", is_flag=True, help="Check pull-backs of several cotangents at once too.")
@click.option("--uncovered", is_flag=True, help="Tell instead which differentiable operators have no sample, and why.")
def command(
    operators: Sequence[str],
    shapes: Sequence[str],
    dtypes: Sequence[str],
    devices: Sequence[str],
    layouts: Sequence[str],
    seed: int,
    order: int,
    mode: str,
    forward_mode: bool,
    batched_gradients: bool,
    uncovered: bool,
) -> None:
    """Print cases that check OPERATORs ("softmax", "aten.softmax.int", "all"), one a line.

    This checks every differentiable operator on a GPU:

    \b
      gradoracle sweep all --device cuda | gradoracle batch - --out results.jsonl
    """
    from gradoracle.sweep import build, recipes

    if uncovered:
        _uncovered(operators)
        return
    options = {"order": order, "mode": mode, "forward_mode": forward_mode, "batched_gradients": batched_gradients}
    usual = {"order": 1, "mode": "probe", "forward_mode": False, "batched_gradients": False}
    try:
        sizes = [recipes.shape_of(one) for one in _listed(shapes)]
    except ValueError as error:
        raise InputError(f"--shapes: {error}") from error
    sweep = build.Sweep(
        shapes=sizes or build.SHAPES,
        dtypes=_listed(dtypes) or ["float64"],
        devices=devices or (None,),
        layouts=_listed(layouts) or ["contiguous"],
        seed=seed,
        options={name: value for name, value in options.items() if value != usual[name]},
    )
    build.check_names(sweep)
    for case in build.cases(operators, sweep):
        click.echo(json.dumps(case, separators=(",", ":")))


def _listed(texts: Sequence[str]) -> list[str]:
    """What is given comma by comma or option by option, each once."""
    return list(dict.fromkeys(one.strip() for text in texts for one in text.split(",") if one.strip()))


def _uncovered(names: Sequence[str]) -> None:
    from gradoracle.sweep import build, recipes

    screen = tables.console()
    listed = tables.table("operator", "why")
    for operator in build.named(names):
        why = recipes.reason(operator) if operator.differentiable else None
        if why is not None:
            listed.add_row(operator.name, why)
    screen.print(listed)

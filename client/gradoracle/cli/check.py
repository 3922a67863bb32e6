"""`gradoracle check`: judges gradients of a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradoracle.cli import connection, output, request, tables, values
from gradoracle.cli.failures import NO_VERDICT, WRONG, InputError

if TYPE_CHECKING:
    from gradoracle.checks import CheckReport


@click.command("check", epilog=values.HELP)
@request.options
@click.option(
    "--cotangent",
    "cotangents",
    multiple=True,
    metavar="NAME=VALUE",
    help="The cotangent of this output. May be repeated; by default 1 for scalars, random numbers otherwise.",
)
@click.option(
    "--claimed",
    "claimed_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .npz file of the gradients on trial, by input; by default autograd's own are on trial.",
)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=VALUE",
    help="The gradient on trial of one input. May be repeated.",
)
@click.option("--wrt", multiple=True, metavar="NAME", help="Check this input only. May be repeated.")
@click.option("--order", type=click.IntRange(1, 2), default=1, help="2 checks gradients of gradients.")
@click.option(
    "--mode",
    type=click.Choice(["probe", "full"]),
    default="probe",
    help="Random directions, or every element of the Jacobian: of inputs of 8192 numbers at most, and of 2**26 "
    "products of an input's numbers and the outputs'.",
)
@click.option("--forward-mode", is_flag=True, help="Check forward mode too.")
@click.option("--batched-gradients", is_flag=True, help="Check pull-backs of several cotangents at once too.")
@click.option(
    "--allow-inconclusive",
    is_flag=True,
    help="Exit with 0 where there is no verdict, too, but for a gradient outside the slopes of a kink: 1.",
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML report too.")
@connection.options
@output.json_option
def command(
    graph: str,
    inputs: Sequence[str],
    inputs_file: Path | None,
    no_grad_inputs: Sequence[str],
    device: str | None,
    seed: int | None,
    cotangents: Sequence[str],
    claimed_file: Path | None,
    claims: Sequence[str],
    wrt: Sequence[str],
    order: int,
    mode: str,
    forward_mode: bool,
    batched_gradients: bool,
    allow_inconclusive: bool,
    html_file: Path | None,
    as_json: bool,
    **where: Any,
) -> int:
    """Check the gradients of GRAPH: an expression such as "softmax(x, dim=-1)", or a .json or .pb file.

    Exit codes: 0 all good, 1 a gradient is wrong, 4 no verdict (inconclusive, non-differentiable, non-deterministic).
    """
    program = request.program(graph, no_grad_inputs)
    tensors = request.Tensors()
    primals = tensors.primals(program, inputs, inputs_file)
    vectors = tensors.named(cotangents, "--cotangent")
    claimed = {**_claimed(claimed_file), **tensors.named(claims, "--claim")}
    with connection.client(**where) as client:
        report = client.check(
            program,
            primals,
            claimed=claimed or None,  # what is given claims something
            cotangents=vectors or None,
            wrt=list(wrt) or None,
            order=order,
            mode=mode,
            forward_mode=forward_mode,
            batched_gradients=batched_gradients,
            device=device,
            seed=seed or 0,
        )
    if html_file is not None:
        try:
            html_file.write_text(report.to_html(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--html {html_file}: expected a writable file: {error.strerror}") from error
    _print(report, as_json)
    return exit_code(report, allow_inconclusive=allow_inconclusive)


def exit_code(report: CheckReport, *, allow_inconclusive: bool) -> int:
    """0 all good, 1 a gradient is wrong, 4 no verdict; where that is allowed, 1 for what is wrong at a kink."""
    if report.passed:
        return 0
    if report.verdict == "FAIL" or (allow_inconclusive and report.wrong):
        return WRONG
    return 0 if allow_inconclusive else NO_VERDICT


def _claimed(path: Path | None) -> dict[str, values.Tensor]:
    if path is None:
        return {}
    loaded = values.load(path)
    if not isinstance(loaded, dict):
        raise InputError(f"--claimed {path}: expected a .npz file of gradients by input, got a single array")
    if not loaded:
        raise InputError(
            f"--claimed {path}: expected one gradient at least, got none; leave it out for autograd's own gradients"
        )
    return dict(loaded)


def _print(report: CheckReport, as_json: bool) -> None:
    if as_json:
        output.print_json(document(report))
        return
    from gradoracle import check_text

    console = tables.console()
    for part in check_text.parts(report, console.width):
        console.print(part, crop=False)


def document(report: CheckReport) -> dict[str, Any]:
    """The report for programs."""
    return {
        "verdict": str(report.verdict),
        "inputs": {name: _input(one) for name, one in report.inputs.items()},
        "detection_power": report.detection_power,
        "evaluations": report.evaluations,
        "random_cotangents": report.random_cotangents,
        "ladder": output.finite([dataclasses.asdict(rung) for rung in report.ladder]),
        "opinions": output.finite([dataclasses.asdict(opinion) for opinion in report.opinions]),
        "timing": dict(report.timing),
    }


def _input(one: Any) -> Any:
    fields = dataclasses.asdict(one)
    del fields["name"], fields["errors"]
    return output.finite(fields)

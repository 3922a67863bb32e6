"""`gradoracle judge`: candidate implementations against a reference."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradoracle.cli import connection, distinct, output, request, tables, values
from gradoracle.cli.failures import InputError

if TYPE_CHECKING:
    from gradoracle.batch.records import Record

HELP = f"""\b
A candidate is a file of the folder CANDIDATES:
  .py           functions forward and backward(*cotangents, *inputs), or one
                torch.autograd.Function, or one function that torch
                differentiates. Each runs in a process of its own, on this
                machine, as whoever calls this: judge what you would run.
  .npz, .safetensors   saved results: arrays outputs.NAME and gradients.NAME
Inputs come by position, in the reference's order; outputs go back as one
tensor, a tuple or a dict by name.

{values.HELP}"""


@click.command("judge", epilog=HELP)
@click.argument("reference", metavar="REFERENCE")
@click.argument("folder", metavar="CANDIDATES", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--inputs",
    "inputs_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take inputs from a .npz file, or the one remaining input from a .npy file.",
)
@click.option("--cotangent", "cotangents", multiple=True, metavar="NAME=VALUE", help="The cotangent of this output.")
@click.option("--device", metavar="NAME", help="Where the reference runs.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of the reference's own random operators.")
@click.option("--on", "candidate_device", metavar="DEVICE", help="Give torch candidates their tensors on this device.")
@click.option(
    "--candidate-timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For one candidate.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write results as gradoracle batch does.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML page of the results.")
@click.option(
    "--allow-inconclusive",
    is_flag=True,
    help="Exit with 0 where there is no verdict, too, but for a gradient outside the slopes of a kink: 1.",
)
@connection.options
@output.json_option
def command(
    reference: str,
    folder: Path,
    inputs: Sequence[str],
    inputs_file: Path | None,
    cotangents: Sequence[str],
    device: str | None,
    seed: int | None,
    candidate_device: str | None,
    candidate_timeout: float,
    out: Path | None,
    report: Path | None,
    allow_inconclusive: bool,
    as_json: bool,
    **where: Any,
) -> int:
    """Judge the candidates in the folder CANDIDATES against REFERENCE: an expression, or a .json or .pb file of a
    graph.

    The best come first. An output is right where it is as near to the reference in double precision as torch's own,
    twice over; a gradient, where gradoracle check says so. Exit codes: 0 all right, 1 one is wrong, 2 one gave no
    results, 4 no verdict. Results that are there already are set aside as FILE.old, FILE.old.2 and so on.
    """
    from gradoracle.batch.tally import Tally
    from gradoracle.kernels import candidates
    from gradoracle.kernels.judge import Judge, rank

    graph = request.program(reference, ())
    tensors = request.Tensors()
    primals = tensors.primals(graph, inputs, inputs_file)
    vectors = tensors.named(cotangents, "--cotangent")
    try:
        paths = candidates.found(folder)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder of candidates, got: {error.strerror}") from error
    if not paths:
        raise InputError(f"{folder}: expected candidates ({', '.join(candidates.SUFFIXES)}), got none")
    _check_files(
        [*_given(reference, inputs_file, [*inputs, *cotangents]), *(("CANDIDATES", one) for one in _code(folder))],
        [(flag, path) for flag, path in (("--out", out), ("--report", report)) if path is not None],
    )
    with connection.client(**where) as client:
        judge = Judge(
            client,
            graph,
            primals,
            vectors or None,
            seed=seed,
            device=device,
            candidate_timeout=candidate_timeout,
            candidate_device=candidate_device,
        )
        records = rank([judge.judge(path, place) for place, path in enumerate(paths, 1)])
    tally = Tally()
    for record in records:
        tally.add(record)
    _write(records, out, report, str(folder))
    if as_json:
        documents = [json.loads(record.to_line()) for record in records]  # as any reader of the lines has them
        output.print_json([{"rank": place, **one} for place, one in enumerate(documents, 1)])
    else:
        _show(records)
    return tally.exit_code(allow_inconclusive=allow_inconclusive)


def _given(reference: str, inputs_file: Path | None, typed: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The files that arguments name, which have been read."""
    if reference.endswith((request.JSON, *request.BINARY)):
        yield "REFERENCE", Path(reference)
    if inputs_file is not None:
        yield "--inputs", inputs_file
    for text in typed:
        name, _, value = (part.strip() for part in text.partition("="))
        if value.startswith("@"):
            path = Path(value[1:])
            yield name, path if path.exists() else Path(value[1:].rpartition(":")[0])


def _code(folder: Path) -> list[Path]:
    """The candidates, and what they may import."""
    from gradoracle.kernels import candidates

    return sorted(path for path in folder.iterdir() if path.suffix in candidates.SUFFIXES)


def _check_files(given: Sequence[tuple[str, Path]], written: Sequence[tuple[str, Path]]) -> None:
    """Whether what is written takes no place of what is read, or of each other. Raises InputError."""
    distinct.check(itertools.chain(itertools.product(given, written), itertools.combinations(written, 2)))


def _write(records: list[Record], out: Path | None, report: Path | None, title: str) -> None:
    try:
        if out is not None:
            _make_room(out)
            out.write_bytes(b"".join(record.to_line() for record in records))
        if report is not None:
            from gradoracle.batch.report import write_report

            write_report(iter(records), report, title=title)
    except OSError as error:
        raise InputError(f"{error.filename}: expected a file that can be written, got: {error.strerror}") from error


def _make_room(out: Path) -> None:
    """Sets aside results that are there already, as a batch does."""
    from gradoracle.batch.results import set_aside

    if out.is_file() and out.stat().st_size:
        click.echo(f"{out}: the results from before are in {set_aside(out).name} now", err=True)


def _show(records: list[Record]) -> None:
    from gradoracle.batch.runner import remark
    from gradoracle.batch.text import one_line
    from gradoracle.kernels.judge import worst_ratio

    heads = ("rank", "candidate", "verdict", "outputs", "gradients", "")
    listed = tables.table(*heads, whole=("rank", "verdict", "outputs", "gradients"))
    for place, record in enumerate(records, 1):
        outputs = gradients = "-"
        if record.report is not None:
            outputs = f"{worst_ratio(record, of_outputs=True):.2g}"
            gradients = f"{worst_ratio(record, of_outputs=False):.2g}"
        name = one_line(record.id)
        listed.add_row(str(place), name, record.outcome, outputs, gradients, record.labels.get("kind", ""))
    tables.console().print(listed)
    click.echo("outputs and gradients: the largest error over its bound; up to 1 is right")
    for record in records:
        if not record.is_good:
            click.echo(remark(record))

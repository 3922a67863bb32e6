"""`gradoracle eval`: the outputs of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gradoracle.cli import connection, output, request, values


@click.command("eval", epilog=values.HELP)
@request.options
@connection.options
@output.json_option
def command(
    graph: str,
    inputs: Sequence[str],
    inputs_file: Path | None,
    no_grad_inputs: Sequence[str],
    device: str | None,
    seed: int | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Evaluate GRAPH: an expression such as "x.sin().sum()", or a .json or .pb file."""
    program = request.program(graph, no_grad_inputs)
    primals = request.Tensors().primals(program, inputs, inputs_file)
    with connection.client(**where) as client:
        result = client.evaluate(program, primals, device=device, seed=seed)
    if as_json:
        output.print_json({**output.arrays_json(outputs=result.outputs), "timing": dict(result.timing)})
    else:
        output.show(result.outputs)

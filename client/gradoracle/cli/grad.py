"""`gradoracle grad`: gradients of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gradoracle import dtypes
from gradoracle.cli import connection, output, request, values
from gradoracle.v1 import tensor_pb2


@click.command("grad", epilog=values.HELP)
@request.options
@click.option(
    "--cotangent",
    "cotangents",
    multiple=True,
    metavar="NAME=VALUE",
    help="The vector of the vector-Jacobian product for this output. May be repeated; a scalar output needs none.",
)
@click.option("--wrt", multiple=True, metavar="NAME", help="Differentiate by this input only. May be repeated.")
@click.option("--retain", multiple=True, metavar="NAME", help="Show this value's gradient too. May be repeated.")
@click.option(
    "--batched", multiple=True, metavar="NAME", help="This input carries a leading batch axis. May be repeated."
)
@click.option("--outputs", "show_outputs", is_flag=True, help="Show the outputs too, before the gradients.")
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
    wrt: Sequence[str],
    retain: Sequence[str],
    batched: Sequence[str],
    show_outputs: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Compute the gradients of GRAPH: an expression such as "(x * w).sum()", or a .json or .pb file.

    The output of an expression is named "out".
    """
    program = request.program(graph, no_grad_inputs)
    tensors = request.Tensors()
    primals = tensors.primals(program, inputs, inputs_file)
    vectors = tensors.named(cotangents, "--cotangent")
    with connection.client(**where) as client:
        result = client.vjp(
            program,
            primals,
            vectors or None,
            wrt=list(wrt) or None,
            retain=list(retain),
            batched=list(batched),
            device=device,
            seed=seed,
        )
    if as_json:
        arrays = output.arrays_json(outputs=result.outputs, gradients=result.gradients)
        output.print_json({**arrays, "timing": dict(result.timing)})
        return
    if show_outputs:
        output.show(result.outputs)
    if not result.gradients:
        click.echo("no input requires grad")
    output.show(result.gradients, {name: why for name, one in primals.items() if (why := _without_gradient(one))})


def _without_gradient(tensor: values.Tensor) -> str:
    """Why a tensor has no gradient whatever is made of it; "" where it may have one."""
    name = dtypes.NAMES.get(tensor.dtype) if isinstance(tensor, tensor_pb2.Tensor) else dtypes.name_of(tensor.dtype)
    return f"{name} has no gradient" if name and "float" not in name and "complex" not in name else ""

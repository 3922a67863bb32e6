"""The graph and tensors of one request, from a command's arguments and options."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import click

import gradoracle as go
from gradoracle.cli import literals, values
from gradoracle.cli.failures import InputError

Function = TypeVar("Function", bound=Callable[..., object])

JSON, BINARY = ".json", (".pb", ".binpb", ".protobuf")
"""How the names of files of graphs end, which no expression does."""


def options(function: Function) -> Function:
    """The arguments and options that say what is asked: of every command that runs a graph."""
    for decorate in (
        click.option(
            "--seed", type=click.IntRange(min=0), metavar="N", help="Seed of the graph's own random operators."
        ),
        click.option("--device", metavar="NAME", help='"cpu", "cuda" or "cuda:N"; by default the server chooses.'),
        click.option(
            "--no-grad-input",
            "no_grad_inputs",
            multiple=True,
            metavar="NAME",
            help="Switch requires_grad off for this input. May be repeated.",
        ),
        click.option(
            "--inputs",
            "inputs_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Take inputs from a .npz file, or the one remaining input from a .npy file.",
        ),
        click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]..."),
        click.argument("graph", metavar="GRAPH"),
    ):
        function = decorate(function)
    return function


def program(text: str, no_grad_inputs: Sequence[str]) -> go.Graph:
    """The graph: an expression, or a file of a graph. The inputs named get requires_grad=False."""
    graph = from_file(Path(text)) if text.endswith((JSON, *BINARY)) else go.Graph.parse(text)
    if not no_grad_inputs:
        return graph
    message = graph.message
    by_name = {one.name: one for one in message.inputs}
    for name in no_grad_inputs:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            near = literals.nearest(name, by_name)
            raise InputError(f"--no-grad-input: expected one of the graph's inputs, {known}, got {name!r}{near}")
        by_name[name].requires_grad = False
    return go.Graph.from_message(message)


def from_file(path: Path) -> go.Graph:
    """The graph in a file: the proto's JSON in one that ends so, else its bytes."""
    is_json = path.name.endswith(JSON)
    form = "JSON" if is_json else "the proto's bytes"
    try:
        contents = path.read_bytes()
        if is_json:
            contents.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{path}: expected a graph as {form}, got no readable file: {reason}") from error
    try:
        return go.Graph.from_json(contents) if is_json else go.Graph.from_bytes(contents)
    except go.InvalidGraphError as error:
        raise InputError(f"{path}: {error}") from error


class Tensors:
    """Reads the tensors of one request; numbers the random ones that have no seed of their own."""

    def __init__(self) -> None:
        self._seeds: Iterator[int] = itertools.count()

    def primals(self, graph: go.Graph, typed: Sequence[str], file: Path | None) -> dict[str, values.Tensor]:
        """A tensor for each input that was given one. What is missing or too much the client tells."""
        texts = values.assignments(typed, "input")
        given: dict[str, values.Tensor] = dict(self._file(file, [name for name in graph.inputs if name not in texts]))
        for name, text in texts.items():
            given[name] = values.parse(name, text, seeds=self._seeds, floating=graph.requires_grad(name))
        return given

    def named(self, typed: Sequence[str], what: str) -> dict[str, values.Tensor]:
        """Tensors by name. `what` says in errors what they are."""
        return {
            name: values.parse(name, text, seeds=self._seeds) for name, text in values.assignments(typed, what).items()
        }

    def _file(self, path: Path | None, remaining: Sequence[str]) -> Mapping[str, values.Tensor]:
        if path is None:
            return {}
        loaded = values.load(path)
        if isinstance(loaded, dict):
            return loaded
        if len(remaining) != 1:
            names = ", ".join(remaining) or "none"
            raise InputError(
                f"--inputs {path}: a .npy file holds one array, expected one input without a value, got {names}; "
                f"write NAME=@{path}"
            )
        return {remaining[0]: loaded}

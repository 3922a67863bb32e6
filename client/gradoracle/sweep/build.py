"""Cases of a sweep: each recipe at each shape, dtype, device and layout."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from gradoracle import dtypes, operators
from gradoracle.errors import GradOracleError, InvalidRequestError
from gradoracle.graph import Graph
from gradoracle.operators import Operator
from gradoracle.sweep import tensors
from gradoracle.sweep.recipes import Recipe, Tensor, reason, recipes, takes_complex
from gradoracle.values import Value, ValueList

SHAPES: tuple[tuple[int, ...], ...] = ((7,), (3, 4))
LAYOUTS = ("contiguous", "transposed", "strided", "channels_last")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is swept over."""

    shapes: Sequence[tuple[int, ...]] = SHAPES
    """Of the tensors whose shape is free."""
    dtypes: Sequence[str] = ("float64",)
    """Of the tensors that are no indices."""
    devices: Sequence[str | None] = (None,)
    """Where cases run; None is the server's default."""
    layouts: Sequence[str] = ("contiguous",)
    """How the operator's arguments lie in memory, of LAYOUTS. A case is made only where that changes something."""
    seed: int = 0
    """From which the seeds of the tensors are made."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further options of every check: order, mode, forward_mode, batched_gradients."""


def cases(names: Sequence[str], sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The cases, as lines of a file of cases have them. Raises InvalidRequestError for what does not exist."""
    for operator in chosen(names):
        for place, recipe in enumerate(recipes(operator)):
            for shape in sweep.shapes if recipe.swept else (None,):
                for dtype in sweep.dtypes:
                    if dtype.startswith("complex") and not takes_complex(operator):
                        continue
                    for layout in sweep.layouts:
                        made = _case(recipe, place, shape, dtype, layout, sweep.seed)
                        if made is not None:
                            yield from _on_devices(made, sweep)


def chosen(names: Sequence[str]) -> list[Operator]:
    """The overloads of those names that have samples. Raises InvalidRequestError where a name has none."""
    for name in names:
        if name != "all":
            several = named([name])
            if not any(recipes(one) for one in several):
                _need_recipe(several[0])
    return [one for one in named(names) if recipes(one)]


def named(names: Sequence[str]) -> list[Operator]:
    """The overloads of names such as "all", "softmax" and "aten.softmax.int". Raises UnsupportedOperatorError."""
    table = operators.table()
    found: dict[str, Operator] = {}
    for name in names or ("all",):
        if name == "all":
            found |= {one.name: one for one in table.served.values() if one.differentiable}
            continue
        several = [table.overload(name)] if name.count(".") == 2 else table.family(name.removeprefix("aten."))
        found |= {one.name: one for one in several}
    return list(found.values())


def _need_recipe(operator: Operator) -> None:
    why = reason(operator)
    if why is not None:
        raise InvalidRequestError(f'"{operator.name}" cannot be swept: {why}')


def _on_devices(made: dict[str, Any], sweep: Sweep) -> Iterator[dict[str, Any]]:
    for device in sweep.devices:
        suffix = {} if device is None else {"device": device}
        name = made["id"] if device is None else f"{made['id']} {device}"
        options = {**sweep.options, **suffix}
        labels = {**made["labels"], **suffix}
        yield {**made, "id": name, "labels": labels, **({"options": options} if options else {})}


def _case(
    recipe: Recipe, place: int, shape: tuple[int, ...] | None, dtype: str, layout: str, seed: int
) -> dict[str, Any] | None:
    maker = _Maker(recipe, shape, dtype, layout, seed)
    graph = maker.graph()
    if graph is None:
        return None
    shown = "" if shape is None else f" {'x'.join(map(str, shape)) or 'scalar'}"
    other = "" if layout == "contiguous" else f" {layout}"
    short = recipe.target.removeprefix("aten.").removesuffix(".default")
    name = f"{short}{f' #{place + 1}' if place else ''}{shown} {dtype}{other}"
    labels = {"operator": recipe.target, "dtype": dtype, "layout": layout}
    if shape is not None:
        labels["shape"] = shown.strip()
    return {
        "id": name,
        "method": "check",
        "graph": json.loads(graph.to_json()),
        "inputs": maker.inputs,
        "labels": labels,
    }


class _Maker:
    """Makes one case."""

    def __init__(self, recipe: Recipe, shape: tuple[int, ...] | None, dtype: str, layout: str, seed: int) -> None:
        self._recipe = recipe
        self._shape = shape or ()
        self._dtype = dtype
        self._layout = layout
        self._seed = seed
        self._graph = Graph()
        self._changed = layout == "contiguous"
        self.inputs: dict[str, Any] = {}

    def graph(self) -> Graph | None:
        """The graph, or None where the layout changes nothing about it. Raises InvalidRequestError."""
        recipe = self._recipe
        parameters = operators.table().overload(recipe.target).schema.parameters
        # What a recipe gives in order may be what a schema takes by name alone.
        named = [one.name for one in parameters[: len(recipe.args)] if one.keyword_only]
        given = [self._argument(value) for value in recipe.args]
        args, by_name = given[: len(given) - len(named)], given[len(given) - len(named) :]
        kwargs = dict(zip(named, by_name, strict=True))
        kwargs |= {name: self._argument(value) for name, value in recipe.kwargs.items()}
        if not self._changed:
            return None
        if recipe.in_place:
            args[0] = [one.clone() for one in args[0]] if isinstance(args[0], list) else args[0].clone()
        try:
            result = self._graph.call(recipe.target, *args, **kwargs)
        except GradOracleError as error:
            raise InvalidRequestError(f"{recipe.target}: its recipe does not fit its schema: {error}") from error
        if recipe.in_place and isinstance(args[0], list):  # what works on a list returns nothing
            result = tuple(args[0])
        for number, value in enumerate(self._results(result)):
            self._graph.output(f"out{number}", value)
        return self._graph

    def _results(self, result: Any) -> Iterator[Value]:
        if isinstance(result, Value):
            yield result
        elif isinstance(result, ValueList):
            yield from (result[k] for k in range(self._recipe.elements))
        else:
            yield from (one for one in result or () if isinstance(one, Value))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, list):
            return [self._argument(one) for one in value]
        return value

    def _tensor(self, tensor: Tensor) -> Value:
        name = f"x{len(self.inputs)}"
        shape = self._shape if tensor.shape is None else tensor.shape
        seed = zlib.crc32(f"{self._recipe.target} {name} {self._seed}".encode())
        value = self._graph.input(
            name, requires_grad=tensor.requires_grad, structure=tensors.structure(tensor, self._dtype)
        )
        layout = self._layout if tensor.kind in ("n", "u", "p") else "contiguous"
        sent, laid = self._laid(value, shape, layout)
        self.inputs[name] = tensors.array(tensor, sent, self._dtype, seed)
        return laid

    def _laid(self, value: Value, shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], Value]:
        """The shape of the input, and the view of it that has the shape and the layout wanted."""
        if layout == "transposed" and len(shape) > 1:
            self._changed = True
            return (*shape[:-2], shape[-1], shape[-2]), value.transpose(-1, -2)
        if layout == "strided" and shape:
            self._changed = True
            return (*shape[:-1], 2 * shape[-1]), value[..., ::2]
        if layout == "channels_last" and len(shape) == 4:
            self._changed = True
            return shape, value.contiguous(memory_format="channels_last")
        return shape, value


def check_names(sweep: Sweep) -> None:
    """Raises InvalidRequestError for a dtype or layout that there is not."""
    for dtype in sweep.dtypes:
        name = dtypes.name_of(dtype)
        if name is None or not name.startswith(("float", "bfloat", "complex")):
            raise InvalidRequestError(f"dtypes: expected a floating or complex dtype, got {dtypes.unknown(dtype)}")
    for layout in sweep.layouts:
        if layout not in LAYOUTS:
            hint = dtypes.suggestion(dtypes.nearest(layout, LAYOUTS))
            raise InvalidRequestError(f"layouts: expected one of {', '.join(LAYOUTS)}, got {layout!r}{hint}")

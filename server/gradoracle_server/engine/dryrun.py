"""A graph's run and its pull-back on meta tensors, for the bytes that they hold at their peak.

Autograd is torch's own, so what it keeps for the pull-back is counted as it is, and so are the intermediate tensors
inside of composite operators. A run costs 0.1 to 0.3 ms a node, so this is for requests that shape propagation finds
large; what they save or take then dwarfs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradoracle_server.engine.graph import GETITEM, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.meter import Meter
from gradoracle_server.engine.shapes import Shape

_META = torch.device("meta")


@dataclasses.dataclass(slots=True)
class Peak:
    """The most bytes that a run and its pull-back hold, and where; with what the run leaves to the pull-back."""

    bytes: int
    node: NodeSpec | None  # None: in the pull-back
    kept: int = 0
    complete: bool = False  # whether the run and its pull-back came to their ends


def measure(
    inputs: Sequence[tuple[InputSpec, Shape]],
    constants: Mapping[str, torch.Tensor],
    nodes: Sequence[NodeSpec],
    outputs: Sequence[str],
    call: Callable[[NodeSpec, Callable[[Ref], Any]], Any],
    last: Mapping[str, int],
) -> Peak:
    """`call` runs one node, given how its references become tensors; `last` says which node reads a value last."""
    meter: Meter[NodeSpec | None] = Meter(None)
    found = Peak(0, None)
    # What has been seen until it raises, if it does, is needed all the same.
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.enable_grad(), meter:
        warnings.simplefilter("ignore")
        leaves = {spec.name: _leaf(spec, shape) for spec, shape in inputs}
        values: dict[str, Any] = dict(leaves)
        values |= {name: torch.empty_like(one, device=_META) for name, one in constants.items()}
        _run(meter, values, nodes, call, last)
        roots = [values[name] for name in outputs]
        values.clear()
        meter.at, found.kept = None, meter.live
        _pull_back(roots, [one for one in leaves.values() if one.requires_grad])
        found.complete = True
    found.bytes, found.node = meter.peak, meter.peak_at
    return found


def _leaf(spec: InputSpec, shape: Shape) -> torch.Tensor:
    tracked = spec.requires_grad and (shape.dtype.is_floating_point or shape.dtype.is_complex)
    return torch.empty(shape.sizes, dtype=shape.dtype, device=_META, requires_grad=tracked)


def _run(
    meter: Meter[NodeSpec | None],
    values: dict[str, Any],
    nodes: Sequence[NodeSpec],
    call: Callable[[NodeSpec, Callable[[Ref], Any]], Any],
    last: Mapping[str, int],
) -> None:
    dead: dict[int, list[str]] = {}
    for name, place in last.items():
        dead.setdefault(place, []).append(name)
    for place, node in enumerate(nodes):
        meter.at = node
        with torch.set_grad_enabled(not node.no_grad):
            if node.target == GETITEM:
                source, index = node.args
                assert isinstance(source, Ref) and isinstance(index, int)  # noqa: S101, PT018 - rules hold it to that
                values[node.name] = values[source.name][index]
            else:
                values[node.name] = call(node, lambda ref: values[ref.name])
        for name in dead.get(place, ()):
            values.pop(name, None)
        if node.name not in last:
            del values[node.name]


def _pull_back(roots: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
    tracked = [one for one in roots if one.requires_grad]
    if tracked and leaves:
        torch.autograd.grad(tracked, leaves, [torch.empty_like(one) for one in tracked], allow_unused=True)

"""Runs plans: inputs bound and checked, outputs under no_grad, and the autograd state of every value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradoracle_server.engine import structure
from gradoracle_server.engine.errors import Fault, listed, nearest, suggestion
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan


def has_gradient(tensor: torch.Tensor) -> bool:
    """Whether its dtype can carry a gradient at all."""
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def bind(plan: Plan, primals: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The primals in the order of the graph's inputs. Raises Fault where one is missing, unknown or misshapen."""
    found = in_order(plan, primals)
    for spec, tensor in zip(plan.spec.inputs, found, strict=True):
        if spec.structure:
            structure.check(spec, tensor)
    return found


def in_order(plan: Plan, primals: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """As `bind`, but with any shapes: those of batched inputs are not one example's."""
    names = [one.name for one in plan.spec.inputs]
    for name in primals:
        if name not in names:
            near = nearest(name, names)
            hint = suggestion(near) or f"; inputs: {listed(names)}"
            message = f'primals: the graph has no input "{name}"{hint}'
            raise Fault("INPUT_MISMATCH", message, field="primals", name=name, nearest=", ".join(near))
    missing = [name for name in names if name not in primals]
    if missing:
        message = f"primals: no tensor for the input{'s' if len(missing) > 1 else ''} {listed(missing)}"
        raise Fault("INPUT_MISMATCH", message, field="primals", name=missing[0])
    return [primals[name] for name in names]


def seed_everything(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does for the generators that a worker's operators can draw from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


class RandomState:
    """The state of a device's generators, to be restored where work is tried one way and then done another."""

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._device = device

    @property
    def is_current(self) -> bool:
        """Whether nothing was drawn since."""
        if not torch.equal(torch.default_generator.get_state(), self._cpu):
            return False
        return self._cuda is None or torch.equal(torch.cuda.get_rng_state(self._device), self._cuda)

    def restore(self) -> None:
        """The next draw is the one that followed the construction."""
        torch.default_generator.set_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def leaves(plan: Plan, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fresh tensors over the inputs' memory that require grad where the graph says so and the dtype allows."""
    return [
        tensor.detach().requires_grad_(spec.requires_grad and has_gradient(tensor))
        for spec, tensor in zip(plan.spec.inputs, inputs, strict=True)
    ]


def check_outputs(plan: Plan, outputs: Sequence[Any]) -> None:
    """Every output is a dense tensor. Raises Fault: operators can also return numbers or None inside tuples."""
    for (name, _), value in zip(plan.spec.outputs, outputs, strict=False):
        if not isinstance(value, torch.Tensor):
            got = type(value).__name__
            raise Fault("INVALID_GRAPH", f'output "{name}": expected a tensor, got {got}', field="graph.outputs")
        if value.layout is not torch.strided:
            layout = str(value.layout).removeprefix("torch.")
            message = f'output "{name}": expected a dense tensor, got layout {layout}; add aten.to_dense.default'
            raise Fault("INVALID_GRAPH", message, field="graph.outputs", got=layout)


def evaluate(plan: Plan, primals: Mapping[str, torch.Tensor], phases: Phases) -> list[torch.Tensor]:
    """The outputs, in the graph's order. Autograd records nothing.

    Inference mode goes beyond no_grad only in that the results can never enter autograd, and they leave the process.
    """
    inputs = bind(plan, primals)
    program = plan.program()
    with phases.measure("forward"), torch.inference_mode():
        outputs = program(inputs)
    check_outputs(plan, outputs)
    return list(outputs)


@dataclasses.dataclass(frozen=True, slots=True)
class ValueState:
    """What autograd knows of one value. `tensor` is None for a tuple, a list or a number."""

    name: str
    target: str  # the node's operator, "" for inputs and constants
    tensor: torch.Tensor | None
    is_tuple: bool = False


def inspect(plan: Plan, primals: Mapping[str, torch.Tensor], phases: Phases) -> list[ValueState]:
    """The state of every input, constant and node, after a run under autograd, in the graph's order."""
    inputs = leaves(plan, bind(plan, primals))
    nodes = plan.spec.nodes
    program = plan.program([node.name for node in nodes])
    with phases.measure("forward"), torch.enable_grad():
        returned = program(inputs)
    values = returned[len(plan.output_values) :]
    states = [ValueState(one.name, "", tensor) for one, tensor in zip(plan.spec.inputs, inputs, strict=True)]
    states += [ValueState(name, "", tensor) for name, tensor in plan.constants.items()]
    for node, value in zip(nodes, values, strict=True):
        tensor = value if isinstance(value, torch.Tensor) else None
        states.append(ValueState(node.name, node.target, tensor, isinstance(value, tuple | list)))
    return states

"""Derivatives by torch's autograd: vjp, jvp, Jacobian, Hessian and Hessian-vector products.

Everything reduces to `_Tape`: one run of the graph under autograd, which can then be pulled back as often as needed.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from gradoracle_server.engine import selection, structure
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.evaluate import RandomState, bind, check_outputs, has_gradient, leaves
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.pullback import pull_back as pull_back
from gradoracle_server.engine.pullback import rows
from gradoracle_server.engine.pullback import without_batching_rules as without_batching_rules

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(slots=True)
class Gradients:
    """Outputs in the graph's order, and gradients by name; None where the outputs do not depend on the value."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]


class _Tape:
    """One run of a graph under autograd."""

    def __init__(self, plan: Plan, primals: Tensors, phases: Phases, retain: Sequence[str] = ()) -> None:
        self.plan = plan
        self.inputs = leaves(plan, bind(plan, primals))
        program = plan.program(retain)
        with phases.measure("forward"):
            returned = program(self.inputs, recorded=True)
        check_outputs(plan, returned)
        count = len(plan.spec.outputs)
        self.outputs: list[torch.Tensor] = list(returned[:count])
        self.retained: list[Any] = list(returned[count:])

    def detached_outputs(self) -> list[torch.Tensor]:
        return [output.detach() for output in self.outputs]

    def wanted(self, wrt: Sequence[str]) -> dict[str, torch.Tensor]:
        """The inputs to differentiate by, in the graph's order."""
        positions = selection.wanted_inputs(self.plan, self.inputs, wrt)
        return {self.plan.spec.inputs[position].name: self.inputs[position] for position in positions}


def load_forward_rules() -> None:
    """Loads torch's forward-mode decompositions, which it otherwise does, with a deprecation warning, at first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward_ad._maybe_load_decompositions()  # type: ignore[no-untyped-call]


def vjp(
    plan: Plan,
    primals: Tensors,
    phases: Phases,
    *,
    cotangents: Tensors,
    wrt: Sequence[str] = (),
    retain: Sequence[str] = (),
) -> Gradients:
    """Reverse-mode gradients, bit for bit those of eager `torch.autograd.grad`.

    `cotangents` may name some of the outputs; with none at all, each output that requires grad must be a real scalar.
    """
    behind = selection.retained_values(plan, retain)
    tape = _Tape(plan, primals, phases, behind)
    wanted = tape.wanted(wrt)
    for name, value in zip(retain, tape.retained, strict=True):
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            message = f'retain: value "{name}" does not require grad'
            raise Fault("INVALID_SELECTION", message, field="retain", name=name)
    targets = [*wanted.values(), *tape.retained]
    with phases.measure("backward"):
        pulled = pull_back(tape.outputs, selection.cotangents_for(plan, tape.outputs, cotangents), targets)
    gradients = dict(zip([*wanted, *retain], pulled, strict=True))
    kinds = plan.spec.structures
    return Gradients(tape.detached_outputs(), structure.project_named(gradients, kinds) if kinds else gradients)


def jvp(plan: Plan, primals: Tensors, phases: Phases, *, tangents: Tensors) -> Gradients:
    """Outputs, and the tangent of each floating or complex output; zeros where it does not move.

    Forward-mode AD. Where an operator has no forward formula, the pull-back of the pull-back, which is the same linear
    map (J. Townsend, "A new trick for calculating Jacobian vector products", 2017), and where that has no formula
    either, the rows of the Jacobian.
    """
    inputs = bind(plan, primals)
    directions = [
        None if one is None else structure.project(one, spec.structure)
        for spec, one in zip(
            plan.spec.inputs, selection.directions_for("tangents", plan, inputs, tangents), strict=True
        )
    ]
    state = RandomState(plan.device)
    try:
        outputs, found = forward_mode(plan, inputs, directions, phases)
    except Fault as fault:
        if not lacks_forward_formula(fault):
            raise
        state.restore()
        outputs, found = _by_reverse_mode(plan, primals, directions, phases)
    named = zip(plan.spec.outputs, outputs, found, strict=True)
    moved: dict[str, torch.Tensor | None] = {
        name: torch.zeros_like(output) if tangent is None else tangent
        for (name, _), output, tangent in named
        if has_gradient(output)
    }
    return Gradients(outputs, moved)


def lacks_forward_formula(error: Exception) -> bool:
    """Whether forward mode raised because there is none of some operator, and not because of what the operator did."""
    text = error.message if isinstance(error, Fault) else str(error)
    return any(word in text for word in ("forward AD", "jvp"))


def forward_mode(
    plan: Plan, inputs: Sequence[torch.Tensor], directions: Sequence[torch.Tensor | None], phases: Phases
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Outputs and their tangents by forward-mode AD alone; None where an output does not move. Raises Fault where an
    operator has no forward formula."""
    load_forward_rules()
    with phases.measure("forward"), torch.no_grad(), forward_ad.dual_level():
        duals = [
            tensor if direction is None else forward_ad.make_dual(tensor, direction)  # type: ignore[no-untyped-call]
            for tensor, direction in zip(inputs, directions, strict=True)
        ]
        returned = plan.program()(duals)
        check_outputs(plan, returned)
        pairs = [forward_ad.unpack_dual(value) for value in returned]  # type: ignore[no-untyped-call]
        # Copies, because what the level owned must not be used after it.
        return [pair.primal.detach() for pair in pairs], [
            None if pair.tangent is None else pair.tangent.detach().clone() for pair in pairs
        ]


def _by_reverse_mode(
    plan: Plan, primals: Tensors, directions: Sequence[torch.Tensor | None], phases: Phases
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    moving = [place for place, direction in enumerate(directions) if direction is not None]
    tracked = dataclasses.replace(
        plan.spec, inputs=tuple(dataclasses.replace(one, requires_grad=place in moving)
                                for place, one in enumerate(plan.spec.inputs)),
    )  # fmt: skip
    tape = _Tape(dataclasses.replace(plan, spec=tracked), primals, phases)
    targets = [tape.inputs[place] for place in moving]
    along = [one for one in directions if one is not None]
    with phases.measure("backward"):
        try:
            found = pull_back_the_pull_back(tape.outputs, targets, along)
        except Fault:  # the pull-back itself has no formula
            found = [_tangent_by_rows(output, targets, along) for output in tape.outputs]
    return tape.detached_outputs(), found


def pull_back_the_pull_back(
    outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], along: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """u -> J^T u is linear, so its own pull-back of v, at any u, is J v."""
    dummies = [torch.zeros_like(output, requires_grad=has_gradient(output)) for output in outputs]
    pulled = pull_back(outputs, dummies, targets, create_graph=True, retain_graph=True)
    rows = [(one, direction) for one, direction in zip(pulled, along, strict=True) if one is not None]
    return pull_back([one for one, _ in rows], [direction for _, direction in rows], dummies, retain_graph=True)


def _tangent_by_rows(
    output: torch.Tensor, targets: Sequence[torch.Tensor], along: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    """Each row of the Jacobian times the direction; a complex output has a row for its real part and one for its
    imaginary part, <i e_k, J v> being the latter."""
    if not output.requires_grad:
        return None

    def parts(root: torch.Tensor) -> torch.Tensor:
        blocks = rows(root, targets)
        return sum(  # type: ignore[return-value]
            (block.conj() * direction).real.reshape(*root.shape, -1).sum(-1)
            for block, direction in zip(blocks, along, strict=True)
        )

    if not output.dtype.is_complex:
        return parts(output)
    return torch.complex(parts(output), parts(output * -1j))


def jacobian(
    plan: Plan, primals: Tensors, phases: Phases, *, of: Sequence[str] = (), wrt: Sequence[str] = ()
) -> tuple[list[torch.Tensor], dict[tuple[str, str], torch.Tensor]]:
    """Outputs, and by (output, input) a tensor of the output's shape and then the input's.

    Row k is the pull-back of the k-th unit cotangent, so for complex tensors it is torch's conjugate convention.
    """
    tape = _Tape(plan, primals, phases)
    names = [name for name, _ in plan.spec.outputs]
    for name in of:
        if name not in names:
            raise selection.unknown("of", name, "output", names)
        if not has_gradient(tape.outputs[names.index(name)]):
            kind = selection.dtype_name(tape.outputs[names.index(name)].dtype)
            raise Fault(
                "INVALID_SELECTION", f'of: output "{name}" is {kind} and has no derivative', field="of", name=name
            )
    wanted = {name: one for name, one in tape.wanted(wrt).items() if has_gradient(one)}
    blocks = {}
    with phases.measure("backward"):
        for name, output in zip(names, tape.outputs, strict=True):
            if (of and name not in of) or not has_gradient(output):
                continue
            for column, block in zip(wanted, rows(output, list(wanted.values())), strict=True):
                blocks[name, column] = structure.project(block, plan.spec.structures.get(column, ""))
    return tape.detached_outputs(), blocks


def hessian(
    plan: Plan, primals: Tensors, phases: Phases, *, cotangents: Tensors, wrt: Sequence[str] = ()
) -> tuple[Gradients, dict[tuple[str, str], torch.Tensor]]:
    """Outputs and gradients, and by (row, column) the second derivative: the row's shape, then the column's."""
    tape, wanted, first = _first_order(plan, primals, phases, cotangents, wrt)
    kinds = plan.spec.structures
    blocks = {}
    with phases.measure("backward"):
        for row, slope in first.items():
            for column, block in zip(wanted, rows(slope, list(wanted.values())), strict=True):
                along = structure.project(block, kinds.get(column, ""))
                blocks[row, column] = structure.project(along, kinds.get(row, ""), trailing=wanted[column].dim())
    return Gradients(tape.detached_outputs(), _slopes(plan, first)), blocks


def hvp(
    plan: Plan, primals: Tensors, phases: Phases, *, cotangents: Tensors, vectors: Tensors, wrt: Sequence[str] = ()
) -> tuple[Gradients, dict[str, torch.Tensor]]:
    """Outputs and gradients, and for each input the product of the Hessian with the vectors."""
    directions = dict(
        zip(
            (one.name for one in plan.spec.inputs),
            selection.directions_for("vectors", plan, bind(plan, primals), vectors),
            strict=True,
        )
    )
    kinds = plan.spec.structures
    tape, wanted, first = _first_order(plan, primals, phases, cotangents, wrt)
    for name in vectors:
        if name not in wanted:
            message = f'vectors: input "{name}" is not among those to differentiate by'
            raise Fault("INVALID_SELECTION", message, field="vectors", name=name)
    with phases.measure("backward"):
        # The Hessian is symmetric, so pulling the vectors back through the gradient multiplies by it.
        vectors_along = structure.project_named({name: directions[name] for name in first}, kinds)
        pulled = pull_back(list(first.values()), list(vectors_along.values()), list(wanted.values()))
    products = {
        name: torch.zeros_like(one) if product is None else product
        for (name, one), product in zip(wanted.items(), pulled, strict=True)
    }
    return Gradients(tape.detached_outputs(), _slopes(plan, first)), structure.project_named(products, kinds)


def _slopes(plan: Plan, first: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    detached: dict[str, torch.Tensor | None] = {name: slope.detach() for name, slope in first.items()}
    return structure.project_named(detached, plan.spec.structures)


def _first_order(
    plan: Plan, primals: Tensors, phases: Phases, cotangents: Tensors, wrt: Sequence[str]
) -> tuple[_Tape, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tape, the inputs to differentiate by, and their gradients, differentiable themselves."""
    tape = _Tape(plan, primals, phases)
    wanted = {name: one for name, one in tape.wanted(wrt).items() if has_gradient(one)}
    with phases.measure("backward"):
        roots = selection.cotangents_for(plan, tape.outputs, cotangents)
        pulled = pull_back(tape.outputs, roots, list(wanted.values()), create_graph=True)
    slopes = {
        name: torch.zeros_like(one) if slope is None else slope
        for (name, one), slope in zip(wanted.items(), pulled, strict=True)
    }
    return tape, wanted, slopes

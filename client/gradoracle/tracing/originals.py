"""A function run on the very tensors that it was given, at other points, as torch's own gradcheck runs it.

Test-suites count on that: on functions that reach the tensors by another way than their arguments (a module whose
parameters are the inputs), on strides, on layouts, on subclasses, on hooks. So the tensors' elements are exchanged for
the time of a run, behind autograd's back, and put back afterwards. What is on trial is then differentiated through
`_Reverse`, whose backward is autograd's own pull-back from the outputs to those tensors, or through `_Forward`, by
forward mode.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from gradoracle.tracing.callables import nodes_behind
from gradoracle.tracing.elements import Elements, edge_of, elements, is_plain, layout_of, moves, plain
from gradoracle.tracing.given import wide
from gradoracle.tracing.naming import parameter_at

_AS_IT_IS = contextlib.nullcontext()


class Originals:
    """A function of some of its arguments: the tensors that are dense or require grad. Everything else is passed as it
    is.

    A tensor that stands twice among the arguments is copied the second time, so that each place moves alone; so is one
    that was made in inference mode, which autograd cannot record.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        *,
        forward_mode: bool = False,
        names: Sequence[str] | None = None,
        nondet_tol: float = 0.0,
        masked: bool = False,
        freezes: bool = True,
    ) -> None:
        """`names` are those of all arguments; by default the function's own. With `nondet_tol` a gradient is computed
        twice and then kept, so that runs that differ are seen once, in `scatter`, and disturb nothing else. `masked`:
        of sparse tensors only the values count. `freezes`: what is not wanted requires no grad while the function runs;
        not for one that wants all of them itself."""
        self.function = function
        self.arguments = list(arguments)
        self.forward_mode, self.freezes = forward_mode, freezes
        self.places: list[int] = []
        self._elements: list[Elements] = []
        memory = set()
        with torch.inference_mode(False):
            for place, one in enumerate(arguments):
                if not isinstance(one, torch.Tensor):
                    continue
                if one.is_inference():
                    one = self.arguments[place] = _copy(one)
                if not moves(one):
                    continue
                where = one.data_ptr() if is_plain(one) and one.numel() else id(one)
                if where in memory:
                    one = self.arguments[place] = _copy(one)
                memory.add(where)
                self.places.append(place)
                self._elements.append(elements(one, masked=masked))
        self.tensors = [one.tensor for one in self._elements]
        """The tensors whose elements may move; those that require grad are on trial."""
        self.base = [one.base for one in self._elements]
        """Their elements, dense, to be put back after each run."""
        self.all_names = (
            list(names)
            if names is not None
            else [".".join(parameter_at(function, place)) for place in range(len(arguments))]
        )
        self.scatter = 0.0
        """How far two computations of one gradient were apart; only looked at with `nondet_tol`."""
        self._memory = _Memory() if nondet_tol > 0 else None
        self._kept: list[int] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the elements: those of the function's parameters, or "arg0", …"""
        return [self.all_names[place] + one.suffix for place, one in zip(self.places, self._elements, strict=True)]

    def differentiable(self) -> list[torch.Tensor]:
        """The outputs that require grad, at the given point."""
        return [one for one in self.results() if one.requires_grad]

    def closed_over(self) -> list[torch.Tensor]:
        """The tensors that require grad and that the function reaches by another way than its arguments."""
        copies = [_copy(one) if isinstance(one, torch.Tensor) else one for one in self.arguments]
        given = {id(one) for one in copies}
        reached = [getattr(node, "variable", None) for node in nodes_behind(self.results(copies))]
        return [one for one in reached if one is not None and id(one) not in given]

    def results(self, arguments: Sequence[Any] | None = None) -> list[torch.Tensor]:
        """The outputs that count: those that require grad at the given point, or every floating one where none does,
        whose gradient, zero, is then on trial."""
        found = self.function(*(self.arguments if arguments is None else arguments))
        outputs = list(found) if isinstance(found, list | tuple) else [found]
        if self._kept is None:
            for one in outputs:
                check_output(one)
            floating = [k for k, one in enumerate(outputs) if one.dtype.is_floating_point or one.dtype.is_complex]
            self._kept = [k for k in floating if outputs[k].requires_grad] or floating
        return [outputs[k] for k in self._kept]

    def __call__(self, point: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs at a point, one tensor for each of `tensors`; differentiable where the point requires grad."""
        if any(one.requires_grad for one in point):
            if not self.forward_mode:
                return list(_Reverse.apply(self, *point))  # type: ignore[no-untyped-call]
            detached = [one.detach() for one in point]
            # Here, because there is no forward mode inside the forward of a Function.
            return list(_Forward.apply(self.recorded(detached), self.columns(detached), *point))  # type: ignore[no-untyped-call]
        try:  # as `placed` does, which takes twice as long: this runs at each of many points
            self._hold(point)
            with torch.enable_grad():
                return [_values(one) for one in self.results()]
        finally:
            self._put_back()

    @contextlib.contextmanager
    def placed(self, point: Sequence[torch.Tensor]) -> Iterator[None]:
        """The tensors with other contents, for a while. Under autograd."""
        try:
            self._hold(point)
            with torch.enable_grad():
                yield
        finally:
            self._put_back()

    def _hold(self, point: Sequence[torch.Tensor]) -> None:
        with _no_modes() if torch._C._len_torch_function_stack() else _AS_IT_IS:
            for place, one, value in zip(self.places, self._elements, point, strict=True):
                self.arguments[place] = one.hold(value)

    def _put_back(self) -> None:
        with _no_modes() if torch._C._len_torch_function_stack() else _AS_IT_IS:
            for place, one in zip(self.places, self._elements, strict=True):
                self.arguments[place] = one.put_back()

    def recorded(self, point: list[torch.Tensor], wanted: Sequence[bool] | None = None) -> Tape:
        """One run under autograd. `wanted`: which of the tensors require grad, where not all do that are on trial."""
        known = self._memory.tape_at(point) if self._memory is not None and wanted is None else None
        if known is not None:
            return known
        with self.placed(point), self.frozen(wanted):
            # Not the tensors themselves: another dtype in between gives a tensor another place in autograd's graph.
            outputs = self.results()
            edges = [edge_of(self.arguments[place]) for place in self.places]
            tape = Tape(point, outputs, [one.requires_grad for one in outputs], edges, wanted)
        if self._memory is not None and wanted is None:
            self._memory.tapes.append(tape)
        return tape

    @contextlib.contextmanager
    def frozen(self, wanted: Sequence[bool] | None) -> Iterator[None]:
        """Those that are not wanted require no grad, for a while; what is no leaf has a stand-in."""
        if wanted is None:
            yield
            return
        frozen = []
        with _no_modes() if torch._C._len_torch_function_stack() else _AS_IT_IS:
            for place, yes in zip(self.places, wanted, strict=True):
                one = self.arguments[place]
                if yes or not one.requires_grad:
                    continue
                if one.is_leaf:
                    frozen.append(one.requires_grad_(False))
                else:
                    self.arguments[place] = one.detach()
        try:
            yield
        finally:
            with _no_modes() if torch._C._len_torch_function_stack() else _AS_IT_IS:
                for one in frozen:
                    # A function may have written into it, as it may not into a leaf that requires grad.
                    (one if one.is_leaf else one.detach_()).requires_grad_()

    def pulled(self, tape: Tape, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Gradients by the elements; None where there is no dependence."""
        rows = zip(tape.outputs, tape.live, cotangents, strict=True)
        pairs = [(o, u) for o, live, u in rows if u is not None and live]
        wanted = [edge for edge in tape.edges if edge is not None]
        tried = [one for one, edge in zip(self._elements, tape.edges, strict=True) if edge is not None]
        if not pairs or not wanted:
            return [None for _ in tape.edges]
        roots, weights = [o for o, _ in pairs], [u for _, u in pairs]

        def attempt() -> list[torch.Tensor | None]:
            with self.placed(tape.point), self.frozen(tape.wanted):  # which a backward may run the function again for
                # What torch.autograd.grad calls in the end. Around that, torch takes away the modes that hold.
                found = torch.autograd.Variable._execution_engine.run_backward(
                    tuple(roots),
                    tuple(weights),
                    True,
                    False,
                    tuple(wanted),
                    allow_unreachable=True,
                    accumulate_grad=False,
                )
            return [slope if slope is None else one.gradient(slope) for one, slope in zip(tried, found, strict=True)]

        if self._memory is None or any(_is_batched(one) for one in weights):
            found = iter(attempt())
        else:
            kept, apart = self._memory.gradients(tape, weights, attempt)
            self.scatter = max(self.scatter, apart)
            found = iter(kept)
        return [next(found) if edge is not None else None for edge in tape.edges]

    def columns(self, point: Sequence[torch.Tensor]) -> list[list[list[torch.Tensor]]]:
        """The Jacobian by forward mode: for each tensor, for each of its real coordinates, the outputs' tangents."""
        found: list[list[list[torch.Tensor]]] = []
        for place, one in enumerate(point):
            if not self.tensors[place].requires_grad:
                found.append([])
                continue
            units = (1.0, 1j) if one.dtype.is_complex else (1.0,)
            moves = [{place: _unit(one, k, unit)} for k in range(one.numel()) for unit in units]
            found.append([[tangent.detach() for tangent in self.pushed(point, move)] for move in moves])
        return found

    def pushed(self, point: Sequence[torch.Tensor], tangents: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs' tangents for tangents of some of the tensors, by forward mode, on copies."""
        with forward_ad.dual_level(), torch.enable_grad():
            arguments = list(self.arguments)
            for place, one in enumerate(point):
                value = one.detach().clone()
                dual = forward_ad.make_dual(value, tangents[place]) if place in tangents else value  # type: ignore[no-untyped-call]
                arguments[self.places[place]] = self._elements[place].alike(dual)
            outputs = [plain(one) for one in self.results(arguments)]
            parts = [forward_ad.unpack_dual(one) for one in outputs]  # type: ignore[no-untyped-call]
            return [
                torch.zeros_like(one) if part.tangent is None else part.tangent.clone()
                for one, part in zip(outputs, parts, strict=True)
            ]


@dataclasses.dataclass(eq=False, slots=True)
class Tape:
    """One run at a point, and where gradients by each tensor arrive; None for those that require none."""

    point: list[torch.Tensor]
    outputs: list[torch.Tensor]
    live: list[bool]  # which of them required grad in that run: one may be an argument, which is frozen now and then
    edges: list[Any]
    wanted: Sequence[bool] | None = None


class _Memory:
    """Runs and gradients that were computed before, for functions whose gradients differ from run to run."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self._found: list[tuple[Tape, list[torch.Tensor], list[torch.Tensor | None]]] = []

    def tape_at(self, point: Sequence[torch.Tensor]) -> Tape | None:
        """The run at exactly that point."""
        return next((one for one in self.tapes if _same(one.point, point)), None)

    def gradients(
        self, tape: Tape, cotangents: list[torch.Tensor], attempt: Callable[[], list[torch.Tensor | None]]
    ) -> tuple[list[torch.Tensor | None], float]:
        """The gradients for these cotangents, and how far another attempt was from them."""
        for run, weights, found in self._found:
            if run is tape and _same(weights, cotangents):
                return found, 0.0
        first, second = attempt(), attempt()
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None and a.numel()]
        self._found.append((tape, [one.clone() for one in cotangents], first))
        return first, max((float((a - b).abs().nan_to_num().max()) for a, b in pairs), default=0.0)


@contextlib.contextmanager
def _no_modes() -> Iterator[None]:
    """Without what torch asks about every call: the engine may have it raise whatever the function holds itself."""
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)


def _is_batched(tensor: torch.Tensor) -> bool:
    """Whether it is one of vmap's, of torch.func's or of the older one that autograd uses."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


class _Reverse(torch.autograd.Function):
    """One run, pulled back by autograd from the outputs to the original tensors."""

    @staticmethod
    def forward(ctx: Any, run: Originals, *point: torch.Tensor) -> Any:
        ctx.run = run
        wanted = ctx.needs_input_grad[1:]
        some = run.freezes and any(x.requires_grad and not yes for x, yes in zip(run.tensors, wanted, strict=True))
        ctx.tape = run.recorded([one.detach() for one in point], wanted if some else None)
        ctx.set_materialize_grads(False)
        return tuple(_values(one) for one in ctx.tape.outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        return (None, *ctx.run.pulled(ctx.tape, cotangents))


class _Forward(torch.autograd.Function):
    """One run, whose pull-back is made of what forward mode says of every coordinate."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, columns: list[list[list[torch.Tensor]]], *point: torch.Tensor) -> Any:
        ctx.point, ctx.columns = tape.point, columns
        ctx.set_materialize_grads(False)
        return tuple(_values(one) for one in tape.outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        found: list[torch.Tensor | None] = []
        for one, columns in zip(ctx.point, ctx.columns, strict=True):
            if not columns:
                found.append(None)
                continue
            slopes = torch.stack([_product(cotangents, tangents) for tangents in columns])
            if one.dtype.is_complex:
                slopes = torch.view_as_complex(slopes.reshape(-1, 2).contiguous())
            found.append(slopes.reshape(one.shape).to(one.dtype))
        return (None, None, *found)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Another leaf with the same contents."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _values(output: torch.Tensor) -> torch.Tensor:
    """What an output holds, and nothing more."""
    return plain(output.detach()).clone()


def _product(cotangents: Sequence[torch.Tensor | None], tangents: Sequence[torch.Tensor]) -> torch.Tensor:
    """The real inner product of cotangents with tangents, summed over the outputs."""
    terms = [
        (wide(u).conj() * wide(one)).real.sum() for u, one in zip(cotangents, tangents, strict=True) if u is not None
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def _unit(tensor: torch.Tensor, place: int, value: complex) -> torch.Tensor:
    found = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    found[place : place + 1].fill_(value)
    return found.reshape(tensor.shape)


def check_output(output: Any) -> None:
    """Raises for what has no numerical derivative here: what is no tensor, or not a dense one."""
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"func: expected a tensor, or a tuple or list of them, got {type(output).__name__}")
    if output.layout is not torch.strided:
        raise ValueError(
            f"func: an output of {layout_of(output)} is not supported; call to_dense() on it in the function"
        )
    if not is_plain(output):
        raise ValueError(
            f"func: an output of type {type(output).__name__} is not supported; give a dense tensor of its elements"
        )

"""Holds a graph against the function that it was traced from: values and gradients, at several points, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch

from gradoracle.tracing import blame, points
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.autograd import gradients
from gradoracle.tracing.compare import close, same_bits, summary
from gradoracle.tracing.points import Point
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.refusals import Unfaithful, refusal
from gradoracle.tracing.replay import OutsideWriteError, Replay
from gradoracle.tracing.seeds import SEED, seed
from gradoracle.v1 import graph_pb2 as pb

_REPEATS = 24  # runs of a function, before it counts as one that repeats itself


@dataclasses.dataclass(slots=True)
class Results:
    """Of one run: outputs and gradients by name."""

    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor | None]

    @property
    def finite(self) -> int:
        """How many elements of the outputs are finite."""
        return sum(_finite(one) for one in self.outputs.values())

    @property
    def named(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Everything that is compared, with its name in words."""
        yield from ((f'output "{name}"', one) for name, one in self.outputs.items())
        yield from ((f'gradient of "{name}"', one) for name, one in self.gradients.items())


class Checker:
    """Checks graphs of one function. What the function gives at each point is kept for the next graph."""

    def __init__(self, call: Call, reporter: Reporter) -> None:
        self._call = call
        self._reporter = reporter
        self._eager: dict[str, Results | Exception] = {}

    def check(self, graph: pb.Graph, *, sizes_vary: bool) -> None:
        """Raises Unfaithful where the graph and the function differ anywhere, TraceError where that cannot be told.

        The given point and one near it must be among those that agree. Points farther away, with signs changed and
        whole numbers shuffled, count where the function takes them. A function that raises at every other point is
        refused: a graph that was checked at one point alone may have kept anything of it.
        """
        replay = Replay(graph, self._call.device)
        here = points.given(self._call.leaves)
        self._reporter.stage("checking at the given point")
        try:
            self._compare(replay, graph, here)
            self._reporter.stage("checking at another point")
            self._check_nearby(replay, graph, self._expected(here).finite)
        except _FunctionRaised as raised:
            raise raised.error from None
        except _Unrepeatable as found:
            raise refusal(
                f"the {found} differs from one call of the function to the next, with the same torch.manual_seed",
                blame.of_function(self._call.fn),
                "make it a function of its arguments: no clock, no counter, no random numbers but torch's",
                construct="function that does not repeat itself",
            ) from None
        if sizes_vary or any(leaf.shuffles for leaf in self._call.leaves):
            for point in points.elsewhere(self._call.leaves):
                # Shuffled numbers may be no valid indices any more, and some operators then read what is not theirs.
                with contextlib.suppress(_FunctionRaised, _Unrepeatable):
                    self._compare(replay, graph, point)

    def _check_nearby(self, replay: Replay, graph: pb.Graph, finite: int) -> None:
        """The first point that the function takes, and at which it is finite in as many places or nearly."""
        tried: Exception | None = None
        compared = False
        for point in points.nearby(self._call.leaves):
            try:
                self._compare(replay, graph, point)
            except _FunctionRaised as raised:
                tried = raised.error
                continue
            compared = True
            if self._expected(point).finite >= 0.75 * finite:
                return
        if not compared:
            raise refusal(
                "the function raises at every other point that was tried, so that the graph could be checked at the "
                f"given one only ({type(tried).__name__}: {str(tried)[:200]})",
                blame.of_function(self._call.fn),
                "trace it at a point around which it is defined",
                construct="defined at one point only",
            )

    def second_order_agrees(self, graph: pb.Graph) -> bool:
        """Whether gradients of the graph's gradients are the function's, near enough, at a point nearby."""
        replay = Replay(graph, self._call.device)
        self._reporter.stage("checking second derivatives")
        point = next(points.nearby(self._call.leaves))
        try:
            expected = self._second(self._run_function, point)
            found = self._second(lambda leaves: self._run_replay(replay, graph, leaves), point, hooks=False)
        except Exception:
            return False
        return all(close(one, other) for one, other in zip(expected, found, strict=True))

    def _compare(self, replay: Replay, graph: pb.Graph, point: Point) -> None:
        expected = self._expected(point)
        try:
            found = self._replayed(replay, graph, point)
        except OutsideWriteError:
            raise self._differs(point, "the graph would change an input or a constant") from None
        except Exception as error:
            raise self._differs(point, f"the graph raises {type(error).__name__}: {str(error)[:200]}") from error
        difference = self._difference(expected, found, point, lambda: self._replayed(replay, graph, point))
        if difference:
            raise self._differs(point, difference)

    def _difference(self, expected: Results, found: Results, point: Point, replayed: Callable[[], Results]) -> str:
        """The first thing that differs, in words; "" where nothing does.

        Some of torch's own operators give other bits from call to call. Where the function or the graph does, they need
        to agree only as nearly as the function's own results do.
        """
        repeated: list[tuple[Results, Results]] = []
        for (what, one), (_, other) in zip(expected.named, found.named, strict=True):
            if same_bits(one, other):
                continue
            repeated = repeated or self._repeated(point, replayed)
            ones = [dict(each.named)[what] for each, _ in repeated]
            others = [dict(each.named)[what] for _, each in repeated]
            if all(same_bits(one, each) for each in ones) and all(same_bits(other, each) for each in others):
                return f"the {what} differs: {summary(one, other)}"
            if not all(close(one, each) for each in ones):
                raise _Unrepeatable(what)
            if not close(one, other):
                return f"the {what} differs: {summary(one, other)}"
        return ""

    def _repeated(self, point: Point, replayed: Callable[[], Results]) -> list[tuple[Results, Results]]:
        """More runs of the function and of the graph, in memory that others used before, which may show."""
        found = []
        for size in range(_REPEATS):
            generator = torch.Generator().manual_seed(size)
            kept = [torch.randint(0, 2, (count,), generator=generator, dtype=torch.int32) for count in range(1, 65)]
            del kept
            found.append((self._run_eager(point), replayed()))
        return found

    def _differs(self, point: Point, what: str) -> Unfaithful:
        return Unfaithful(
            f"a graph of its operators does not give what the function gives ({point.description}): {what}",
            blame.of_function(self._call.fn),
            "write what depends on more than its arguments' values, shapes and dtypes with torch's operators",
            construct="self-check",
        )

    # ---- Running

    def _expected(self, point: Point) -> Results:
        kept = self._eager.get(point.description)
        if kept is None:
            try:
                kept = self._run_eager(point)
            except Exception as error:
                kept = error
            self._eager[point.description] = kept
        if isinstance(kept, Exception):
            raise _FunctionRaised(kept)
        return kept

    def _run_eager(self, point: Point) -> Results:
        return self._run(self._run_function, point)

    def _replayed(self, replay: Replay, graph: pb.Graph, point: Point) -> Results:
        return self._run(lambda leaves: self._run_replay(replay, graph, leaves), point, hooks=False)

    def _run_function(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(self._call.run(self._call.started(leaves)))

    def _run_replay(self, replay: Replay, graph: pb.Graph, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = [one for one, leaf in zip(leaves, self._call.leaves, strict=True) if not leaf.is_buffer]
        with _as_on_a_server():
            return dict(zip((one.name for one in graph.outputs), replay(inputs), strict=True))

    def _run(self, run: _Run, point: Point, *, hooks: bool = True) -> Results:
        leaves = self._call.fresh(point.values, hooks=hooks)
        with _quietly():
            outputs, pulled = _first(run, leaves)
        named = {leaf.name: one for leaf, one in zip(self._call.leaves, pulled, strict=True) if leaf.requires_grad}
        return Results({name: one.detach() for name, one in outputs.items()}, named)

    def _second(self, run: _Run, point: Point, *, hooks: bool = True) -> list[torch.Tensor]:
        """Gradients of random combinations of the gradients; zeros where there are none."""
        leaves = self._call.fresh(point.values, hooks=hooks)
        with _quietly():
            _, pulled = _first(run, leaves, create_graph=True)
            generator = torch.Generator().manual_seed(SEED + 1)
            slopes = [one for one in pulled if one is not None]
            again = gradients(slopes, [_cotangent(one, generator) for one in slopes], leaves)
        return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, again, strict=True)]


def _finite(tensor: torch.Tensor) -> int:
    wide = tensor.float() if tensor.dtype.is_floating_point and tensor.itemsize == 1 else tensor
    return int(wide.isfinite().sum())


_Run: TypeAlias = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]


def _first(
    run: _Run, leaves: Sequence[torch.Tensor], *, create_graph: bool = False
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]:
    """Outputs, and gradients of a random combination of them by each leaf."""
    seed()
    outputs = run(leaves)
    generator = torch.Generator().manual_seed(SEED)
    cotangents = [_cotangent(one, generator) for one in outputs.values()]
    return outputs, gradients(list(outputs.values()), cotangents, leaves, create_graph=create_graph)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        yield


class _Unrepeatable(Exception):  # noqa: N818 - the caller's function is at fault
    """The function gives something else with every call. The message is what."""


class _FunctionRaised(Exception):  # noqa: N818 - the caller's function raised, nothing here did
    def __init__(self, error: Exception) -> None:
        self.error = error


@contextlib.contextmanager
def _as_on_a_server() -> Iterator[None]:
    """Without what the caller may have set around the trace: autocast, another default dtype."""
    dtype = torch.get_default_dtype()
    kinds = ["cpu", "cuda"] if torch.cuda.is_initialized() else ["cpu"]  # type: ignore[no-untyped-call]
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        yield


def _cotangent(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not (output.dtype.is_floating_point or output.dtype.is_complex):
        return torch.zeros_like(output)
    kind = torch.complex64 if output.dtype.is_complex else torch.float32
    return torch.randn(output.shape, generator=generator, dtype=kind).to(dtype=output.dtype, device=output.device)

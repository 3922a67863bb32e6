"""Gradients of the same graph again and again, on a GPU: what one run has launched is launched once more, all at once.

A small operator takes longer to launch than to run. A CUDA graph holds all launches of a run, forward and backward,
and reads and writes the same memory each time (A. Gray, "Getting Started with CUDA Graphs", NVIDIA, 2019): inputs are
copied into that before it is replayed, and results must be taken out of it before the next replay.

A request is recorded when the same has come a few times: the same graph, asked the same about tensors of the same
shapes and dtypes. A recording counts only if it gives every bit of what the run before it gave; where it does not, or
where a run cannot be recorded, as those that wait for the device or draw random numbers, it is run as it was.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from gradoracle_server.engine import autodiff
from gradoracle_server.engine.autodiff import Gradients, Tensors
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan

R = TypeVar("R")

AFTER = 3
"""Requests like it that a request must follow to be recorded."""

_MOST = 16  # recordings, each of which holds the memory of a run
_COUNTED = 512  # kinds of requests that are counted
_LARGEST = 8 * 1024 * 1024  # bytes of inputs: what takes long to run need not be launched quickly
_WARM_UP = 3  # runs beside the recording, as torch advises, in which libraries choose what they will do

_HOST = torch.device("cpu")


class Recorder(Protocol):
    """What records a run."""

    def record(self, run: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        """Runs it, and gives its result with a function whose every call writes that anew, from the same inputs'
        memory. Raises RuntimeError where the run cannot be recorded."""


class CudaRecorder:
    """CUDA graphs of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self, run: Callable[[], R]) -> tuple[R, Callable[[], None]]:
        """As `Recorder.record`; the launches of a few runs before it go over a stream of their own."""
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run()
        return found, graph.replay


@dataclasses.dataclass(slots=True)
class _Recording:
    """A run whose inputs and results stay where they are."""

    primals: dict[str, torch.Tensor]
    cotangents: dict[str, torch.Tensor]
    found: Gradients
    replay: Callable[[], None]

    def again(self, primals: Tensors, cotangents: Tensors) -> Gradients:
        """The results for other numbers, until the next replay."""
        for mine, given in ((self.primals, primals), (self.cotangents, cotangents)):
            for name, memory in mine.items():
                memory.copy_(given[name])
        self.replay()
        return Gradients(list(self.found.outputs), dict(self.found.gradients))


class Replays:
    """The recordings of one worker, the least recently used given up first. Without a recorder there are none."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._recordings: collections.OrderedDict[Any, _Recording] = collections.OrderedDict()
        self._counts: collections.OrderedDict[Any, int] = collections.OrderedDict()

    @property
    def is_empty(self) -> bool:
        """Whether `clear` would give nothing back."""
        return not self._recordings

    def clear(self) -> None:
        """Gives back the memory of all of them. What was recorded may be recorded again."""
        self._recordings.clear()

    def vjp(
        self,
        graph: bytes | None,
        plan: Plan,
        primals: Tensors,
        phases: Phases,
        *,
        cotangents: Tensors,
        **asked: Sequence[str],
    ) -> Gradients:
        """What `autodiff.vjp` gives, in every bit; `asked` are its further options. `graph` are the bytes of the plan's
        graph; None: not known."""
        if self._recorder is None or graph is None:
            return autodiff.vjp(plan, primals, phases, cotangents=cotangents, **asked)
        names = tuple((option, tuple(value)) for option, value in asked.items())
        key = graph, _kinds(primals), _kinds(cotangents), names
        if (recording := self._recordings.get(key)) is not None:
            self._recordings.move_to_end(key)
            with phases.measure("forward"):
                return recording.again(primals, cotangents)
        found = autodiff.vjp(plan, primals, phases, cotangents=cotangents, **asked)
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > _COUNTED:
            self._counts.popitem(last=False)
        if count == AFTER and _suits(plan, primals, cotangents):
            made = self._recorded(plan, primals, cotangents, asked, found)
            if made is not None:
                self._recordings[key] = made
                self._counts[key] = 0  # it may be given up, and come again
            if len(self._recordings) > _MOST:
                self._recordings.popitem(last=False)
        return found

    def _recorded(
        self,
        plan: Plan,
        primals: Tensors,
        cotangents: Tensors,
        asked: Mapping[str, Sequence[str]],
        expected: Gradients,
    ) -> _Recording | None:
        """None where it cannot be, or gives something else than the run that has just been."""
        assert self._recorder is not None  # noqa: S101 - the caller has looked
        mine = {name: one.clone() for name, one in primals.items()}
        theirs = {name: one.clone() for name, one in cotangents.items()}
        quiet = Phases(_HOST)  # to measure would be to wait for the device, which no recording can

        def run() -> Gradients:
            return autodiff.vjp(plan, mine, quiet, cotangents=theirs, **asked)

        try:
            made = _Recording(mine, theirs, *self._recorder.record(run))
            found = made.again(primals, cotangents)
            same = all(map(_same, _tensors(found), _tensors(expected)))
        except Exception:  # what an operator does that waits for the device, or memory that there is not
            return None
        return made if same else None


def _suits(plan: Plan, primals: Tensors, cotangents: Tensors) -> bool:
    """Whether a run may be recorded, as far as can be told before it is tried."""
    size = sum(one.nbytes for tensors in (primals, cotangents) for one in tensors.values())
    if size > _LARGEST or plan.wants_zeros or plan.spec.structures:
        return False
    return not any(torch.Tag.nondeterministic_seeded in one.overload.tags for one in plan.operators.values())


def _kinds(tensors: Tensors) -> tuple[Any, ...]:
    return tuple((name, one.dtype, tuple(one.shape)) for name, one in tensors.items())


def _tensors(found: Gradients) -> Iterable[torch.Tensor | None]:
    return [*found.outputs, *found.gradients.values()]


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are the same in every bit."""
    if one is None or other is None:
        return one is other
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left, right = (
        each.resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8) for each in (one, other)
    )
    return torch.equal(left, right)

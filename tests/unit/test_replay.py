"""Recorded runs, by a recorder that needs no GPU: it runs again what it was given, in the memory of the first run."""

from __future__ import annotations

import math

import pytest
import torch
from engine_cases import CPU, build, node

from gradoracle_server.engine import autodiff, replay
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.replay import AFTER, Replays

F64 = torch.float64


class Recorder:
    """As a CUDA graph is: results stay where they are, and are written anew from the inputs that the run had."""

    def __init__(self, *, fault: str = "") -> None:
        self.records = self.replays = 0
        self.fault = fault

    def record(self, run):
        self.records += 1
        if self.fault == "waits":
            raise RuntimeError("operation not permitted when stream is capturing")
        found = run()

        def again():
            self.replays += 1
            new = run()
            for mine, other in zip(found.outputs, new.outputs, strict=True):
                mine.copy_(other)
            for name, mine in found.gradients.items():
                if mine is not None:
                    mine.copy_(new.gradients[name])
                    if self.fault == "a bit":
                        mine.view(-1)[0] = torch.nextafter(mine.view(-1)[0], torch.tensor(math.inf, dtype=mine.dtype))

        return found, again


def bits(found):
    """Every bit of a result."""
    both = [*enumerate(found.outputs), *found.gradients.items()]
    return {name: None if one is None else (one.dtype, tuple(one.shape), one.numpy().tobytes()) for name, one in both}


class Caller:
    """Makes requests of one graph."""

    def __init__(self, made, recorder, key=b"graph"):
        self.plan, self.recorder, self.key = made, recorder, key
        self.replays = Replays(recorder)

    def ask(self, primals, cotangents=None, **asked):
        """A request; its result must be what a run gives."""
        given = {"cotangents": cotangents or {}, **asked}
        found = bits(self.replays.vjp(self.key, self.plan, primals, Phases(CPU), **given))
        assert found == bits(autodiff.vjp(self.plan, primals, Phases(CPU), **given))
        return found


def numbers(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def made():
    """sum(sin(x) * y)."""
    nodes = [node("s", "sin.default", "%x"), node("p", "mul.Tensor", "%s", "%y"), node("out", "sum.default", "%p")]
    return build("x y", nodes, "out")


def summed(target, *arguments):
    """The sum of what an operator makes of x."""
    return build("x", [node("s", target, "%x", *arguments), node("out", "sum.default", "%s")], "out")


def test_what_comes_again_and_again_is_replayed(made):
    """From the one after the third on, with other numbers each time, and the bits of a run."""
    caller = Caller(made, Recorder())
    seen = [caller.ask({"x": numbers(4, seed=k), "y": numbers(4, seed=-k)}) for k in range(AFTER + 5)]
    assert (1, 1 + 5) == (caller.recorder.records, caller.recorder.replays)
    assert len({one["x"] for one in seen}) == len(seen)


def test_results_are_not_those_of_the_next_request(made):
    """What has been taken out of a result stays."""
    caller = Caller(made, Recorder())
    for k in range(AFTER + 1):
        caller.ask({"x": numbers(4, seed=k), "y": numbers(4)})
    first = caller.ask({"x": numbers(4, seed=100), "y": numbers(4)})
    assert first != caller.ask({"x": numbers(4, seed=101), "y": numbers(4)})
    assert first == caller.ask({"x": numbers(4, seed=100), "y": numbers(4)})


def test_another_question_is_another_recording(made):
    """By shapes, dtypes, cotangents, what is asked for, and the graph."""
    caller = Caller(made, Recorder())
    x, y = numbers(4), numbers(4, seed=1)
    single = {"x": x.float(), "y": y.float()}
    for _ in range(AFTER + 1):
        caller.ask({"x": x, "y": y})
        caller.ask({"x": x[:3].clone(), "y": y[:3].clone()})
        caller.ask(single)
        caller.ask({"x": x, "y": y}, {"out": torch.tensor(2.0, dtype=F64)})
        caller.ask({"x": x, "y": y}, wrt=["x"])
    assert 5 == caller.recorder.records
    caller.key = b"other"
    caller.ask({"x": x, "y": y})
    assert 5 == caller.recorder.records
    caller.key = None  # a graph that came in pieces, whose bytes are not known
    for _ in range(AFTER + 1):
        caller.ask({"x": x, "y": y})
    assert 5 == caller.recorder.records


@pytest.mark.parametrize("fault", ["waits", "a bit"])
def test_what_cannot_be_recorded_is_run(made, fault):
    """It is tried once; a recording that differs in a bit counts for nothing."""
    caller = Caller(made, Recorder(fault=fault))
    for k in range(3 * AFTER):
        caller.ask({"x": numbers(4, seed=k), "y": numbers(4)})
    assert 1 == caller.recorder.records
    assert caller.replays.is_empty


def test_random_and_large_ones_are_run(monkeypatch):
    """The random ones' numbers are the seed's, and large ones take longer than their launches."""
    drawn = Caller(summed("dropout.default", 0.5, True), Recorder())
    for _ in range(AFTER + 1):
        drawn.replays.vjp(b"g", drawn.plan, {"x": numbers(4)}, Phases(CPU), cotangents={})
    monkeypatch.setattr(replay, "_LARGEST", 4 * 8 - 1)
    large = Caller(summed("sin.default"), Recorder())
    for _ in range(AFTER + 1):
        large.ask({"x": numbers(4)})
    assert (0, 0) == (large.recorder.records, large.recorder.replays)


def test_without_a_recorder_all_are_run(made):
    """As on a CPU."""
    caller = Caller(made, None)
    for _ in range(2 * AFTER):
        caller.ask({"x": numbers(4), "y": numbers(4)})
    assert caller.replays.is_empty


def test_few_are_held_and_all_given_back(made, monkeypatch):
    """The least recently used goes first, and comes again when it is asked for again; memory is given back at once."""
    monkeypatch.setattr(replay, "_MOST", 2)
    caller = Caller(made, Recorder())

    def often(size, times=AFTER + 1):
        for _ in range(times):
            caller.ask({"x": numbers(size), "y": numbers(size)})
        return caller.recorder.records

    assert [1, 2, 2, 3, 3, 4] == [often(2), often(3), often(2, 1), often(4), often(2, 1), often(3)]
    caller.replays.clear()
    assert caller.replays.is_empty
    assert 5 == often(2)

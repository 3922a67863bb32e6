"""Passes one after another and in batches: the same values, whatever a map does with its memory and its points."""

from __future__ import annotations

import math

import pytest
import torch
from check_cases import F64

from gradoracle_server.engine import evaluate
from gradoracle_server.engine import passes as passes_module
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.passes import Passes

CPU = torch.device("cpu")


def passes(function, *inputs, outputs=1, looked_at=None):
    """Of a function of tensors that gives a list of them."""
    found = function(*inputs)
    weights = [torch.ones_like(one) if looked_at is None or looked_at[k] else None for k, one in enumerate(found)]
    made = Passes(lambda point: function(*point), list(inputs), weights, device=CPU, seed=0)
    made.batching = False
    return made


def test_a_loop_gives_what_a_batch_gives():
    """Of several inputs and outputs, real and complex, of which one is not looked at."""
    x, y = torch.randn(3, dtype=F64), torch.randn(2, 3, dtype=torch.complex128)

    def function(x, y):
        return [torch.sin(x), y * x, x.sum(), (y * 1j).conj()]

    made = passes(function, x, y, looked_at=[True, True, False, True])
    points = {0: torch.randn(5, 3, dtype=F64), 1: torch.randn(5, 2, 3, dtype=torch.complex128)}
    looped = made.at(points, 5)
    made.batching = True
    batched = made.at(points, 5)
    assert made.batching
    assert looped.shape == batched.shape == (5, 3 + 12 + 12)
    assert torch.equal(looped, batched)
    assert made.count == 1 + 5 + 5


def test_a_map_may_use_its_memory_again():
    """As a kernel does that writes into a buffer of its own."""
    buffer = torch.empty(3, dtype=F64)

    def function(x):
        torch.mul(x, 2, out=buffer)
        return [buffer]

    made = passes(function, torch.ones(3, dtype=F64))
    points = torch.arange(12, dtype=F64).reshape(4, 3)
    assert torch.equal(made.at({0: points}, 4), 2 * points)


def test_a_map_may_write_into_its_inputs():
    """Each pass has a copy of its own, with no more memory behind it than its elements."""

    def function(x):
        assert x.untyped_storage().nbytes() == 3 * 8
        return [x.mul_(2).clone()]

    made = passes(lambda x: [x * 2], torch.ones(3, dtype=F64))
    made._function = lambda point: function(*point)
    points = torch.arange(12, dtype=F64).reshape(4, 3)
    kept = points.clone()
    assert torch.equal(made.at({0: points}, 4), 2 * kept)
    assert torch.equal(points, kept)


def test_where_a_map_refuses_a_point_nothing_is_known():
    """Or where it gives outputs of another shape; other points are what they are."""

    def function(x):
        if x[0] < 0:
            raise Fault("COMPUTATION_FAILED", "no")
        if x[0] == 1:
            raise RuntimeError("no")
        return [x[:2] if x[0] == 2 else x]

    made = passes(function, torch.full((3,), 9.0, dtype=F64))
    found = made.at({0: torch.tensor([-1.0, 1, 2, 3], dtype=F64)[:, None].expand(4, 3)}, 4)
    assert found[:3].isnan().all()
    assert found[3].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("from_", [0.0, 2.0], ids=["always", "once a number is large"])
def test_every_pass_draws_the_same(from_):
    """Also where only some points make a map draw, and whatever was drawn before."""

    def function(x):
        return [x + torch.rand(3, dtype=F64) if x[0] >= from_ else x * 1]

    made = passes(function, torch.zeros(3, dtype=F64))
    torch.manual_seed(0)
    drawn = torch.rand(3, dtype=F64)
    points = torch.arange(4, dtype=F64)[:, None].expand(4, 3)
    want = torch.where(points >= from_, points + drawn, points)
    for _ in range(2):
        torch.manual_seed(7)
        assert torch.equal(made.at({0: points}, 4), want)


def test_generators_are_seeded_once_where_nothing_draws(monkeypatch):
    """Seeding takes as long as a small operator; where a map draws, each pass is seeded, and none is spent in vain but
    those of the first loop."""
    seeded = []
    real = evaluate.seed_everything
    monkeypatch.setattr(passes_module, "seed_everything", lambda *how: (seeded.append(how), real(*how)))
    points = {0: torch.ones(10, 3, dtype=F64)}
    plain = passes(lambda x: [x * 2], torch.ones(3, dtype=F64))
    seeded.clear()
    plain.at(points, 10)
    assert len(seeded) == 1
    drawing = passes(lambda x: [x * torch.rand(())], torch.ones(3, dtype=F64))
    drawing.at(points, 10)
    assert drawing.count == 1 + 10 + 10
    seeded.clear()
    drawing.at(points, 10)
    assert len(seeded) == 10
    assert drawing.count == 1 + 10 + 10 + 10


def test_faults_that_are_none_of_the_point_are_raised():
    """A limit is not an edge of the domain."""
    made = passes(lambda x: [x], torch.ones(1, dtype=F64))

    def limited(point):
        raise Fault("LIMIT_EXCEEDED", "no")

    made._function = limited
    with pytest.raises(Fault, match="no"):
        made.at({0: torch.ones(2, 1, dtype=F64)}, 2)


def test_a_map_may_leave_autograd_on():
    """And give outputs that require grad: what is kept of them does not."""

    def function(x):
        torch._C._set_grad_enabled(True)
        return [x.requires_grad_() * 2]

    before = torch.is_grad_enabled()
    made = passes(lambda x: [x * 2], torch.ones(2, dtype=F64))
    made._function = lambda point: function(*point)
    try:
        found = made.at({0: torch.ones(3, 2, dtype=F64)}, 3)
    finally:
        torch._C._set_grad_enabled(before)
    assert found.tolist() == [[2.0, 2.0]] * 3
    assert not found.requires_grad


def test_nothing_is_recorded():
    """Maps run without autograd, in batches and in a loop."""
    seen = []

    def function(x):
        seen.append(torch.is_grad_enabled())
        return [x * 2]

    made = passes(lambda x: [x * 2], torch.ones(2, dtype=F64))
    made._function = lambda point: function(*point)
    with torch.enable_grad():
        for batching in (True, False):
            made.batching = batching
            made.at({0: torch.ones(3, 2, dtype=F64)}, 3)
        made.tried({0: torch.ones(3, 2, dtype=F64)}, 3)
        made.batches_agree(0)
    assert seen
    assert not any(seen)


def test_units_of_outputs_in_several_precisions():
    """One number where all have the same; one an output coordinate where they have not."""
    x = torch.ones(2, dtype=F64)
    assert passes(lambda x: [x, x.sum()], x).units == torch.finfo(F64).eps
    mixed = passes(lambda x: [x, x.float().sum()], x)
    assert isinstance(mixed.units, torch.Tensor)
    assert mixed.units.tolist() == [2.0**-52, 2.0**-52, 2.0**-23]
    assert math.isclose(mixed.rounding, 2 * 2.0**-52 + 2 * 2.0**-23)

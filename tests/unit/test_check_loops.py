"""Checks of functions that vmap cannot batch, kernels behind a torch.autograd.Function above all: each point is a pass
of its own, and few are to be spent."""

import math

import pytest
import torch
from check_cases import F64, check

from gradoracle_server.engine import examine
from gradoracle_server.engine.passes import NoBatchesError, Passes
from gradoracle_server.engine.report import Verdict

PASSES = 3  # of any check: the run under autograd, its repetition, the base point
FROZEN = 1  # where there are several inputs, for each: the run in which the others are frozen
RUNG = 12  # passes that one direction takes


def scaled(weight: torch.Tensor, told: torch.Tensor):
    """x -> weight x, with a gradient that says it was `told`."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * weight

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * told

    return Scale.apply


def ones(count: int) -> torch.Tensor:
    """In steps that no power of two divides."""
    return torch.linspace(0.7, 1.3, count, dtype=F64)


@pytest.mark.parametrize("count", [5, 60, 100])
def test_a_passing_check_takes_as_few_passes_as_that_of_a_large_input(count: int):
    report = check(scaled(ones(count), ones(count)), ones(count))
    assert report.verdict is Verdict.PASS
    assert report.evaluations <= PASSES + 4 * RUNG


def test_fewer_elements_than_directions_are_moved_one_by_one():
    report = check(scaled(ones(3), ones(3)), ones(3))
    assert report.verdict is Verdict.PASS
    assert report.evaluations == PASSES + 3 * RUNG


def test_each_of_two_inputs_has_directions_enough():
    weight = ones(20)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return x * y * weight

        @staticmethod
        def backward(ctx, cotangent):
            x, y = ctx.saved_tensors
            return cotangent * y * weight, cotangent * x * weight

    report = check(Product.apply, ones(20), ones(20).flip(0))
    assert report.verdict is Verdict.PASS
    assert report.evaluations == PASSES + FROZEN * 2 + 2 * 2 * RUNG


@pytest.mark.parametrize(("count", "small"), [(20, 3e-4), (60, 1.5e-4), (200, 1.5e-4)])
@pytest.mark.parametrize("element", [1, 3])
@pytest.mark.parametrize("fault", [1e-8, 1e-6, -2.0])
def test_a_wrong_element_that_the_others_drown_out_is_named(count: int, small: float, element: int, fault: float):
    weight = torch.ones(count, dtype=F64)
    weight[:4] = small  # along no direction with the others does 1e-8 of it show
    told = weight.clone()
    told[element] *= 1 + fault
    cotangents = {"out0": torch.ones(count, dtype=F64)}
    report = check(scaled(weight, told), ones(count), cotangents=cotangents)
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].worst[0].index == (element,)
    right = check(scaled(weight, weight), ones(count), cotangents=cotangents)
    assert right.verdict is Verdict.PASS
    assert right.evaluations <= PASSES + (4 + 4) * RUNG


def test_each_of_four_inputs_has_directions_enough():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return torch.stack(inputs).sum(0)

        @staticmethod
        def backward(ctx, cotangent):
            return (cotangent,) * 4

    report = check(Sum.apply, *(ones(20) for _ in range(4)))
    assert report.verdict is Verdict.PASS
    assert report.evaluations == PASSES + FROZEN * 4 + 4 * 2 * RUNG


def test_nor_behind_those_whose_values_bend():
    """An element whose gradient is three millionths of the largest, under the rounding of the others' values."""

    def polygamma(factor):
        class Third(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return torch.polygamma(3, x)

            @staticmethod
            def backward(ctx, cotangent):
                (x,) = ctx.saved_tensors
                right = cotangent * torch.polygamma(4, x)
                right[-1] *= factor
                return right

        return Third.apply

    x = torch.linspace(0.5, 7.4, 25, dtype=F64)
    assert check(polygamma(1.0), x).verdict is Verdict.PASS
    report = check(polygamma(1 + 1e-8), x)
    assert report.verdict is Verdict.FAIL
    assert report.inputs[0].worst[0].index == (24,)


@pytest.mark.parametrize(("fault", "seen"), [(1e-4, 2), (1.0, 3)])
def test_nor_behind_elements_of_a_small_input_that_are_a_million_times_as_large(fault: float, seen: int):
    weight = torch.ones(30, dtype=F64)
    weight[:3] = torch.tensor([1e-5, 1e-7, 1e-9], dtype=F64)
    for element in range(seen):  # where rounding of the other outputs does not hide it
        told = weight.clone()
        told[element] *= 1 + fault
        report = check(scaled(weight, told), ones(30))
        assert report.verdict is Verdict.FAIL
        assert report.inputs[0].worst[0].index == (element,)
    right = check(scaled(weight, weight), ones(30))
    assert right.verdict is Verdict.PASS
    assert right.evaluations <= PASSES + (4 + 3) * RUNG


def test_what_is_said_to_have_no_influence_is_moved_together():
    weight = ones(30)
    weight[10:25] = 0.0
    right = check(scaled(weight, weight), ones(30))
    assert right.verdict is Verdict.PASS
    assert right.evaluations == PASSES + (4 + 1) * RUNG
    for influence in (1e-10, 1e-6, 1.0):
        moved = weight.clone()
        moved[17] = influence
        report = check(scaled(moved, weight), ones(30))
        assert report.verdict is Verdict.FAIL
        assert report.inputs[0].worst[0].index == (17,)


def test_a_kink_in_one_element_is_found_among_many():
    class Ramp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0.0)

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return cotangent * (x > 0)

    x = ones(40)
    x[11] = 0.0
    report, batched = check(Ramp.apply, x), check(torch.relu, x)
    assert report.verdict is batched.verdict
    assert report.inputs[0].kink == batched.inputs[0].kink
    assert [one.index for one in report.inputs[0].worst] == [one.index for one in batched.inputs[0].worst]


@pytest.mark.parametrize(("told", "moved"), [(1.0, 0), (2.0, 1), (math.nan, 1)])
def test_what_directions_do_not_pass_is_moved_element_by_element(told: float, moved: int, monkeypatch):
    """Whatever they say of it, a small input is judged as where batches make that cheap."""
    seen = []
    move_alone = examine.Examiner.move_alone

    def noted(self):
        if found := move_alone(self):
            seen.append(self.units and len(self.slopes.value) == 30)
        return found

    monkeypatch.setattr(examine.Examiner, "move_alone", noted)
    report = check(scaled(ones(30), ones(30) * told), ones(30))
    assert report.verdict is (Verdict.FAIL if moved else Verdict.PASS)
    assert seen == [True] * moved


def test_whoever_wants_batches_alone_is_told_that_there_are_none():
    def function(point):
        if any(torch._C._functorch.is_functorch_wrapped_tensor(one) for one in point):
            raise RuntimeError("no rule")
        return [point[0] * 2]

    passes = Passes(function, [ones(3)], [ones(3)], device=torch.device("cpu"), seed=0)
    points = {0: torch.stack([ones(3), -ones(3)])}
    with pytest.raises(NoBatchesError), passes.in_batches():
        passes.at(points, 2)
    assert not passes.batching
    assert torch.equal(passes.at(points, 2), points[0] * 2)


def test_an_input_that_moves_nothing_is_not_paid_for_by_whole_ladders():
    """Whether shorter steps move what the first ones do not, a few of them tell."""
    weight = ones(8)

    class Overwritten(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return y * weight + 0 * x.round().clamp(0, 0)

        @staticmethod
        def backward(ctx, cotangent):
            return torch.zeros_like(cotangent), cotangent * weight

    report = check(Overwritten.apply, ones(8), ones(8) + 0.1)
    assert report.verdict is Verdict.PASS
    shorter = 3 * 2  # the longest steps of three further ladders, both ways
    alone = RUNG + shorter  # along one direction of all elements that move nothing, as the gradient says
    assert report.evaluations == PASSES + FROZEN * 2 + 2 * 2 * RUNG + 2 * shorter + alone


def test_a_step_within_the_first_ones_is_found_by_shorter_ones():
    """What moves only near to the point is no zero gradient."""

    class Near(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            here = torch.full_like(x, 1.0)
            return torch.where((x - here).abs() < 1e-4, 5 + x - here, 5.0)

        @staticmethod
        def backward(ctx, cotangent):
            return torch.zeros_like(cotangent)

    report = check(Near.apply, torch.ones(6, dtype=F64))
    assert report.verdict is not Verdict.PASS


def test_an_element_that_rounding_hides_is_not_followed_down_every_ladder():
    """Shorter steps are tried where they promise a fault of the size that is looked for."""
    weight = ones(100)
    weight[7] = 2e-4

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (x * weight).sum()

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * weight

    report = check(Sum.apply, ones(100))
    assert report.verdict is Verdict.PASS
    assert report.evaluations == PASSES + (4 + 1) * RUNG

"""The engine on Python callables: plans that call a function, and whether it has a float64 shadow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

import pytest
import torch

from gradoracle import inprocess
from gradoracle.v1 import check_pb2
from gradoracle.v1 import service_pb2 as pb
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec
from gradoracle_server.engine.inprocess import CallablePlan, is_smooth_in_float64
from gradoracle_server.worker import callables

F64 = torch.float64
Tensors = Sequence[torch.Tensor]


def plan(function: object, *, raisable: bool = True) -> CallablePlan:
    """A plan of one input "x" of three float32 numbers."""
    return CallablePlan(function, [(InputSpec("x"), torch.ones(3))], ["out"], raisable=raisable)  # type: ignore[arg-type]


def test_a_callable_is_not_batched() -> None:
    """vmap never sees the function: it is run one point at a time."""
    calls = []

    def function(point: Tensors) -> list[torch.Tensor]:
        calls.append(point)
        return [point[0].sin()]

    program = plan(function).program()
    with pytest.raises(RuntimeError, match="is not batched"):
        torch.func.vmap(lambda x: program([x])[0])(torch.ones(2, 3))
    assert calls == []
    assert torch.equal(torch.ones(3).sin(), program([torch.ones(3)])[0])


def test_another_shape_is_a_fault() -> None:
    """Who tries another shape, to diagnose, gets a Fault with the shapes, and the function is not called."""
    with pytest.raises(Fault, match=r'input "x" has shape \[3\], got a tensor of shape \[2, 3\]'):
        plan(lambda point: 1 / 0).program()([torch.ones(2, 3)])


def test_the_shadow_of_a_callable() -> None:
    """Where the function is one in float64 the shadow calls it with that; where not, with what it can take."""
    for raisable, seen in ((True, F64), (False, torch.float32)):
        dtypes: list[torch.dtype] = []

        def function(point: Tensors, dtypes: list[torch.dtype] = dtypes) -> list[torch.Tensor]:
            dtypes.append(point[0].dtype)
            return [point[0]]

        made = plan(function, raisable=raisable)
        made.rebuilt(made.spec).program()([torch.ones(3, dtype=F64)])
        assert dtypes == [seen]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda point: [point[0].exp()], True),
        (lambda point: [torch.relu(point[0])], True),
        (lambda point: [point[0].float().exp().double()], False),
        (lambda point: [point[0].exp().float()], False),
        (lambda point: [point[0] @ torch.ones(3)], False),
        (lambda point: [point[0].exp(), point[0].half().double()], False),
    ],
)
def test_smooth_in_float64(function: object, expected: bool) -> None:
    """A function that rounds to less on the way, gives less, or takes less, is none in float64."""
    assert is_smooth_in_float64(function, [torch.tensor([0.1, -0.7, 2.3])]) is expected  # type: ignore[arg-type]


def test_the_entry_point_is_installed() -> None:
    """The client finds the engine under the name by which it looks for it."""
    [found] = metadata.entry_points(group="gradoracle.engine", name="callables")
    assert found.load() is callables
    assert inprocess.engine() is callables


def test_the_entry_point_answers_as_a_server() -> None:
    """It gives a CheckGradientsResponse, or the status that a server would send; never an exception of its own."""
    x = torch.tensor([0.1, -0.7, 2.3], dtype=F64)

    def asked(claim: torch.Tensor) -> tuple[int, bytes]:
        return callables.check(
            lambda point: [point[0].sin().sum()],
            {"x": (x, True)},
            ["out"],
            pb.CheckGradientsRequest().SerializeToString(),
            claimed={"x": claim},
            cotangents={},
            raisable=True,
        )

    for factor, verdict in ((1.0, check_pb2.VERDICT_PASS), (1.001, check_pb2.VERDICT_FAIL)):
        code, answer = asked(x.cos() * factor)
        assert code == 0
        assert pb.CheckGradientsResponse.FromString(answer).report.verdict == verdict
    code, answer = asked(x[:2])
    assert code == 3  # INVALID_ARGUMENT
    assert b'the gradient of input "x" has shape [3], got a tensor of shape [2]' in answer

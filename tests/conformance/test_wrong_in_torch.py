"""The list of gradients that are wrong in torch: each is wrong by mathematics, and the check says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mpmath
import pytest
import torch

from conformance.corpus import checkers, wrong_in_torch
from conformance.corpus.checkers import FAIL, PASS
from conformance.corpus.graphs import checked, plan_of, plan_of_function
from conformance.corpus.wrong_in_torch import MINIMAL, Minimal
from gradoracle.tracing import trace
from gradoracle_server.engine.check import Options
from gradoracle_server.engine.report import Mode

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:index_reduce\(\) is in beta"),
    pytest.mark.usefixtures("one_thread"),
]

PAGE = Path(__file__).parent / "wrong_in_torch.md"


def gradient(minimal: Minimal) -> torch.Tensor:
    """Eager torch's."""
    tracked = [one.clone().requires_grad_() for one in minimal.inputs]
    value = minimal.function(*tracked)
    ones, again = torch.ones_like(value), minimal.order == 2
    found = torch.autograd.grad(value, tracked, ones, create_graph=again, materialize_grads=True)
    if minimal.order == 2:
        found = torch.autograd.grad(found[0].sum(), tracked)
    return found[minimal.place]


def tolerance(minimal: Minimal) -> float:
    """Relative: no rounding explains more."""
    return max(1e-9, 8 * torch.finfo(minimal.inputs[minimal.place].dtype).eps)


@pytest.mark.parametrize("minimal", MINIMAL, ids=lambda one: one.name)
def test_the_exact_function_is_torchs(minimal: Minimal) -> None:
    """torch's own values sum to those of the function that is differentiated exactly."""
    value = minimal.function(*minimal.inputs).sum().item()
    with mpmath.workdps(40):
        exact = complex(minimal.exact(minimal.points()))
    assert complex(value) == pytest.approx(exact, rel=tolerance(minimal), abs=1e-17)


@pytest.mark.parametrize("minimal", MINIMAL, ids=lambda one: one.name)
def test_torchs_gradient_is_not_the_derivative(minimal: Minimal) -> None:
    """torch gives what the list says, which is further from mpmath's derivative than rounding explains."""
    mine, right = gradient(minimal), minimal.right()
    torch.testing.assert_close(mine, torch.tensor(minimal.torchs, dtype=mine.dtype), equal_nan=True, rtol=1e-12, atol=0)
    assert not torch.allclose(mine.to(right.dtype), right, rtol=tolerance(minimal), atol=0)


def verdict(minimal: Minimal, claim: torch.Tensor | None = None) -> str:
    """The check's, on the input whose gradient is wrong; of a claim, for a cotangent of ones."""
    inputs, ones = minimal.inputs, torch.ones_like(minimal.function(*minimal.inputs))
    if is_low(minimal):  # which is judged beside the same graph in float64
        made = plan_of(trace(minimal.function, *inputs))
    else:
        made = plan_of_function(minimal.function, len(inputs))
    names = [one.name for one in made.spec.inputs]
    claimed = {} if claim is None else {names[minimal.place]: claim}
    report = checked(
        made,
        dict(zip(names, inputs, strict=True)),
        claimed=claimed,
        cotangents={made.spec.outputs[0][0]: ones} if claimed else {},
        options=Options(mode=Mode.PROBE, order=minimal.order),
    )
    (found,) = [one.verdict.name for one in report.inputs if one.name == names[minimal.place]]
    return found


def is_low(minimal: Minimal) -> bool:
    """Whether the point is in low precision."""
    return minimal.inputs[minimal.place].dtype in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("minimal", MINIMAL, ids=lambda one: one.name)
def test_the_check_fails_torchs_gradient(minimal: Minimal) -> None:
    """FAIL, of the input whose gradient is wrong."""
    assert FAIL == verdict(minimal)


@pytest.mark.parametrize("minimal", [one for one in MINIMAL if one.order == 1], ids=lambda one: one.name)
def test_the_check_passes_the_right_gradient_as_a_claim(minimal: Minimal) -> None:
    """mpmath's derivative is right, whatever autograd says; the same with a fault is not."""
    claim = minimal.right().to(minimal.inputs[minimal.place].dtype)
    assert [PASS, FAIL] == [verdict(minimal, claim), verdict(minimal, claim + 0.5)]


def test_conv_tbc_cannot_take_back_a_cotangent_that_is_not_contiguous() -> None:
    """Its backward pass raises, for numbers of which it gives the right gradient where they lie contiguously."""
    x = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(3, 2, 2)
    weight = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(2, 2, 3)
    bias = torch.zeros(3, dtype=torch.float64)
    lying = torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2).permute(2, 1, 0)
    tracked = x.clone().requires_grad_()
    value = torch.conv_tbc(tracked, weight, bias)
    assert value.shape == lying.shape
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        torch.autograd.grad(value, tracked, lying, retain_graph=True)
    (found,) = torch.autograd.grad(value, tracked, lying.contiguous())
    weights, cotangent = weight.int().tolist(), lying.int().tolist()
    right = [
        [
            [
                sum(cotangent[t - k][b][o] * weights[k][i][o] for k in range(2) if 0 <= t - k < 2 for o in range(3))
                for i in range(2)
            ]
            for b in range(2)
        ]
        for t in range(3)
    ]
    assert right == found.int().tolist()
    report = checkers.checked(checkers.Case("right", torch.conv_tbc, (x, weight, bias)), Mode.PROBE)
    assert [FAIL] * 3 == [one.verdict.name for one in report.inputs]
    assert "a non-contiguous cotangent must give the same; it raised: view size" in report.inputs[0].explanation


def _masked_softmax(x: torch.Tensor, lies: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    mask = torch.tensor([[True, False], [False, False]])
    found: torch.Tensor = torch.ops.aten._masked_softmax(lies(x.mT), mask, 1)
    return found


def _attention(x: torch.Tensor, lies: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    query, key = lies(x[..., ::2]), lies(x[..., 1::2])
    found: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key)[0]
    return found


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (_masked_softmax, [[1.0, 2.0], [4.0, 8.0]]),
        (_attention, [[[[1.0, 2.0, -1.0, 0.5], [0.5, 1.0, 2.0, -1.0]]]]),
    ],
    ids=["_masked_softmax", "flash attention"],
)
def test_what_is_not_contiguous_is_misread(function: Callable[..., torch.Tensor], x: list[object]) -> None:
    """The same numbers give other values when they lie otherwise, and gradients that the check fails."""
    given = torch.tensor(x, dtype=torch.float64)
    right = function(given, torch.Tensor.contiguous)
    assert not torch.allclose(function(given, _as_it_is), right, rtol=1e-3)

    judged = [
        checkers.checked(checkers.Case("right", lambda x, lies=lies: function(x, lies), (given,)), Mode.PROBE)
        for lies in (_as_it_is, torch.Tensor.contiguous)
    ]
    assert [FAIL, PASS] == [one.verdict.name for one in judged]


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


def test_vmap_over_the_backward_of_cdist_is_wrong() -> None:
    """Rows of a Jacobian, pulled back together, differ from the same rows one by one, which are the exact ones."""
    x, y = torch.tensor([[0.0, 0.0], [6.0, 8.0]]).double().requires_grad_(), torch.tensor([[3.0, 4.0]]).double()
    distances = torch.cdist(x, y)
    rows = torch.eye(2, dtype=torch.float64).reshape(2, 2, 1)

    def pulled(row: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(distances, x, row, retain_graph=True)[0]

    right = torch.tensor([[[-0.6, -0.8], [0.0, 0.0]], [[0.0, 0.0], [0.6, 0.8]]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([pulled(row) for row in rows]), right)
    assert not torch.allclose(torch.func.vmap(pulled)(rows), right, atol=0.1)


def test_the_forward_mode_of_logcumsumexp_is_wrong() -> None:
    """Where values differ by much: the tangent of the first one is that of x[0] itself. Reverse mode knows."""
    x = torch.tensor([0.0, 30.0], dtype=torch.float64)
    tangent = torch.func.jvp(lambda x: torch.logcumsumexp(x, 0), (x,), (torch.ones_like(x),))[1]
    assert [0.4834, 1.0] == pytest.approx(tangent.tolist(), abs=1e-4)
    rows = torch.func.jacrev(lambda x: torch.logcumsumexp(x, 0))(x)
    assert [1.0, 1.0] == pytest.approx(rows.sum(1).tolist(), rel=1e-12)
    made = plan_of_function(lambda x: torch.logcumsumexp(x, 0), 1)
    verdicts = [
        checked(made, {made.spec.inputs[0].name: x}, options=Options(forward_mode=asked)).verdict.name
        for asked in (False, True)
    ]
    assert [PASS, FAIL] == verdicts


@pytest.mark.parametrize("order", [-0.5, -1, -2, -3.5])
def test_the_second_derivative_of_norms_of_negative_order_is_nan(order: float) -> None:
    """At zeros, where the first one is 0, and the norm of one number that is not 0 beside others that are is 0."""
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    norm = torch.linalg.vector_norm
    assert 0 == norm(torch.tensor([0.5, 0.0]), order)
    (first,) = torch.autograd.grad(norm(x, order), x, create_graph=True)
    assert not first.any()
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.isnan().all()
    case = checkers.Case("right", lambda x: norm(x, order), (x.detach(),), order=2)
    (found,) = checkers.checked(case, Mode.PROBE).inputs
    assert (FAIL, "NAN") == (found.verdict.name, found.diagnosis.name)


def test_the_page_is_the_list() -> None:
    """`wrong_in_torch.md` is what the list prints."""
    assert wrong_in_torch.page() == PAGE.read_text(encoding="utf-8")

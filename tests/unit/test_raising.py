"""The float64 shadow of what holds or makes low-precision tensors of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from check_cases import check, planted
from torch import nn

import gradoracle as go
from gradoracle.tracing import trace
from gradoracle_server.engine import shadow, trial
from gradoracle_server.engine.graph import FunctionSpec, GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.inprocess import CallablePlan, is_smooth_in_float64
from gradoracle_server.engine.plan import Plan, build
from gradoracle_server.engine.raising import Raising
from gradoracle_server.engine.report import Verdict

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


WEIGHT = draw(4, 6, seed=1)
X = draw(3, 4)


class Scaled(torch.autograd.Function):
    """x @ w, whose backward is wrong by a factor."""

    @staticmethod
    def forward(ctx, x, w, factor):
        ctx.save_for_backward(w)
        ctx.factor = factor
        return x @ w

    @staticmethod
    def backward(ctx, g):
        (w,) = ctx.saved_tensors
        return ctx.factor * (g @ w.T), None, None


class BySide(torch.autograd.Function):
    """tanh by numpy in float32, which torch does not see."""

    @staticmethod
    def forward(ctx, x):
        value = torch.from_numpy(np.tanh(x.detach().numpy().astype(np.float32)))
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx, g):
        (value,) = ctx.saved_tensors
        return g * (1 - value**2)


@pytest.fixture(scope="module")
def client():
    """Of a private server."""
    with go.Client.local() as found:
        yield found


# ---- The mode


def test_dtypes_mix():
    """A product of two dtypes is one of float64, with the exact values of the lower one."""
    wide = X.to(F64)
    with Raising() as mode:
        found = wide @ WEIGHT
    assert torch.equal(found, wide @ WEIGHT.to(F64))
    assert mode.met == {F32}
    with pytest.raises(RuntimeError, match="dtype"):
        wide @ WEIGHT


@pytest.mark.parametrize(
    ("make", "met"),
    [
        (lambda x: x.float(), F32),
        (lambda x: x.half(), torch.float16),
        (lambda x: x.bfloat16(), BF16),
        (lambda x: x.to(F32), F32),
        (lambda x: x.to(dtype=BF16), BF16),
        (lambda x: x.type(torch.float16), torch.float16),
        (lambda x: x.to(WEIGHT), F32),
        (lambda x: torch.zeros_like(x, dtype=BF16) + x, BF16),
    ],
)
def test_nothing_is_lowered(make, met):
    """Casts give what they got, and are remembered."""
    wide = X.to(F64) / 3
    with Raising() as mode:
        found = make(wide)
    assert found.dtype is F64
    assert torch.equal(found, wide)
    assert mode.met == {met}


def test_whole_numbers_are_left_alone():
    """Only what has a gradient is raised."""
    wide = X.to(F64)
    with Raising() as mode:
        assert torch.arange(3).dtype is torch.int64
        assert (wide > 0).dtype is torch.bool
        assert torch.ones(3, dtype=torch.int32).dtype is torch.int32
        assert torch.ones(2, dtype=torch.complex64).dtype is torch.complex128
    assert mode.met == {torch.complex64}


def test_random_numbers_are_the_same():
    """They are drawn in the precision in which the function draws them."""
    torch.manual_seed(3)
    expected = torch.rand(5), torch.randn(5, dtype=torch.float16)
    torch.manual_seed(3)
    with Raising():
        found = torch.rand(5), torch.randn(5, dtype=torch.float16)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype is F64
        assert torch.equal(one, two.to(F64))


def test_what_is_written_elsewhere_is_lost():
    """A buffer of float32 stays what it was; what the function makes itself can be written to."""
    buffer = torch.zeros(3, 4)
    with Raising():
        buffer.copy_(X.to(F64))
        made = torch.zeros(3, 4)
        made[1:] = X.to(F64)[1:]
    assert torch.equal(buffer, torch.zeros(3, 4))
    assert torch.equal(made[1:], X.to(F64)[1:])
    assert made.dtype is F64


# ---- Shadows

MAKERS = {
    "weights": lambda x: (x @ WEIGHT).relu(),
    "ones": lambda x: torch.tanh(x @ torch.ones(4, 6)) @ torch.ones(6),
    "random numbers": lambda x: torch.mm(x, torch.rand(4, 6)).sin(),
    "zeros": lambda x: torch.cat([x, torch.zeros(3, 2)], 1) @ torch.eye(6),
    "a linear layer": lambda x: nn.functional.linear(x, WEIGHT.T, torch.full((6,), 0.1)).exp(),
    "a convolution": lambda x: nn.functional.conv1d(x[:, None], WEIGHT[:2, :2][:, None]).tanh(),
}


def off_by(factor):
    """A backward whose last element is wrong."""

    def wrong(inputs, cotangent, right):
        found = right[0].clone()
        found.view(-1)[-1] *= factor
        return (found,)

    return wrong


@pytest.mark.parametrize("name", MAKERS)
def test_a_function_with_tensors_of_its_own(name):
    """Its gradient is held against one in float64: right to the last place, and 1e-4 in one element is a fault."""
    report = check(MAKERS[name], X)
    assert report.verdict is Verdict.PASS
    assert report.detection_power < 1e-4
    if name != "random numbers":  # of which the planted backward would draw others
        assert check(planted(MAKERS[name], off_by(1.0001)), X).verdict is Verdict.FAIL


@pytest.mark.parametrize("name", [one for one in MAKERS if one != "random numbers"])
def test_a_graph_of_such_a_function(client, name):
    """Traced, the function is as good, for autograd's gradient and for a claim."""
    graph = trace(MAKERS[name], X)
    right = client.vjp(graph, {"x": X.numpy()}, {graph.outputs[0]: ONES[name]}).gradients["x"]
    wrong = np.array(right)
    wrong[-1, -1] *= np.float32(1.0001)
    for claim, passes in ((right, True), (wrong, False)):
        report = client.check(graph, {"x": X.numpy()}, claimed={"x": claim}, cotangents={"out": ONES[name]})
        assert report.passed is passes


ONES = {name: np.ones(tuple(make(X).shape), dtype=np.float32) for name, make in MAKERS.items()}


def test_a_gradient_of_its_own_in_a_graph(client):
    """The constants of a graph's functions are raised as its own are."""
    graph = trace(lambda x: Scaled.apply(x, WEIGHT, 1.0).sin(), X)
    assert graph.message.functions
    wrong = trace(lambda x: Scaled.apply(x, WEIGHT, 1.0001).sin(), X)
    assert client.check(graph, {"x": X.numpy()}).passed
    assert client.check(wrong, {"x": X.numpy()}).verdict is go.Verdict.FAIL


def test_the_constants_of_a_function():
    """They are raised with the graph's own, and so are the dtypes that it names: it needs no mode."""

    def graph(*names):
        node = NodeSpec("y", "aten.mul.Tensor", (Ref(names[-1]), Ref("c")))
        cast = NodeSpec("z", "aten._to_copy.default", (Ref("y"),), {"dtype": BF16})
        inputs = tuple(InputSpec(name) for name in names)
        return GraphSpec(inputs, (node, cast), (("x" if len(names) > 1 else "out", "z"),), (("c", X),))

    function = FunctionSpec("f", graph("x"), graph("x", "cotangent.out"))
    spec = GraphSpec((InputSpec("x"),), (NodeSpec("y", "function.f", (Ref("x"),)),), (("out", "y"),), (), (function,))
    plan = Plan(spec, torch.device("cpu"), {}, {}, {})
    assert plan.dtypes([X]) == {F32, BF16}
    (wide,) = shadow.raised_graph(spec).functions
    for part in (wide.forward, wide.backward):
        assert [value.dtype for _, value in part.constants] == [F64]
        assert part.nodes[1].kwargs == {"dtype": F64}


# ---- Functions that no graph stands for


def branching(x):
    """Control flow by values, with weights."""
    found = Scaled.apply(x, WEIGHT, 1.0).tanh()
    return found * 2 if found.sum().item() > 0 else found * 3


@pytest.mark.parametrize(
    ("function", "alone", "raised"),
    [
        (lambda point: [point[0].exp()], True, True),
        (lambda point: [point[0] @ WEIGHT], False, True),
        (lambda point: [branching(point[0])], False, True),
        (lambda point: [point[0].bfloat16().exp().float()], False, True),
        (lambda point: [BySide.apply(point[0])], False, False),
    ],
)
def test_smooth_in_float64(function, alone, raised):
    """What rounds where torch does not see it is not, whatever is raised."""
    assert is_smooth_in_float64(function, [X]) is alone
    assert is_smooth_in_float64(function, [X], raising=True) is raised


def test_the_shadow_of_a_callable():
    """Its backward is raised, too, and it says which dtypes it met; the function itself computes as ever."""
    met = []

    def function(point):
        found = Scaled.apply(point[0].bfloat16(), WEIGHT.bfloat16(), 1.0)
        met.append(found.dtype)
        return [found]

    plan = CallablePlan(function, [(InputSpec("x"), X)], ["out"], raisable=True, raising=True)
    assert plan.dtypes([X]) == {F32, BF16}
    assert shadow.epsilon(plan, [X]) == torch.finfo(BF16).eps
    subject = trial.Subject(plan, [X], [0], 0)
    met.clear()
    tape = subject.tape()
    assert met == [BF16]
    twin = shadow.of(subject)
    (gradient,) = twin.tape().pull([torch.ones(3, 6, dtype=F64)])
    expected = torch.ones(3, 6, dtype=F64) @ WEIGHT.bfloat16().to(F64).T
    assert met[-1] is F64
    assert torch.allclose(gradient, torch.ones(3, 6, dtype=F64) @ WEIGHT.to(F64).T, rtol=1e-15)
    assert not torch.equal(gradient, expected)
    assert tape.pull([torch.ones(3, 6, dtype=BF16)])[0].dtype is F32


@pytest.mark.parametrize("factor", [1.0, 1.0001])
@pytest.mark.parametrize("options", [{}, {"mode": "full"}, {"order": 2}])
def test_a_check_of_such_a_function(factor, options):
    """Right and wrong gradients of float32 weights behind a gradient of one's own are told apart, in every mode."""

    def function(x):
        return Scaled.apply(x, WEIGHT, factor).sin()

    verdict = go.check(function, X.clone().requires_grad_(), **options).verdict
    assert verdict is (go.Verdict.PASS if factor == 1 else go.Verdict.FAIL)


@pytest.mark.parametrize("factor", [1.0, 1.0001])
def test_gradcheck_of_such_a_function(factor):
    """So they are by the drop-in for torch's gradcheck, also where no graph can stand for the function."""

    def function(x):
        found = Scaled.apply(x, WEIGHT, factor).sin()
        return found if found.sum().item() < 1e9 else -found

    assert go.gradcheck(function, (X.clone().requires_grad_(),), raise_exception=False) is (factor == 1)


def test_values_too_coarse_for_a_jacobian():
    """Where numpy rounds to float16 on the way, single elements vanish in the rounding: that is no fault of theirs."""

    class Coarse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(x.detach().numpy().astype(np.float16).astype(np.float32))

        @staticmethod
        def backward(ctx, g):
            return g

    x = X.clone().requires_grad_()
    report = go.check(lambda x: Coarse.apply(x @ WEIGHT), x, mode="full")
    assert report.verdict is not go.Verdict.FAIL


def test_an_operator_that_is_named_after_its_dtype():
    """Its shadow does not round either."""
    nodes = (
        NodeSpec("half", "aten.chalf.default", (Ref("x"),)),
        NodeSpec("out", "aten.to.dtype", (Ref("half"), torch.complex64)),
    )
    made = build(GraphSpec((InputSpec("x"),), nodes, (("out", "out"),)), torch.device("cpu"))
    x = X.to(F64) + 1e-9
    subject = trial.Subject(made, [x], [0], seed=0)
    coarse = shadow.epsilon(made, subject.inputs)
    assert coarse == torch.finfo(torch.float16).eps
    twin, run, _ = shadow.recorded(subject, subject.tape(), coarse)
    assert twin is not subject
    assert torch.equal(run.outputs[0].detach().real, x)

"""Functions with gradients of their own: told by their gradients, never by their operators alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trace_cases import SEED, faithful, message, tensor, worker

import gradoracle as go
from gradoracle import TraceError
from gradoracle.tracing import trace
from gradoracle.v1 import service_pb2
from gradoracle_server.frames import METHODS, Job

F64 = torch.float64
X = torch.tensor([0.5, -1.2, 2.3], dtype=F64)


class StraightThrough(torch.autograd.Function):
    """round, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Exponential(torch.autograd.Function):
    """exp, whose gradient uses its result."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


class Reversed(torch.autograd.Function):
    """The identity, with the gradient negated and scaled; written with setup_context, and a number as argument."""

    @staticmethod
    def forward(x, factor):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


class TwoOutputs(torch.autograd.Function):
    """(a * b, a + b), and a count that has no gradient."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        count = (a > 0).sum()
        ctx.mark_non_differentiable(count)
        return a * b, a + b, count

    @staticmethod
    def backward(ctx, g, h, _):
        a, b = ctx.saved_tensors
        return g * b + h, 3 * g * a + h


class AgreesHere(torch.autograd.Function):
    """2 x, whose gradient happens to be that of its operators unless a gradient is large."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return torch.where(g.abs() > 1e6, torch.zeros_like(g), g * 2)


class Clipping(torch.autograd.Function):
    """The identity, whose gradient is clipped by a branch in Python."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / g.norm() if g.norm() > 1e6 else g


class OnceOnly(torch.autograd.Function):
    """A square, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def hooked(x):
    y = x * 2
    y.register_hook(lambda g: g.clamp(-0.5, 0.5))
    return y.square().sum()


def clipped_by_hook(x):
    y = x * 2
    y.register_hook(lambda g: g / g.norm() if g.norm() > 1e6 else g)
    return y.square().sum()


def hooked_node(x):
    y = x * 2
    y.grad_fn.register_hook(lambda grads, _: (grads[0] * 3, None))
    return y.sum()


def rounded_saves(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()):
        return (x**3).sum()


CASES = {
    "straight through": lambda x: StraightThrough.apply(x * 3).square().sum(),
    "an alias of apply": lambda x, apply=StraightThrough.apply: apply(x).sin(),
    "a saved result": lambda x: Exponential.apply(x).sin(),
    "twice in a row": lambda x: Exponential.apply(StraightThrough.apply(x)),
    "reversed": lambda x: Reversed.apply(x.sin(), 0.5) * x,
    "several outputs": lambda x: TwoOutputs.apply(x, x.sin())[0] * TwoOutputs.apply(x, x)[1],
    "agrees at every likely point": lambda x: AgreesHere.apply(x).sum(),
    "once differentiable": lambda x: OnceOnly.apply(x).sum(),
    "a hook": hooked,
    "saved_tensors_hooks": rounded_saves,
    "a hook on a node": hooked_node,
    "with a branch that is constant": lambda x: StraightThrough.apply(x) if x.dim() == 1 else x,
}


WHOLE = {"saved_tensors_hooks", "a hook on a node"}
"""What makes one operator of the whole function."""


@pytest.mark.parametrize("name", CASES)
def test_its_own_gradient(name):
    """Values and gradients are eager torch's, bit for bit, and the graph names a function of its own."""
    graph = faithful(CASES[name], X)
    assert graph.message.functions
    assert ([one.name for one in graph.message.functions] == ["traced"]) == (name in WHOLE)


def test_a_module_with_a_backward_hook():
    """Full backward hooks change gradients too."""
    module = nn.Linear(3, 2).double()
    module.register_full_backward_hook(lambda _, grad_input, grad_output: (grad_input[0] * 2,))
    graph = trace(module, torch.ones(1, 3, dtype=F64))
    assert graph.message.functions


def test_a_hook_on_an_argument():
    """A hook that the caller put on a parameter is part of what its gradient is."""
    module = nn.Linear(3, 1).double()
    module.weight.register_hook(lambda g: g * 10)
    graph = trace(module, X)
    assert graph.message.functions
    found = ask("ComputeVjp", service_pb2.ComputeVjpResponse, service_pb2.ComputeVjpRequest(
        graph=graph.message, cotangents=[message("out", torch.ones(1, dtype=F64))],
        primals=[message(name, one) for name, one in [*module.named_parameters(), ("input", X)]],
    ))  # fmt: skip
    gradients = {one.name: tensor(one) for one in found.gradients}
    assert torch.equal(gradients["weight"], 10 * X.unsqueeze(0))


@pytest.mark.parametrize("fn", [lambda x: Clipping.apply(x).sum(), clipped_by_hook], ids=["Function", "hook"])
def test_branches_in_a_gradient(fn):
    """A gradient that branches on its own values is refused, also where both branches agree at hand."""
    with pytest.raises(TraceError, match=r"takes a value that depends on the inputs out of a tensor.*torch\.where"):
        trace(fn, X)


def test_random_numbers_beside_an_own_gradient_by_hook_on_a_node():
    """The gradient would draw other numbers than the values."""

    def fn(x):
        y = x * torch.rand(3, dtype=F64)
        y.grad_fn.register_hook(lambda grads, _: (grads[0] * 2, grads[1]))
        return y

    with pytest.raises(TraceError, match=r"a hook on the node MulBackward0 has a gradient that no graph expresses: .*"
                       r"aten\.rand\.default draws random numbers.*draw them outside"):  # fmt: skip
        trace(fn, X)


def ask(method, response, request):
    reply = worker().answer(Job(METHODS.index(method), request.SerializeToString()))
    assert reply.code == 0, bytes(reply.payload)
    return response.FromString(reply.payload)


def second_order(graph: go.Graph, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor | str:
    """The product of the Hessian and a vector, or the words of the error."""
    request = service_pb2.ComputeHessianRequest(
        graph=graph.message, primals=[message("x", x)], vectors=[message("x", vector)], seed=SEED
    )
    reply = worker().answer(Job(METHODS.index("ComputeHessian"), request.SerializeToString()))
    if reply.code:
        return bytes(reply.payload).decode(errors="replace")
    return tensor(service_pb2.ComputeHessianResponse.FromString(reply.payload).products[0])


@pytest.mark.parametrize("name", ["straight through", "a saved result", "reversed", "once differentiable", "a hook",
                                  "saved_tensors_hooks", "a hook on a node"])  # fmt: skip
def test_second_derivatives(name):
    """Are eager torch's, or an error; never another number."""

    def fn(x):
        return CASES[name](x).sum()

    graph = trace(fn, X)
    found = second_order(graph, X, torch.ones(3, dtype=F64))
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fn(x), x, create_graph=True)
    if isinstance(found, str):
        assert "is not implemented" in found
        return
    expected = torch.autograd.grad(slope.sum(), x)[0] if slope.requires_grad else torch.zeros(3, dtype=F64)
    torch.testing.assert_close(found, expected)


def test_each_function_apart():
    """What surrounds a custom Function stays what it is, random numbers among it; equal calls share one function."""

    def fn(x):
        noise = torch.rand(3, dtype=F64)
        y = StraightThrough.apply(nn.functional.dropout(x * noise, 0.5))
        return StraightThrough.apply(y.sin() * 3) * Exponential.apply(x)

    graph = faithful(fn, X)
    assert {one.name for one in graph.message.functions} == {"StraightThrough", "Exponential"}
    assert [node.target for node in graph.message.nodes if "aten" not in node.target] == [
        "function.StraightThrough", "function.StraightThrough", "function.Exponential",
    ]  # fmt: skip


def test_several_hooks():
    """The first hook is the first to see the gradient; one that was taken away again sees none."""

    def fn(x):
        y = x.sin()
        y.register_hook(lambda g: g.clamp(-0.5, 0.5))
        y.register_hook(lambda g: g * 4)
        y.register_hook(lambda g: g * 100).remove()
        y.register_hook(lambda g: None)
        return y * 3 + y.exp()

    graph = faithful(fn, X)
    assert all(one.name.startswith("hook") for one in graph.message.functions)


def test_a_hook_that_uses_another_value():
    """A hook's closure over a value of the run is not taken for a constant."""

    def fn(x):
        y, scale = x.sin(), x.detach().exp()
        y.register_hook(lambda g: g * scale)
        return y.square()

    graph = faithful(fn, X)
    assert [one.name for one in graph.message.functions] == ["traced"]


def test_classes_are_put_back():
    """A custom Function has afterwards the forward that it had."""
    before = [StraightThrough.__dict__["forward"], Reversed.__dict__["forward"]]
    trace(lambda x: Reversed.apply(StraightThrough.apply(x), 2.0), X)
    assert [StraightThrough.__dict__["forward"], Reversed.__dict__["forward"]] == before

    class Inherited(StraightThrough):
        pass

    trace(lambda x: Inherited.apply(x), X)
    assert "forward" not in Inherited.__dict__


def test_which_second_derivatives_there_are():
    """Those of the custom Functions that torch can differentiate twice."""
    for name in ("straight through", "a saved result", "reversed", "a hook"):
        graph = trace(lambda x, name=name: CASES[name](x).sum(), X)
        assert isinstance(second_order(graph, X, torch.ones(3, dtype=F64)), torch.Tensor)


class InPlace(torch.autograd.Function):
    """Doubles its argument in place."""

    @staticmethod
    def forward(ctx, x):
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return g * 5


def test_a_function_that_works_in_place():
    """The whole becomes one operator where a custom Function cannot stand apart."""
    graph = faithful(lambda x: InPlace.apply(x.sin()) * 2, X)
    assert [one.name for one in graph.message.functions] == ["traced"]

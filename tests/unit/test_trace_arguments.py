"""Names, containers, what is put back, progress: trace() as its docstring tells it."""

from __future__ import annotations

import dataclasses
import functools
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from trace_cases import agree, faithful, serve

import gradoracle
from gradoracle import TraceError, dtypes
from gradoracle.tracing import trace
from gradoracle.tracing.naming import name_of
from gradoracle.tracing.originals import Originals

F64 = torch.float64


def ones(*shape):
    return torch.ones(shape, dtype=F64)


def test_names_of_inputs():
    """Inputs have the names of the parameters, with the way through containers after a dot."""

    def fn(x, *xs, params, flag=True, **more):
        return x + xs[0] + params["w"] + params["deep"][1] + more["extra"]

    graph = trace(fn, ones(2), ones(2), params={"w": ones(2), "deep": [3, ones(2)]}, extra=ones(2))
    assert graph.inputs == ("x", "xs.0", "params.w", "params.deep.1", "extra")


def test_names_of_what_has_no_signature():
    """Functions written in C have the names that torch documents, or numbers."""
    assert trace(torch.add, ones(2), ones(2)).inputs == ("input", "other")
    assert trace(torch.clamp, ones(2), min=0.0).inputs == ("input",)
    assert trace(torch.ops.aten.mul.Tensor, ones(2), ones(2)).inputs[0]


class Attention(torch.autograd.Function):
    """x times a number, with the context first."""

    @staticmethod
    def forward(ctx, query, scale):
        ctx.scale = scale
        return query * scale

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None


class Modern(torch.autograd.Function):
    """The same, with the context set up apart."""

    @staticmethod
    def forward(query, scale):
        return query * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None


@pytest.mark.parametrize(
    ("fn", "arguments", "names"),
    [
        (functools.partial(torch.softmax, dim=0), (ones(3),), ["input"]),
        (functools.partial(torch.lerp, ones(3)), (ones(3), ones(3)), ["end", "weight"]),
        (Modern.apply, (ones(3), 2.0), ["query"]),
        (Attention.apply, (ones(3), 2.0), ["query"]),
        (functools.partial(torch.nn.Softmax(dim=0)), (ones(3),), ["input"]),
        (functools.partial(functools.partial(torch.add, alpha=2), ones(3)), (ones(3),), ["other"]),
        (lambda x, *more: x * more[1], (ones(3), 2.0, ones(3)), ["x", "more.1"]),
    ],
)
def test_inputs_are_named_as_what_is_called_in_the_end(fn, arguments, names):
    """After the parameters of forward, and of what a partial holds: by trace, check and gradcheck alike."""
    assert list(trace(fn, *arguments).inputs) == names
    tracked = [one.detach().requires_grad_() if isinstance(one, torch.Tensor) else one for one in arguments]
    assert Originals(fn, tracked).names == names


def test_claims_by_the_names_of_forward():
    """A dict of claims names the parameters of a Function's forward, as gradcheck's report does."""
    right = {"query": torch.full((3,), 2.0, dtype=F64)}
    for fn in (Attention.apply, Modern.apply):
        assert gradoracle.check(fn, ones(3), 2.0, claimed=right, cotangents=ones(3)).passed


def test_names_of_functions():
    """What messages call a function is what its caller wrote."""
    assert name_of(torch.sqrt) == name_of(functools.partial(torch.sqrt)) == "torch.sqrt"
    assert name_of(Attention.apply) == "Attention"
    assert name_of(torch.nn.Softmax(dim=0)) == "Softmax"
    assert name_of(torch.nn.functional.relu) == "relu"
    with pytest.raises(TraceError, match=r"torch\.numel returned the int 3, and a graph gives tensors"):
        trace(torch.numel, ones(3))


def test_partials_and_methods():
    """Whatever can be called; what a partial holds is closed over."""

    class Model:
        def __init__(self):
            self.gain = 2.0

        def __call__(self, x):
            return x * self.gain

        def other(self, x, y):
            return x - y

    graph = trace(functools.partial(lambda a, b, c: a * b + c, ones(2), c=3.0), ones(2))
    assert graph.inputs == ("b",)
    assert trace(Model(), ones(2)).inputs == ("x",)
    assert trace(Model().other, ones(2), y=ones(2)).inputs == ("x", "y")


def test_a_dataclass_that_torch_knows():
    """Containers that are registered with torch's pytrees are taken apart too."""

    @dataclasses.dataclass
    class Batch:
        inputs: torch.Tensor
        scale: float

    pytree.register_dataclass(Batch)
    graph = trace(lambda batch: batch.inputs * batch.scale, Batch(ones(2), 2.0))
    assert graph.inputs == ("batch.inputs",)


def test_names_of_outputs():
    """ "out", or "out0", "out1", … in flattening order; a dict keeps its keys; None is left out."""
    x = ones(2)
    assert trace(lambda x: x * 2, x).outputs == ("out",)
    assert trace(lambda x: [x, (x * 2, None), {"a": x + 1}], x).outputs == ("out0", "out1", "out2")
    assert trace(lambda x: {"loss": x.sum(), "aux": [x, {"deep": x * 2}]}, x).outputs == ("loss", "aux.0", "aux.1.deep")


def test_which_inputs_require_grad():
    """Floating and complex ones do, whole numbers and truth values do not."""
    kinds = [torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.bool]
    graph = trace(lambda xs: [one.clone() for one in xs], [torch.ones(2, dtype=kind) for kind in kinds])
    assert [graph.requires_grad(name) for name in graph.inputs] == [True, True, True, False, False]


@pytest.mark.parametrize("dtype", [one for one in dtypes.NUMBERS if one != "float8_e8m0fnu"])
def test_every_dtype(dtype):
    """Whatever has a wire form can be traced; whole numbers are shuffled to get to another point."""
    kind = getattr(torch, dtype)
    graph = trace(lambda x: x.clone(), torch.tensor([1, 0, 1]).to(kind))
    agree(graph, [torch.tensor([0, 1, 0]).to(kind)], lambda values: values[0].clone())


def test_what_torch_has_no_derivative_by():
    """A gradient that torch refuses is given up; if the caller marked some tensors, it is the others' that are."""
    x, target = torch.randn(3, dtype=F64), ones(3)
    graph = trace(torch.nn.functional.soft_margin_loss, x, target)
    assert [graph.requires_grad(name) for name in graph.inputs] == [True, False]

    def normalised(x, mean, variance, scale):
        return torch.nn.functional.batch_norm(x, mean, variance, training=False) * scale

    args = [torch.randn(4, 3, dtype=F64, requires_grad=True), ones(3), ones(3), ones(3)]
    graph = trace(normalised, *args)
    assert [graph.requires_grad(name) for name in graph.inputs] == [True, False, False, False]
    graph = trace(normalised, *(one.detach() for one in args))
    assert [graph.requires_grad(name) for name in graph.inputs] == [True, False, False, True]


def test_strides_of_arguments():
    """A graph works on row-major tensors, whatever the strides of those it was traced with."""
    faithful(lambda x: x.view(-1).cumsum(0), torch.arange(6.0, dtype=F64).reshape(2, 3))
    graph = trace(lambda x: x.reshape(-1) * 2, torch.arange(6.0).reshape(2, 3).T)
    agree(graph, [torch.arange(6.0).reshape(2, 3).T.contiguous()], lambda values: values[0].reshape(-1) * 2)
    expanded = trace(lambda z: z.real + z.imag, torch.ones(1, dtype=torch.complex128).expand(3).conj())
    assert expanded.inputs == ("z",)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_sparse_arguments(layout):
    """Become their indices and their values, with the gradient by the values."""
    dense = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        sparse = dense.to_sparse(layout=layout)
    graph = trace(lambda s, x: torch.sin(s @ x), sparse, ones(3, 2))
    *indices, values, x = graph.inputs
    assert x == "x"
    assert values == "s.values"
    assert (
        indices
        == {
            torch.sparse_csr: ["s.crow_indices", "s.col_indices"],
            torch.sparse_csc: ["s.ccol_indices", "s.row_indices"],
            torch.sparse_coo: ["s.indices"],
        }[layout]
    )
    parts = {
        torch.sparse_csr: lambda s: (s.crow_indices(), s.col_indices(), s.values()),
        torch.sparse_csc: lambda s: (s.ccol_indices(), s.row_indices(), s.values()),
        torch.sparse_coo: lambda s: (s._indices(), s._values()),
    }[layout](sparse)
    primals = dict(zip(graph.inputs, [*parts, ones(3, 2)], strict=True))
    outputs, gradients = serve(graph, primals, {"out": ones(2, 2)})
    leaf = dense.clone().requires_grad_()
    expected = torch.sin(leaf @ ones(3, 2))
    torch.testing.assert_close(outputs["out"], expected.detach())
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradients["s.values"].sort().values, slope[dense != 0].sort().values)


def test_nothing_of_the_callers_changes():
    """Tensors, their versions, random states, grad mode, default dtype: all as before."""
    x = torch.randn(3, requires_grad=True)
    index = torch.tensor([0, 1])
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    versions = x._version, index._version

    def fn(x, index):
        index.add_(1)
        return torch.rand(3) * x + x[index].sum()

    trace(fn, x, index)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert (x._version, index._version) == versions
    assert x.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_mode_around_the_trace(mode):
    """Does not matter, and is left as it was."""
    x = ones(3)
    with mode():
        graph = trace(lambda x: x.sin(), x)
        assert not torch.is_grad_enabled()
    assert graph.to_bytes() == trace(lambda x: x.sin(), x).to_bytes()


def test_another_default_dtype():
    """A graph that would depend on the caller's default dtype is not returned."""
    torch.set_default_dtype(F64)
    try:
        graph = trace(lambda x: x * torch.zeros(2, dtype=F64), ones(2))
        assert graph.inputs == ("x",)
        with pytest.raises(TraceError, match=r"float64\[2\] from the function, float32\[2\] from the graph"):
            trace(lambda n: n / 2, torch.tensor([1, 2]))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_graph_without_inputs():
    """A function without tensors has a graph too."""
    graph = trace(lambda n: torch.arange(n) * 2.0, 3)
    assert graph.inputs == ()
    assert serve(graph, {}, {})[0]["out"].tolist() == [0.0, 2.0, 4.0]


def test_devices_are_left_out():
    """What names the device of the trace runs on any device."""

    def fn(x):
        return x.to("cpu") + torch.ones(2, device=x.device, dtype=F64) + x.to("cpu", torch.float32).double()

    graph = faithful(fn, ones(2))
    assert "device" not in str(graph.message)


def test_counts_that_nothing_reads():
    """Operators that no output needs are left out."""
    graph = trace(torch.nn.BatchNorm1d(2), torch.randn(3, 2))
    assert not any(node.target.startswith("aten.add") for node in graph.message.nodes)
    graph = trace(lambda x: (x.exp(), x.sin())[1], ones(2))
    assert [node.target for node in graph.message.nodes] == ["aten.sin.default"]


def test_progress():
    """The callback hears what is being done, and how many operators were seen."""
    heard = []

    def chain(x):
        for _ in range(600):
            x = x.sin()
        return x

    trace(chain, ones(2), progress=lambda stage, operators: heard.append((stage, operators)))
    stages = [stage for stage, _ in heard]
    assert stages[0] == "capturing"
    assert "checking at another point" in stages
    assert heard[-1][1] >= 600


def test_progress_on_a_terminal(monkeypatch, capsys):
    """A trace of more than two seconds writes one line, and ends it; a quick one writes nothing."""
    from gradoracle.tracing import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    reporter = progress.Reporter(None)
    reporter.stage("capturing")
    reporter.close()
    assert capsys.readouterr().err == ""
    now[0] += 3
    reporter.stage("checking at another point")
    reporter.close()
    assert capsys.readouterr().err == "\rtracing: checking at another point, 0 operators so far\x1b[K\n"

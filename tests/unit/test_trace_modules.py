"""Modules: parameters become inputs, buffers constants, and the module is afterwards what it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from trace_cases import agree

from gradoracle.tracing import trace

F64 = torch.float64


class Residual(nn.Module):
    """A block with a parameter of its own, a buffer, and a shared layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("offset", torch.arange(4.0))
        self.inner = nn.Linear(4, 4)
        self.again = self.inner

    def forward(self, x, *, gain=1.0):
        return x + gain * self.scale * self.again(torch.relu(self.inner(x))) + self.offset


class Counting(nn.Module):
    """Keeps a count, a log and a running mean of its own, by assignment and in place."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(3))
        self.steps = 0
        self.log = []

    def forward(self, x):
        self.steps += 1
        self.log.append(x.shape)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.seen.add_(1)
        return (x - self.mean) * self.weight / self.seen


class Frozen(nn.Module):
    """Has a parameter that takes no gradient."""

    def __init__(self):
        super().__init__()
        self.train_me = nn.Parameter(torch.ones(3))
        self.leave_me = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)

    def forward(self, x):
        return x * self.train_me + self.leave_me


class Teacher(nn.Module):
    """Uses one of its layers without gradient."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return (self.student(x) - target).square().mean()


class Attention(nn.Module):
    """Causal self-attention by a fused operator."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def x(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape)))


def forward_pre_hooked():
    module = nn.Linear(3, 2)
    module.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    module.register_forward_hook(lambda _, args, output: output.tanh())
    return module


MODULES = {
    "linear": (lambda: nn.Linear(3, 2), x(4, 3)),
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)), x(4, 3)),
    "convolutions and batch norm, in training": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        x(2, 2, 4, 4),
    ),
    "batch norm, evaluating": (lambda: nn.BatchNorm1d(3).eval(), x(5, 3)),
    "instance and group norm": (
        lambda: nn.Sequential(nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.GroupNorm(2, 4)),
        x(2, 4, 5),
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 30), nn.Dropout(0.3)), x(4, 3)),
    "in-place activations": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2), nn.SiLU(inplace=True)), x(4, 3)
    ),
    "rnn": (lambda: nn.RNN(3, 4, num_layers=2), x(5, 2, 3)),
    "lstm": (lambda: nn.LSTM(3, 4, bidirectional=True, batch_first=True), x(2, 5, 3)),
    "gru with dropout": (lambda: nn.GRU(3, 4, num_layers=2, dropout=0.5), x(5, 2, 3)),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), x(2, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 2)), torch.tensor([0, 2, 5])),
    "multi-head attention": (lambda: Adapter(nn.MultiheadAttention(8, 2, batch_first=True)), x(2, 4, 8)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), x(2, 4, 8)),
    "transformer layer, evaluating": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).eval(), x(4, 2, 8)),
    "transformer encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        x(2, 4, 8),
    ),
    "causal attention": (Attention, x(2, 4, 8)),
    "a shared layer, a buffer": (Residual, x(2, 4)),
    "state of its own": (Counting, x(4, 3)),
    "a frozen parameter": (Frozen, x(2, 3)),
    "a teacher": (Teacher, x(2, 3)),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), x(2, 3)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), x(2, 3)),
    "forward hooks": (forward_pre_hooked, x(2, 3)),
    "bilinear": (lambda: Adapter(nn.Bilinear(3, 3, 2), 2), x(4, 3)),
    "adaptive pooling": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), x(2, 2, 8)),
    "parameter lists": (lambda: Listed(), x(2, 3)),
    "multi-label loss": (lambda: Loss(nn.MultiLabelMarginLoss()), x(2, 3)),
}  # fmt: skip


class Adapter(nn.Module):
    """Calls a module with one argument several times over."""

    def __init__(self, inner, count=3):
        super().__init__()
        self.inner, self.count = inner, count

    def forward(self, x):
        return self.inner(*([x] * self.count))


class Listed(nn.Module):
    """Keeps parameters in lists and dicts."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(2)])
        self.named = nn.ParameterDict({"b": nn.Parameter(torch.zeros(3))})

    def forward(self, x):
        return sum(x * row for row in self.rows) + self.named["b"]


class Loss(nn.Module):
    """A loss against a fixed target."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("target", torch.tensor([[1, 0, -1], [2, -1, 0]]))

    def forward(self, x):
        return self.inner(x, self.target)


def state(module):
    return {name: (one, one._version, one.detach().clone()) for name, one in
            [*module.named_parameters(), *module.named_buffers()]}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_module(name):
    """The graph's values and gradients are the module's, by its input and by its parameters, bit for bit; the module's
    parameters, buffers and other attributes are afterwards what they were."""
    make, data = MODULES[name]
    torch.manual_seed(3)
    module = make().double()
    before, training = state(module), [one.training for one in module.modules()]
    graph = trace(module, data)
    for key, (one, version, values) in state(module).items():
        assert one is before[key][0]
        assert version == before[key][1]
        assert torch.equal(values, before[key][2])
    assert [one.training for one in module.modules()] == training
    parameters = dict(module.named_parameters())
    assert graph.inputs[:-1] == tuple(parameters)
    assert [graph.requires_grad(key) for key in parameters] == [one.requires_grad for one in parameters.values()]

    def run(values):
        fresh = copy.deepcopy(module)
        fresh.load_state_dict(module.state_dict())
        return torch.func.functional_call(fresh, dict(zip(parameters, values, strict=False)), (values[-1],))

    agree(graph, [*(one.detach() for one in parameters.values()), data], run)


def test_a_method_of_a_module():
    """Its module's parameters become inputs too, as the module's do."""
    module = Residual().double()

    class Wrapped(Residual):
        def loss(self, x, y):
            return (self(x) - y).square().sum()

    module.__class__ = Wrapped
    graph = trace(module.loss, x(2, 4), x(2, 4))
    assert graph.inputs == ("scale", "inner.weight", "inner.bias", "x", "y")


def test_a_module_as_an_argument():
    """Its parameters get the argument's name in front, also within containers."""

    def loss(model, batch, *, others):
        return (others[0](model(batch["x"])) - batch["y"]).square().mean()

    graph = trace(loss, nn.Linear(3, 2), {"x": torch.ones(4, 3), "y": torch.ones(4, 1)}, others=[nn.Linear(2, 1)])
    assert graph.inputs == (
        "model.weight", "model.bias", "batch.x", "batch.y", "others.0.weight", "others.0.bias"
    )  # fmt: skip


def test_names_that_meet():
    """A parameter and an argument of the same name keep apart."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.x

    assert trace(Named(), torch.ones(2)).inputs == ("x", "x_1")


def test_attributes_are_put_back():
    """Counts, lists and assigned buffers are those of before."""
    module = Counting()
    mean, seen = module.mean, module.seen
    trace(module, torch.ones(2, 3))
    assert (module.steps, module.log) == (0, [])
    assert module.mean is mean
    assert module.seen is seen
    assert seen.tolist() == [0, 0, 0]


def test_parameters_in_plain_lists():
    """A parameter that the module keeps a second time, out of torch's sight, is the same input there."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.ParameterList([nn.Parameter(torch.full((2,), 3.0, dtype=F64)) for _ in range(2)])
            self.also = [*self.rows]

        def forward(self, x):
            return x * self.also[0] * self.rows[0] + self.also[1]

    module = Twice()
    rows = list(module.rows)
    graph = trace(module, torch.ones(2, dtype=F64))
    agree(graph, [one.detach() for one in (*rows, torch.ones(2, dtype=F64))], lambda v: v[2] * v[0] * v[0] + v[1])
    assert all(one is other for one, other in zip(module.also, rows, strict=True))


def test_a_module_that_raises_is_put_back():
    """Also where forward ends in an error, which comes out as it is."""

    class Failing(Counting):
        def forward(self, x):
            super().forward(x)
            raise LookupError("no such thing")

    module = Failing()
    weight = module.weight
    with pytest.raises(LookupError, match="no such thing"):
        trace(module, torch.ones(2, 3))
    assert module.weight is weight
    assert module.steps == 0


def test_a_compiled_module():
    """torch.compile's wrapper is looked through: what it promises is the module's own results."""
    module = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own use of TorchScript
        compiled = torch.compile(module)
    assert trace(compiled, torch.ones(3)).inputs == ("weight", "bias", "input")

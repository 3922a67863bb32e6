"""What tracing refuses, in words: the construct, its line, the next step. Each would otherwise be silently wrong."""

from __future__ import annotations

import inspect
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradoracle import TraceError
from gradoracle.tracing import trace

X = torch.tensor([0.5, -1.0, 2.0])
W = torch.ones(3, requires_grad=True)
H = W * 2
LAYER = nn.Linear(3, 3)
NORM = nn.BatchNorm1d(3, affine=False)
MEAN, VARIANCE = torch.zeros(3), torch.ones(3)
COUNTER = torch.zeros(())
CALLS = []


def branch(x):
    return x * 2 if x.sum() > 0 else x * 3  # here


def item(x):
    return x / x.sum().item()  # here


def as_float(x):
    return x * float(x[0])  # here


def while_loop(x):
    while x.norm() > 1e-3:  # here
        x = x / 2
    return x


def for_loop(x):
    for _ in range(int(x[2])):  # here
        x = x.sin()
    return x


def through_numpy(x):
    return x * torch.from_numpy(np.sin(x.detach().numpy()))  # here


def through_a_list(x):
    return x * sum(x.detach().tolist())  # here


def caught(x):
    try:
        scale = x.max().item()  # here
    except Exception:
        scale = 1.0
    return x * scale


def equality(x):
    return x * 2 if torch.equal(x, x.abs()) else x  # here


def size_of_selection(x):
    chosen = x[x > 0]
    return chosen.sum() / chosen.shape[0]  # here


def rows_of_selection(x):
    return torch.stack([row.sin() for row in x[x > 0]]).sum()  # here


def random_branch(x):
    return x if torch.rand(()) < 0.5 else x * 2  # here


def closed_over(x):
    return x * W  # here


def closed_over_result(x):
    return x * H  # here


def closed_over_module(x):
    return LAYER(x)


def default_argument(x, w=W):
    return x * w  # here


def counter(x):
    COUNTER.add_(1)  # here
    return x * COUNTER


def closed_over_module_state(x):
    return NORM(x.expand(2, 3))


def closed_over_statistics(x):
    return nn.functional.batch_norm(x.expand(2, 3), MEAN, VARIANCE, training=True)  # here


def remembered(x, kept=[]):  # noqa: B006 - the trap
    kept.append(x)
    return sum(kept)  # here


def assigned_data(x):
    y = x.clone()
    y.data = torch.ones(3)  # here
    return y * x


def own_seed(x):
    torch.manual_seed(0)
    return x * torch.rand(3)


def python_random(x):
    return x * random.random()  # noqa: S311 - the trap


def numpy_random(x):
    return x * float(np.random.rand())


def own_generator(x):
    return x * torch.rand(3, generator=torch.Generator().manual_seed(1))  # here


def number_by_its_text(x):
    return x * len(str(x))


def caught_error(x):
    a = x.unsqueeze(1) * x
    try:
        return torch.linalg.cholesky(a)  # here
    except RuntimeError:
        return torch.linalg.cholesky(a + 9 * torch.eye(3))


def rejection_sampling(x):
    return x * torch.distributions.VonMises(torch.zeros(3), torch.ones(3)).sample()  # here


def counting_calls(x):
    CALLS.append(1)
    return x * len(CALLS)


REFUSED = {
    branch: r"Tensor\.__bool__ takes a value that depends on the inputs .*torch\.where",
    item: r"Tensor\.item takes a value that depends on the inputs out of a tensor, and the graph would keep the value "
    r"of this one run; compute with tensors instead",
    as_float: r"Tensor\.__float__ takes a value",
    while_loop: r"Tensor\.__bool__ takes a value",
    for_loop: r"Tensor\.__int__ takes a value",
    through_numpy: r"Tensor\.numpy takes a value",
    through_a_list: r"Tensor\.tolist takes a value",
    caught: r"Tensor\.item takes a value",
    equality: r"aten\.equal takes a value",
    size_of_selection: r"Tensor\.shape reads the size of a tensor whose size depends on values.*mask\.sum\(\)",
    rows_of_selection: r"aten\.unbind\.int takes apart a tensor whose size depends on values",
    random_branch: r"takes a value that depends on random numbers out of a tensor",
    closed_over: r'the function uses "W", which requires grad and is not an argument, so that its gradient would be '
    r"lost; pass it as an argument, or use it detached",
    closed_over_result: r'the function uses "H", which requires grad',
    closed_over_module: r'uses "LAYER\.weight".*trace the module itself, or pass "LAYER" as an argument',
    default_argument: r'uses "w", which requires grad',
    counter: r"add_ changes a tensor of shape \[\] that the function did not make.*pass the tensor as an argument",
    closed_over_module_state: r"add_ changes a tensor of shape \[\] that the function did not make",
    closed_over_statistics: r"changes a tensor of shape \[3\] that the function did not make.*if it is a module's",
    assigned_data: r"assigning to \.data exchanges a tensor's memory",
    own_seed: r"the function seeds torch's random numbers.*leave the seed to the request",
    python_random: r"draws numbers from Python's random module.*draw them with torch",
    numpy_random: r"draws numbers from numpy\.random",
    own_generator: r"of type Generator, which has no wire form; leave it out: the request's seed= decides",
    number_by_its_text: r"does not give what the function gives",
    caught_error: r"_linalg_check_errors raised LinAlgError, and the function went on: the graph would always go",
    rejection_sampling: r"takes a value that depends on random numbers",
    counting_calls: r"differs",
}


def line_of(fn):
    """file:line of the comment "# here", or of the definition."""
    lines, first = inspect.getsourcelines(fn)
    here = [first + at for at, line in enumerate(lines) if line.rstrip().endswith("# here")]
    return f"{inspect.getsourcefile(fn)}:{here[0] if here else ''}"


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_what_a_tracer_would_get_silently_wrong(fn):
    """The error names the construct, the line, and what to do."""
    with pytest.raises(TraceError, match=REFUSED[fn]) as raised:
        trace(fn, X.clone())
    assert str(raised.value).startswith(line_of(fn))
    assert raised.value.metadata["location"].startswith(line_of(fn))
    assert raised.value.metadata["construct"]


def test_what_is_the_callers_is_not_changed():
    """A refusal comes before the caller's tensor is written."""
    version = COUNTER._version
    with pytest.raises(TraceError):
        trace(counter, X.clone())
    assert COUNTER.item() == 0
    assert COUNTER._version == version


def test_arguments_that_share_memory():
    """A change in place of one would have to be seen in the other."""

    def fn(x, y):
        x.add_(1)
        return x * y

    both = torch.arange(4)
    with pytest.raises(
        TraceError, match=r'the function changes "x" in place, which shares memory with "y".*pass copies'
    ):
        trace(fn, both, both[:1])
    assert both.tolist() == [0, 1, 2, 3]
    assert trace(fn, both, both.clone()).inputs == ("x", "y")


def test_counts_of_a_module_may_be_read():
    """What a module keeps starts at the same value in every run, whatever is written elsewhere."""
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(3, momentum=None))
    assert "weight" in trace(module, torch.randn(4, 3)).inputs[0]


def test_a_mutable_default_is_not_taken_for_a_constant():
    """A tensor that an earlier run left behind is no constant."""
    with pytest.raises(TraceError):
        trace(remembered, X.clone())


def test_values_of_constants_may_be_read():
    """What does not depend on the inputs is the same in every run."""
    table = torch.tensor([2.0, 3.0])

    def fn(x):
        scale = table.sum().item()
        return x * scale if bool(table[0] > 1) else x

    assert [node.target for node in trace(fn, X).message.nodes] == ["aten.mul.Tensor"]


def test_shapes_may_be_read():
    """What depends on shapes and dtypes alone is the same for every value."""

    def fn(x):
        return x.reshape(len(x), -1) / x.shape[0] if x.dtype is torch.float32 else x.sum()

    assert len(trace(fn, X).message.nodes) == 2
    assert [node.target for node in trace(fn, X.double()).message.nodes] == ["aten.sum.default"]


def test_a_teacher_that_is_closed_over():
    """A tensor that requires grad is a constant where no gradient flows into it."""

    def fn(x):
        with torch.no_grad():
            target = LAYER(x)
        return (x - target).square().sum() + (x * W.detach()).sum()

    assert trace(fn, X).inputs == ("x",)


def test_what_a_function_returns():
    """Outputs are tensors, dense ones, of dtypes that the wire knows."""
    cases = {
        lambda x: (x, 3.5): r"returned the float 3\.5 at 1, and a graph gives tensors; return tensors",
        lambda x: None: r"returned no tensor; return the tensors",
        lambda x: {"a": x, "b": {"c": "text"}}: r"returned the str 'text' at b\.c",
        lambda x: x.to_sparse(): r'the output "out" has the layout sparse_coo.*\.to_dense\(\)',
        lambda x: x.to(torch.complex32): r"returned a tensor of complex32.*convert it",
    }
    for fn, words in cases.items():
        with pytest.raises(TraceError, match=words):
            trace(fn, X)


def test_arguments_without_a_wire_form():
    """Tensors that cannot be sent are refused by name."""
    cases = {
        "is on the meta device": torch.ones(2, device="meta"),
        "is of complex32": torch.ones(2, dtype=torch.complex32),
        "is a Tagged, a subclass of Tensor": torch.ones(2).as_subclass(Tagged),
    }
    for words, tensor in cases.items():
        with pytest.raises(TraceError, match=rf'the tensor "x\.a" {words}.*for which there is no wire form'):
            trace(lambda x: x["a"] * 2, {"a": tensor})
    with pytest.raises(TraceError, match=r"is not initialised yet.*run the module once"):
        trace(nn.LazyLinear(2), torch.ones(3))


class Tagged(torch.Tensor):
    """A subclass of Tensor."""


def test_operators_that_are_not_served():
    """The error names the operator, why it is not served, and the line that calls it."""

    def fn(x):
        return x * torch.ops.aten._foobar(x)

    with pytest.raises(TraceError, match=r"aten\._foobar\.default is not served: it is one of torch's") as raised:
        trace(fn, X)
    assert re.match(rf"{re.escape(__file__)}:\d+: ", str(raised.value))


def test_control_flow_operators():
    """Operators that take functions are refused by name."""

    def fn(x):
        return torch.ops.higher_order.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))

    with pytest.raises(TraceError, match="cond"):
        trace(fn, X)


def test_what_torch_cannot_record():
    """Where recording fails and the function by itself does not, that is the reason; it names the line."""

    def fn(x):
        return torch.nested.nested_tensor([x, x[:2]]).to_padded_tensor(0.0)

    with pytest.raises(TraceError, match=r"torch cannot record what the function does: RuntimeError: .*dense tensors"):
        trace(fn, X)


def test_reentrant_checkpointing():
    """torch's own reason is kept: it cannot be differentiated by chosen inputs."""
    with pytest.raises(
        TraceError, match=r"CheckpointFunction has a gradient that no graph expresses: .*use_reentrant=False"
    ):
        trace(lambda x: checkpoint(torch.sin, x, use_reentrant=True), X)


def test_errors_of_the_function_itself():
    """Come out as they are."""

    def fn(x):
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        trace(fn, X)
    with pytest.raises(TypeError, match="missing a required argument"):
        trace(branch)


def test_a_function_that_is_defined_at_one_point():
    """A graph that could be checked at one point only is not returned."""
    calls = []

    def fn(x):
        calls.append(x.detach().clone())
        if not torch.ops.aten.equal(calls[0], calls[-1]) or len(calls) > 20:
            raise ValueError("somewhere else")
        return x * 2

    with pytest.raises(TraceError):
        trace(fn, X)

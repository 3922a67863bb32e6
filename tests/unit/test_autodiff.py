"""Derivatives: bit for bit eager autograd's, and refused with names and shapes where there are none."""

from __future__ import annotations

import pytest
import torch
from engine_cases import build, node, phases, same_bits

from gradoracle_server.engine import autodiff, batching, evaluate, pullback
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec

F64 = torch.float64


def vjp(made, primals, **options):
    return autodiff.vjp(made, primals, phases(), **{"cotangents": {}, **options})


def mlp():
    """tanh(x @ w + b), and its sum."""
    nodes = [
        node("h", "addmm.default", "%b", "%x", "%w"),
        node("t", "tanh.default", "%h"),
        node("s", "sum.default", "%t"),
    ]
    return build("x w b", nodes, {"t": "t", "s": "s"})


def mlp_primals(dtype=F64):
    torch.manual_seed(0)
    return {"x": torch.randn(5, 3, dtype=dtype), "w": torch.randn(3, 4, dtype=dtype), "b": torch.randn(4, dtype=dtype)}


def eager_mlp(x, w, b):
    t = torch.tanh(torch.addmm(b, x, w))
    return t, t.sum()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128], ids=str
)
def test_vjp_has_eager_autograds_bits(dtype):
    """Outputs and gradients equal eager torch bit for bit, in every dtype, with cotangents for several outputs."""
    primals = mlp_primals(dtype)
    cotangents = {"t": torch.randn(5, 4, dtype=dtype), "s": torch.randn((), dtype=dtype)}
    found = vjp(mlp(), primals, cotangents=cotangents)
    leaves = {name: one.clone().requires_grad_() for name, one in primals.items()}
    outputs = eager_mlp(**leaves)
    want = torch.autograd.grad(outputs, list(leaves.values()), [cotangents["t"], cotangents["s"]])
    assert all(same_bits(got, one) for got, one in zip(found.outputs, outputs, strict=True))
    assert all(same_bits(found.gradients[name], one) for name, one in zip(leaves, want, strict=True))
    assert not any(one.requires_grad for one in primals.values()), "the caller's tensors were changed"


def test_wrt_selects_and_keeps_the_graphs_order():
    """Only the inputs of wrt get a gradient, in the graph's order, with the bits they have without wrt."""
    primals = mlp_primals()
    everything = vjp(mlp(), primals, cotangents={"s": torch.ones(())}).gradients
    some = vjp(mlp(), primals, cotangents={"s": torch.ones(())}, wrt=["b", "x"]).gradients
    assert list(some) == ["x", "b"]
    assert all(same_bits(some[name], everything[name]) for name in some)


def test_retained_gradients_are_retain_grads():
    """A retained node, output or input gets the gradient that torch's retain_grad leaves on it."""
    nodes = [
        node("b", "add.Tensor", "%a", 2),
        node("c", "mul.Tensor", "%b", "%b"),
        node("total", "sum.default", "%c"),
    ]
    made = build("a", nodes, {"out": "total"})
    found = vjp(made, {"a": torch.ones(2, 2)}, retain=["b", "c", "out", "a"])
    assert [one.tolist() for one in found.outputs] == [36.0]
    assert found.gradients["a"].tolist() == [[6.0, 6.0]] * 2
    assert found.gradients["b"].tolist() == [[6.0, 6.0]] * 2
    assert found.gradients["c"].tolist() == [[1.0, 1.0]] * 2
    assert found.gradients["out"].tolist() == 1.0


def test_an_input_that_the_outputs_do_not_depend_on_has_none():
    """Unused, detached, integer and no_grad paths give None, as torch's allow_unused does, and no error."""
    nodes = [
        node("d", "detach.default", "%detached"),
        node("n", "mul.Tensor", "%quiet", 2, no_grad=True),
        node("p", "mul.Tensor", "%x", "%d"),
        node("q", "mul.Tensor", "%p", "%n"),
        node("r", "index.Tensor", "%q", ["%i"]),
        node("s", "sum.default", "%r"),
    ]
    made = build("x unused detached quiet i", nodes, "s")
    three = torch.arange(3.0)
    primals = dict.fromkeys(["x", "unused", "detached", "quiet"], three) | {"i": torch.tensor([0, 2])}
    found = vjp(made, primals).gradients
    assert found["x"].tolist() == [0.0, 0.0, 8.0]
    assert [found[name] for name in ("unused", "detached", "quiet", "i")] == [None] * 4


def test_nothing_to_differentiate_is_none_and_not_an_error():
    """A graph in which nothing requires grad has outputs, and None for each gradient that was asked for."""
    made = build("x", [node("y", "detach.default", "%x")], "y")
    assert vjp(made, {"x": torch.ones(3)}).gradients == {"x": None}
    off = build([InputSpec("x", requires_grad=False)], [node("y", "neg.default", "%x")], "y")
    assert vjp(off, {"x": torch.ones(3)}).gradients == {}


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)], ids=str)
def test_empty_and_0_dimensional_tensors(shape):
    """A tensor of no elements or of no dimensions is a tensor like any other."""
    made = build("x", [node("y", "exp.default", "%x"), node("s", "sum.default", "%y")], "y s")
    x = torch.full(shape, 0.5, dtype=F64)
    found = vjp(made, {"x": x}, cotangents={"s": torch.ones((), dtype=F64)})
    assert same_bits(found.gradients["x"], x.exp())
    _, blocks = autodiff.jacobian(made, {"x": x}, phases())
    assert blocks["y", "x"].shape == shape + shape
    _, second = autodiff.hessian(made, {"x": x}, phases(), cotangents={"s": torch.ones((), dtype=F64)})
    assert second["x", "x"].shape == shape + shape


def test_non_contiguous_results():
    """Outputs and gradients that are views with odd strides keep their values."""
    nodes = [
        node("t", "transpose.int", "%x", 0, 1),
        node("e", "expand.default", "%v", [3, 2]),
        node("y", "mul.Tensor", "%t", "%e"),
    ]
    made = build("x v", nodes, "t e y")
    x, v = torch.randn(2, 3, dtype=F64), torch.randn(2, dtype=F64)
    found = vjp(made, {"x": x, "v": v}, cotangents={"y": torch.ones(3, 2, dtype=F64)})
    assert same_bits(found.outputs[0], x.T)
    assert same_bits(found.outputs[1], v.expand(3, 2))
    assert same_bits(found.gradients["x"], v.expand(3, 2).T)


def test_complex_gradients_follow_torchs_convention():
    """d sum|z|^2 is 2z, not its conjugate; a holomorphic function's pull-back is the conjugate of its derivative."""
    nodes = [
        node("a", "abs.default", "%z"),
        node("b", "mul.Tensor", "%a", "%a"),
        node("s", "sum.default", "%b"),
        node("h", "mul.Tensor", "%z", "%z"),
    ]
    made = build("z", nodes, "s h")
    z = torch.tensor([1 + 2j, -3 + 0.5j], dtype=torch.complex128)
    torch.testing.assert_close(vjp(made, {"z": z}, cotangents={"s": torch.ones((), dtype=F64)}).gradients["z"], 2 * z)
    one = torch.ones(2, dtype=torch.complex128)
    assert same_bits(vjp(made, {"z": z}, cotangents={"h": one}).gradients["z"], (2 * z).conj())


def test_integer_outputs_have_no_derivative_and_disturb_none():
    """An integer output is returned; a cotangent for it is refused."""
    made = build(
        "x", [node("y", "exp.default", "%x"), node("k", "argmax.default", "%x"), node("s", "sum.default", "%y")], "k s"
    )
    x = torch.tensor([1.0, 3.0, 2.0])
    found = vjp(made, {"x": x})
    assert found.outputs[0].item() == 1
    assert same_bits(found.gradients["x"], x.exp())
    with pytest.raises(Fault, match='cotangents: output "k" is int64 and has no derivative'):
        vjp(made, {"x": x}, cotangents={"k": torch.ones(())})


REFUSED = {
    "no cotangent for a matrix": (
        {},
        'grad can be implicitly created only for scalar outputs, but output "t" has shape (5, 4); '
        "give a cotangent of that shape",
    ),
    "cotangent of a wrong shape": (
        {"cotangents": {"t": torch.ones(4, 5)}},
        'cotangents: output "t" has shape [5, 4], got a tensor of shape [4, 5]',
    ),
    "complex cotangent": (
        {"cotangents": {"s": torch.ones((), dtype=torch.complex64)}},
        'cotangents: output "s" is float64, got a complex tensor (complex64)',
    ),
    "cotangent for no output": (
        {"cotangents": {"tt": torch.ones(4, 5)}},
        'cotangents: the graph has no output "tt"; did you mean "t"?',
    ),
    "unknown wrt": ({"wrt": ["weights"]}, 'wrt: the graph has no input "weights"; there is "x", "w", "b"'),
    "unknown retain": ({"retain": ["hh"]}, 'retain: the graph has no value "hh"; did you mean "h"?'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_choices_are_refused_by_name(case):
    """A wrong cotangent or selection says which name, what was expected and what came."""
    options, message = REFUSED[case]
    with pytest.raises(Fault) as caught:
        vjp(mlp(), mlp_primals(), **options)
    assert caught.value.message.startswith(message)


def test_complex_scalars_need_a_cotangent():
    """As in torch, 1 is not assumed for a complex output."""
    made = build("z", [node("s", "sum.default", "%z")], "s")
    message = (
        'grad can be implicitly created only for real scalar outputs, but output "s" is complex128; give a cotangent'
    )
    with pytest.raises(Fault) as caught:
        vjp(made, {"z": torch.ones(2, dtype=torch.complex128)})
    assert caught.value.message == message


def test_wrt_must_be_able_to_have_a_gradient():
    """Inputs without requires_grad and integer inputs are refused where they are asked for by name."""
    made = build([InputSpec("x"), InputSpec("off", False), InputSpec("i")], [node("y", "sum.default", "%x")], "y")
    primals = {"x": torch.ones(2), "off": torch.ones(2), "i": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(Fault, match='wrt: input "off" was declared with requires_grad=False; declare it with True'):
        vjp(made, primals, wrt=["off"])
    with pytest.raises(Fault, match='wrt: input "i" is int32; only tensors of floating point and complex dtype can'):
        vjp(made, primals, wrt=["i"])
    detached = build("x", [node("d", "detach.default", "%x"), node("y", "sum.default", "%x")], "y d")
    with pytest.raises(Fault, match='retain: value "d" does not require grad'):
        vjp(detached, {"x": torch.ones(2)}, retain=["d"])


def test_a_backward_that_raises_keeps_torchs_message():
    """A formula that is not there is the caller's to know, in torch's words."""
    made = build(
        "x",
        [
            node("y", "_weight_norm_interface_backward.default", "%x", "%x", "%x", "%x", 0),
            node("g", "getitem", "%y", 0),
        ],
        "g",
    )
    x = torch.ones(2, 2)
    with pytest.raises(Fault, match="not implemented") as caught:
        vjp(made, {"x": x}, cotangents={"g": x})
    assert caught.value.reason == "COMPUTATION_FAILED"


def test_jvp_is_forward_mode():
    """Outputs and tangents equal torch's forward-mode AD bit for bit; inputs without a tangent stand still."""
    primals, tangents = mlp_primals(), {"w": torch.randn(3, 4, dtype=F64)}
    found = autodiff.jvp(mlp(), primals, phases(), tangents=tangents)
    outputs, moved = torch.func.jvp(
        lambda w: eager_mlp(primals["x"], w, primals["b"]), (primals["w"],), (tangents["w"],)
    )
    assert all(same_bits(got, want) for got, want in zip(found.outputs, outputs, strict=True))
    assert same_bits(found.gradients["t"], moved[0])
    assert same_bits(found.gradients["s"], moved[1])


def test_jvp_and_vjp_agree_about_no_grad_regions():
    """A region that passes no gradient passes no tangent, so that both modes see one function."""
    made = build("x", [node("n", "exp.default", "%x", no_grad=True), node("y", "mul.Tensor", "%x", "%n")], "n y")
    x = torch.tensor([1.0, 2.0], dtype=F64)
    found = autodiff.jvp(made, {"x": x}, phases(), tangents={"x": torch.ones(2, dtype=F64)}).gradients
    assert found["n"].tolist() == [0.0, 0.0]
    assert same_bits(found["y"], x.exp())
    assert same_bits(vjp(made, {"x": x}, cotangents={"y": torch.ones(2)}).gradients["x"], x.exp())


def test_jvp_without_a_forward_formula_goes_by_reverse_mode():
    """An operator without a forward-mode formula gets its tangent from reverse mode: by pulling the pull-back back
    (multi_margin_loss), and, where that has no formula either (_cdist_forward), by the rows of the Jacobian."""
    x, w = torch.randn(1, 4, 3, dtype=F64), torch.randn(1, 2, 3, dtype=F64)
    v = torch.randn_like(x)
    distance = build("x w", [node("p", "_cdist_forward.default", "%x", "%w", 2.0, None)], "p")
    found = autodiff.jvp(distance, {"x": x, "w": w}, phases(), tangents={"x": v}).gradients["p"]
    jacobian = torch.autograd.functional.jacobian(lambda a: torch.cdist(a, w), x)
    torch.testing.assert_close(found, (jacobian * v).sum((-3, -2, -1)))
    target = torch.tensor([0, 2, 1, 1])
    loss = build("x t", [node("y", "multi_margin_loss.default", "%x", "%t")], "y")
    found = autodiff.jvp(loss, {"x": x[0], "t": target}, phases(), tangents={"x": v[0]}).gradients["y"]
    jacobian = torch.autograd.functional.jacobian(lambda a: torch.nn.functional.multi_margin_loss(a, target), x[0])
    torch.testing.assert_close(found, (jacobian * v[0]).sum())


def test_the_three_ways_of_a_jvp_agree():
    """Forward mode, the pull-back of the pull-back and the rows of the Jacobian give one tangent, complex ones too."""
    z, v = torch.randn(2, 3, 2, dtype=torch.complex128)
    leaf = z.clone().requires_grad_()
    output = leaf.conj() * torch.sin(leaf) + leaf.sum() * (2 - 1j)
    _, forward = torch.func.jvp(lambda a: a.conj() * torch.sin(a) + a.sum() * (2 - 1j), (z,), (v,))
    (twice,) = autodiff.pull_back_the_pull_back([output], [leaf], [v])
    rows = autodiff._tangent_by_rows(output, [leaf], [v])
    torch.testing.assert_close(twice, forward)
    torch.testing.assert_close(rows, forward)


def test_jvp_needs_tangents_that_fit():
    """No tangent, a tangent of a wrong shape and one for an integer input are refused."""
    made = mlp()
    with pytest.raises(Fault, match="tangents: expected a tensor for at least one input, got none"):
        autodiff.jvp(made, mlp_primals(), phases(), tangents={})
    with pytest.raises(Fault, match=r'tangents: input "x" has shape \[5, 3\], got a tensor of shape \[3\]'):
        autodiff.jvp(made, mlp_primals(), phases(), tangents={"x": torch.ones(3)})


def test_jacobian_equals_torchs():
    """Each block has the output's shape, then the input's, and the values of torch.autograd.functional.jacobian."""
    primals = mlp_primals()
    _, blocks = autodiff.jacobian(mlp(), primals, phases())
    want = torch.autograd.functional.jacobian(eager_mlp, tuple(primals.values()))
    for row, output in enumerate(("t", "s")):
        for column, name in enumerate(primals):
            torch.testing.assert_close(blocks[output, name], want[row][column], rtol=1e-14, atol=1e-15)
    _, some = autodiff.jacobian(mlp(), primals, phases(), of=["s"], wrt=["w"])
    assert list(some) == [("s", "w")]
    assert same_bits(some["s", "w"], blocks["s", "w"])


def test_jacobian_in_chunks_and_in_a_loop_is_the_same(monkeypatch):
    """Rows pulled back a few at a time, or one by one where vmap cannot batch, are the rows pulled back at once."""
    made = build("x", [node("y", "sin.default", "%x")], "y")
    x = torch.randn(7, dtype=F64)
    _, whole = autodiff.jacobian(made, {"x": x}, phases())
    monkeypatch.setattr(pullback, "_CHUNK_BYTES", 3 * 7 * 8)
    _, chunked = autodiff.jacobian(made, {"x": x}, phases())
    monkeypatch.setattr(pullback, "without_batching_rules", lambda attempt: None)
    _, looped = autodiff.jacobian(made, {"x": x}, phases())
    assert torch.equal(whole["y", "x"], torch.diag(x.cos()))  # -0.0 off the diagonal, where cos is negative
    assert same_bits(whole["y", "x"], chunked["y", "x"])
    assert same_bits(whole["y", "x"], looped["y", "x"])


def test_jacobian_refuses_integer_outputs_and_unknown_ones():
    """`of` names outputs that have a derivative."""
    made = build("x", [node("k", "argmax.default", "%x")], "k")
    with pytest.raises(Fault, match='of: output "k" is int64 and has no derivative'):
        autodiff.jacobian(made, {"x": torch.ones(2)}, phases(), of=["k"])
    with pytest.raises(Fault, match='of: the graph has no output "z"; there is "k"'):
        autodiff.jacobian(made, {"x": torch.ones(2)}, phases(), of=["z"])


def test_hessian_equals_torchs():
    """Every pair of inputs has a block, equal to torch.autograd.functional.hessian; independent pairs are zero."""
    primals = mlp_primals()
    made = build("x w b", [
        node("h", "addmm.default", "%b", "%x", "%w"), node("t", "tanh.default", "%h"), node("s", "sum.default", "%t"),
    ], "s")  # fmt: skip
    found, blocks = autodiff.hessian(made, primals, phases(), cotangents={})
    want = torch.autograd.functional.hessian(lambda *one: eager_mlp(*one)[1], tuple(primals.values()))
    for row, left in enumerate(primals):
        for column, right in enumerate(primals):
            torch.testing.assert_close(blocks[left, right], want[row][column], rtol=1e-13, atol=1e-15)
    assert same_bits(found.gradients["x"], vjp(made, primals).gradients["x"])
    linear = build("x y", [node("a", "add.Tensor", "%x", "%y"), node("s", "sum.default", "%a")], "s")
    _, zeros = autodiff.hessian(linear, {"x": torch.ones(2), "y": torch.ones(2)}, phases(), cotangents={})
    assert all(not block.any() and block.shape == (2, 2) for block in zeros.values())


def test_hvp_is_the_hessian_times_the_vectors():
    """Products with vectors for some of the inputs equal the Hessian's columns times those."""
    primals = mlp_primals()
    made = build("x w b", [
        node("h", "addmm.default", "%b", "%x", "%w"), node("t", "tanh.default", "%h"), node("s", "sum.default", "%t"),
    ], "s")  # fmt: skip
    _, blocks = autodiff.hessian(made, primals, phases(), cotangents={})
    v = torch.randn(3, 4, dtype=F64)
    _, products = autodiff.hvp(made, primals, phases(), cotangents={}, vectors={"w": v})
    for name in primals:
        want = torch.tensordot(blocks[name, "w"], v, dims=2)
        torch.testing.assert_close(products[name], want, rtol=1e-12, atol=1e-14)
    with pytest.raises(Fault, match='vectors: input "w" is not among those to differentiate by'):
        autodiff.hvp(made, primals, phases(), cotangents={}, vectors={"w": v}, wrt=["x"])


def per_example(x, w, cotangents=None):
    """What a loop over the examples gives, stacked."""
    rows = []
    for place in range(len(x)):
        one, weight = x[place].clone().requires_grad_(), w.clone().requires_grad_()
        y = torch.tanh(weight @ one)
        rows.append(
            torch.autograd.grad(y, (one, weight), torch.ones_like(y) if cotangents is None else cotangents[place])
        )
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("retain", [(), ("h",)], ids=["vmap", "loop"])
def test_batched_vjp_gives_each_examples_gradient(retain):
    """Gradients come back per example, by shared inputs too; a cotangent serves all or has one slice an example."""
    made = build("x w", [node("h", "mv.default", "%w", "%x"), node("y", "tanh.default", "%h")], "y")
    x, w = torch.randn(6, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    primals = {"x": x, "w": w}
    for given, each in ((torch.ones(2, dtype=F64), None), (own := torch.randn(6, 2, dtype=F64), own)):
        found = batching.vjp(made, primals, phases(), batched=["x"], cotangents={"y": given}, retain=retain)
        torch.testing.assert_close(
            found.outputs[0], torch.stack([torch.tanh(w @ one) for one in x]), rtol=1e-14, atol=0
        )
        for name, want in zip(("x", "w"), per_example(x, w, each), strict=True):
            torch.testing.assert_close(found.gradients[name], want, rtol=1e-14, atol=1e-15)
        assert not retain or found.gradients["h"].shape == (6, 2)


def test_batched_vjp_refuses_what_has_no_batch_axis():
    """Unknown inputs, 0-dimensional ones, unequal batch sizes, empty batches and wrong cotangents are told by name."""
    made = build("x y", [node("z", "mul.Tensor", "%x", "%y"), node("s", "sum.default", "%z")], "s z")

    def run(x, y, batched=("x", "y"), **cotangents):
        return batching.vjp(made, {"x": x, "y": y}, phases(), batched=batched, cotangents=cotangents)

    two, three = torch.ones(2, 3), torch.ones(3, 3)
    with pytest.raises(Fault, match='batched: the graph has no input "q"; there is "x", "y"'):
        run(two, two, batched=["q"])
    with pytest.raises(Fault, match='batched: input "y" is 0-dimensional and has no batch axis'):
        run(two, torch.ones(()))
    with pytest.raises(Fault, match='batched: inputs "x" and "y" must have the same first size, got 2 and 3'):
        run(two, three)
    with pytest.raises(Fault, match="batched: expected at least one example, got a batch axis of size 0"):
        run(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(Fault, match=r'cotangents: output "z" has shape \[3\], got a tensor of shape \[4, 3\]'):
        run(two, two, z=torch.ones(4, 3))


def test_random_operators_follow_the_seed():
    """The same seed gives the bits of torch.manual_seed before the same calls, forward and gradient."""
    made = build("x", [node("y", "dropout.default", "%x", 0.5, True), node("s", "sum.default", "%y")], "s y")
    x = torch.ones(64, dtype=F64)
    evaluate.seed_everything(11, torch.device("cpu"))
    found = vjp(made, {"x": x}, cotangents={"s": torch.ones(())})
    torch.manual_seed(11)
    leaf = x.clone().requires_grad_()
    y = torch.nn.functional.dropout(leaf, 0.5)
    y.sum().backward()
    assert same_bits(found.outputs[1], y)
    assert same_bits(found.gradients["x"], leaf.grad)


def test_inspect_shows_what_autograd_knows():
    """Shape, dtype, requires_grad, is_leaf and grad_fn of inputs, constants and nodes are torch's own."""
    nodes = [
        node("y", "mul.Tensor", "%a", "%a"),
        node("b", "sum.default", "%y"),
        node("q", "neg.default", "%c"),
        node("t", "max.dim", "%a", 0),
    ]
    made = build([InputSpec("a"), InputSpec("i", False)], nodes, "b", {"c": torch.ones(1)})
    states = {one.name: one for one in evaluate.inspect(made, {"a": torch.ones(3, 3), "i": torch.ones(2)}, phases())}
    flags = {name: (one.tensor.requires_grad, one.tensor.is_leaf, one.tensor.grad_fn and one.tensor.grad_fn.name())
             for name, one in states.items() if one.tensor is not None}  # fmt: skip
    assert flags == {
        "a": (True, True, None),
        "i": (False, True, None),
        "c": (False, True, None),
        "y": (True, False, "MulBackward0"),
        "b": (True, False, "SumBackward0"),
        "q": (False, True, None),
    }
    assert states["t"].is_tuple


def test_inference_mode_changes_no_bits():
    """Evaluate's outputs are those of a plain run under no_grad."""
    made, primals = mlp(), mlp_primals(torch.float32)
    got = evaluate.evaluate(made, primals, phases())
    with torch.no_grad():
        want = eager_mlp(**primals)
    assert all(same_bits(left, right) for left, right in zip(got, want, strict=True))
    assert not any(one.requires_grad for one in got)


def matrix(structure):
    torch.manual_seed(1)
    a = torch.randn(3, 3, dtype=F64)
    return {
        "symmetric": a + a.T,
        "hermitian": (c := torch.complex(a, a.T)) + c.mH,
        "positive_definite": a @ a.T + torch.eye(3, dtype=F64),
        "lower_triangular": a.tril(),
        "upper_triangular": a.triu(),
    }[structure]


def parametrised(structure, a):
    """A map onto the set that is the identity on it, written out apart from the engine's."""
    return {
        "symmetric": lambda: (a + a.T) / 2,
        "hermitian": lambda: (a + a.mH) / 2,
        "positive_definite": lambda: (a + a.mH) / 2,
        "lower_triangular": lambda: a.tril(),
        "upper_triangular": lambda: a.triu(),
    }[structure]()


STRUCTURED = ["symmetric", "hermitian", "positive_definite", "lower_triangular", "upper_triangular"]


@pytest.mark.parametrize("structure", STRUCTURED)
def test_structured_inputs_move_only_within_their_set(structure):
    """Gradients, tangents, Jacobians, Hessians and products are those of the function on the set: the same as autograd
    through a map onto the set."""
    a = matrix(structure)
    nodes = [
        node("e", "linalg_matrix_exp.default", "%a"),
        node("m", "mul.Tensor", "%e", "%e"),
        node("r", "view_as_real.default", "%m") if a.is_complex() else node("r", "alias.default", "%m"),
        node("s", "sum.default", "%r"),
    ]
    made = build([InputSpec("a", structure=structure)], nodes, "s")

    def on_the_set(a):
        m = torch.linalg.matrix_exp(parametrised(structure, a)) ** 2
        return (torch.view_as_real(m) if a.is_complex() else m).sum()

    leaf = a.clone().requires_grad_()
    (want,) = torch.autograd.grad(on_the_set(leaf), leaf)
    torch.testing.assert_close(vjp(made, {"a": a}).gradients["a"], want)
    v = torch.randn_like(a)
    _, moved = torch.func.jvp(on_the_set, (a,), (v,))
    torch.testing.assert_close(autodiff.jvp(made, {"a": a}, phases(), tangents={"a": v}).gradients["s"], moved)
    _, blocks = autodiff.jacobian(made, {"a": a}, phases())
    torch.testing.assert_close(blocks["s", "a"], want)
    if not a.is_complex():
        hessian = torch.autograd.functional.hessian(on_the_set, a)
        _, second = autodiff.hessian(made, {"a": a}, phases(), cotangents={})
        torch.testing.assert_close(second["a", "a"], hessian)
        _, products = autodiff.hvp(made, {"a": a}, phases(), cotangents={}, vectors={"a": v})
        torch.testing.assert_close(products["a"], torch.tensordot(hessian, v, dims=2))


def test_structured_inputs_are_matrices():
    """An input whose shape cannot have its structure is refused; with a batch axis the shape is one example's."""
    nodes = [node("s", "sum.default", "%a")]
    made = build([InputSpec("a", structure="symmetric")], nodes, "s")
    message = (
        r'primals\["a"\]: the graph declares it symmetric: '
        r"expected square matrices in the last two dimensions, got shape \[2, 3\]"
    )
    with pytest.raises(Fault, match=message):
        vjp(made, {"a": torch.ones(2, 3)})
    with pytest.raises(Fault, match=r"got shape \[3\]"):
        batching.vjp(made, {"a": torch.ones(3, 3)}, phases(), batched=["a"], cotangents={})
    found = batching.vjp(made, {"a": torch.ones(4, 3, 3)}, phases(), batched=["a"], cotangents={})
    assert found.gradients["a"].shape == (4, 3, 3)


def test_examples_in_a_batch_with_an_in_place_operator():
    """Memory cannot be looked at under vmap, so graphs that change values in place go one example after another."""
    nodes = [
        node("y", "mul.Tensor", "%x", 2),
        node("z", "add_.Tensor", "%y", 1),
        node("q", "mul.Tensor", "%y", "%y"),
        node("s", "sum.default", "%q"),
    ]
    made = build("x", nodes, "s")
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    found = batching.vjp(made, {"x": x}, phases(), batched=["x"], cotangents={})
    assert same_bits(found.gradients["x"], 4 * (2 * x + 1))

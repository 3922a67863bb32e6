"""Rows of a Jacobian that are pulled back together are those that are pulled back one by one, or they are not used."""

from __future__ import annotations

import pytest
import torch
from engine_cases import build, node, phases, same_bits

from gradoracle_server.engine import autodiff, pullback
from gradoracle_server.engine.errors import Fault

F64 = torch.float64


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def affine():
    """tanh(x @ w), x of [4, 3]."""
    return build("x w", [node("h", "mm.default", "%x", "%w"), node("y", "tanh.default", "%h")], "y")


def affine_primals(dtype=F64):
    return {"x": draw(4, 3, dtype=dtype), "w": draw(3, 5, dtype=dtype, seed=1)}


def one_by_one(made, primals, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pullback, "_pull_together", lambda *_: 1 / 0)
        patch.setattr(pullback, "without_batching_rules", lambda attempt: None)
        return autodiff.jacobian(made, primals, phases())[1]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_pulled_together_are_believed_where_they_are_right(dtype, monkeypatch):
    """Rounding is no reason to go row by row, in no dtype; the bits are those of torch.func.jacrev, which refuses
    complex tensors."""
    primals = affine_primals(dtype)
    alone = one_by_one(affine(), primals, monkeypatch)
    monkeypatch.setattr(torch, "stack", lambda *_: pytest.fail("went row by row"))
    _, blocks = autodiff.jacobian(affine(), primals, phases())
    for key, block in blocks.items():
        torch.testing.assert_close(block, alone[key])
    if not dtype.is_complex:
        want = torch.func.jacrev(lambda x, w: torch.tanh(x @ w), (0, 1))(primals["x"], primals["w"])
        assert same_bits(blocks["y", "x"], want[0])
        assert same_bits(blocks["y", "w"], want[1])


def test_a_wrong_batching_rule_is_not_believed():
    """That of cdist's backward is wrong in torch 2.13; the Jacobian is right all the same, and so is the Hessian."""
    x, w = draw(4, 3), draw(2, 3, seed=1)
    made = build("x w", [node("p", "_cdist_forward.default", "%x", "%w", 2.0, None)], "p")
    _, blocks = autodiff.jacobian(made, {"x": x, "w": w}, phases(), wrt=["x"])
    want = torch.autograd.functional.jacobian(lambda one: (one[:, None] - w).square().sum(-1).sqrt(), x)
    torch.testing.assert_close(blocks["p", "x"], want, rtol=1e-12, atol=1e-14)


def zeroed(block):
    block[0, 0] = 0.0


def scaled(block):
    block *= 1 + 1e-6


def exchanged(block):
    block[[0, 1]] = block[[1, 0]]


@pytest.mark.parametrize("fault", [zeroed, scaled, exchanged])
@pytest.mark.parametrize("chunk", [None, 6], ids=["whole", "in chunks"])
def test_a_planted_fault_of_a_batch_is_not_believed(fault, chunk, monkeypatch):
    """Rows that are wrong in some elements, in all by a millionth, or in their order, are pulled back one by one."""
    primals = affine_primals()
    want = one_by_one(affine(), primals, monkeypatch)
    real = pullback._pull_together

    def faulty(*args):
        blocks = [one.clone() for one in real(*args)]
        fault(blocks[0])
        return blocks

    monkeypatch.setattr(pullback, "_pull_together", faulty)
    if chunk is not None:
        monkeypatch.setattr(pullback, "_CHUNK_BYTES", chunk * 20 * 8)
    _, found = autodiff.jacobian(affine(), primals, phases())
    assert all(same_bits(found[key], want[key]) for key in want)
    monkeypatch.setattr(pullback, "_are_rows", lambda *_: True)
    _, believed = autodiff.jacobian(affine(), primals, phases())
    assert not torch.allclose(believed["y", "x"], want["y", "x"], rtol=1e-7), "the planted fault has no effect"


def test_rows_that_are_not_finite_are_pulled_one_by_one(monkeypatch):
    """Nothing can be told of NaN by a sum, so these rows are what each pull-back gives."""
    made = build("x", [node("r", "rsqrt.default", "%x"), node("y", "mul.Tensor", "%r", "%x")], "y")
    primals = {"x": torch.tensor([0.0, 1.0, -1.0, 4.0], dtype=F64)}
    want = one_by_one(made, primals, monkeypatch)
    calls = []
    real = pullback._are_rows
    monkeypatch.setattr(pullback, "_are_rows", lambda *args: calls.append(real(*args)) or calls[-1])
    _, found = autodiff.jacobian(made, primals, phases())
    assert calls == [False]
    assert same_bits(found["y", "x"], want["y", "x"])
    assert found["y", "x"].isnan().any()


def test_blocks_of_independent_inputs_are_zeros_in_their_own_dtype():
    """Beside an input that the output depends on, at once and in chunks of rows."""
    nodes = [node("y", "sin.default", "%x"), node("z", "cos.default", "%u")]
    made = build("x u", nodes, "y z")
    primals = {"x": draw(3), "u": draw(2, dtype=torch.float32)}
    _, found = autodiff.jacobian(made, primals, phases())
    assert same_bits(found["y", "u"], torch.zeros(3, 2, dtype=torch.float32))
    assert same_bits(found["z", "x"], torch.zeros(2, 3, dtype=F64))
    torch.testing.assert_close(found["z", "u"], torch.diag(-primals["u"].sin()))


def test_the_level_of_a_batch_ends_with_it():
    """Also where a formula has no batch: what runs next is not taken for a part of it."""
    made = build("x", [node("y", "sin.default", "%x")], "y")
    for _ in range(3):
        autodiff.jacobian(made, {"x": draw(4)}, phases())
    root = draw(3).requires_grad_().sin()
    with pytest.raises(Fault, match=r"got \[5\] but expected shape compatible with \[3\]"):
        pullback._pull_together(root, draw(2, 5), [root])
    assert torch._C._functorch.maybe_current_level() is None

"""No request sees memory that it did not write: another request's values may be in there.

The C library can be told what fresh memory holds. An operator whose answer changes with that has shown some of it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance.samples import Case, cases, full_name, operators
from torch.utils import _pytree as pytree

from gradoracle_server.engine import fresh
from gradoracle_server.engine import operators as served
from gradoracle_server.engine.graph import FunctionSpec, GraphSpec, InputSpec, NodeSpec

_M_PERTURB = -6  # <malloc.h>: fresh memory is filled with the complement of this byte; 0 turns that off
FILLINGS = (0x00, 0xFF, 0x5A, 0xBF)
libc = ctypes.CDLL(None)

pytestmark = pytest.mark.skipif(not hasattr(libc, "mallopt"), reason="this C library cannot be told what memory holds")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    libc.mallopt(_M_PERTURB, 0)


def answers(run: Callable[[], Any]) -> set[tuple[bytes, ...]]:
    """The different answers, in bytes, for different contents of fresh memory."""
    found = set()
    for filling in FILLINGS:
        torch.manual_seed(0)
        libc.mallopt(_M_PERTURB, filling)
        made = run()
        libc.mallopt(_M_PERTURB, 0)
        found.add(tuple(map(in_bytes, pytree.tree_leaves(made))))
    return found


def in_bytes(value: Any) -> bytes:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return b""
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""


def outputs_and_gradients(case: Case) -> Any:
    leaves = [
        one.detach().clone().requires_grad_(one.requires_grad)
        if isinstance(one, torch.Tensor) and one.layout is torch.strided
        else one
        for one in case.args
    ]
    outputs = pytree.tree_leaves(case.fn(*leaves, **case.kwargs))
    roots = [one for one in outputs if isinstance(one, torch.Tensor) and one.requires_grad]
    wanted = [one for one in leaves if isinstance(one, torch.Tensor) and one.requires_grad]
    if not roots or not wanted:
        return outputs
    return outputs, torch.autograd.grad(roots, wanted, [torch.ones_like(one) for one in roots], allow_unused=True)


@pytest.mark.parametrize("operator", operators(torch.float64)[3::24], ids=full_name)
@pytest.mark.filterwarnings("ignore")
def test_operators_write_all_that_they_return(operator: Any) -> None:
    """Forward and backward of a sample of operators give the same bytes, whatever memory held."""
    for case in cases(operator, torch.float64, 1):
        assert 1 == len(answers(lambda case=case: outputs_and_gradients(case)))


X = torch.arange(6.0).reshape(2, 3)
SUSPECTS: dict[str, tuple[Any, ...]] = {
    "new_zeros.default": (X, [50]),
    "zeros_like.default": (X,),
    "full.default": ([50], 1.0),
    "eye.default": (7,),
    "tril_indices.default": (7, 7),
    "nonzero_static.default": (X,),
    "slice_backward.default": (X, [50, 3], 0, 0, 2, 1),
    "select_backward.default": (X, [50, 2, 3], 0, 1),
    "diagonal_backward.default": (X[0], [3, 3], 0, 0, 1),
    "index_put.default": (X, [torch.tensor([0, 0])], X),
    "constant_pad_nd.default": (X, [5, 5], 0.0),
    "max_unpool2d.default": (X[None, None], torch.arange(6).reshape(1, 1, 2, 3), [9, 9]),
    "embedding_dense_backward.default": (X, torch.tensor([1, 2]), 20, -1, False),
    "unfold_backward.default": (torch.ones(2, 3), [20], 0, 3, 9),
    "col2im.default": (torch.ones(1, 4, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]),
    "native_dropout.default": (X, 0.5, True),
    "_fft_r2c.default": (X, [1], 0, True),
    "linalg_qr.default": (X,),
    "geqrf.default": (X,),
    "ormqr.default": (torch.eye(3), torch.ones(3), torch.ones(3, 2)),
    "linalg_lu_factor_ex.default": (torch.ones(3, 3),),
    "_linalg_svd.default": (torch.ones(4, 3), True),
    "triu.default": (torch.ones(30, 30),),
    "cholesky.default": (torch.eye(30),),
    "histc.default": (X, 30),
    "bincount.default": (torch.tensor([1, 5]), None, 30),
    "_embedding_bag.default": (X, torch.tensor([0, 1]), torch.tensor([0, 2])),
    "_pack_padded_sequence.default": (torch.ones(3, 2, 1), torch.tensor([3, 1]), False),
    "_pad_packed_sequence.default": (torch.ones(4, 1), torch.tensor([2, 1, 1]), False, 0.0, 9),
    "rrelu_with_noise_functional.default": (X - 2, torch.zeros(2, 3), 0.1, 0.3, True),
    "native_batch_norm.default": (torch.ones(2, 3), None, None, None, None, True, 0.1, 1e-5),
    "segment_reduce.default": (torch.ones(4), "sum"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUSPECTS)
def test_operators_that_make_room_write_all_of_it(name: str) -> None:
    """Operators that return more than they are given, or parts that have no meaning, fill them in."""
    operator = served.find(f"aten.{name}")
    assert operator is not None
    assert "" == operator.refused
    more = {"nonzero_static": {"size": 30}, "segment_reduce": {"lengths": torch.tensor([1, 0, 3]), "axis": 0}}
    kwargs = more.get(name.partition(".")[0], {})
    args = SUSPECTS[name]

    def run() -> Any:
        own = pytree.tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, args)
        return operator.overload(*own, **kwargs)

    assert 1 == len(answers(run))


@pytest.mark.parametrize("size", [1, 5, 100, 3000])
def test_the_tester_sees_memory_that_was_not_written(size: int) -> None:
    """Operators that are refused for it are found out, of every size; those that write are not."""
    assert any(len(answers(lambda: torch.empty(size))) > 1 for _ in range(20))
    assert any(len(answers(lambda: torch.ones(size).new_empty(size))) > 1 for _ in range(20))
    assert 1 == len(answers(lambda: torch.ones(size)))


SHOWN = '''
import torch
from gradoracle_server.engine import fresh

def shown():
    """How often, of 500 times, numbers of others turn up among the 15 that the operator does not write."""
    found = 0
    for size in range(500):
        others = [torch.full((1 + (size * k) % 300,), 7.5) for k in range(5)]
        del others
        norms = torch.ops.aten._weight_norm_interface.default(torch.ones(3), torch.ones(2, 3, 3), 0)[1]
        found += bool(norms.flatten()[3:].any())
    return found

before = shown()
fresh.zero(True)
zeroed = shown()
fresh.zero(False)
print(before > 0, zeroed, shown() > 0)
'''


def test_operators_that_show_memory_are_given_zeros() -> None:
    """Some private operators do return what memory held; in a process started as workers are, zeros instead."""
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    command = [sys.executable, "-c", SHOWN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert ("True 0 True\n", 0) == (done.stdout, done.returncode), done.stderr


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("aten._weight_norm_interface.default", True),
        ("aten.batch_norm_backward.default", True),
        ("aten.glu_backward_jvp.default", True),
        ("aten.linalg_lstsq.default", True),
        ("aten.mul.Tensor", False),
        ("aten.mul_.Tensor", False),
        ("aten.softmax.int", False),
        ("getitem", False),
    ],
)
def test_graphs_that_run_on_zeroed_memory(target: str, expected: bool) -> None:
    """Those that name a private operator or a backward formula, themselves or in a function."""
    inner = GraphSpec((InputSpec("x"),), (NodeSpec("y", target),), (("y", "y"),))
    outer = GraphSpec(inner.inputs, (), (), functions=(FunctionSpec("f", GraphSpec((), (), ()), inner),))
    assert [expected] * 2 == [fresh.needed(inner), fresh.needed(outer)]

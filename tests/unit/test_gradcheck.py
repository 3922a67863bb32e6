"""gradcheck and gradgradcheck: torch's signatures and conventions, tolerances, doubt, and misuse."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gradcheck_cases import Cube, branching, leaf, sparse, wrong
from torch.autograd.gradcheck import GradcheckError as TorchGradcheckError

import gradoracle as go
from gradoracle import inprocess, private

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [(go.gradcheck, torch.autograd.gradcheck), (go.gradgradcheck, torch.autograd.gradgradcheck)],
)
def test_signatures(ours: Callable[..., bool], torchs: Callable[..., bool]) -> None:
    """Parameters have torch's names, order, kinds and defaults, so that only an import changes."""

    def shape(check: Callable[..., bool]) -> list[tuple[str, Any, Any]]:
        return [(one.name, one.kind, one.default) for one in inspect.signature(check).parameters.values()]

    assert shape(torchs) == shape(ours)


def test_the_error() -> None:
    """A wrong gradient raises torch's GradcheckError, a RuntimeError; its message is the report, which it holds, but
    for the remark on cotangents."""
    x = leaf(3)
    with pytest.raises(RuntimeError) as caught:
        go.gradcheck(wrong(lambda g, x: -3 * g * x**2), x)
    error = caught.value
    assert isinstance(error, TorchGradcheckError)
    assert isinstance(error, go.GradcheckError)
    assert error.report is not None
    told = dataclasses.replace(error.report, random_cotangents=False).render()
    assert str(error) == f'gradcheck: backward of Planted: the gradient of "x" is wrong\n{told}'
    assert error.report.inputs["x"].diagnosis is go.Diagnosis.SIGN_FLIPPED


def test_functions_own_errors_come_out() -> None:
    """What the function raises, in its forward or its backward, is raised as it is."""

    def refuse(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise LookupError("no backward today")

    with pytest.raises(LookupError, match="no backward today"):
        go.gradcheck(wrong(refuse), leaf(3))
    with pytest.raises(LookupError, match="no backward today"):
        go.gradcheck(lambda x: refuse(x, x), leaf(3))


# ---- Tolerances


@pytest.mark.parametrize("options", [{}, {"atol": 1e-8, "rtol": 0.0}, {"eps": 1e-3}])
def test_tolerances_at_torchs_defaults_allow_nothing(options: dict[str, float]) -> None:
    """torch's default tolerances, or smaller ones, let no wrong gradient pass."""
    func = wrong(lambda g, x: g * 3 * x**2 * 1.0001)
    assert go.gradcheck(func, leaf(3), raise_exception=False, **options) is False
    assert go.gradcheck(Cube.apply, leaf(3), **options) is True


def test_wider_tolerances() -> None:
    """Tolerances wider than torch's defaults let pass what is off by no more, with a warning that has the report."""
    func = wrong(lambda g, x: g * 3 * x**2 * 1.004)
    with pytest.warns(go.GradcheckWarning, match=r"off by no more than the tolerance(?s:.)*SCALED by 1.004"):
        assert go.gradcheck(func, leaf(3), rtol=1e-2) is True
    with pytest.warns(go.GradcheckWarning, match="off by no more than the tolerance"):
        assert go.gradcheck(func, leaf(3), atol=0.1) is True
    assert go.gradcheck(func, leaf(3), rtol=2e-3, raise_exception=False) is False
    ignoring = wrong(lambda g, x: 3 * x**2)
    assert go.gradcheck(ignoring, leaf(3), atol=100.0, raise_exception=False) is False


# ---- Doubt


@pytest.mark.parametrize(("slope", "passes"), [(0.0, True), (0.5, True), (1.0, True), (1.5, False), (-0.1, False)])
def test_kinks(slope: float, passes: bool) -> None:
    """At a kink a gradient between the one-sided slopes passes with a warning, and one outside fails."""
    func = wrong(lambda g, x: g * torch.where(x > 0, 1.0, torch.where(x < 0, 0.0, slope)), torch.relu)
    x = torch.tensor([0.0, 1.0, -2.0], dtype=F64, requires_grad=True)
    if passes:
        with pytest.warns(go.GradcheckWarning, match='at a kink, the gradient of "x" lies between the one-sided'):
            assert go.gradcheck(func, x) is True
    else:
        with pytest.raises(go.GradcheckError, match='at a kink, the gradient of "x" lies outside the one-sided'):
            go.gradcheck(func, x)


def test_what_cannot_be_told() -> None:
    """Where the numerics cannot tell, the check passes with a warning that says so."""
    x = torch.tensor([0.5, -1.0], dtype=F64, requires_grad=True)
    with pytest.warns(go.GradcheckWarning, match='the numerics cannot tell whether the gradient of "x" is right'):
        assert go.gradcheck(lambda x: (x * 1e200) ** 2 * 1e-200, x) is True


def test_warnings_can_be_errors() -> None:
    """Who wants proof or failure makes the documented warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", go.GradcheckWarning)
        with pytest.raises(go.GradcheckWarning, match="at a kink"):
            go.gradcheck(torch.relu, torch.zeros(2, dtype=F64, requires_grad=True))


def test_warnings_point_at_the_caller() -> None:
    """The warning's place is the line that called."""
    with pytest.warns(go.GradcheckWarning) as caught:
        go.gradcheck(torch.relu, torch.zeros(1, dtype=F64, requires_grad=True))
    assert caught[0].filename == __file__


def test_weights_of_its_own_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float32 function with float32 weights of its own is judged in float64, as a graph, which finds what is 0.01 %
    off; the inputs keep their names."""
    seen = []
    call = private.call
    monkeypatch.setattr(private, "call", lambda ask: seen.append(call(ask)) or seen[-1])
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    assert go.gradcheck(module, leaf(4, 3, dtype=torch.float32)) is True
    cube = wrong(lambda g, x: g * 3 * x**2 * 1.0001)
    with pytest.raises(go.GradcheckError, match='the gradient of "x" is wrong'):
        go.gradcheck(lambda x: cube(module(x)), leaf(4, 3, dtype=torch.float32))
    assert [list(report.inputs) for report in seen] == [["input"], ["x"]]
    assert all(one.requires_grad for one in module.parameters())


# ---- What else torch asks


def unsteady(amount: float) -> Callable[..., torch.Tensor]:
    """x**3, whose backward gives a little more with every other call."""
    calls = itertools.count()
    return wrong(lambda g, x: g * 3 * x**2 + amount * (next(calls) % 2))


def test_non_determinism() -> None:
    """Gradients that differ from run to run fail, unless by no more than nondet_tol."""
    with pytest.raises(go.GradcheckError, match="two runs on the same tensors differ"):
        go.gradcheck(unsteady(1e-3), leaf(3))
    assert go.gradcheck(unsteady(1e-6), leaf(3), nondet_tol=1e-5, raise_exception=False) is True
    with pytest.raises(go.GradcheckError, match=r"two runs gave gradients that differ by 0\.001, over the nondet_tol"):
        go.gradcheck(unsteady(1e-3), leaf(3), nondet_tol=1e-5)


class TakesNoNone(torch.autograd.Function):
    """A backward that fails where a cotangent is None."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * g


class TwoTakeNoNone(torch.autograd.Function):
    """The same with two outputs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        return 2 * x, 3 * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return 2 * g + 3 * h


def test_undefined_gradients() -> None:
    """A backward must take None for its only cotangent, unless that is not asked for."""
    with pytest.raises(go.GradcheckError, match=r"that of every output is undefined, it raised TypeError"):
        go.gradcheck(TakesNoNone.apply, leaf(3))
    assert go.gradcheck(TakesNoNone.apply, leaf(3), check_undefined_grad=False) is True


@pytest.mark.parametrize("undefined", [True, False])
def test_undefined_gradients_of_some_outputs(undefined: bool) -> None:
    """It must take None for one of two, as torch asks in any case, which pulls back through each output by itself."""
    with pytest.raises(TypeError):
        torch.autograd.gradcheck(TwoTakeNoNone.apply, leaf(3), check_undefined_grad=undefined)
    with pytest.raises(go.GradcheckError, match=r"linear_outputs: (.|\n)*; without one it raised: unsupported operand"):
        go.gradcheck(TwoTakeNoNone.apply, leaf(3), check_undefined_grad=undefined)


class NoBatches(torch.autograd.Function):
    """x**2, of which neither the backward nor the tangent can be batched."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * torch.tensor(g.tolist(), dtype=g.dtype)

    @staticmethod
    def jvp(ctx: Any, t: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * torch.tensor(t.tolist(), dtype=t.dtype)


def test_batches_that_fail() -> None:
    """check_batched_grad and check_batched_forward_grad fail where batches are asked for and cannot be had."""
    assert go.gradcheck(NoBatches.apply, leaf(3), check_forward_ad=True) is True
    with pytest.raises(go.GradcheckError, match="check_batched_grad"):
        go.gradcheck(NoBatches.apply, leaf(3), check_batched_grad=True)
    with pytest.raises(go.GradcheckError, match=r'tangents of "x" in a batch: vmap cannot run the function'):
        go.gradcheck(NoBatches.apply, leaf(3), check_forward_ad=True, check_batched_forward_grad=True)


def test_a_graph_that_was_cut() -> None:
    """Where no output requires grad, the gradient is zero, which is wrong where the function is not constant."""
    with pytest.raises(go.GradcheckError) as caught:
        go.gradcheck(lambda x: x.detach() * 2, leaf(3))
    assert caught.value.report is not None
    assert caught.value.report.inputs["x"].diagnosis is go.Diagnosis.ZEROED
    assert go.gradcheck(lambda x: torch.ones(2, dtype=F64), leaf(3)) is True


def test_faults_reached_by_closure() -> None:
    """A function that reaches its inputs by another way than its arguments is on trial too."""
    x = leaf(3)
    func = wrong(lambda g, x: g * 3 * x**2 * 1.0001)
    with pytest.raises(go.GradcheckError, match='the gradient of "_" is wrong'):
        go.gradcheck(lambda _: func(x), x)
    low = leaf(3, dtype=torch.float32)
    with pytest.raises(go.GradcheckError, match='the gradient of "_" is wrong'):
        go.gradcheck(lambda _: wrong(lambda g, x: g * 3 * x**2 * 1.01)(low), low)


def test_inputs_are_put_back_after_an_error() -> None:
    """The inputs hold what they held, also where the function raises at another point."""
    x = leaf(3)
    before = x.detach().clone()

    def raises_elsewhere(x: torch.Tensor) -> torch.Tensor:
        if not torch.equal(x.detach(), before):
            raise LookupError("elsewhere")
        return x.sin()

    with pytest.warns(go.GradcheckWarning, match="LookupError: elsewhere"):
        assert go.gradcheck(raises_elsewhere, x)
    assert torch.equal(before, x)


def test_random_states_are_left_alone() -> None:
    """A check takes no random numbers from the caller."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    go.gradcheck(lambda x: torch.nn.functional.dropout(x, 0.5), leaf(3))
    go.gradgradcheck(torch.sin, leaf(3))
    assert torch.equal(expected, torch.rand(2))


def test_under_no_grad() -> None:
    """The mode around a check does not matter to it."""
    with torch.no_grad():
        assert go.gradcheck(Cube.apply, leaf(3)) is True
        assert go.gradcheck(wrong(lambda g, x: g * 2 * x**2), leaf(3), raise_exception=False) is False


@pytest.mark.parametrize("check", [go.gradcheck, go.gradgradcheck])
def test_in_inference_mode(check: Callable[..., bool]) -> None:
    """Nor does inference mode, also where the inputs were made in it; torch's own finds right gradients wrong there."""
    outside = leaf(3)
    with torch.inference_mode():
        for x in (outside, leaf(3)):
            assert check(Cube.apply, x) is True
        inside = leaf(3)
        for x in (outside, inside):
            assert go.gradcheck(wrong(lambda g, x: g * 2 * x**2), x, raise_exception=False) is False
    assert check(Cube.apply, inside) is True
    assert inside.is_inference()


# ---- Sparse inputs


class Product(torch.autograd.Function):
    """A sparse matrix by a dense one, whose gradient by the former is off by a factor, and has its elements only."""

    factor = 1.0001

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return a.to_dense() @ b

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = ctx.saved_tensors
        by_a = (g @ b.t()) * (a.to_dense() != 0) * Product.factor
        return by_a.to_sparse(layout=a.layout), a.to_dense().t() @ g


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_faults_by_sparse_inputs(layout: torch.layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient by a sparse input's values is on trial, and with masked=False that by what it leaves out, too."""
    inputs = (sparse(layout, tracked=True), leaf(3, 2))
    with pytest.raises(go.GradcheckError, match=r'the gradient of "a\.values" is wrong\n') as caught:
        go.gradcheck(Product.apply, inputs, masked=True)
    assert caught.value.report is not None
    assert caught.value.report.inputs["a.values"].factor == pytest.approx(1.0001, rel=1e-8)
    monkeypatch.setattr(Product, "factor", 1.0)
    assert go.gradcheck(Product.apply, inputs, masked=True) is True
    with pytest.raises(go.GradcheckError, match=r'the gradient of "a" is wrong; elements that .* unless masked=True'):
        go.gradcheck(Product.apply, inputs)


def test_low_precision_of_sparse_inputs() -> None:
    """Sparse inputs of float32 are judged by their own rounding, and hold afterwards what they held."""
    for masked in (True, False):
        a = sparse(torch.sparse_csr).to(torch.float32).requires_grad_()
        before = a.detach().to_dense().clone()
        assert go.gradcheck(lambda a, masked=masked: a.to_dense(masked_grad=masked) ** 2, a, masked=masked) is True
        assert torch.equal(before, a.detach().to_dense())


# ---- Misuse


def test_what_cannot_be_judged_by_its_gradients() -> None:
    """Tensors whose elements cannot be moved are refused by what they are, if their gradients are asked for."""

    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*(one.held if isinstance(one, Wrapped) else one for one in args), **(kwargs or {}))

        @staticmethod
        def of(tensor: torch.Tensor, *, tracked: bool) -> torch.Tensor:
            made = torch.Tensor._make_wrapper_subclass(Wrapped, tensor.shape, dtype=F64, requires_grad=tracked)
            made.held = tensor
            return made

    held = leaf(3).detach()
    assert go.gradcheck(lambda c, x: c.held * x, (Wrapped.of(held, tracked=False), leaf(3))) is True
    with pytest.raises(ValueError, match="input 0 is a Wrapped, a subclass of Tensor with a __torch_dispatch__ of its"):
        go.gradcheck(lambda c: c * 2, Wrapped.of(held, tracked=True))
    with pytest.raises(ValueError, match="func: an output of type Wrapped is not supported"):
        go.gradcheck(lambda x: Wrapped.of(x.detach(), tracked=False), leaf(3))
    batch = torch.stack([sparse(torch.sparse_csr).to_dense()] * 2).to_sparse_csr().requires_grad_()
    with pytest.raises(ValueError, match="input 0 is a batch of tensors of layout sparse_csr"):
        go.gradcheck(lambda a: a.to_dense(), batch, masked=True)
    inputs = (sparse(torch.sparse_coo, tracked=True), leaf(3, 2))
    for check, mode in ((go.gradcheck, "check_forward_ad"), (go.gradgradcheck, "check_fwd_over_rev")):
        with pytest.raises(ValueError, match="input 0 is a tensor of layout sparse_coo, by which torch has no forward"):
            check(torch.sparse.mm, inputs, **{mode: True})
    with pytest.raises(ValueError, match="a gradient of _sparse_mm is a tensor of layout sparse_coo, whose own grad"):
        go.gradgradcheck(torch.sparse.mm, inputs)


def test_no_output_requires_grad() -> None:
    """gradgradcheck raises torch's TypeError, whatever raise_exception says: nothing is there to be differentiated."""
    with pytest.raises(TypeError):
        torch.autograd.gradgradcheck(lambda x: x.detach() * 2, leaf(3), raise_exception=False)
    with pytest.raises(
        TypeError, match=r"no output of .*<lambda> requires grad, so that it has no gradients to differ"
    ):
        go.gradgradcheck(lambda x: x.detach() * 2, leaf(3), raise_exception=False)


@pytest.mark.parametrize("check", [go.gradcheck, go.gradgradcheck])
def test_no_input_requires_grad(check: Callable[..., bool]) -> None:
    """As in torch, it is a ValueError, whatever raise_exception says."""
    with pytest.raises(ValueError, match="expects at least one input tensor to require gradient, got 2 inputs, none"):
        check(lambda x, n: x * n, (torch.ones(3), 2), raise_exception=False)


@pytest.mark.parametrize(
    ("check", "options", "text"),
    [
        (go.gradcheck, {"check_backward_ad": False}, "check_forward_ad or check_backward_ad"),
        (go.gradcheck, {"check_backward_ad": False, "check_forward_ad": True, "check_batched_grad": True},
         "check_batched_grad=True needs check_backward_ad=True"),
        (go.gradcheck, {"check_batched_forward_grad": True}, "check_batched_forward_grad=True needs"),
        (go.gradgradcheck, {"check_rev_over_rev": False}, "check_fwd_over_rev or check_rev_over_rev"),
        (go.gradgradcheck, {"check_rev_over_rev": False, "check_fwd_over_rev": True}, "check_undefined_grad=True"),
    ],
)  # fmt: skip
def test_flags_that_exclude_each_other(check: Callable[..., bool], options: dict[str, bool], text: str) -> None:
    """As in torch, they are AssertionErrors."""
    torchs = getattr(torch.autograd, check.__name__)
    with pytest.raises(AssertionError):
        torchs(torch.sin, leaf(3), **options)
    with pytest.raises(AssertionError, match=text):
        check(torch.sin, leaf(3), **options)


def test_inputs_and_outputs_that_cannot_be_moved() -> None:
    """Overlapping inputs and sparse outputs are refused with what to do; so is what is no tensor."""
    with pytest.raises(RuntimeError, match=r"input 0 has a dimension with stride 0.*contiguous"):
        go.gradcheck(torch.sin, torch.ones(1, dtype=F64).expand(3).requires_grad_())
    with pytest.raises(ValueError, match=r"an output of layout sparse_coo.*to_dense"):
        go.gradcheck(lambda x: x.to_sparse(), leaf(2, 2))
    with pytest.raises(TypeError, match="expected a tensor, or a tuple or list of them, got float"):
        go.gradcheck(lambda x: x.sum().item(), leaf(2))


def test_cotangents_that_do_not_fit() -> None:
    """gradgradcheck takes cotangents for the outputs that require grad, and says how many."""
    assert go.gradgradcheck(torch.sin, leaf(3), leaf(3, low=-1)) is True
    with pytest.raises(ValueError, match=r"grad_outputs: expected 1, one for each output that requires grad, got 2"):
        go.gradgradcheck(torch.sin, leaf(3), (leaf(3), leaf(3)))
    with pytest.raises(ValueError, match=r"^grad_outputs: expected a tensor for one output at least, got none$"):
        go.gradgradcheck(torch.sin, leaf(3), (None,))
    with pytest.raises(ValueError, match=r"^grad_outputs: expected a tensor for one output at least, got none$"):
        go.gradgradcheck(lambda x: (x.sin(), x.exp()), leaf(3), (None, None))
    assert go.gradgradcheck(lambda x: (x.sin(), x.exp()), leaf(3), (None, leaf(3))) is True


@pytest.mark.parametrize(
    ("check", "fn", "text"),
    [
        (go.gradcheck, lambda x: x.argmax(), "no output is floating or complex, so that there was nothing to check"),
        (
            go.gradgradcheck,
            lambda x: torch.ones(3, dtype=F64, requires_grad=True) * x.detach(),
            "no output depends on an input, so that there was nothing to check",
        ),
    ],
)
def test_nothing_to_check_is_said(check: Any, fn: Any, text: str) -> None:
    """True, as torch's, but not in silence."""
    with pytest.warns(go.GradcheckWarning, match=text):
        assert check(fn, leaf(3)) is True


def test_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server's engine is not installed, gradcheck says what to install, and go.check why it needs it."""
    monkeypatch.setattr(inprocess, "engine", lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs gradoracle\[server\]"):
        go.gradcheck(torch.sin, leaf(3))
    with pytest.raises(go.TraceError, match=r"item.*gradoracle\[server\] would judge it in this process"):
        go.check(branching, leaf(3))


def test_an_entry_point_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose own packages are missing counts as none."""

    class Broken:
        def load(self) -> object:
            raise ModuleNotFoundError("torch")

    monkeypatch.setattr(inprocess.metadata, "entry_points", lambda **_: [Broken()])
    inprocess.engine.cache_clear()
    try:
        assert inprocess.engine() is None
    finally:
        inprocess.engine.cache_clear()


def ended(program: str) -> list[str]:
    """The last lines of what a program writes."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return (result.stdout + result.stderr).splitlines()


def test_without_torch() -> None:
    """go.check and the warning load no torch; where there is none, what needs it says which extra brings it."""
    loads = "import sys, gradoracle as go; go.check, go.GradcheckWarning; "
    assert ended(f"{loads}print({{'torch', 'gradoracle_server'}} & {{*sys.modules}})") == ["set()"]
    without = "import sys; sys.modules['torch'] = None; import gradoracle as go; "
    assert ended(f"{without}go.check(lambda x: x, 1.0)")[-1] == (
        "ModuleNotFoundError: checking a Python function needs torch, which is not installed; "
        "install gradoracle[torch], or give a Graph or an expression"
    )
    assert ended(f"{without}go.gradcheck")[-1] == (
        "ModuleNotFoundError: gradoracle.gradcheck needs torch, which is not installed; install gradoracle[torch]"
    )


@torch.library.custom_op("gradoracle_tests::sin", mutates_args=())
def numpy_sin(x: torch.Tensor) -> torch.Tensor:
    """An operator of torch.library, as kernels of other languages are made known to torch."""
    return torch.from_numpy(np.sin(x.detach().numpy()))


def test_operators_of_torch_library() -> None:
    """A custom operator is judged as any function, its registered backward on trial."""

    def keep(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    factor = 1.0

    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return factor * g * ctx.saved_tensors[0].cos()

    numpy_sin.register_autograd(backward, setup_context=keep)
    assert go.gradcheck(numpy_sin, leaf(4)) is True
    factor = 1.0001
    assert go.gradcheck(numpy_sin, leaf(4), raise_exception=False) is False
    assert go.check(numpy_sin, leaf(4)).verdict is go.Verdict.FAIL

"""`go.check` of functions that autograd does not follow: numpy's, jax's, numbers'; a claim is judged by differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go
from gradoracle import claims, inprocess

X = np.array([0.3, -1.2, 2.0])
W = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
U = np.array([1.0, 10.0, 0.1])


pytestmark = pytest.mark.usefixtures("one_thread")


def single(report: go.CheckReport) -> go.InputReport:
    """The report on the only input."""
    (found,) = report.inputs.values()
    return found


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "a scalar of numpy": lambda x: np.sin(x).sum(),
    "a number": lambda x: float(np.sin(x).sum()),
    "methods of arrays": lambda x: np.sin(x.astype(x.dtype, copy=True)).sum(axis=0),
    "detached": lambda x: np.sin(x.detach().numpy()).sum(),
    "detached, a tensor": lambda x: torch.from_numpy(np.sin(x.detach().numpy())).sum(),
    "a sum of numbers": lambda x: sum(math.sin(one) for one in x.tolist()),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # torch's, which numpy calls on tensors
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("given", [X, X.tolist(), torch.from_numpy(X).clone().requires_grad_()], ids=type)
def test_one_input(name: str, given: Any) -> None:
    """A right claim passes, and of a wrong one the element is named, whatever the function gives."""
    fn = FUNCTIONS[name]
    if name == "methods of arrays" and isinstance(given, torch.Tensor):
        pytest.skip("tensors have no such method")
    claim = np.cos(X)
    assert go.check(fn, given, claimed=claim).passed
    assert go.check(fn, given, claimed=lambda x: np.cos(np.asarray(torch.as_tensor(x).detach()))).passed
    claim[1] *= 1.0001
    found = single(go.check(fn, given, claimed=claim))
    assert found.verdict is go.Verdict.FAIL
    assert found.worst[0].index == (1,)
    assert found.worst[0].numerical == pytest.approx(np.cos(X[1]), rel=1e-9)


def test_several_inputs() -> None:
    """Inputs have the parameters' names; arrays that have no gradient and numbers are given as they are."""

    def fn(x: Any, w: Any, n: Any, power: int) -> Any:
        assert [type(one) for one in (x, w, n, power)] == [np.ndarray, np.ndarray, np.ndarray, int]
        return np.einsum("i,ij->", x**power * n, w)

    n = np.array([1, 2, 3])
    right = {"x": 2 * X * n * W.sum(1), "w": np.outer(X**2 * n, [1.0, 1.0])}
    report = go.check(fn, X, W, n, 2, claimed=right)
    assert report.passed
    assert list(report.inputs) == ["x", "w"]
    right["w"][2, 0] += 1e-3
    report = go.check(fn, X, W, n, 2, claimed=right)
    assert [report.inputs[name].verdict.name for name in ("x", "w")] == ["PASS", "FAIL"]
    assert report.inputs["w"].worst[0].index == (2, 0)


def test_numpys_own() -> None:
    """A ufunc is a function, too, under the names of its documentation."""
    report = go.check(np.sin, X, claimed=U * np.cos(X), cotangents=U)
    assert report.passed
    assert list(report.inputs) == ["x"]


def test_cotangents_of_arrays() -> None:
    """They are by the outputs' names, for arrays in dicts and tuples; without them only scalars will do."""
    claim = U * np.cos(X) - np.sin(X)
    pair: Any = lambda x: (np.sin(x), np.cos(x).sum())  # noqa: E731
    assert go.check(pair, X, claimed=claim, cotangents=[U, np.float64(1)]).passed
    named: Any = lambda x: {"a": np.sin(x), "b": float(np.cos(x).sum())}  # noqa: E731
    assert go.check(named, X, claimed=claim, cotangents={"a": U, "b": 1.0}).passed
    assert not go.check(named, X, claimed=claim, cotangents={"a": U, "b": -1.0}).passed
    with pytest.raises(go.InvalidRequestError, match="grad can be implicitly created only for scalar outputs"):
        go.check(np.sin, X, claimed=claim)


def test_second_derivatives_are_not_claimed() -> None:
    """As of a graph: they would be weighted with numbers that no caller knows."""
    for fn in ("sum(sin(x))", lambda x: np.sin(x).sum()):
        with pytest.raises(go.InvalidRequestError, match="claimed: expected order 1 with it, got order 2"):
            go.check(fn, X, claimed=np.cos(X), order=2)


def test_numbers_alone() -> None:
    """Python numbers and numpy's scalars are given as such."""
    for given in (0.7, np.float64(0.7)):
        seen: list[type] = []

        def fn(x: Any, seen: list[type] = seen) -> Any:
            seen.append(type(x))
            return math.sin(x) if isinstance(x, float) else math.nan + x.no_number

        assert go.check(fn, given, claimed=math.cos(0.7)).passed
        assert single(go.check(fn, given, claimed=1.0001 * math.cos(0.7))).diagnosis is go.Diagnosis.SCALED
        assert type(given) in seen


def test_complex_numbers() -> None:
    """The gradient of |z|^2, in torch's convention, is 2 z."""
    z = np.array([0.5 + 1j, -2 + 0.25j])
    fn: Any = lambda z: np.sum(np.real(z * np.conj(z)))  # noqa: E731
    assert go.check(fn, z, claimed=2 * z).passed
    assert not go.check(fn, z, claimed=2 * z.conj()).passed


@pytest.mark.parametrize("rounding", [False, True])
def test_low_precision(rounding: bool) -> None:
    """float32 arrays are judged in float64 where the function computes in it, and else by its own rounding."""
    x = X.astype(np.float32)

    def fn(x: Any) -> Any:
        return np.sin(x.astype(np.float32) if rounding else x).sum()

    right = go.check(fn, x, claimed=np.cos(x))
    assert right.passed
    assert 0 < single(right).max_error < single(right).error_bound
    off = np.float32(1.01 if rounding else 1.0001) * np.cos(x)
    assert single(go.check(fn, x, claimed=off)).verdict is go.Verdict.FAIL
    assert single(go.check(fn, x, claimed=-np.cos(x))).diagnosis is go.Diagnosis.SIGN_FLIPPED
    assert single(go.check(fn, x, claimed=0 * x)).diagnosis is go.Diagnosis.ZEROED
    one = np.cos(x)
    one[1] *= 1.05
    found = single(go.check(fn, x, claimed=one))
    assert (found.diagnosis, found.worst[0].index) == (go.Diagnosis.SINGLE_ELEMENTS, (1,))
    others = "not seen to be wrong in the others" if rounding else "right in the others"
    assert found.explanation == f"It is wrong in 1 of {x.size} elements, and {others}."


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_jax(dtype: str) -> None:
    """Its functions get its arrays, and their results are taken from it."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax.enable_x64(dtype == "float64"):
        x = jax.numpy.asarray(X.astype(dtype))
        fn: Any = lambda x: jax.numpy.sin(x).sum()  # noqa: E731
        assert go.check(fn, x, claimed=jax.grad(fn)(x)).passed
        found = single(go.check(jax.jit(fn), x, claimed=jax.grad(fn)(x).at[1].multiply(1.05)))
        assert found.verdict is go.Verdict.FAIL
        assert found.worst[0].index == (1,)
        assert go.check(jax.jit(fn), x, claimed=jax.grad(fn)).passed


# ---- What is refused


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "detached, a tensor"])
def test_without_a_claim(name: str) -> None:
    """There is no gradient of autograd's to judge: the error says so, and what to do."""
    with pytest.raises(go.TraceError, match=r"autograd has no gradient of it; give the gradient .* as claimed="):
        go.check(FUNCTIONS[name], X)


def failing(x: Any) -> Any:
    raise LookupError("nothing there")


def failing_late(x: Any) -> Any:
    np.sin(x)
    raise ValueError("a fault of its own")


def failing_detached(x: Any) -> Any:
    np.sin(x.detach().cos().numpy())
    raise ValueError("a fault of its own")


@pytest.mark.parametrize("claim", [None, np.cos(X)])
@pytest.mark.parametrize(
    ("fn", "kind", "text"),
    [
        (failing, LookupError, "nothing there"),
        (failing_late, ValueError, "a fault of its own"),
        (failing_detached, ValueError, "a fault of its own"),
        (lambda x: (x[None] @ x[None]).sin().sum(), RuntimeError, "mat1 and mat2"),
        (lambda x: x.sine(), AttributeError, "'Tensor' object has no attribute 'sine'"),
        (lambda x: "a text", go.TraceError, "returned the str 'a text'"),
        (lambda x: np.array(["a text"]), go.TraceError, "returned the ndarray"),
        (lambda x: None, go.TraceError, "returned no tensor"),
    ],
)
def test_errors_of_the_functions_own(fn: Any, kind: type[Exception], text: str, claim: Any) -> None:
    """They come out as they are, with a claim and without one."""
    with pytest.raises(kind, match=text):
        go.check(fn, X, claimed=claim)


def test_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing can be judged in this process."""
    monkeypatch.setattr(inprocess, "engine", lambda: None)
    with pytest.raises(go.TraceError, match=r"gradoracle\[server\] would judge it in this process"):
        go.check(FUNCTIONS["a scalar of numpy"], X, claimed=np.cos(X))


@pytest.mark.parametrize(
    ("like", "kind"),
    [(1.0, float), (1j, complex), (np.float32(1), np.float64), ([1.0], np.ndarray), (X, np.ndarray), ((), np.ndarray)],
)
def test_as_given(like: Any, kind: type) -> None:
    """Numbers for numbers, arrays for lists; an array of another library by its own namespace."""
    array = np.asarray(1j if kind is complex else 1.0)
    found = claims.as_given(array, like)
    assert type(found) is kind
    assert found == array

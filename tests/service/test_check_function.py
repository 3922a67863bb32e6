"""`go.check`: functions, graphs and expressions with claims, by the private server or a given one, or in process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

import gradoracle as go
from gradoracle import inprocess, private
from gradoracle.pytest_plugin import assert_gradients, case

F64 = torch.float64
X = np.array([0.5, -1.0, 2.0])
W = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])


class Doubler(torch.autograd.Function):
    """2 x by numpy, with a backward that is 1.0001 times too large: nothing that a graph could express."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(2.0002 * g.numpy())


def branching(x: torch.Tensor) -> torch.Tensor:
    """Control flow that depends on values."""
    return x.sin().sum() if x.sum().item() > 0 else x.cos().sum()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes which checks ran in this process."""
    ran: list[str] = []
    check = inprocess.check

    def noting(*args: Any, **options: Any) -> go.CheckReport:
        ran.append("in process")
        return check(*args, **options)

    monkeypatch.setattr(inprocess, "check", noting)
    return ran


@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        ("sin(x @ w)", (X, W)),
        (go.Graph.parse("sin(x @ w)"), (X.tolist(), torch.from_numpy(W))),
        (lambda x, w: (x @ w).sin(), (X, W)),
        (lambda x, w: (x @ w).sin(), (torch.from_numpy(X), torch.from_numpy(W))),
    ],
)
def test_autograds_own(client: go.Client, fn: Any, inputs: tuple[Any, ...]) -> None:
    """Without claims autograd's own gradients are on trial, of every floating input, under the parameters' names."""
    report = go.check(fn, *inputs, client=client)
    assert report.passed
    assert list(report.inputs) == ["x", "w"]


def test_requires_grad_decides(client: go.Client) -> None:
    """Where torch tensors say that they require grad, they and what is no torch tensor are on trial."""
    x, w = torch.from_numpy(X).clone().requires_grad_(), torch.from_numpy(W)
    for fn in ("x @ w", lambda x, w: x @ w):
        assert list(go.check(fn, x, w, client=client).inputs) == ["x"]
        assert list(go.check(fn, x, W, client=client).inputs) == ["x", "w"]


def test_modules(client: go.Client) -> None:
    """A module's parameters are on trial under their names."""
    report = go.check(torch.nn.Linear(3, 2).double(), torch.from_numpy(X), client=client)
    assert report.passed
    assert list(report.inputs) == ["weight", "bias"]


RIGHT = np.array([3.0, 12.0, 27.0])


@pytest.mark.parametrize(
    "claim",
    [
        {"x": RIGHT},
        RIGHT,
        [3.0, 12.0, 27.0],
        (RIGHT,),
        torch.from_numpy(RIGHT),
        lambda x: 3 * x**2,
        lambda x: (3 * x**2,),
    ],
)
@pytest.mark.parametrize("fn", ["sum(x**3)", lambda x: (x**3).sum(), lambda x: (x**3).sum() + 0 * int(x.sum())])
def test_claims(client: go.Client, fn: Any, claim: Any) -> None:
    """A claim may come in any form, for a graph, for a function, and for one that cannot be traced."""
    x = np.array([1.0, 2.0, 3.0])
    assert go.check(fn, x, claimed=claim, client=client).passed
    found = go.check(fn, x * 1.001, claimed=RIGHT, client=client).inputs["x"]
    assert found.verdict is go.Verdict.FAIL


def test_a_hand_written_backward(client: go.Client) -> None:
    """A callable claim gets the inputs; what is None among its gradients is not claimed."""
    report = go.check(
        lambda x, w: (x @ w).sum(), X, W, claimed=lambda x, w: (None, np.outer(x, [1.0, 1.0])), client=client
    )
    assert report.passed
    assert list(report.inputs) == ["w"]


def backward(*inputs: Any) -> Any:
    """A backward that lacks its return."""


@pytest.mark.parametrize("fn", ["sin(x)", torch.sin, lambda x: x.sin() + 0 * int(x.sum()), np.sin])
@pytest.mark.parametrize(
    ("claim", "name"), [(lambda x: None, "<lambda>"), (backward, "backward"), (functools.partial(backward), "backward")]
)
def test_a_backward_that_returns_nothing(client: go.Client, fn: Any, claim: Any, name: str) -> None:
    """It is refused: as no claim at all, it would leave autograd's own gradient on trial, which is right."""
    text = f"claimed: {name} returned None; return the gradients, one for each input on trial"
    for refused in (
        lambda: go.check(fn, X, claimed=claim, cotangents=np.ones(3), client=client),
        lambda: assert_gradients(fn, X, claimed=claim, cotangents=np.ones(3), client=client),
        lambda: case(fn, X, claimed=claim, cotangents=np.ones(3)).request(),
    ):
        with pytest.raises(go.InvalidRequestError) as caught:
            refused()
        assert text == str(caught.value)
        assert ("INVALID_SELECTION", "None") == (caught.value.reason, caught.value.metadata["got"])


def test_cotangents(client: go.Client) -> None:
    """Cotangents are by name, in order, or one array; also in this process."""
    u = np.array([1.0, 10.0, 0.1])
    for fn in ("sin(x)", torch.sin, lambda x: x.sin() + 0 * int(x.sum())):
        for given in (u, [u], {"out": u}):
            assert go.check(fn, X, claimed=u * np.cos(X), cotangents=given, client=client).passed
        with pytest.raises(go.InvalidRequestError, match="grad can be implicitly created only for scalar outputs"):
            go.check(fn, X, claimed=np.cos(X), client=client)


def test_what_a_graph_cannot_express(client: go.Client, counted: list[str]) -> None:
    """A backward of the function's own, and control flow that depends on values, are judged in this process."""
    report = go.check(Doubler.apply, X, client=client)
    (found,) = report.inputs.values()
    assert found.diagnosis is go.Diagnosis.SCALED
    assert found.factor == pytest.approx(1.0001, rel=1e-8)
    assert go.check(branching, X, client=client).passed
    assert go.check(branching, X, client=client, order=2, mode="full").passed
    assert len(counted) == 3
    assert go.check(torch.sin, X, client=client).passed
    assert len(counted) == 3


def test_float32_where_no_graph_can(client: go.Client) -> None:
    """What cannot be traced is judged in float64 where it can be run there, and by its own rounding where not."""
    x = torch.tensor([0.5, -0.25, 1.5], requires_grad=True)

    def fixed(x: torch.Tensor) -> torch.Tensor:
        """The same in float32 only."""
        return branching(x.float())

    fine, coarse = (go.check(fn, x, client=client) for fn in (branching, fixed))
    assert fine.passed
    assert coarse.verdict in (go.Verdict.PASS, go.Verdict.INCONCLUSIVE)
    wrong = np.float32(1.05) * np.cos(x.detach().numpy())
    for fn in (branching, fixed):
        assert go.check(fn, x, claimed=wrong, client=client).verdict is go.Verdict.FAIL


@pytest.mark.parametrize("fn", ["x.sin()", lambda x: x.sin(), torch.sin, lambda x: x.sin() + 0 * int(x.sum())])
def test_lists_are_arrays(client: go.Client, fn: Any) -> None:
    """Nested lists are inputs, of float64, for a graph, for functions, and for one that cannot be traced."""
    for given in ([1.0, 2.0], [[1, 2], [3, 4]], (0.5, 1.5), 2):
        (found,) = go.check(fn, given, client=client).inputs.values()
        assert found.passed
        (claimed,) = go.check(fn, given, claimed=1.0001 * np.cos(given), cotangents=np.ones_like(given, float),
                              client=client).inputs.values()  # fmt: skip
        assert claimed.diagnosis is go.Diagnosis.SCALED
        assert claimed.factor == pytest.approx(1.0001, rel=1e-8)


@pytest.mark.parametrize(("fn", "backward"), [("sum(x**3)", np.square), (lambda x: (x**3).sum(), torch.square)])
def test_a_hand_written_backward_gets_arrays_for_lists(client: go.Client, fn: Any, backward: Any) -> None:
    """Arrays, or what the function itself gets."""
    assert go.check(fn, [1.0, 2.0, 3.0], claimed=lambda x: 3 * backward(x), client=client).passed


def test_lists_beside_arrays(client: go.Client) -> None:
    """Lists of other than whole numbers are inputs; those and tuples, which may be dimensions, are passed as they are,
    and so is what holds tensors."""
    assert list(go.check(lambda x, w: (x * w).sum(), [1.0, 2.0], X[:2], client=client).inputs) == ["x", "w"]
    for dims in ([1, 0], (1, 0)):
        assert list(go.check(lambda x, dims: x.permute(dims).sin(), W, dims, client=client).inputs) == ["x"]
    scale = (2.0, 0.5)
    assert list(go.check(lambda x, scale: x * scale[0] + scale[1], X, scale, client=client).inputs) == ["x"]
    pair = [torch.from_numpy(X), torch.from_numpy(X)]
    report = go.check(lambda pair, dims: (pair[0] * pair[1]).sum(dims), pair, [0], client=client)
    assert list(report.inputs) == ["pair.0", "pair.1"]
    assert go.check(lambda x, flags: x if flags[0] else -x, 2.0, [True], client=client).passed
    with pytest.raises(go.InvalidRequestError, match=r"inputs\[0\]: expected numbers, or nested lists of them in rows"):
        go.check(lambda x: x.sum(), [[1.0, 2.0], [3.0]], client=client)


@pytest.mark.parametrize("fn", ["x * n", lambda x, n: x * n, lambda x, n: x * n + 0 * int(n.sum())])
@pytest.mark.parametrize("number", [torch.tensor([0, 1, 1]), np.array([True, False, True])])
@pytest.mark.parametrize("tracked", [False, True])
def test_inputs_without_a_gradient_are_named(client: go.Client, fn: Any, number: Any, tracked: bool) -> None:
    """An integer or bool input is named, with why nothing was checked, and has no say in the verdict, wherever the
    function is judged and whoever says what requires grad."""
    report = go.check(fn, torch.from_numpy(X).clone().requires_grad_(tracked), number, client=client)
    assert report.passed
    assert list(report.inputs) == ["x", "n"]
    assert report.inputs["n"].verdict is go.Verdict.NON_DIFFERENTIABLE
    kind = str(number.dtype).removeprefix("torch.")
    assert report.inputs["n"].explanation == f"{kind} tensors have no gradient; nothing was checked."
    with pytest.raises(go.InvalidRequestError, match=f'claimed: input "n" is {kind} and has no gradient to claim'):
        go.check(fn, X, number, claimed={"n": np.zeros(3)}, cotangents=X, client=client)


@pytest.mark.parametrize("fn", ["n * 2.0", lambda n: n * 2.0, lambda n: n * 2.0 + 0 * int(n.sum())])
def test_nothing_but_inputs_without_a_gradient(client: go.Client, fn: Any) -> None:
    """They are named where nothing else is on trial, too."""
    report = go.check(fn, torch.tensor([0, 1, 1]), client=client)
    assert report.verdict is go.Verdict.NON_DIFFERENTIABLE
    assert "int64 tensors have no gradient" in report.inputs["n"].explanation


def test_in_inference_mode(client: go.Client) -> None:
    """The mode around a check does not matter to it, nor that tensors were made in it, wherever it is judged."""
    for fn in (torch.sin, branching):
        with torch.inference_mode():
            inside = torch.from_numpy(X).clone().requires_grad_()
            for x in (torch.from_numpy(X), inside, X):
                assert go.check(fn, x, client=client).passed
        assert go.check(fn, inside, client=client).passed
    with torch.inference_mode():
        for x in (inside, X):
            (found,) = go.check(Doubler.apply, x, client=client).inputs.values()
            assert found.diagnosis is go.Diagnosis.SCALED


def test_flags_and_numbers_are_passed_as_they_are(client: go.Client) -> None:
    """Beside arrays, numbers and flags are no inputs; alone, numbers are."""
    assert list(go.check(lambda x, n, flag: x**n, X, 3, True, client=client).inputs) == ["x"]
    assert go.check(lambda x: 3 * x**2, 2.0, claimed=12.0, client=client).passed


@pytest.mark.parametrize(
    "fn", ["sum(x * w)", lambda x, w: (x * w).sum(), lambda x, w: (x * w).sum() + 0 * int(x.sum())]
)
@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ({"y": X}, 'claimed: the graph has no input "y"; inputs: "x", "w"'),
        ([X[:2]], 'claimed: the gradient of input "x" has shape [3], got a tensor of shape [2]'),
        ([X.astype(np.float32)], 'claimed: the gradient of input "x" is float64, got float32'),
        ({"w": X}, 'claimed: input "w" was declared with requires_grad=False and has no gradient to claim'),
        ([X, X], 'claimed: expected 1 gradient, for the input "x", got a sequence of 2'),
    ],
)
def test_claims_that_do_not_fit(client: go.Client, fn: Any, claim: Any, text: str) -> None:
    """Claims of the wrong shape, dtype, input or number are errors with names and shapes, wherever they are judged."""
    x, w = torch.from_numpy(X).clone().requires_grad_(), torch.from_numpy(X)
    with pytest.raises(go.InvalidRequestError) as caught:
        go.check(fn, x, w, claimed=claim, client=client)
    assert text == str(caught.value)


def test_other_misuse(client: go.Client) -> None:
    """Wrong arguments are named; the function's own errors come out as they are."""
    with pytest.raises(go.InvalidRequestError, match=r'inputs: expected 2 \("x", "w"\), got 1'):
        go.check("x @ w", X, client=client)
    with pytest.raises(TypeError, match="fn: expected a callable, a Graph or an expression, got int"):
        go.check(3, X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"client: expected a gradoracle\.Client, got str"):
        go.check("x", X, client="localhost:1")  # type: ignore[arg-type]
    for fn in ("sin(x)", torch.sin, branching):
        with pytest.raises(go.InvalidRequestError, match="mode: expected 'probe' or 'full', got 'hard'"):
            go.check(fn, X, mode="hard", client=client)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        go.check(lambda x: branching(x) + (x[None] @ x[None]).sum(), X)


# ---- The private server


def test_the_private_server_is_kept() -> None:
    """Checks without a client share one server, also from several threads at once."""
    addresses = []

    def ask() -> None:
        assert go.check("sin(x)", X).passed
        addresses.append(private.call(lambda one: one.address))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(addresses) == 4
    assert len(set(addresses)) == 1


def test_a_private_server_that_went_away_is_replaced() -> None:
    """Where the server has gone, the next check starts another."""
    assert go.check("sin(x)", X).passed
    before = private.call(lambda one: one.address)
    private._owner.client._owned.close()  # type: ignore[union-attr]  # stops the server, not the connections
    assert go.check("sin(x)", X).passed
    assert private.call(lambda one: one.address) != before


PROGRAM = """
import os, sys
import gradoracle as go
from gradoracle import private

def checked():
    assert go.check("sin(x)", 1.0).passed
    return private.call(lambda one: one.address)

mine = checked()
child = os.fork()
if child == 0:
    assert checked() != mine
    sys.exit(7)  # as at the end of any program, with what was registered for it
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert checked() == mine
print(mine)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_a_server_of_its_own_and_exit_stops_it() -> None:
    """A forked child starts a server of its own and leaves its parent's alone; each stops with its process."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=110)
    assert (0, "") == (result.returncode, result.stderr)
    with pytest.raises(go.ServerUnavailableError), go.Client(result.stdout.strip(), timeout=5) as client:
        client.server_info()

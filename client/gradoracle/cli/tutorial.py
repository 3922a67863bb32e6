"""The ten cases of an introductory autograd course, put to a server: what `gradoracle demo` shows.

Each case is a function that asks the server what the course asks torch, and returns what it found beside what the
course says. Found and expected are compared exactly.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import gradoracle as go
from gradoracle.cli import output

if TYPE_CHECKING:
    from gradoracle import Client

POLYNOMIAL = "9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1"
SQUARE = np.full((2, 2), 3.0)


@dataclasses.dataclass(frozen=True)
class Found:
    """One thing that the server said: an array, a word, or None for no gradient."""

    name: str  # as torch would spell it: "x.grad"
    got: Any
    expected: Any

    @property
    def right(self) -> bool:
        """Whether it is exactly as expected."""
        if isinstance(self.expected, str) or self.expected is None:
            return bool(self.got is None if self.expected is None else self.got == self.expected)
        return self.got is not None and np.array_equal(self.got, self.expected)


@dataclasses.dataclass(frozen=True)
class Case:
    """A case with its outcome."""

    number: int
    title: str  # what is computed
    lesson: str  # what it shows
    found: Sequence[Found]
    timing: Mapping[str, float]  # seconds by phase, summed over the requests of the case
    seconds: float  # as the client saw it

    @property
    def passed(self) -> bool:
        """Whether everything is as the course says."""
        return all(found.right for found in self.found)


class Session:
    """A client that adds up the timings of its answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.timing: dict[str, float] = {}

    def evaluate(self, graph: go.Graph | str, primals: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs."""
        result = self._client.evaluate(graph, primals)
        self._add(result.timing)
        return result.outputs

    def vjp(
        self, graph: go.Graph | str, primals: Mapping[str, Any], *arguments: Any, **options: Any
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The outputs and the gradients."""
        result = self._client.vjp(graph, primals, *arguments, **options)
        self._add(result.timing)
        return result.outputs, result.gradients

    def inspect(self, graph: go.Graph | str, primals: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of every value."""
        state = self._client.inspect(graph, primals)
        self._add(state.timing)
        return state

    def _add(self, timing: Mapping[str, float]) -> None:
        for phase, seconds in timing.items():
            self.timing[phase] = self.timing.get(phase, 0.0) + seconds


def tracking(session: Session) -> list[Found]:
    x, w = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    off = go.Graph()
    off.output("y", (off.input("x", requires_grad=False) * off.input("w")).sum())
    outputs, gradients = session.vjp(off, {"x": x, "w": w})
    _, tracked = session.vjp("(x * w).sum()", {"x": x, "w": w})
    return [
        Found("y", outputs["y"], 11.0),
        Found("x.grad, off", gradients.get("x"), None),
        Found("x.grad, on", tracked["x"], w),
    ]


def grad_fn(session: Session) -> list[Found]:
    graph = go.Graph()
    a = graph.input("a")
    square = a * a
    graph.output("b", square.sum(name="b"))
    primals = {"a": np.arange(9.0).reshape(3, 3)}
    state = session.inspect(graph, primals)
    return [
        Found("b", session.evaluate(graph, primals)["b"], 204.0),
        Found("a.grad_fn", state["a"].grad_fn, None),
        Found("(a*a).grad_fn", state[square.name].grad_fn, "MulBackward0"),
        Found("b.grad_fn", state["b"].grad_fn, "SumBackward0"),
    ]


def polynomial(session: Session) -> list[Found]:
    outputs, gradients = session.vjp(POLYNOMIAL, {"x": np.array(2.0)})
    return [Found("y", outputs["out"], 185.0), Found("dy/dx", gradients["x"], 330.0)]


def not_scalar(session: Session) -> list[Found]:
    z = session.evaluate("(x + 2)**2", {"x": SQUARE})["out"]
    try:
        session.vjp("(x + 2)**2", {"x": SQUARE})
        refusal = "computed"
    except go.InvalidRequestError as error:
        in_torchs_words = "grad can be implicitly created only for scalar outputs" in str(error)
        refusal = "refused" if in_torchs_words and "(2, 2)" in str(error) else str(error)
    return [Found("z", z, np.full((2, 2), 25.0)), Found("x.grad", refusal, "refused")]


def leaves_only(session: Session) -> list[Found]:
    graph = go.Graph()
    y = graph.input("x") + 2
    graph.output("z", (y**2).sum())
    outputs, gradients = session.vjp(graph, {"x": SQUARE})
    _, retained = session.vjp(graph, {"x": SQUARE}, retain=[y.name])
    return [
        Found("z", outputs["z"], 100.0),
        Found("x.grad", gradients["x"], np.full((2, 2), 10.0)),
        Found("y.grad", gradients.get(y.name), None),
        Found("... retained", retained[y.name], np.full((2, 2), 10.0)),
    ]


def cotangent(session: Session) -> list[Found]:
    vector = np.array([0.1, 1.0, 10.0])
    outputs, gradients = session.vjp("3*x**2", {"x": np.ones(3)}, {"out": vector})
    return [Found("z", outputs["out"], np.full(3, 3.0)), Found("x.grad", gradients["x"], vector * 3 * 2)]


def no_grad(session: Session) -> list[Found]:
    graph = go.Graph()
    x = graph.input("x")
    with graph.no_grad():
        square = x**2
    graph.output("y", square + x)
    outputs, gradients = session.vjp(graph, {"x": np.array(3.0)})
    state = session.inspect(graph, {"x": np.array(3.0)})[square.name]
    return [
        Found("y", outputs["y"], 12.0),
        Found("dy/dx", gradients["x"], 1.0),
        Found("x**2 tracked", "yes" if state.requires_grad else "no", "no"),
    ]


def detach(session: Session) -> list[Found]:
    outputs, gradients = session.vjp("x * detach(x)", {"x": np.array(3.0)})
    return [Found("y", outputs["out"], 9.0), Found("dy/dx", gradients["x"], 3.0)]


def retain(session: Session) -> list[Found]:
    graph = go.Graph()
    b = graph.input("a") + 2
    c = b**2
    graph.output("out", c.sum())
    outputs, gradients = session.vjp(graph, {"a": np.ones((2, 2))}, retain=[b.name, c.name, "out"])
    return [
        Found("out", outputs["out"], 36.0),
        Found("a.grad", gradients["a"], np.full((2, 2), 6.0)),
        Found("b.grad", gradients[b.name], np.full((2, 2), 6.0)),
        Found("c.grad", gradients[c.name], np.ones((2, 2))),
        Found("out.grad", gradients["out"], 1.0),
    ]


def default_cotangent(session: Session) -> list[Found]:
    outputs, left_out = session.vjp(POLYNOMIAL, {"x": np.array(2.0)})
    _, given = session.vjp(POLYNOMIAL, {"x": np.array(2.0)}, {"out": 1.0})
    return [
        Found("y", outputs["out"], 185.0),
        Found("left out", left_out["x"], 330.0),
        Found("given as 1", given["x"], 330.0),
    ]


CASES: Sequence[tuple[str, str, Callable[[Session], list[Found]]]] = [
    ("y = (x * w).sum()", "only an input that asks is tracked", tracking),
    ("b = (a*a).sum(), a 3x3", "a result knows what made it", grad_fn),
    (f"y = {POLYNOMIAL}, x = 2", "a derivative", polynomial),
    ("z = (x + 2)**2, x 2x2", "only a scalar starts a backward pass", not_scalar),
    ("y = x + 2, z = (y**2).sum()", "leaves have gradients, the rest if retained", leaves_only),
    ("z = 3*x**2, cotangent [0.1, 1, 10]", "a vector-Jacobian product", cotangent),
    ("y = x**2 + x, x**2 under no_grad", "no_grad passes no gradient", no_grad),
    ("y = x * x.detach(), x = 3", "detach keeps values, stops gradients", detach),
    ("b = a + 2, c = b**2, out = c.sum()", "any value's gradient can be retained", retain),
    ("case 3 with and without a cotangent", "a scalar's cotangent is 1", default_cotangent),
]


def run(client: Client) -> list[Case]:
    """Every case, in the course's order."""
    cases = []
    for number, (title, lesson, ask) in enumerate(CASES, start=1):
        session = Session(client)
        start = time.perf_counter()
        found = ask(session)
        seconds = time.perf_counter() - start
        cases.append(Case(number, title, lesson, found, session.timing, seconds))
    return cases


def spelled(value: Any) -> str:
    """An array or word in few words: an array of equal elements as "all 6"."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size > 1 and (array == array.flat[0]).all():
        return f"all {output.number(array.flat[0])}"
    return output.text(array, width=1000).replace("\n", "")

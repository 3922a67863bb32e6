"""The experiments themselves: each judge rejects what it is there to reject."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2

import gradoracle as go
from faults import answers, callers, fuzz, mutated, outcome
from faults.operator_calls import tensor
from gradoracle.operators import table
from gradoracle.v1 import service_pb2
from gradoracle_server.rpc_status import make_status


def failure(reason: str, **metadata: str) -> status_pb2.Status:
    """A status as the server makes it."""
    return make_status(13, reason, "text", metadata)


@pytest.mark.parametrize(
    ("status", "told", "contained"),
    [
        (failure("WORKER_CRASHED", signal="SIGSEGV"), "WORKER_CRASHED SIGSEGV", True),
        (failure("COMPUTATION_FAILED"), "COMPUTATION_FAILED", True),
        (failure("INTERNAL", incident="1"), "INTERNAL", False),
        (failure("SHUTTING_DOWN"), "SHUTTING_DOWN", False),
        (status_pb2.Status(code=2), "no reason (UNKNOWN)", False),
        (status_pb2.Status(code=14), "no reason (UNAVAILABLE)", False),
    ],
)
def test_what_is_contained(status: status_pb2.Status, told: str, contained: bool) -> None:
    """A reason that speaks of the request is; an incident, a status without a reason, and silence are not."""
    assert told == answers.told(status)
    assert contained is answers.is_contained(told)
    assert answers.is_contained("OK")


def test_stream_calls_come_back_by_place() -> None:
    """Each call is told once, whatever the order of the answers; one whose time passed in the queue is made again."""
    refused = [7]

    def converse(messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            (call,) = service_pb2.StreamRequest.FromString(message).calls
            answer = service_pb2.StreamAnswer(id=call.id)
            if call.id in refused:
                refused.remove(call.id)
                answer.status = failure("DEADLINE_EXCEEDED", phase="queue").SerializeToString()
            elif call.id == 3:
                answer.status = failure("CYCLE").SerializeToString()
            else:
                answer.evaluate.SetInParent()
            yield service_pb2.StreamResponse(answers=[answer]).SerializeToString()

    found = {number: what for number, what, _ in answers.over_stream(converse, [("Evaluate", b"")] * 10, window=4)}

    assert {number: "CYCLE" if number == 3 else "OK" for number in range(10)} == found
    assert [] == refused


class Liar:
    """A client whose derivatives are off by a little, now and then."""

    def vjp(self, graph: go.Graph, primals: dict[str, Any], **_: Any) -> Any:
        x = primals["x"]
        if np.ndim(x):
            return type("Result", (), {"gradients": {"x": np.nextafter(x, 1)}})
        return type("Result", (), {"gradients": {"x": 36 * x**3 + 6 * x**2 + 6 * x + 6 + 1e-6}})


def test_callers_notice_wrong_answers() -> None:
    """One bit in a matrix, or a millionth in a derivative, is wrong."""
    made = callers.Callers("nowhere")
    liar: Any = Liar()
    made._expected = made._matrix.tobytes()

    assert 1 == len(made._long(liar))
    assert 1 == len(made._quick(liar, 0.5))
    made._expected = np.nextafter(made._matrix, 1).tobytes()
    assert [] == made._long(liar)


def test_callers_notice_lost_calls() -> None:
    """A call that fails is lost, with its reason."""
    made = callers.Callers("127.0.0.1:1")
    thread = threading.Thread(target=made._call, args=(0,))
    thread.start()
    while not made.lost:
        thread.join(0.01)
    made._done.set()
    thread.join()

    assert all("no gradoracle server answers" in text for text in made.failed)
    assert 0 == made.answered


def test_fuzz_reaches_every_overload_and_kind() -> None:
    """A round of calls names every overload; arguments of every kind with a wire form occur, and odd values."""
    served = list(table().served.values())
    graphs = []
    for number, operator in enumerate(served):
        method, request = fuzz.request(operator, Random(number))  # noqa: S311
        graphs.append(getattr(service_pb2, f"{method}Request").FromString(request).graph)

    assert [operator.name for operator in served] == [graph.nodes[0].target for graph in graphs]
    kinds = Counter(one.argument.WhichOneof("kind") for graph in graphs for one in graph.nodes[0].kwargs)
    expected = {"value", "none", "integer", "real", "boolean", "complex", "text", "dtype", "device", "list"}
    assert expected | {"layout", "memory_format"} == set(kinds)
    integers = {one.argument.integer for graph in graphs for one in graph.nodes[0].kwargs}
    assert {2**63 - 1, -(2**63), 0, 1, -1} <= integers


def test_fuzz_is_repeatable() -> None:
    """The same number gives the same call, so that what did not hold can be looked at."""
    operator = table().served["aten.add.Tensor"]

    assert fuzz.request(operator, Random(5)) == fuzz.request(operator, Random(5))  # noqa: S311
    assert len({fuzz.request(operator, Random(number)) for number in range(50)}) > 40  # noqa: S311


def test_mutations_change_and_vary() -> None:
    """Nearly every changed request differs from all valid ones; both kinds of change occur for every method."""
    originals = mutated.valid()
    changed = list(mutated.changed(2000, Random(0)))  # noqa: S311

    assert {method for method, _ in originals} == {method for method, _ in changed}
    assert sum(one in originals for one in changed) < 400
    assert len(set(changed)) > 1200


@pytest.mark.parametrize(
    ("spec", "shape", "size"),
    [({"int32": [-1, 2]}, [2], 8), ({"bfloat16": [[1.0]]}, [1, 1], 2), ({"float64": 0.5}, [], 8)],
)
def test_tensors_of_calls(spec: dict[str, Any], shape: list[int], size: int) -> None:
    """A tensor that is written out has its shape and bytes."""
    made = tensor(spec)

    assert (shape, size) == (list(made.shape), len(made.data))


def test_the_table(tmp_path: Path) -> None:
    """What held and what did not is in the table, with the figures; text cannot break out of its cell."""
    good = outcome.Outcome("good", "did | this", "wanted", {"calls": 3, "ms": 1.23456})
    bad = outcome.Outcome("bad", "that", "other", {"lost": 1})
    good.require(True, "never told")
    for number in range(outcome.SHOWN + 2):
        bad.require(False, f"call {number}")

    outcome.keep("bad", good, tmp_path / "kept.json")
    outcome.keep("good", good, tmp_path / "kept.json")
    kept = outcome.keep("bad", bad, tmp_path / "kept.json")
    outcome.write(kept, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()

    assert "| good | did \\| this | calls 3; ms 1.235 | wanted | yes |" in text
    assert "| bad | that | lost 1 | other | **no** |" in text
    assert "## bad: what did not hold" in text
    assert "- call 19\n- and more" in text
    assert "never told" not in text
    assert "good: calls 3, ms 1.235; holds" == good.line


def test_percentiles() -> None:
    """The value below which so large a part lies."""
    assert (50, 99, 99) == tuple(outcome.percentile(range(100), part) for part in (0.5, 0.99, 1.0))
    assert np.isnan(outcome.percentile([], 0.5))

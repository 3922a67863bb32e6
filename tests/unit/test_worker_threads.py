"""How many threads a request's operators get: by what the shapes of its values say of the work."""

from collections.abc import Iterator

import pytest
import torch

import gradoracle as go
from gradoracle_server.engine import limits, plan
from gradoracle_server.engine.limits import Need, Work
from gradoracle_server.worker import graphs, threads
from gradoracle_server.worker.tensors import Incoming

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def suited(need: Need | None, work: Work = Work.VJP) -> int:
    torch.set_num_threads(1)
    threads.suit(3, need, work)
    return torch.get_num_threads()


def planned(graph: go.Graph) -> plan.Plan:
    incoming = Incoming(torch.device("cpu"), GIB, None, 0, None)
    return plan.build(graphs.read(graph.message, incoming, 1000), torch.device("cpu"))


def needed(expression: str, work: Work = Work.VJP, **primals: torch.Tensor) -> Need | None:
    return limits.require(planned(go.Graph.parse(expression)), primals, GIB, work)


def square(side: int) -> torch.Tensor:
    return torch.ones(side, side, dtype=torch.float64)


def test_small_work_gets_one_thread_and_large_work_all():
    assert suited(needed("sum(tanh(x @ x))", x=square(20))) == 1
    assert suited(needed("sum(tanh(x @ x))", x=square(200))) == 3


def test_what_is_made_on_the_way_counts():
    assert suited(needed("sum(x)", x=square(40))) == 1
    assert suited(needed("sum(expand(x, [100, 40, 40]) * 2.0)", x=square(40))) == 3


def test_a_check_goes_through_its_graph_many_times():
    x = square(70)
    assert suited(needed("sum(tanh(x))", x=x)) == 1
    assert suited(needed("sum(tanh(x))", Work.CHECK, x=x), Work.CHECK) == 3


def test_a_hessian_is_as_large_as_its_blocks():
    x = torch.ones(200, dtype=torch.float64)
    assert suited(needed("sum(tanh(x))", x=x)) == 1
    need = needed("sum(tanh(x))", Work.HESSIAN, x=x)
    assert need is not None
    assert need.bytes >= 200 * 200 * 8
    assert suited(need, Work.HESSIAN) == 3


def test_what_is_not_known_gets_all():
    assert suited(needed("nonzero(x)", Work.EVALUATE, x=square(2))) == 3
    assert suited(None) == 3
    assert suited(Need(0, "", values=None)) == 3
    assert suited(Need(0, "", values=0)) == 1


def test_constants_and_examples_count():
    x = torch.ones(20, dtype=torch.float64)
    g = go.Graph()
    g.output("out", (g.constant(square(200).numpy()) @ g.input("big")).sum())
    made = planned(g)
    assert suited(limits.require(made, {"big": torch.ones(200, dtype=torch.float64)}, GIB, Work.VJP)) == 3
    made = planned(go.Graph.parse("sum(tanh(tanh(tanh(x)) * x) * x)"))
    assert suited(limits.require(made, {"x": x}, GIB, Work.VJP)) == 1
    many = {"x": x.expand(500, 20).contiguous()}
    assert suited(limits.require(made, many, GIB, Work.VJP, batched=["x"])) == 3


def test_one_thread_stays_one():
    torch.set_num_threads(2)
    threads.suit(1, None, Work.VJP)
    assert torch.get_num_threads() == 2

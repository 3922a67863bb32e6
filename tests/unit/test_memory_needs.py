"""What a request needs, worked out from shapes, against what it really takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conformance.samples import cases, operators, parts
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gradoracle.tracing import TraceError, trace
from gradoracle.v1 import graph_pb2
from gradoracle_server.engine import limits, memory, plan, program, shapes
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import Argument, FunctionSpec, GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.limits import Work
from gradoracle_server.engine.meter import Meter
from gradoracle_server.worker import graphs
from gradoracle_server.worker.tensors import Incoming

CPU = torch.device("cpu")
MEGABYTE = 10**6
X = Ref("x")
ANYTHING = 2**62


def graph(*nodes: tuple[Any, ...], output: str = "y", **fields: Any) -> plan.Plan:
    """A plan of nodes (name, target less "aten.", arguments…), with the input x."""
    made = tuple(
        NodeSpec(name, target if "function" in target else f"aten.{target}", tuple(args))
        for name, target, *args in nodes
    )
    return plan.build(GraphSpec((InputSpec("x"),), made, (("y", output),), **fields), CPU)


def chain(length: int, target: str = "exp.default") -> plan.Plan:
    names = ["x", *(f"n{place}" for place in range(length - 1)), "y"]
    return graph(*((name, target, Ref(before)) for before, name in itertools.pairwise(names)))


def need(made: plan.Plan, work: Work, *sizes: int, allowed: int = ANYTHING, **options: Sequence[str]) -> int:
    """The bytes that a request needs whose x is of float64."""
    try:
        limits.require(made, {"x": torch.empty(sizes, dtype=torch.float64)}, allowed, work, **options)
    except Fault as fault:
        return int(fault.metadata["asked"])
    (found,) = made.needs.values()
    return int(found.bytes)


@pytest.mark.parametrize(
    ("length", "work", "expected"),
    [
        (1, Work.EVALUATE, 2),  # the input and the output
        (9, Work.EVALUATE, 3),  # the input and two neighbours
        (9, Work.JVP, 3),
        (9, Work.INSPECT, 10),  # every value
        (1, Work.VJP, 4),  # the input, the output, which exp keeps, its cotangent, and the gradient
    ],
)
def test_what_a_chain_holds(length: int, work: Work, expected: int) -> None:
    """Values count until their last use, and the inputs always; a megabyte each."""
    tight = need(chain(length), work, MEGABYTE // 8, allowed=1)
    loose = need(chain(length), work, MEGABYTE // 8, allowed=(expected - 1) * MEGABYTE)
    assert expected * MEGABYTE == loose
    assert 2 * MEGABYTE == tight  # refused at the first node, without looking further


def test_what_autograd_keeps_counts_and_what_it_does_not_keep_does_not() -> None:
    """The pull-back of exp needs every value, that of add none."""
    allowed = 8 * MEGABYTE
    assert need(chain(20, "exp.default"), Work.VJP, MEGABYTE // 8, allowed=allowed) > 20 * MEGABYTE
    nodes = [(f"n{place}", "add.Scalar", Ref(f"n{place - 1}" if place else "x"), 1.0) for place in range(20)]
    assert need(graph(*nodes, output="n19"), Work.VJP, MEGABYTE // 8, allowed=allowed) < 5 * MEGABYTE


def test_views_take_nothing_and_keep_what_they_are_views_of() -> None:
    """An expanded tensor takes the memory that it looks at; what is viewed lives as long as its views."""
    views = graph(
        ("a", "exp.default", X), ("b", "expand.default", Ref("a"), [1000, MEGABYTE // 8]),
        ("y", "sum.default", Ref("b")),
    )  # fmt: skip
    assert 2 * MEGABYTE + 8 == need(views, Work.EVALUATE, MEGABYTE // 8)
    contiguous = graph(
        ("b", "expand.default", X, [10, MEGABYTE // 8]), ("c", "contiguous.default", Ref("b")),
        ("y", "sum.default", Ref("c")),
    )  # fmt: skip
    assert 11 * MEGABYTE + 8 == need(contiguous, Work.EVALUATE, MEGABYTE // 8)
    held = graph(
        ("a", "exp.default", X), ("v", "t.default", Ref("a")), ("b", "exp.default", X), ("c", "exp.default", Ref("b")),
        ("y", "add.Tensor", Ref("v"), Ref("c")),
    )  # fmt: skip
    assert 4 * MEGABYTE == need(held, Work.EVALUATE, MEGABYTE // 8)


@pytest.mark.parametrize(
    ("work", "expected"),
    [(Work.JACOBIAN, 'with the Jacobian of output "y" by input "x", of shape [1000, 1000], the request needs 8008000'),
     (Work.HESSIAN, 'with the Hessian by input "x" and "x", of shape [1000, 1000], the request needs 8008000')],
)  # fmt: skip
def test_blocks(work: Work, expected: str) -> None:
    """A Jacobian's blocks have the output's shape and the input's, a Hessian's the input's twice."""
    with pytest.raises(Fault) as caught:
        limits.require(chain(1), {"x": torch.ones(1000, dtype=torch.float64)}, MEGABYTE, work)
    assert f"{expected} bytes, over the server's limit of 1000000 for one request (--max-memory-bytes)" == str(
        caught.value
    )


def test_examples_of_a_batch() -> None:
    """Each example has its gradient by the inputs that all share; an input that is only detached has none."""
    spec = GraphSpec(
        (InputSpec("x"), InputSpec("w")),
        (NodeSpec("p", "aten.mul.Tensor", (X, Ref("w"))), NodeSpec("y", "aten.sum.default", (Ref("p"),))),
        (("y", "y"),),
    )
    detached = GraphSpec(
        spec.inputs,
        (NodeSpec("d", "aten.detach.default", (Ref("w"),)), NodeSpec("p", "aten.mul.Tensor", (X, Ref("d"))),
         NodeSpec("y", "aten.sum.default", (Ref("p"),))),
        spec.outputs,
    )  # fmt: skip
    primals = {"x": torch.ones(50, dtype=torch.float64), "w": torch.ones(MEGABYTE // 8, dtype=torch.float64)}
    for one, expected in ((spec, 51 * MEGABYTE + 1200), (detached, MEGABYTE + 1200)):
        made = plan.build(one, CPU)
        limits.require(made, primals, ANYTHING, Work.VJP, batched=["x"])
        (found,) = made.needs.values()
        assert max(expected, 2 * MEGABYTE + 400) <= found.bytes <= expected + MEGABYTE + 1200


def test_functions_of_the_graph_count() -> None:
    """What an operator with a gradient of its own holds inside counts while it runs."""
    forward = GraphSpec(
        (InputSpec("a"),),
        (NodeSpec("big", "aten.expand.default", (Ref("a"), [10, MEGABYTE // 8])),
         NodeSpec("own", "aten.contiguous.default", (Ref("big"),)), NodeSpec("s", "aten.sum.default", (Ref("own"),))),
        (("s", "s"),),
    )  # fmt: skip
    backward = GraphSpec((InputSpec("a"), InputSpec("g")), (), (("a", "a"),))
    made = graph(("y", "function.own", X), functions=(FunctionSpec("own", forward, backward),))
    assert 11 * MEGABYTE + 8 == need(made, Work.EVALUATE, MEGABYTE // 8)


def test_what_composite_operators_hold_inside() -> None:
    """matrix_exp(x) is made of many products of x's size; a result alone would be two megabytes with x."""
    made = graph(("y", "matrix_power.default", X, 7))
    assert need(made, Work.EVALUATE, 400, 400) > 3 * 400 * 400 * 8


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (("zeros.default", [2**40, 2**40]), memory.UNCOUNTABLE),
        (("combinations.default", X, 9), 10**9),
        (("combinations.default", X, 10**18), 10**64),
        (("bincount.default", X, None, 10**9), 8 * 10**9),
        (("tensor_split.sections", X, 10**9), 512 * 10**9),
        (("unbind.int", Ref("e")), 512 * 10**10),
    ],
)
def test_needs_that_no_number_of_elements_tells(node: tuple[Any, ...], expected: int) -> None:
    """Sizes beyond 64 bits, masks, counts and heaps of small views are found without being made."""
    target, *args = node
    nodes = [("e", "expand.default", X, [10**9, 10]), ("f", "flatten.using_ints", Ref("e")), ("z", target, *args)]
    if "unbind" in target:
        nodes = [("s", "sum.default", X), ("e", "expand.default", Ref("s"), [10**10]), ("z", target, *args)]
    elif "bincount" in target or "comb" in target or "zeros" in target or "split" in target:
        nodes = [("z", target, *args)]
    listed = "split" in target or "unbind" in target
    if listed:
        nodes.append(("y", "stack.default", Ref("z")))
    found = need(graph(*nodes, output="y" if listed else "z"), Work.EVALUATE, 10, allowed=MEGABYTE)
    assert expected <= found <= 1.1 * expected + MEGABYTE


def test_unknown_shapes_are_let_through() -> None:
    """Where values decide sizes nothing is refused: the process's own limit is there for that."""
    made = graph(("m", "gt.Scalar", X, 0.0), ("s", "masked_select.default", X, Ref("m")),
                 ("y", "repeat.default", Ref("s"), [10**9]))  # fmt: skip
    assert need(made, Work.VJP, 10) < 1000


def test_primals_that_do_not_fit_are_let_through() -> None:
    """Whoever binds them has the words."""
    limits.require(chain(1), {"z": torch.ones(10**6)}, 1, Work.EVALUATE)
    assert {} == chain(1).needs


def test_needs_are_kept_with_the_plan_by_shapes() -> None:
    """The same shapes are looked at once; what is kept is bounded; another dtype is another need."""
    made = chain(3)
    for size in (*range(1, 100), 99):
        limits.require(made, {"x": torch.ones(size)}, ANYTHING, Work.VJP)
    assert 64 == len(made.needs)
    limits.require(made, {"x": torch.ones(99, dtype=torch.float64)}, ANYTHING, Work.VJP)
    assert [4 * 99 * 3, 8 * 99 * 3] == [one.bytes for one in list(made.needs.values())[-2:]]


def traced() -> list[Any]:
    """The first sample of a fortieth of torch's operator database."""
    return operators(torch.float64)[::40]


@pytest.mark.parametrize("operator", traced(), ids=lambda one: f"{one.name} {one.variant_test_name}".strip())
def test_the_need_is_never_above_what_is_really_taken(operator: Any) -> None:
    """A bound from below: evaluated with real tensors, each graph holds at least as much at its peak."""
    case = next(iter(cases(operator, torch.float64, 1)), None)
    if case is None:
        return
    try:
        made = trace(case.fn, *case.args, **case.kwargs)
    except TraceError:
        return
    message = graph_pb2.Graph.FromString(made.to_bytes())
    program = plan.build(graphs.read(message, Incoming(CPU, 0, None), 0), CPU)
    primals = {name: one.tensor.detach().clone() for name, one in zip(made.inputs, parts(case), strict=True)}
    limits.require(program, primals, ANYTHING, Work.EVALUATE)
    (found,) = program.needs.values()
    held = sum(one.nbytes for one in primals.values())
    meter: Meter[None] = Meter(None, *primals.values(), *program.constants.values())
    with torch.no_grad(), meter:
        outputs = program.program()(list(primals.values()))
    answer = held + sum(one.nbytes for one in outputs)
    assert found.bytes <= max(held + meter.peak, answer)


def test_a_meter_sees_what_is_held_and_given_up() -> None:
    """The meter of these tests: three megabytes at once, one at the end; a view adds nothing."""
    with Meter("first") as meter:
        kept = torch.zeros(MEGABYTE // 8, dtype=torch.float64)
        meter.at = "second"
        other = kept + 1
        view = (kept + other)[::2]
        assert 3 * MEGABYTE == meter.live
        del other, view
    assert (MEGABYTE, 3 * MEGABYTE, "second") == (meter.live, meter.peak, meter.peak_at)
    assert kept.numel() == MEGABYTE // 8


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                      "tried to allocate 400 bytes. Error code 12 (Cannot allocate memory)"), 400),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has …"), 1610612736),
        (RuntimeError("Storage size calculation overflowed with sizes=[1099511627776, 1099511627776]"), 2**63),
        (RuntimeError("numel: integer multiplication overflow"), 2**63),
        (RuntimeError("std::bad_alloc"), None),
        (MemoryError("std::bad_alloc"), None),
        (MemoryError(), None),
        (OSError(12, "Cannot allocate memory"), None),
    ],
)  # fmt: skip
def test_errors_of_memory(error: Exception, tried: int | None) -> None:
    """What torch, the C++ library and Python raise where memory cannot be had, and the bytes where they tell."""
    assert memory.is_exhausted(error)
    assert tried == memory.tried(error)
    fault = memory.allowing(program.computation_failed(error, node="n", target="aten.mm.default"), 1000)
    asked = "more than 1000" if tried is None or tried <= 1000 else str(tried)
    expected = {
        "limit": "max-memory-bytes",
        "allowed": "1000",
        "asked": asked,
        "node": "n",
        "target": "aten.mm.default",
    }
    assert ("LIMIT_EXCEEDED", expected) == (fault.reason, fault.metadata)
    assert fault.message.startswith('node "n": aten.mm.default: out of memory: ')
    assert fault.message.endswith("; the server's limit is 1000 for one request (--max-memory-bytes)")


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("overflow")])
def test_other_errors_are_not_of_memory(error: Exception) -> None:
    """What is wrong with a request stays so."""
    assert "COMPUTATION_FAILED" == program.computation_failed(error).reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(2, 3), (2, 3)], (2, 3)),
        ([(3,), (2, 1)], (2, 3)),
        ([(), (4,)], (4,)),
        ([(0,), (1,)], (0,)),
        ([(2,), (3,)], None),
    ],
)
def test_broadcasting(given: list[tuple[int, ...]], expected: tuple[int, ...] | None) -> None:
    """As torch's own."""
    assert expected == shapes.broadcast(given)


class _Devices(TorchDispatchMode):
    """Notes where tensors lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen |= {one.device.type for one in pytree.tree_leaves(made) if isinstance(one, torch.Tensor)}
        return made


@pytest.mark.parametrize(
    ("target", "args"), [("zeros.default", ([10**9],)), ("full.default", ([10**6, 10**3], 3.0)), ("eye.default", (5,))]
)
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_memory_is_not_taken_for_estimates(target: str, args: tuple[Argument, ...], device: Any) -> None:
    """Also operators that make tensors out of nothing are looked at on meta tensors alone, wherever they say."""
    node = NodeSpec("z", f"aten.{target}", args, {} if device is None else {"device": device})
    made = plan.build(GraphSpec((InputSpec("x"),), (node,), (("z", "z"),)), CPU)
    given = {"x": torch.ones(1)}
    shapes._known.clear()
    with _Devices() as devices:
        limits.require(made, given, ANYTHING, Work.VJP)
        (found,) = made.needs.values()
        limits._of_pull_back(limits._Request(made, {"x": shapes.of(given["x"])}, 1, Work.VJP, (), (), ()),
                             limits._Flow(outputs=[], last={"z": 1}))  # fmt: skip
    assert {"meta"} == devices.seen
    assert found.bytes > 4 * 25

"""A worker's answers, without a front: bytes of a request in, bytes of a response or a status out."""

from __future__ import annotations

import dataclasses
import errno
import gc
import itertools
import logging
import os
import re
import socket
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from gradoracle.v1 import graph_pb2, service_pb2, tensor_pb2
from gradoracle_server import frames, lanes, mapping
from gradoracle_server.engine import evaluate
from gradoracle_server.frames import METHODS, Job
from gradoracle_server.inbox import Inbox
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker import graphs, handlers, main, payload

OPTIONS = WorkerOptions(device="cpu", threads=1, max_graph_nodes=3, max_tensor_bytes=1 << 20, max_memory_bytes=0)


@pytest.fixture(scope="module")
def worker():
    return main.Worker(OPTIONS)


def ref(name):
    return graph_pb2.Argument(value=name)


def square_graph(**changes):
    """y = sum(x * x)."""
    nodes = [
        graph_pb2.Node(name="q", target="aten.mul.Tensor", args=[ref("x"), ref("x")]),
        graph_pb2.Node(name="y", target="aten.sum.default", args=[ref("q")]),
    ]
    fields = {
        "inputs": [graph_pb2.Input(name="x")],
        "nodes": nodes,
        "outputs": [graph_pb2.Output(name="y", value="y")],
    }
    return graph_pb2.Graph(**{**fields, **changes})


def array(name, values):
    values = np.asarray(values, np.float64)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=values.shape, data=values.tobytes())
    return tensor_pb2.NamedTensor(name=name, tensor=tensor)


def ask(worker, method, message, **options):
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return worker.answer(Job(METHODS.index(method), data, **options))


def failed(reply):
    status = status_pb2.Status.FromString(reply.payload)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (status.code, info.domain) == (reply.code, "gradoracle.v1")
    return status, info


def test_a_gradient(worker):
    """A vjp request is answered with outputs, gradients, phases and the tensors' bytes."""
    request = service_pb2.ComputeVjpRequest(graph=square_graph(), primals=[array("x", [1, 2, 3])])
    reply = ask(worker, "ComputeVjp", request)
    assert reply.code == 0
    response = service_pb2.ComputeVjpResponse.FromString(reply.payload)
    assert np.frombuffer(response.outputs[0].tensor.data) == 14
    assert np.frombuffer(response.gradients[0].tensor.data).tolist() == [2, 4, 6]
    spent = dict(zip(frames.PHASES, reply.phases, strict=True))
    assert all(spent[phase] > 0 for phase in ("decode", "plan", "forward", "backward", "encode"))
    assert spent["queue"] == spent["check"] == 0
    assert (reply.tensor_bytes_in, reply.tensor_bytes_out) == (24, 32)
    assert reply.memory_allocated > 0


def test_the_plan_of_a_graph_is_kept_by_its_bytes(worker):
    """The second request with a graph hits the cache, whatever its tensors; another graph does not."""
    graph = square_graph(outputs=[graph_pb2.Output(name="fresh", value="y")])
    caches = [
        ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=graph, primals=[array("x", [place])])).plan_cache
        for place in range(3)
    ]
    assert caches == [2, 1, 1]


def test_the_least_recently_used_plan_goes_first():
    """The cache is bounded by count and by bytes, and what was asked for lately stays."""
    made = main.Worker(OPTIONS)
    made._plans = handlers.Plans(count=2)
    graphs = {name: square_graph(outputs=[graph_pb2.Output(name=name, value="y")]) for name in "abc"}

    def cache(name):
        request = service_pb2.EvaluateRequest(graph=graphs[name], primals=[array("x", [1])])
        return ask(made, "Evaluate", request).plan_cache

    assert [cache(name) for name in "abacba"] == [2, 2, 1, 2, 2, 2]
    made._plans = handlers.Plans(size=1)
    assert [cache(name) for name in "aab"] == [2, 1, 2]


def test_a_plan_that_grows_is_weighed_after_the_answer():
    """What is asked of a graph adds to what its plan holds."""
    made = main.Worker(OPTIONS)
    request = service_pb2.ComputeVjpRequest(graph=square_graph(), primals=[array("x", [1])])
    held = []
    for retain in ([], ["q"], ["q"]):
        del request.retain[:]
        request.retain.extend(retain)
        assert 0 == ask(made, "ComputeVjp", request).code
        made.let_go()
        held.append(made._plans.held)
    assert held[0] < held[1] == held[2]


def test_phases_are_those_of_one_request(worker):
    """Those of the one before are forgotten."""
    primals = [array("x", [1, 2, 3])]
    first = ask(worker, "ComputeVjp", service_pb2.ComputeVjpRequest(graph=square_graph(), primals=primals))
    second = ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=square_graph(), primals=primals))
    backward = frames.PHASES.index("backward")
    assert first.phases[backward] > second.phases[backward] == 0


def test_attachments_are_given_back_after_the_reply(worker):
    """With what else a job took."""
    descriptor = lanes.memory_file([bytes(64)])
    held = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[8], attachment=0)
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[tensor_pb2.NamedTensor(name="x", tensor=held)])
    assert 0 == ask(worker, "Evaluate", request, attachments=frames.Attachments(descriptor, [(0, 64)])).code
    os.fstat(descriptor)
    worker.let_go()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_graph_whose_constant_is_an_attachment_is_not_kept(worker):
    """The same bytes with other attachments are another graph: each call has its own constant."""
    nodes = [graph_pb2.Node(name="y", target="aten.mul.Tensor", args=[ref("x"), ref("c")])]
    held = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[2], attachment=0)
    graph = square_graph(nodes=nodes, constants=[graph_pb2.Constant(name="c", value=held)])

    def answer(value):
        data = np.full(2, value).tobytes()
        attachments = frames.Attachments(lanes.memory_file([data]), [(0, len(data))])
        request = service_pb2.EvaluateRequest(graph=graph, primals=[array("x", [1, 2])])
        reply = ask(worker, "Evaluate", request, attachments=attachments)
        assert 0 == reply.code
        tensor = service_pb2.EvaluateResponse.FromString(reply.payload).outputs[0].tensor
        return np.frombuffer(tensor.data).tolist(), reply.plan_cache

    assert [([3, 6], 2), ([5, 10], 2)] == [answer(value) for value in (3.0, 5.0)]
    inside = graph_pb2.Graph()
    assert graphs.is_whole(inside)
    inside.functions.add().forward.CopyFrom(square_graph())
    assert graphs.is_whole(inside)
    inside.functions.add().backward.CopyFrom(graph)
    assert not graphs.is_whole(inside)


def long_graph(length, value):
    """x + value + value + …"""
    names = ["x", *(f"n{place}" for place in range(length))]
    nodes = [
        graph_pb2.Node(name=name, target="aten.add.Tensor", args=[ref(before), graph_pb2.Argument(real=value)])
        for before, name in itertools.pairwise(names)
    ]
    return square_graph(nodes=nodes, outputs=[graph_pb2.Output(name="y", value=names[-1])])


@pytest.mark.parametrize(("length", "retained"), [(1, 0), (10, 4), (300, 0), (300, 3)])
def test_plans_are_not_taken_for_less_than_they_are(length, retained):
    """The bytes that a cache counts are at least those that its plans take, and not many times as much."""
    made = main.Worker(dataclasses.replace(OPTIONS, max_graph_nodes=0))
    requests = [
        service_pb2.ComputeVjpRequest(graph=long_graph(length, value), primals=[array("x", 1.0)]) for value in range(4)
    ]
    ask(made, "ComputeVjp", service_pb2.ComputeVjpRequest(graph=square_graph(), primals=[array("x", 1.0)]))
    made._plans.clear()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for request in requests:
        for count in range(retained + 1):
            request.retain[:] = [f"n{place % length}" for place in range(min(count, length))]
            assert 0 == ask(made, "ComputeVjp", request).code
        ask(made, "ComputeVjp", request)  # what has grown is weighed at the next look
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert taken <= made._plans.held <= 10 * taken


def test_plans_are_given_up_for_a_request_that_finds_no_memory(monkeypatch):
    """What earlier requests left behind is no reason to refuse one; where nothing is left behind, it is refused."""
    made = main.Worker(dataclasses.replace(OPTIONS, max_graph_nodes=0))
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", [2])])
    large = service_pb2.EvaluateRequest(graph=long_graph(9000, 1.0), primals=[array("x", 1.0)])
    assert 0 == ask(made, "Evaluate", large).code
    real, tried = evaluate.evaluate, []

    def short_of_memory(plan, primals, phases):
        tried.append(made._plans.held)
        if tried[-1] > 10**7:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")
        return real(plan, primals, phases)

    monkeypatch.setattr(evaluate, "evaluate", short_of_memory)
    assert 0 == ask(made, "Evaluate", request).code
    assert 2 == len(tried)

    def no_memory(plan, primals, phases):
        tried.append(made._plans.held)
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate", no_memory)
    _, info = failed(ask(made, "Evaluate", request))
    assert ("LIMIT_EXCEEDED", 3) == (info.reason, len(tried))
    _, info = failed(ask(made, "Evaluate", large))
    assert ("LIMIT_EXCEEDED", 5) == (info.reason, len(tried))


def test_long_names_are_refused_at_once(worker):
    """A name that is not there is not compared with others where that would take for ever, and is not kept."""
    name = "n" * 10**6
    request = service_pb2.ComputeVjpRequest(graph=square_graph(), primals=[array("x", [1])], wrt=[name])
    status, info = failed(ask(worker, "ComputeVjp", request))
    assert ("INVALID_SELECTION", "") == (info.reason, info.metadata["nearest"])
    assert status.message.startswith('wrt: the graph has no input "nnn')
    sizes = [len(one) for found in worker._plans._plans.values() for key in found.needs for one in key[2]]
    assert 10**6 not in sizes


def test_a_repeated_field_in_the_graph_is_merged_as_protobuf_does(worker):
    """Graphs that come in two pieces, or after other fields, are read as protobuf reads them."""
    whole = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", [3])])
    first = service_pb2.EvaluateRequest(graph=square_graph(outputs=[]))
    rest = service_pb2.EvaluateRequest(
        graph=graph_pb2.Graph(outputs=[graph_pb2.Output(name="y", value="y")]), primals=[array("x", [3])]
    )
    pieces = first.SerializeToString() + rest.SerializeToString()
    tensors = service_pb2.EvaluateRequest(primals=whole.primals).SerializeToString()
    graph = service_pb2.EvaluateRequest(graph=whole.graph).SerializeToString()
    want = ask(worker, "Evaluate", whole).payload
    assert ask(worker, "Evaluate", pieces).payload == want
    assert ask(worker, "Evaluate", tensors + graph).payload == want
    apart = first.graph.SerializeToString(), rest.graph.SerializeToString()
    apart = [b"\x0a" + bytes([len(piece)]) + piece for piece in apart]
    assert ask(worker, "Evaluate", apart[0] + tensors + apart[1]).payload == want


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_splitting_a_payload_loses_nothing(graph, rest):
    """What is taken out and what is left are the payload again, for any bytes."""
    size = len(graph)
    key = b"\x0a" + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7]))
    found, left = payload.split(key + graph + rest)
    if rest[:1] == b"\x0a":
        assert found is None
    else:
        assert (found, left) == (graph, rest)
    found, left = payload.split(rest)
    assert found is None or b"".join([rest[: len(rest) - len(left) - len(found)], found, left]) == rest


def test_malformed_bytes(worker):
    """Bytes that are no message are INVALID_ARGUMENT, and say what was expected."""
    for data in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\xff\xff\xff\xff\xff"):
        status, info = failed(ask(worker, "Evaluate", data))
        assert status.code == 3
        assert info.reason == "MALFORMED_REQUEST"
        assert status.message.startswith(
            "the request's bytes are no EvaluateRequest: expected a serialized gradoracle.v1.EvaluateRequest, got "
        )


def test_a_fault_carries_its_place(worker):
    """A refused request tells reason, message, field and values, as ErrorInfo and as BadRequest."""
    graph = square_graph(outputs=[graph_pb2.Output(name="y", value="why")])
    status, info = failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=graph)))
    assert info.reason == "UNKNOWN_REFERENCE"
    assert dict(info.metadata) == {"field": "graph.outputs[0].value", "reference": "why"}
    bad = error_details_pb2.BadRequest()
    status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "graph.outputs[0].value"
    assert bad.field_violations[0].description == status.message


def test_limits(worker):
    """Too many nodes and too large a tensor are RESOURCE_EXHAUSTED, with limit, allowed and asked."""
    nodes = [graph_pb2.Node(name=f"n{place}", target="aten.neg.default", args=[ref("x")]) for place in range(4)]
    status, info = failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=square_graph(nodes=nodes))))
    assert (status.code, info.reason) == (8, "LIMIT_EXCEEDED")
    assert status.message == "graph.nodes: 4 nodes, over the server's limit of 3"
    big = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", np.zeros(200_000))])
    status, info = failed(ask(worker, "Evaluate", big))
    assert (status.code, info.metadata["limit"], info.metadata["asked"]) == (8, "max-tensor-bytes", "1600000")


def test_memory_that_is_not_there(worker):
    """What torch cannot allocate is RESOURCE_EXHAUSTED and names the node; nothing else happens to the worker."""
    node = graph_pb2.Node(name="z", target="aten.expand.default", args=[ref("x")])
    node.args.append(graph_pb2.Argument(integers=graph_pb2.IntList(values=[1 << 45])))
    clone = graph_pb2.Node(name="c", target="aten.clone.default", args=[ref("z")])
    clone.kwargs.add(name="memory_format").argument.memory_format = graph_pb2.MEMORY_FORMAT_CONTIGUOUS
    graph = square_graph(nodes=[node, clone], outputs=[graph_pb2.Output(name="c", value="c")])
    status, info = failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=graph, primals=[array("x", [1])])))
    assert (status.code, info.reason, info.metadata["node"]) == (8, "LIMIT_EXCEEDED", "c")
    assert (
        ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", [1])])).code == 0
    )


def test_what_is_not_the_callers_fault_is_logged_and_hidden(worker, monkeypatch, caplog):
    """An unforeseen exception is told only as an incident, whose number the log holds with the whole story."""

    def broken(request, context):
        raise KeyError("a secret of the server's")

    monkeypatch.setitem(handlers.HANDLERS, "Evaluate", (service_pb2.EvaluateRequest, broken))
    with caplog.at_level(logging.ERROR):
        status, info = failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest()))
    assert (status.code, info.reason) == (13, "INTERNAL")
    assert status.message == f"internal error, incident {info.metadata['incident']}"
    assert info.metadata["incident"] in caplog.text
    assert "a secret of the server's" in caplog.text


def test_what_is_logged_holds_no_values(worker, monkeypatch, caplog):
    """The log tells which exception came from where, in all of a chain, without the numbers and bytes in its words."""

    first = "got 987654.321e7 and -0x1.8p+3 in b'\\x00secret', tensor([2.5, nan])"
    second = "at element 31337 of 3.25j"

    def broken(request, context):
        try:
            raise ValueError(first)
        except ValueError as error:
            raise RuntimeError(second) from error

    monkeypatch.setitem(handlers.HANDLERS, "Evaluate", (service_pb2.EvaluateRequest, broken))
    with caplog.at_level(logging.ERROR):
        failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest()))
    assert "ValueError: got # and -#+# in #, tensor([#, nan])" in caplog.text
    assert "RuntimeError: at element # of #" in caplog.text
    assert re.search(r'test_worker.py", line \d+, in broken\n +raise ValueError\(first\)', caplog.text)
    for value in ("987654", "1.8p", "secret'", "2.5", "31337", "3.25"):
        assert value not in caplog.text


def test_an_answer_that_no_message_can_hold(monkeypatch):
    """It is over a limit, which is named, and no fault of the server's."""
    made = main.Worker(OPTIONS)
    monkeypatch.setattr(main, "_LONGEST_ANSWER", 7)
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", [1, 2, 3])])

    def unserializable():
        raise message.EncodeError("Failed to serialize proto")

    real = handlers.HANDLERS["Evaluate"][1]

    def handler(request, context):
        real(request, context)
        return types.SimpleNamespace(SerializeToString=unserializable)

    monkeypatch.setitem(handlers.HANDLERS, "Evaluate", (service_pb2.EvaluateRequest, handler))
    status, info = failed(ask(made, "Evaluate", request))
    assert (status.code, info.reason) == (8, "LIMIT_EXCEEDED")
    assert status.message == (
        "the answer's tensors take 8 bytes, over the 7 that one message can hold; ask for less, or through a Stream"
    )
    assert dict(info.metadata) == {"limit": "message", "allowed": "7", "asked": "8"}


def test_memory_that_cannot_be_had_outside_of_a_graph(worker, monkeypatch):
    """Out of memory while decoding or encoding is over the limit, too, with the limit's name and figure."""
    made = main.Worker(dataclasses.replace(OPTIONS, max_memory_bytes=1 << 30))
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ):

        def broken(request, context, error=error):
            raise error

        monkeypatch.setitem(handlers.HANDLERS, "Evaluate", (service_pb2.EvaluateRequest, broken))
        status, info = failed(ask(made, "Evaluate", service_pb2.EvaluateRequest()))
        assert (status.code, info.reason) == (8, "LIMIT_EXCEEDED")
        assert dict(info.metadata) == {
            "limit": "max-memory-bytes", "allowed": "1073741824", "asked": "more than 1073741824",
        }  # fmt: skip


def test_a_request_that_is_larger_than_the_memory(worker, monkeypatch):
    """Where not even its bytes can be mapped it is over the limit, and the next request is answered."""
    ours, theirs = socket.socketpair()
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", np.ones(100_000))])
    mapped, refusals = mapping.mapped, [OSError(errno.ENOMEM, "Cannot allocate memory")]

    def short_of_memory(descriptor, *how):
        if refusals:
            os.close(descriptor)
            raise refusals.pop()
        return mapped(descriptor, *how)

    with ours, theirs, ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr("gradoracle_server.inbox.mapped", short_of_memory)
        loop = thread.submit(main._answer_all, worker, theirs, 5000)
        replies = []
        for _ in range(2):
            frames.send(ours, Job(METHODS.index("Evaluate"), request.SerializeToString()))
            replies.append(Inbox(frames.Reply).wait(ours))
        ours.close()
        assert loop.result(60) is None
    status, info = failed(replies[0])
    assert (status.code, info.reason) == (8, "LIMIT_EXCEEDED")
    assert dict(info.metadata) == {"limit": "max-memory-bytes", "allowed": "5000", "asked": "more than 5000"}
    assert replies[1].code == 0


def test_a_job_that_was_taken_back_is_answered_and_not_run(worker, monkeypatch):
    """Each job has its reply, so that the front knows which is whose; what was taken back is not computed."""
    ours, theirs = socket.socketpair()
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", np.ones(3))]).SerializeToString()
    ran, answer = [], main.Worker.answer
    monkeypatch.setattr(main.Worker, "answer", lambda self, job: ran.append(job) or answer(self, job))
    jobs = [Job(METHODS.index("Evaluate"), request)] * 3
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        ours.sendall(b"".join(map(frames.whole, [*jobs, frames.withdrawal([2])])))
        loop = thread.submit(main._answer_all, worker, theirs, 0)
        inbox = Inbox(frames.Reply)
        assert [inbox.wait(ours).code for _ in jobs] == [0, 1, 0]
        ours.close()
        assert loop.result(60) is None
    assert len(ran) == 2


def test_every_method_has_a_handler():
    """frames.METHODS and the table of handlers name the same methods."""
    assert list(handlers.HANDLERS) == list(METHODS)


def test_long_messages_are_cut(worker):
    """A message fits into a gRPC trailer however long the name that it quotes."""
    graph = square_graph(nodes=[graph_pb2.Node(name="q", target="aten." + "m" * 100_000)])
    status, info = failed(ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=graph)))
    assert len(status.message) == 2000
    assert all(len(value) <= 2000 for value in info.metadata.values())


def test_the_same_request_has_the_same_bits(worker):
    """A response is a function of the request: random operators, other requests in between and all."""
    node = graph_pb2.Node(name="y", target="aten.rand_like.default", args=[ref("x")])
    request = service_pb2.EvaluateRequest(graph=square_graph(nodes=[node]), primals=[array("x", [0, 0, 0])], seed=7)
    first = ask(worker, "Evaluate", request).payload
    torch.rand(5)
    ask(worker, "Evaluate", service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", [1])]))
    assert ask(worker, "Evaluate", request).payload == first
    torch.manual_seed(7)
    want = torch.rand(3, dtype=torch.float64)
    got = service_pb2.EvaluateResponse.FromString(first).outputs[0].tensor.data
    assert got == want.numpy().tobytes()


def test_list_operators(worker):
    """Operators are listed with schema and flags; refused ones only when asked for, with the reason."""
    reply = ask(worker, "ListOperators", service_pb2.ListOperatorsRequest(name_contains="aten.dropout.default"))
    (dropout,) = service_pb2.ListOperatorsResponse.FromString(reply.payload).operators
    assert dropout.name == "aten.dropout.default"
    assert dropout.schema == "aten::dropout(Tensor input, float p, bool train) -> Tensor"
    assert (dropout.differentiable, dropout.random, dropout.refused) == (True, True, "")
    request = service_pb2.ListOperatorsRequest(name_contains="aten.from_file", include_refused=True)
    refused = service_pb2.ListOperatorsResponse.FromString(ask(worker, "ListOperators", request).payload).operators
    assert {one.refused for one in refused if one.name == "aten.from_file.default"} == {
        "reads files, writes to the console or ends the process"
    }


def test_what_a_job_took_is_given_back_after_its_reply(worker, monkeypatch):
    """To unmap a large request takes as long as to compute a small one, and nobody need wait for it."""
    ours, theirs = socket.socketpair()
    request = service_pb2.EvaluateRequest(graph=square_graph(), primals=[array("x", np.ones(3))])
    held = []
    sending = main.send

    def send(sock, reply, outlet=None):
        held.append(worker._tensors is not None)
        sending(sock, reply, outlet)

    with ours, theirs, ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(main, "send", send)
        loop = thread.submit(main._answer_all, worker, theirs, 0)
        for _ in range(2):
            frames.send(ours, Job(METHODS.index("Evaluate"), request.SerializeToString()))
            assert Inbox(frames.Reply).wait(ours).code == 0
        ours.close()
        assert loop.result(60) is None
    assert held == [True, True]
    assert worker._tensors is None

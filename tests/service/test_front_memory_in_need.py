"""Shared memory where the front has no descriptors left, and where workers die of what lies in it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from front_server import Server, connect, failing, refusal_of, start
from google.rpc import status_pb2
from memory_caller import Caller, memory_file, naming

from gradoracle.v1 import service_pb2, service_pb2_grpc

Stub = service_pb2_grpc.GradientServiceStub


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Two workers."""
    with start("--listen", f"unix:{tmp_path / 'g.sock'}", "--shared-memory", "--workers", "2") as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def stub(server: Server) -> Iterator[Stub]:
    """A connection to it."""
    with connect(server, **{"grpc.enable_retries": 0}) as stub:
        yield stub


@pytest.fixture
def caller(server: Server, tmp_path: Path) -> Iterator[Caller]:
    """A connection to the second socket."""
    caller = Caller(tmp_path / "g.sock.memory")
    with caller.socket:
        yield caller


@contextlib.contextmanager
def no_descriptor_left(server: Server) -> Iterator[None]:
    """The front can open nothing: of numbers below its limit none is free."""
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_front_without_descriptors(server: Server, stub: Stub, caller: Caller) -> None:
    """It has no room for a file that is offered, and does not know one that it has; neither is the caller's mistake,
    who sends the bytes then. It goes on afterwards."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        assert b"abcd" == stub.Evaluate(naming(token, 1, (0, 4))).outputs[0].tensor.data
        with no_descriptor_left(server):
            assert b"\2" == caller.offer(descriptor)
            refusal = failing(lambda: stub.Evaluate(naming(token, 2, (0, 4))))
        assert b"abcd" == stub.Evaluate(naming(token, 2, (0, 4))).outputs[0].tensor.data
        caller.token(descriptor)

    assert (grpc.StatusCode.FAILED_PRECONDITION, "MEMORY_UNKNOWN") == (refusal.code, refusal.reason)
    assert "memory: the server has no descriptor left to take the file; send the bytes" == refusal.message


def alone(stub: Stub, request: service_pb2.EvaluateRequest) -> str:
    """A call's reason to fail, or its data."""
    call = stub.Evaluate.future(request)
    return failing(call.result).reason if call.exception() else call.result().outputs[0].tensor.data.decode()


def streamed(stub: Stub, request: service_pb2.EvaluateRequest) -> str:
    """The same in a stream."""
    message = service_pb2.StreamRequest()
    message.calls.add(id=1, evaluate=request)
    [answer] = [answer for response in stub.Stream(iter([message])) for answer in response.answers]
    if answer.WhichOneof("response") == "status":
        return refusal_of(status_pb2.Status.FromString(answer.status), grpc.StatusCode.OK, {}).reason
    return answer.evaluate.outputs[0].tensor.data.decode()


@pytest.mark.parametrize("call", [alone, streamed])
def test_what_a_worker_withstands_is_forgiven(
    stub: Stub, caller: Caller, tmp_path: Path, call: Callable[[Stub, service_pb2.EvaluateRequest], str]
) -> None:
    """A request that ended workers, and then did not, begins anew, as one that holds its bytes does."""
    killer = tmp_path / "kills"
    with memory_file(b"abcd") as descriptor:
        token, found = caller.token(descriptor), []
        for use in range(1, 7):
            if use % 2:
                killer.touch()
            else:
                killer.unlink()
            found.append(call(stub, naming(token, use, (0, 4), text=f"kill-while {killer}")))
    assert ["WORKER_CRASHED", "abcd"] * 3 == found

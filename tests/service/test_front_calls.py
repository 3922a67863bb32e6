"""Unary calls through the front: bytes in, bytes out; crashes, deadlines and overload each have their status."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from front_server import Server, command, connect, eventually, failing, pid_of, start

from gradoracle.v1 import service_pb2, service_pb2_grpc

Stub = service_pb2_grpc.GradientServiceStub
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two workers, and two pretended GPUs."""
    with start("--workers", "2", "--device", "auto", environment={"FAKE_GPUS": "2"}) as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def stub(server: Server) -> Iterator[Stub]:
    """A connection to it."""
    with connect(server) as stub:
        yield stub


@pytest.mark.parametrize("size", [1, 1000, 300_000, 5_000_000])
def test_bytes_go_through(stub: Stub, size: int) -> None:
    """Requests and answers of any size pass unchanged."""
    data = os.urandom(size)

    assert data == stub.Evaluate(command(data=data)).outputs[0].tensor.data


def test_timing_is_the_workers_and_the_queue(stub: Stub) -> None:
    """The answer's timing has the worker's phases, and the front's queue."""
    timing = stub.Evaluate(command()).timing

    assert [0.1, 0.2, 0.3, 0.4, 0.0, 0.6] == [
        timing.decode,
        timing.plan,
        timing.forward,
        timing.backward,
        timing.check,
        timing.encode,
    ]
    assert 0 < timing.queue < 10


def test_every_method_reaches_a_worker(stub: Stub) -> None:
    """Whatever the method, the request's bytes come to a worker and its answer goes back."""
    for name in ("Evaluate", "ComputeVjp", "ComputeJvp", "ComputeJacobian", "ComputeHessian", "InspectGraph"):
        request = getattr(service_pb2, f"{name}Request")()
        assert getattr(stub, name)(request).timing.encode == 0.6
    assert stub.CheckGradients(service_pb2.CheckGradientsRequest()).timing.encode == 0.6
    assert stub.ListOperators(service_pb2.ListOperatorsRequest()).timing.encode == 0.6


@pytest.mark.parametrize("device", ["", "cpu", "cuda", "cuda:0", "cuda:1"])
def test_served_devices(stub: Stub, device: str) -> None:
    """A request names a device, any CUDA device, or none."""
    assert stub.Evaluate(command(device=device)).outputs


def test_other_devices_are_refused(stub: Stub) -> None:
    """A device that is not there is refused, with those that are."""
    refusal = failing(lambda: stub.Evaluate(command(device="cuda:2")))

    assert Code.FAILED_PRECONDITION is refusal.code
    assert 'device: expected one of cuda:0, cuda:1, cpu, got "cuda:2"' == refusal.message
    assert ("DEVICE_UNAVAILABLE", {"device": "cuda:2", "devices": "cuda:0, cuda:1, cpu"}) == (
        refusal.reason,
        refusal.metadata,
    )


def test_describe_server(stub: Stub) -> None:
    """The front tells what it is: versions, devices with their workers, limits."""
    described = stub.DescribeServer(service_pb2.DescribeServerRequest())

    assert ("0.0", "cuda:0") == (described.torch_version, described.default_device)
    eventually(
        lambda: all(d.workers_alive == 2 for d in stub.DescribeServer(service_pb2.DescribeServerRequest()).devices)
    )
    assert [("cuda:0", 2), ("cuda:1", 2), ("cpu", 2)] == [(device.name, device.workers) for device in described.devices]
    assert (1024, 256 * 2**20, 600.0) == (
        described.limits.queue,
        described.limits.message_bytes,
        described.limits.request_seconds,
    )


def test_malformed_bytes_are_the_workers_business(server: Server) -> None:
    """Bytes that are no message reach a worker, whose refusal is passed on; nothing in the front breaks."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/gradoracle.v1.GradientService/Evaluate")
        for nonsense in (b"\xff", b"\x1a\xff", b"\x1a\x01\xff", b"\x0b" * 1000, b"\x00"):
            assert "MALFORMED" == failing(lambda request=nonsense: call(request)).message


def test_workers_refusal_is_passed_on(stub: Stub) -> None:
    """A worker's error keeps its code; a message too long for a header is cut, not lost."""
    refusal = failing(lambda: stub.Evaluate(command("refuse 9")))

    assert Code.FAILED_PRECONDITION is refusal.code
    assert refusal.message.startswith("refused refused")
    assert refusal.message.endswith("…")


@pytest.mark.parametrize(
    ("order", "how", "metadata"),
    [
        ("signal SIGSEGV", "by SIGSEGV", {"signal": "SIGSEGV"}),
        ("signal SIGFPE", "by SIGFPE", {"signal": "SIGFPE"}),
        ("signal SIGABRT", "by SIGABRT", {"signal": "SIGABRT"}),
        ("signal SIGKILL", "by SIGKILL", {"signal": "SIGKILL"}),
        ("exit 3", "with exit code 3", {"exit_code": "3"}),
        ("garbage", "by SIGKILL", {"signal": "SIGKILL"}),
    ],
)
def test_crash_is_the_callers_alone(stub: Stub, order: str, how: str, metadata: dict[str, str]) -> None:
    """A request that ends its worker is told so, with the signal; requests beside it do not notice."""
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(stub.Evaluate, command("sleep 0.05")) for _ in range(8)]
        refusal = failing(lambda: stub.Evaluate(command(order)))
        assert all(other.result().outputs for other in others)

    assert (Code.INTERNAL, "WORKER_CRASHED", metadata) == (refusal.code, refusal.reason, refusal.metadata)
    text = f"the request ended the process that ran it, {how}; an operator does not withstand these arguments"
    assert text == refusal.message
    assert stub.Evaluate(command()).outputs


def test_killed_from_outside_is_tried_again(stub: Stub, tmp_path: Path) -> None:
    """When somebody else kills the worker, the request runs once more, on another one, and the caller sees no error."""
    response = stub.Evaluate(command(f"kill-once {tmp_path / 'mark'}"))

    assert (tmp_path / "mark").exists()
    assert response.outputs


def test_crashing_again_and_again_is_quarantined(stub: Stub) -> None:
    """A request that ended two workers is refused without ending a third; a slightly different one is not."""
    for _ in range(2):
        assert failing(lambda: stub.Evaluate(command("exit 9"))).message.startswith("the request ended the process")

    refusal = failing(lambda: stub.Evaluate(command("exit 9")))

    assert (Code.INTERNAL, "WORKER_CRASHED", {"exit_code": "9"}) == (refusal.code, refusal.reason, refusal.metadata)
    assert "with exit code 9, and is refused without being run for another " in refusal.message
    assert failing(lambda: stub.Evaluate(command("exit 8"))).metadata == {"exit_code": "8"}


def test_killed_from_outside_counts_less(server: Server, stub: Stub) -> None:
    """One whose workers are killed from outside is tried twice, then once, and refused after that."""
    kills = 'gradoracle_worker_restarts_total{device="cuda:0",reason="killed"}'
    before = server.metric(kills)
    found = []
    for _ in range(3):
        refusal = failing(lambda: stub.Evaluate(command("signal SIGKILL", device="cuda:0")))
        assert {"signal": "SIGKILL"} == refusal.metadata
        found.append((server.metric(kills) - before, "refused without being run" in refusal.message))

    assert [(2, False), (3, False), (3, True)] == found


def test_what_is_withstood_is_forgiven(stub: Stub, tmp_path: Path) -> None:
    """Somebody who kills workers does not bring a request into quarantine that runs when nobody does."""
    mark = tmp_path / "mark"
    request = command(f"kill-while {mark}", device="cuda:0")
    for _ in range(3):
        mark.touch()
        assert failing(lambda: stub.Evaluate(request)).message.startswith("the request ended the process")
        mark.unlink()
        assert stub.Evaluate(request).outputs


def test_deadline_stops_the_work(server: Server, stub: Stub) -> None:
    """A request past its deadline is answered then, and what runs it is ended, not waited for."""
    device = "cuda:1"
    ended = f'gradoracle_worker_restarts_total{{device="{device}",reason="deadline"}}'

    for seconds in (0.2, 1, 5, 25):  # on a machine that is busy with others it may pass before a worker has the request
        refusal = failing(
            lambda seconds=seconds: stub.Evaluate(command("sleep 600", device=device), timeout=seconds)  # type: ignore[misc]
        )
        eventually(lambda: server.metric(f'gradoracle_workers{{device="{device}",state="idle"}}') == 2)
        assert Code.DEADLINE_EXCEEDED is refusal.code
        if server.metric(ended):
            break

    assert 1 == server.metric(ended)
    assert stub.Evaluate(command(device=device)).outputs


def test_cancelled_call_stops_the_work(server: Server, stub: Stub) -> None:
    """When the caller goes away, what ran for it is ended."""
    reason = 'gradoracle_worker_restarts_total{device="cuda:1",reason="cancelled"}'
    before = server.metric(reason)
    call = stub.Evaluate.future(command("sleep 60", device="cuda:1"))
    eventually(lambda: server.metric('gradoracle_workers{device="cuda:1",state="busy"}') == 1)

    call.cancel()

    eventually(lambda: server.metric(reason) == before + 1)
    eventually(lambda: server.metric('gradoracle_workers{device="cuda:1",state="idle"}') == 2)


def test_server_timeout_is_a_deadline_too() -> None:
    """Without a deadline of its own a request ends with --request-timeout, and is told whether it ran or waited."""
    with start("--workers", "1", "--request-timeout", "500ms") as server, connect(server) as stub:
        calls = [stub.Evaluate.future(command("sleep 60")) for _ in range(2)]  # either may reach the worker first

        refusals = sorted((failing(call.result) for call in calls), key=lambda one: one.metadata["phase"])

    assert [Code.DEADLINE_EXCEEDED] * 2 == [refusal.code for refusal in refusals]
    assert [{"phase": "queue"}, {"phase": "run"}] == [refusal.metadata for refusal in refusals]
    assert "the deadline passed while the request was running; the work is stopped" == refusals[1].message


def test_full_queue_answers_at_once(tmp_path: Path) -> None:
    """With the worker busy and the queue full, the next request is refused at once and told when to come back."""
    with start("--workers", "1", "--max-queue", "2") as server, connect(server) as stub:
        busy = stub.Evaluate.future(command(f"until {tmp_path / 'free'}"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        waiting = [stub.Evaluate.future(command()) for _ in range(2)]
        eventually(lambda: server.metric('gradoracle_queue_depth{device="cpu"}') == 2)

        refusal = failing(lambda: stub.Evaluate(command()))

        assert not busy.done()
        assert (Code.RESOURCE_EXHAUSTED, "OVERLOADED") == (refusal.code, refusal.reason)
        assert {"device": "cpu", "limit": "--max-queue", "allowed": "2"} == refusal.metadata
        assert int(refusal.trailing["grpc-retry-pushback-ms"]) > 0
        # The longer the one that runs takes, the later is the next try.
        eventually(lambda: int(failing(lambda: stub.Evaluate(command())).trailing["grpc-retry-pushback-ms"]) > 500)
        (tmp_path / "free").touch()
        assert all(call.result().outputs for call in [busy, *waiting])


def test_one_connection_cannot_starve_another(tmp_path: Path) -> None:
    """While one connection's batch fills the queue, another's request is served after one of it, not after all."""
    depth = 'gradoracle_queue_depth{device="cpu"}'
    with start("--workers", "1") as server, connect(server) as batch, connect(server) as user:
        first = batch.Evaluate.future(command(f"until {tmp_path / 'begin'}"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        quick = batch.Evaluate.future(command())
        eventually(lambda: server.metric(depth) == 1)
        # Whoever gets the worker after the user's call keeps it.
        calls = [batch.Evaluate.future(command(f"until {tmp_path / 'end'}")) for _ in range(20)]
        eventually(lambda: server.metric(depth) == 21)
        mine = user.Evaluate.future(command())
        eventually(lambda: server.metric(depth) == 22)

        (tmp_path / "begin").touch()

        assert mine.result().outputs
        assert quick.result().outputs
        assert not any(call.done() for call in calls)
        (tmp_path / "end").touch()
        assert all(call.result().outputs for call in [first, *calls])


@pytest.mark.parametrize(("size", "what", "asked"), [(300_000, "the request", 300_021), (0, "the answer", 262_238)])
def test_message_over_the_limit(size: int, what: str, asked: int) -> None:
    """A message over the limit is refused with limit, allowed and asked, and the way out."""
    with start("--max-message-bytes", "256KiB") as server, connect(server) as stub:
        request = command("echo" if size else "answer 262144", data=bytes(size))

        refusal = failing(lambda: stub.Evaluate(request))

    assert (Code.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED") == (refusal.code, refusal.reason)
    assert {"limit": "--max-message-bytes", "allowed": "262144"} == {
        key: refusal.metadata[key] for key in ("limit", "allowed")
    }
    assert abs(asked - int(refusal.metadata["asked"])) < 50
    assert refusal.message.startswith(f"{what}: expected at most 262144 bytes (--max-message-bytes), got ")
    assert refusal.message.endswith("; in a Stream, large tensors travel as attachments, which messages do not bound")


def test_killed_idle_workers_come_back(server: Server, stub: Stub) -> None:
    """Workers that are killed while they have nothing to do are replaced, and no call is lost meanwhile."""
    for _ in range(5):
        os.kill(pid_of(stub.Evaluate(command(device="cpu"))), signal.SIGKILL)
        assert stub.Evaluate(command(device="cpu")).outputs

    eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="idle"}') == 2)

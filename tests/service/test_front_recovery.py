"""What the front does about workers, and a fork server, that somebody kills or stops; and what it tells clients to
repeat."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import grpc
import pytest
from faults.servers import children
from front_server import Server, command, connect, eventually, failing, is_running, pid_of, start

Code = grpc.StatusCode
KILLED = 'gradoracle_worker_restarts_total{device="cpu",reason="killed"}'


def workers(server: Server, state: str) -> float:
    """How many workers of the CPU are in a state."""
    return server.metric(f'gradoracle_workers{{device="cpu",state="{state}"}}')


def parent(pid: int) -> int:
    """The process that started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_spare_takes_over(tmp_path: Path) -> None:
    """When the only worker dies, the next call is served although no new worker comes up; the new one stands by."""
    marks = tmp_path / "marks"
    marks.mkdir()
    environment = {"FAKE_MARKS": str(marks)}
    with (
        start("--workers", "1", "--spare-workers", "1", fake="late", environment=environment) as server,
        connect(server) as stub,
    ):
        eventually(lambda: (workers(server, "idle"), workers(server, "spare")) == (1, 1))
        first = pid_of(stub.Evaluate(command()))

        os.kill(first, signal.SIGKILL)
        second = pid_of(stub.Evaluate(command()))

        assert first != second
        assert (200, "ready\n") == server.get("/readyz")[:2]
        eventually(lambda: (1, 0, 1) == tuple(workers(server, state) for state in ("idle", "spare", "starting")))
        shutil.rmtree(marks)
        eventually(lambda: (workers(server, "idle"), workers(server, "spare")) == (1, 1))
        assert second == pid_of(stub.Evaluate(command()))


def test_spare_serves_nobody_before(tmp_path: Path) -> None:
    """A spare worker is none of the --workers: it takes no request while they live."""
    with start("--workers", "2", "--spare-workers", "3") as server, connect(server) as stub:
        eventually(lambda: (workers(server, "idle"), workers(server, "spare")) == (2, 3))

        calls = [stub.Evaluate.future(command(f"until {tmp_path / 'free'}")) for _ in range(3)]

        eventually(lambda: (workers(server, "busy"), workers(server, "spare")) == (2, 3))
        eventually(lambda: server.metric('gradoracle_queue_depth{device="cpu"}') == 1)
        (tmp_path / "free").touch()
        assert all(call.result().outputs for call in calls)


@pytest.mark.parametrize("spares", ["0", "1"])
def test_stopped_worker_is_replaced(spares: str) -> None:
    """A request that meets a worker held by SIGSTOP is answered by another, and the held one is ended."""
    with start("--workers", "1", "--spare-workers", spares) as server, connect(server) as stub:
        held = pid_of(stub.Evaluate(command()))
        os.kill(held, signal.SIGSTOP)

        assert held != pid_of(stub.Evaluate(command()))

        eventually(lambda: not is_running(held))
        assert 1 <= server.metric(KILLED) + server.metric(KILLED.replace("killed", "exit"))


def test_a_request_that_meets_held_workers_is_not_at_fault(tmp_path: Path) -> None:
    """However many of its workers are held by SIGSTOP, one after the other, it is answered by the next."""
    with start("--workers", "1", "--spare-workers", "0") as server, connect(server) as stub:
        fork_server, held = parent(pid_of(stub.Evaluate(command()))), 0
        call = stub.Evaluate.future(command(f"until {tmp_path / 'free'}"))
        for _ in range(3):
            eventually(lambda gone=held: [pid for pid in children(fork_server) if is_running(pid) and pid != gone])
            eventually(lambda: workers(server, "busy") == 1)
            (held,) = (pid for pid in children(fork_server) if is_running(pid))
            os.kill(held, signal.SIGSTOP)
            eventually(lambda pid=held: not is_running(pid))
        (tmp_path / "free").touch()

        assert held != pid_of(call.result(timeout=60))


def test_stopped_fork_server_does_not_hold_up_the_end() -> None:
    """A fork server that is held starts nothing, but what lives serves on, and SIGTERM ends all of it with 0."""
    with start("--workers", "1", "--spare-workers", "1") as server, connect(server) as stub:
        eventually(lambda: workers(server, "spare") == 1)
        worker = pid_of(stub.Evaluate(command()))
        fork_server = parent(worker)
        os.kill(fork_server, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        other = pid_of(stub.Evaluate(command()))

        assert 0 == server.stop()

        eventually(lambda: not is_running(other) and not is_running(fork_server))


def test_stopped_fork_server_ends_with_a_killed_front() -> None:
    """A fork server that is held cannot see that its front has gone: the kernel ends it."""
    with start("--workers", "1") as server, connect(server) as stub:
        worker = pid_of(stub.Evaluate(command()))
        fork_server = parent(worker)
        os.kill(fork_server, signal.SIGSTOP)
        server.process.kill()

        eventually(lambda: not is_running(worker) and not is_running(fork_server))


def test_overload_says_when_and_a_limit_says_never(tmp_path: Path) -> None:
    """Clients repeat RESOURCE_EXHAUSTED: one that is over a limit is told not to be, one that met a full queue when."""
    with (
        start("--workers", "1", "--max-queue", "1", "--max-message-bytes", "1KiB") as server,
        connect(server) as stub,
    ):
        refusal = failing(lambda: stub.Evaluate(command(data=bytes(2000))))
        assert ("LIMIT_EXCEEDED", "-1") == (refusal.reason, refusal.trailing["grpc-retry-pushback-ms"])

        calls = [stub.Evaluate.future(command(f"until {tmp_path / 'free'}"))]
        eventually(lambda: workers(server, "busy") == 1)
        calls.append(stub.Evaluate.future(command()))
        eventually(lambda: server.metric('gradoracle_queue_depth{device="cpu"}') == 1)
        refusal = failing(lambda: stub.Evaluate(command()))
        (tmp_path / "free").touch()
        assert ("OVERLOADED", True) == (refusal.reason, int(refusal.trailing["grpc-retry-pushback-ms"]) > 0)
        assert all(call.result().outputs for call in calls)


@pytest.mark.parametrize("method", ["Differentiate", ""])
def test_methods_that_are_not_served(method: str) -> None:
    """A method that this version does not know is UNIMPLEMENTED, with the reason; other services stay gRPC's."""
    with start("--workers", "1") as server, grpc.insecure_channel(server.address) as channel:
        refusal = failing(lambda: channel.unary_unary(f"/gradoracle.v1.GradientService/{method}")(b""))
        assert (Code.UNIMPLEMENTED, "NOT_SERVED", {"method": method}) == (
            refusal.code,
            refusal.reason,
            refusal.metadata,
        )
        assert f"expected a method of gradoracle.v1.GradientService as this version has it, got {method}" == (
            refusal.message
        )
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/other.Service/Method")(b"")
        assert Code.UNIMPLEMENTED is caught.value.code()


def test_request_of_a_dead_worker_does_not_wait_for_the_fork_server() -> None:
    """When nobody can tell how a worker ended, its request runs on another one all the same."""
    with start("--workers", "1", "--spare-workers", "1") as server, connect(server) as stub:
        eventually(lambda: workers(server, "spare") == 1)
        worker = pid_of(stub.Evaluate(command()))
        call = stub.Evaluate.future(command("sleep 1"))
        eventually(lambda: workers(server, "busy") == 1)
        os.kill(parent(worker), signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)

        assert worker != pid_of(call.result())

"""How the server comes up, tells of itself, drains and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from front_server import (
    QUICK,
    SCRIPT,
    Server,
    command,
    connect,
    eventually,
    failing,
    is_running,
    pid_of,
    refused,
    start,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gradoracle.v1 import service_pb2, service_pb2_grpc

Code = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["", "gradoracle.v1.GradientService", "readiness"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker."""
    with start("--workers", "1") as server:
        yield server


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def test_ready_line_and_free_ports(server: Server) -> None:
    """One line on stdout tells where it listens, with the ports that it got; both answer."""
    assert server.ready == f"gradoracle listening on {server.address} (metrics {server.metrics_address})\n"
    assert server.address.startswith("127.0.0.1:")
    assert "127.0.0.1:0" not in server.ready
    with connect(server) as stub:
        assert stub.Evaluate(command()).outputs
    assert 200 == server.get("/metrics")[0]


def test_unix_socket(tmp_path: Path) -> None:
    """It listens on a Unix socket too, also where a dead server left one, and removes it when it ends."""
    path = tmp_path / "gradoracle.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with start("--listen", f"unix:{path}", "--metrics-listen", "off") as server:
        assert f"gradoracle listening on unix:{path} (metrics off)\n" == server.ready
        with connect(server) as stub:
            assert stub.Evaluate(command()).outputs
        assert (2, True) == (
            refused("--listen", f"unix:{path}")[0],
            refused("--listen", f"unix:{path}")[1].endswith("Address already in use\n"),
        )
        assert 0 == server.stop()
    assert not path.exists()


def test_port_in_use_is_one_line(server: Server) -> None:
    """A port in use is one line that names the flag and the address, and exit code 2; for metrics too."""
    expected = "expected an address that is free and of this machine, got"
    assert (2, f"gradoracle: --listen: {expected} {server.address}: Address already in use\n") == refused(
        "--listen", server.address
    )
    assert (
        2,
        f"gradoracle: --metrics-listen: {expected} {server.metrics_address}: Address already in use\n",
    ) == refused("--metrics-listen", server.metrics_address)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--max-queue", "many"], '--max-queue: expected a whole number from 0, got "many"'),
        (["--device", "cuda"], '--device: expected a device that torch finds here (cpu), got "cuda"'),
        (["--device", "cuda:3"], '--device: expected a device that torch finds here (cpu), got "cuda:3"'),
        (
            ["--token-file", "/nowhere"],
            "--token-file: expected a readable file, got /nowhere: No such file or directory",
        ),
        (
            ["--tls-cert", "/nowhere", "--tls-key", "/nowhere"],
            "--tls-cert: expected a readable file, got /nowhere: No such file or directory",
        ),
        (
            ["--listen", "unix:/nowhere/x"],
            "--listen: expected an address that is free and of this machine, got unix:/nowhere/x: "
            "No such file or directory",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(flags: list[str], text: str) -> None:
    """A bad flag, no CUDA where asked, an unreadable file: one clear line on stderr, exit code 2."""
    assert (2, f"gradoracle: {text}\n") == refused(*flags)


def test_a_bad_value_of_the_environment_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who set a variable is told of that, and not of a flag that they never typed; a flag wins, and is named."""
    monkeypatch.setenv("GRADORACLE_TOKEN_FILE", "/nowhere")
    why = "expected a readable file, got /nowhere: No such file or directory"
    assert (2, f"gradoracle: GRADORACLE_TOKEN_FILE: {why}\n") == refused()
    assert (2, f"gradoracle: --token-file: {why}\n") == refused("--token-file", "/nowhere")


@pytest.mark.parametrize(
    ("fake", "text"),
    [
        ("stillborn", "no worker of cpu comes up: 3 ended with exit code 7 before they were ready"),
        ("blind", "cannot find out which devices there are: the process ended without an answer"),
    ],
)
def test_workers_that_do_not_come_up(fake: str, text: str) -> None:
    """When no worker comes up, the server says so and ends with exit code 1, rather than try forever."""
    code, log = refused("--workers", "1", fake=fake)

    assert (1, f"gradoracle: {text}") == (code, log.splitlines()[-1])


def test_health_and_readiness(server: Server) -> None:
    """Check says SERVING for each service and liveness, and NOT_FOUND for others; so do the pages beside metrics."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in [*SERVICES, "liveness"]:
            assert SERVING == stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert Code.NOT_FOUND is caught.value.code()
    assert [(200, "ok\n"), (200, "ready\n")] == [server.get("/healthz")[:2], server.get("/readyz")[:2]]
    assert (404, "there are /metrics, /healthz and /readyz\n") == server.get("/elsewhere")[:2]


def test_health_follows_the_workers() -> None:
    """While no worker of the default device lives readiness is NOT_SERVING, who watches is told; liveness stays."""
    with (
        start("--workers", "1", "--spare-workers", "0") as server,
        connect(server) as stub,
        grpc.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = {name: health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in [*SERVICES, "liveness"]}
        assert [SERVING] * 4 == [next(watch).status for watch in watches.values()]

        os.kill(pid_of(stub.Evaluate(command())), signal.SIGKILL)

        for name in SERVICES:
            assert [NOT_SERVING, SERVING] == [next(watches[name]).status, next(watches[name]).status]
        server.process.terminate()
        for name in SERVICES:
            assert NOT_SERVING == next(watches[name]).status
        assert [] == [answer.status for answer in _rest(watches["liveness"])]


def _rest(watch: Iterator[health_pb2.HealthCheckResponse]) -> Iterator[health_pb2.HealthCheckResponse]:
    """What else a watch is told before it breaks."""
    try:
        yield from watch
    except grpc.RpcError:
        return


def test_reflection(server: Server) -> None:
    """A tool without the proto files can ask for them."""
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="gradoracle.v1.GradientService"),
        ]
        services, files = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in services.list_services_response.service}
    assert {"gradoracle.v1.GradientService", "grpc.health.v1.Health"} <= names
    assert files.file_descriptor_response.file_descriptor_proto


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """On SIGTERM requests that run or wait are finished, new ones are refused, and the server ends with 0."""
    with start("--workers", "1", "--drain-timeout", "5m") as server, connect(server) as stub:
        calls = [stub.Evaluate.future(command(f"until {tmp_path / 'free'}"))]
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        calls.append(stub.Evaluate.future(command()))
        stream = stub.Stream(_one_call("echo"))
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 3)
        server.process.terminate()
        eventually(lambda: server.get("/readyz")[0] == 503)

        eventually(lambda: failing(lambda: stub.Evaluate(command(), timeout=0.5)).code is Code.UNAVAILABLE)

        (tmp_path / "free").touch()
        assert all(call.result().outputs for call in calls)
        assert [1] == [answer.id for response in stream for answer in response.answers]
        assert 0 == server.process.wait(60)


def _one_call(text: str) -> Iterator[service_pb2.StreamRequest]:
    message = service_pb2.StreamRequest()
    message.calls.add(id=1, evaluate=command(text))
    yield message


def test_drain_pause_goes_on_serving() -> None:
    """During --drain-pause health says NOT_SERVING while calls are still taken, for load balancers to notice."""
    with start("--workers", "1", "--drain-pause", "1h") as server, connect(server) as stub:
        server.process.terminate()
        eventually(lambda: server.get("/readyz")[0] == 503)
        assert "not ready: shutting down\n" == server.get("/readyz")[1]

        assert stub.Evaluate(command()).outputs
        assert 128 + signal.SIGTERM == server.stop()


def test_drain_pause_ends() -> None:
    """After --drain-pause the server ends as without one."""
    with start("--workers", "1", "--drain-pause", "100ms") as server:
        assert 0 == server.stop()


def test_open_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A stream that is idle is ended with UNAVAILABLE, after its calls are answered."""
    with start("--workers", "1", "--drain-timeout", "1h") as server, connect(server) as stub:

        def endless() -> Iterator[service_pb2.StreamRequest]:
            yield from _one_call(f"until {tmp_path / 'free'}")
            server.process.wait()

        stream = stub.Stream(endless())
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 1)
        server.process.terminate()
        eventually(lambda: server.get("/readyz")[0] == 503)
        (tmp_path / "free").touch()

        assert next(stream).answers[0].evaluate.outputs
        refusal = failing(lambda: next(stream))
        assert (Code.UNAVAILABLE, "SHUTTING_DOWN") == (refusal.code, refusal.reason)
        assert 0 == server.process.wait(60)


def test_drain_timeout_bounds_the_end() -> None:
    """What has not finished within --drain-timeout is given up, and the log says so."""
    with start("--workers", "1", "--drain-timeout", "300ms") as server, connect(server) as stub:
        call = stub.Evaluate.future(command("sleep 600"))
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 1)

        assert 0 == server.stop()

        assert failing(call.result).code in (Code.UNAVAILABLE, Code.CANCELLED)
        assert "stopping although 1 calls have not finished within --drain-timeout" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(number: signal.Signals) -> None:
    """A second signal does not wait; the exit code is 128 and its number, and no worker is left."""
    with start("--workers", "2") as server, connect(server) as stub:
        calls = [stub.Evaluate.future(command("sleep 600")) for _ in range(2)]
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 2)
        children = descendants(server.process.pid)
        server.process.send_signal(number)
        eventually(lambda: server.get("/readyz")[0] == 503)

        assert 128 + number == server.stop(number)

        eventually(lambda: not any(is_running(pid) for pid in children))
        for call in calls:
            call.cancel()


def test_no_orphans_when_the_front_is_killed() -> None:
    """However the front dies, the processes that it started end, busy ones too."""
    with start("--workers", "2") as server, connect(server) as stub:
        call = stub.Evaluate.future(command("sleep 600"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        children = descendants(server.process.pid)
        assert len(children) >= 4  # two workers, the fork server, and multiprocessing's resource tracker

        server.process.kill()

        eventually(lambda: not any(is_running(pid) for pid in children))
        call.cancel()


def test_death_of_the_fork_server_is_survived() -> None:
    """When the fork server dies and the workers with it, everything is started again."""
    with start("--workers", "1") as server, connect(server) as stub:
        worker = pid_of(stub.Evaluate(command()))
        fork_server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])

        os.kill(fork_server, signal.SIGKILL)

        eventually(lambda: not is_running(worker))
        assert worker != pid_of(stub.Evaluate(command(), wait_for_ready=True))


def test_nobody_reads_the_ready_line() -> None:
    """A server whose stdout is closed serves all the same, and ends cleanly."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    arguments = [sys.executable, str(SCRIPT), "--listen", address, "--metrics-listen", "off", "--workers", "1"]
    usual = {**os.environ, "PYTHONUNBUFFERED": ""}  # without a buffer nothing would be left to fail over at the end
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=usual)
    try:
        assert process.stdout is not None
        process.stdout.close()
        with grpc.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GradientServiceStub(channel)
            assert stub.Evaluate(command(), wait_for_ready=True, timeout=60).outputs
        process.terminate()
        _, log = process.communicate(timeout=60)
        assert (0, False) == (process.returncode, "Traceback" in log)
    finally:
        process.kill()
        process.wait()


def test_stops_when_stdin_closes() -> None:
    """With --stop-on-stdin-eof the server ends when whoever holds its stdin goes away."""
    with start("--workers", "1", "--stop-on-stdin-eof", stdin=subprocess.PIPE) as server:
        assert server.process.stdin is not None
        server.process.stdin.close()

        assert 0 == server.process.wait(60)


def test_stop_before_ready() -> None:
    """A signal that comes while the server comes up ends it, with 0."""
    for stage in range(2, 5):  # processes that it has started: helpers, then workers
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *QUICK], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            eventually(lambda process=process, stage=stage: len(descendants(process.pid)) >= stage)
            process.terminate()
            assert process.wait(60) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.communicate()


def test_group_interrupt_drains(tmp_path: Path) -> None:
    """An interrupt typed at a terminal reaches every process; the workers leave it to the front, which drains."""
    with start("--workers", "1") as server, connect(server) as stub:
        call = stub.Evaluate.future(command(f"until {tmp_path / 'free'}"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        for pid in [server.process.pid, *descendants(server.process.pid)]:
            os.kill(pid, signal.SIGINT)
        eventually(lambda: server.get("/readyz")[0] == 503)
        (tmp_path / "free").touch()

        assert call.result().outputs
        assert 0 == server.process.wait(60)


def test_json_log() -> None:
    """Log lines are JSON where asked for, with time, level, logger and message."""
    with start("--workers", "1", "--log-format", "json") as server:
        assert 0 == server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]

    assert {"time", "level", "logger", "message"} == set(lines[0])
    assert "stopping: requests in flight have 30 s to finish" in [line["message"] for line in lines]


def test_warning_where_others_can_reach_it() -> None:
    """Listening elsewhere than on loopback without TLS or tokens is warned of; on loopback it is not."""
    with start("--workers", "1", "--listen", "0.0.0.0:0") as server:
        eventually(lambda: "which other machines can reach, without TLS and tokens" in server.log)
    with start("--workers", "1") as server:
        assert 0 == server.stop()
        assert "other machines" not in server.log

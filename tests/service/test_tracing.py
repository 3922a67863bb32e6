"""Traces of the front: which spans it makes, whose children they are, and that they hurt nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from front_server import QUICK, command, connect, eventually, failing, refused, start

from gradoracle.v1 import service_pb2

# Not of the API: this process is one that does not trace, for the other tests' sake.
pytest.importorskip("opentelemetry.proto", reason="gradoracle[otel] is not installed")

from otlp_collector import ERROR, INTERNAL, SERVER, UNSET, Collector, collecting

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DIRECT = {"NO_PROXY": "127.0.0.1"}
"""A proxy for the outside world is no way to this machine."""


def calling(sampled: str = "01") -> tuple[tuple[str, str], ...]:
    """The metadata of a caller that traces."""
    return (("traceparent", f"00-{TRACE}-{PARENT}-{sampled}"), ("tracestate", "shop=17"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def test_a_call_is_a_child_of_its_caller(collector: Collector) -> None:
    """The span of a call goes on with the caller's trace, and its phases are its children, one after another."""
    with start("--otlp-endpoint", collector.endpoint, environment=DIRECT) as server, connect(server) as stub:
        stub.Evaluate(command(), metadata=calling())
        assert 0 == server.stop()

    [span] = collector.named("gradoracle.v1.GradientService/Evaluate")
    assert (SERVER, TRACE, PARENT, "shop=17") == (span.kind, span.trace, span.parent, span.state)
    assert (UNSET, "") == (span.status, span.message)
    assert {
        "rpc.system": "grpc",
        "rpc.service": "gradoracle.v1.GradientService",
        "rpc.method": "Evaluate",
        "rpc.grpc.status_code": 0,
        "gradoracle.device": "cpu",
    } == span.attributes
    assert "gradoracle" == span.resource["service.name"]
    phases = collector.below(span)
    assert {INTERNAL} == {phase.kind for phase in phases}
    assert ["queue", "decode", "plan", "forward", "backward", "encode"] == [phase.name for phase in phases]
    assert [span.start, *(phase.end for phase in phases[:-1])] == [phase.start for phase in phases]
    assert phases[-1].end <= span.end
    assert 7 == len(collector.spans)
    assert {"/v1/traces"} == set(collector.paths)


def test_without_a_good_traceparent_a_trace_begins(collector: Collector) -> None:
    """A caller that does not trace, or sends what is no traceparent, is served, and its call is a root."""
    headers = (None, "00-xyz-1-01", f"00-{'0' * 32}-{PARENT}-01")
    with start("--otlp-endpoint", collector.endpoint, environment=DIRECT) as server, connect(server) as stub:
        for text in headers:
            stub.DescribeServer(
                service_pb2.DescribeServerRequest(), metadata=None if text is None else (("traceparent", text),)
            )
        assert 0 == server.stop()

    found = collector.spans
    assert [("gradoracle.v1.GradientService/DescribeServer", "")] * 3 == [(span.name, span.parent) for span in found]
    assert 3 == len({span.trace for span in found})


def test_errors(collector: Collector, tmp_path: Path) -> None:
    """A status of the service's own is an error of its span, a caller's error is none; both have code and reason."""
    flags = ("--otlp-endpoint", collector.endpoint, "--max-queue", "1", "--workers", "1", "--max-message-bytes", "1KiB")
    with start(*flags, environment=DIRECT) as server, connect(server) as stub:
        assert grpc.StatusCode.FAILED_PRECONDITION == failing(lambda: stub.Evaluate(command(device="cuda:7"))).code
        assert "LIMIT_EXCEEDED" == failing(lambda: stub.Evaluate(command(data=b"x" * 2000))).reason
        assert grpc.StatusCode.INVALID_ARGUMENT == failing(lambda: stub.Evaluate(command("refuse 3"))).code
        assert "WORKER_CRASHED" == failing(lambda: stub.Evaluate(command("signal SEGV"))).reason
        gone = stub.Evaluate.future(command(f"until {tmp_path / 'never'}"))
        eventually(lambda: 1 == server.metric('gradoracle_workers{device="cpu",state="busy"}'))
        gone.cancel()
        eventually(lambda: "(cancelled)" in server.log)
        assert 0 == server.stop()

    found = [
        (
            span.attributes["rpc.grpc.status_code"],
            span.attributes.get("gradoracle.error_reason"),
            span.status,
            span.message,
            [phase.name for phase in collector.below(span)],
        )
        for span in collector.named("Evaluate")
    ]
    assert [
        (9, "DEVICE_UNAVAILABLE", UNSET, "", []),
        (8, "LIMIT_EXCEEDED", UNSET, "", []),
        (3, None, UNSET, "", ["queue"]),  # a fake worker's refusal has no reason, and took no time
        (13, "WORKER_CRASHED", ERROR, "WORKER_CRASHED", ["queue", "run"]),
        (1, None, UNSET, "", ["queue", "run"]),
    ] == found


def test_calls_of_a_stream_are_children_of_its_span(collector: Collector) -> None:
    """A stream has a span below its caller's, and each of its calls one below that, refused ones too."""
    message = service_pb2.StreamRequest()
    message.calls.add(id=1, evaluate=command())
    message.calls.add(id=2, describe_server=service_pb2.DescribeServerRequest())
    message.calls.add(id=3, evaluate=command(device="cuda:7"))
    message.calls.add(id=4, evaluate=command("exit 3"))
    with start("--otlp-endpoint", collector.endpoint, environment=DIRECT) as server, connect(server) as stub:
        assert 4 == sum(len(response.answers) for response in stub.Stream(iter([message]), metadata=calling()))
        assert 0 == server.stop()

    [stream] = collector.named("Stream")
    assert (SERVER, TRACE, PARENT, 0) == (
        stream.kind,
        stream.trace,
        stream.parent,
        stream.attributes["rpc.grpc.status_code"],
    )
    calls = {
        (one.attributes["rpc.method"], one.attributes["rpc.grpc.status_code"]): one for one in collector.below(stream)
    }
    assert {("Evaluate", 0), ("Evaluate", 9), ("Evaluate", 13), ("DescribeServer", 0)} == set(calls)
    assert {SERVER} == {one.kind for one in calls.values()}
    assert ["queue", "decode", "plan", "forward", "backward", "encode"] == [
        phase.name for phase in collector.below(calls["Evaluate", 0])
    ]
    assert ["queue", "run"] == [phase.name for phase in collector.below(calls["Evaluate", 13])]
    assert all(one.start >= stream.start for one in calls.values())


def test_calls_of_a_stream_that_is_cut_off(collector: Collector, tmp_path: Path) -> None:
    """Where the caller hangs up, stream and calls end as CANCELLED."""
    with start("--otlp-endpoint", collector.endpoint, environment=DIRECT) as server, connect(server) as stub:
        message = service_pb2.StreamRequest()
        message.calls.add(id=1, evaluate=command(f"until {tmp_path / 'never'}"))
        message.calls.add(id=2, evaluate=command())
        call = stub.Stream(iter([message]))
        assert 2 == next(call).answers[0].id
        call.cancel()
        eventually(lambda: "(cancelled)" in server.log)
        assert 0 == server.stop()

    [stream] = collector.named("Stream")
    assert 1 == stream.attributes["rpc.grpc.status_code"]
    assert [0, 1] == sorted(one.attributes["rpc.grpc.status_code"] for one in collector.below(stream))


def test_what_callers_do_not_sample_is_not_sent(collector: Collector) -> None:
    """The sampling decision of the caller holds, and that of OTEL_TRACES_SAMPLER where there is none."""
    never = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", **DIRECT}
    with start("--otlp-endpoint", collector.endpoint, environment=never) as server, connect(server) as stub:
        stub.Evaluate(command(), metadata=calling("00"))
        stub.Evaluate(command())
        stub.Evaluate(command(), metadata=calling("01"))
        assert 0 == server.stop()

    [span] = collector.named("Evaluate")
    assert PARENT == span.parent


def test_the_variables_of_opentelemetry_hold(collector: Collector) -> None:
    """Name, resource and headers are set by OpenTelemetry's own variables; the endpoint by ours, path or none."""
    environment = {
        "OTEL_SERVICE_NAME": "oracle-of-delphi",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=pythia",
        "GRADORACLE_OTLP_ENDPOINT": f"{collector.endpoint}/v1/traces",
        **DIRECT,
    }
    with start(environment=environment) as server, connect(server) as stub:
        stub.Evaluate(command())
        assert 0 == server.stop()

    [span] = collector.named("Evaluate")
    assert "oracle-of-delphi" == span.resource["service.name"]
    assert "test" == span.resource["deployment.environment"]
    assert span.resource["service.version"]
    assert "pythia" == collector.headers[0]["x-tenant"]
    assert "/v1/traces" == collector.paths[0]


def test_strangers_leave_no_spans(collector: Collector, tmp_path: Path) -> None:
    """A call without a token writes nothing into the traces, and no span holds a token."""
    (tmp_path / "tokens").write_text("sesame-of-the-server\n")
    flags = ("--otlp-endpoint", collector.endpoint, "--token-file", str(tmp_path / "tokens"))
    with start(*flags, environment=DIRECT) as server, connect(server) as stub:
        assert grpc.StatusCode.UNAUTHENTICATED == failing(lambda: stub.Evaluate(command(), metadata=calling())).code
        stub.Evaluate(command(), metadata=(*calling(), ("authorization", "Bearer sesame-of-the-server")))
        assert 0 == server.stop()

    assert 1 == len(collector.named("Evaluate"))
    assert not any(b"sesame" in body for body in collector.bodies)


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_dead_collector_hurts_nobody(collector: Collector, kind: str) -> None:
    """Calls are served and the server ends, whether its collector is not there or never answers; the log says so."""
    if kind == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as free:
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    else:
        collector.answers.clear()
        endpoint = collector.endpoint
    # So that the thread that sends is at it when the server stops, and would be for an hour.
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_EXPORTER_OTLP_TIMEOUT": "3600", **DIRECT}
    with start("--otlp-endpoint", endpoint, environment=environment) as server, connect(server) as stub:
        for _ in range(20):
            stub.Evaluate(command())
        if kind == "refuses":
            eventually(lambda: "exporting span" in server.log)
        else:
            assert collector.reached.wait(60)
        stub.Evaluate(command())
        assert 0 == server.stop()
        assert ("refuses" == kind) == ("opentelemetry" in server.log)
    assert [] == collector.bodies


@pytest.mark.parametrize("given", ["flag", "variable"])
def test_without_the_extra_one_line_says_so(given: str) -> None:
    """Where OpenTelemetry is not installed the server does not start, and names who asks and what to install."""
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import fake_worker; from gradoracle_server.main import main\n"
        "sys.exit(main(sys.argv[1:], target=fake_worker.serve, scout=fake_worker.scout, preload=fake_worker.MODULE))"
    )
    url = "http://127.0.0.1:4318"
    flags = ["--otlp-endpoint", url] if given == "flag" else []
    environment = {} if given == "flag" else {"GRADORACLE_OTLP_ENDPOINT": url}
    done = subprocess.run(
        [sys.executable, "-c", script, *QUICK, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
    )
    assert (2, "") == (done.returncode, done.stdout)
    source = "--otlp-endpoint" if given == "flag" else "GRADORACLE_OTLP_ENDPOINT"
    assert [
        f"gradoracle: {source}: expected OpenTelemetry beside it (pip install 'gradoracle[otel]'), got: "
        "import of opentelemetry halted; None in sys.modules"
    ] == done.stderr.splitlines()


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("GRADORACLE_OTLP_ENDPOINT", "collector:4318", "GRADORACLE_OTLP_ENDPOINT: expected a URL like"),
        ("OTEL_PROPAGATORS", "pigeon", "OTEL_PROPAGATORS: OpenTelemetry says: Propagator pigeon not found"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-3", "OTEL_BSP_MAX_QUEUE_SIZE: OpenTelemetry says: max_queue_size must be"),
        ("OTEL_TRACES_SAMPLER", "some", "OTEL_TRACES_SAMPLER: OpenTelemetry says: Couldn't recognize sampler some."),
    ],
)
def test_bad_variables_are_refused(variable: str, text: str, expected: str) -> None:
    """A value that cannot be used stops the server with one line, OpenTelemetry's own variables too."""
    flags = [] if variable.startswith("GRADORACLE_") else ["--otlp-endpoint", "http://127.0.0.1:4318"]
    code, said = refused(*flags, environment={variable: text})
    assert 2 == code
    [line] = said.splitlines()
    assert line.startswith(f"gradoracle: {expected}")


@pytest.mark.parametrize("on", [False, True])
def test_off_it_is_not_imported(collector: Collector, on: bool) -> None:
    """Without an endpoint no process of the server imports OpenTelemetry; with one, the front does."""
    flags = ("--otlp-endpoint", collector.endpoint) if on else ()
    with (
        start(*flags, environment={"PYTHONPROFILEIMPORTTIME": "1", **DIRECT}) as server,
        connect(server) as stub,
    ):
        stub.Evaluate(command())
        assert 0 == server.stop()
        assert "grpc.aio" in server.log
        assert on == ("opentelemetry" in server.log)

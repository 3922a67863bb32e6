"""Traces from the caller's program through client and server to the phases of a worker, and a client that does not."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import start

pytest.importorskip("opentelemetry.proto", reason="gradoracle[otel] is not installed")

from otlp_collector import CLIENT, ERROR, INTERNAL, SERVER, UNSET, Collector, Span, collecting

TESTS = Path(__file__).parents[1]
TOKEN, FIGURE, INPUT = "sesame-of-the-caller", "31415.9", "salary_of_alice"  # as in traced_caller.py
RPC = "gradoracle.v1.GradientService"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """What comes of the calls of traced_caller.py to a server with real workers."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(TOKEN)
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        flags = ("--workers", "1", "--otlp-endpoint", collector.endpoint, "--token-file", str(tokens))
        with start(*flags) as server:
            for extra in ([], ["--no-provider"]):
                command = [sys.executable, TESTS / "traced_caller.py", server.address, *extra]
                done = subprocess.run(command, capture_output=True, text=True, timeout=100)
                assert (0, "") == (done.returncode, done.stderr)
            assert 0 == server.stop()
        yield collector


def only(spans: list[Span]) -> Span:
    """The one that there is."""
    [span] = spans
    return span


@pytest.mark.parametrize(
    ("around", "method", "some"),
    [
        ("one", "ComputeVjp", {"queue", "decode", "plan", "forward", "backward", "encode"}),
        ("one awaited", "ComputeVjp", {"queue", "decode", "forward", "backward", "encode"}),
        ("judged", "CheckGradients", {"queue", "decode", "check", "encode"}),
    ],
)
def test_from_caller_to_phase(traced: Collector, around: str, method: str, some: set[str]) -> None:
    """A call is one trace: the caller's span, the client's, the server's, and the phases, one after another."""
    client = only(traced.below(only(traced.named(around, INTERNAL))))
    server = only(traced.below(client))

    assert (CLIENT, SERVER) == (client.kind, server.kind)
    assert f"{RPC}/{method}" == client.name == server.name
    assert (UNSET, UNSET) == (client.status, server.status)
    assert {
        "rpc.system": "grpc",
        "rpc.service": RPC,
        "rpc.method": method,
        "rpc.grpc.status_code": 0,
    } == {key: text for key, text in client.attributes.items() if key.startswith("rpc.")}
    assert "127.0.0.1" == client.attributes["server.address"]
    phases = traced.below(server)
    assert some <= {phase.name for phase in phases}
    assert all(server.start <= phase.start < phase.end <= server.end for phase in phases)
    assert all(one.end == other.start for one, other in itertools.pairwise(phases))


def test_an_error_is_marked(traced: Collector) -> None:
    """A caller's error is an error of its client span, and has code and reason in both."""
    client = only(traced.below(only(traced.named("bad", INTERNAL))))
    server = only(traced.below(client))

    assert 3 == client.attributes["rpc.grpc.status_code"] == server.attributes["rpc.grpc.status_code"]
    reason = client.attributes["gradoracle.error_reason"]
    assert reason in ("COMPUTATION_FAILED", "INPUT_MISMATCH")
    assert reason == server.attributes["gradoracle.error_reason"]
    assert (ERROR, reason) == (client.status, client.message)
    assert (UNSET, "") == (server.status, server.message)
    assert reason == client.attributes["error.type"]


@pytest.mark.parametrize("around", ["many", "many awaited"])
def test_map_is_one_stream(traced: Collector, around: str) -> None:
    """`map` has a client span, below it the server's of the stream, and below that one for each call."""
    client = only(traced.below(only(traced.named(around, INTERNAL))))
    server = only(traced.below(client))

    assert (f"{RPC}/Stream", CLIENT, UNSET) == (client.name, client.kind, client.status)
    assert (f"{RPC}/Stream", SERVER, 0) == (server.name, server.kind, server.attributes["rpc.grpc.status_code"])
    calls = traced.below(server)
    assert [f"{RPC}/ComputeVjp"] * 3 == [call.name for call in calls]
    assert all({"queue", "backward"} <= {phase.name for phase in traced.below(call)} for call in calls)


def test_a_map_that_is_left_is_no_error(traced: Collector) -> None:
    """Who takes the first of many results and goes leaves a span without an error."""
    client = only(traced.below(only(traced.named("first of many", INTERNAL))))

    assert (f"{RPC}/Stream", UNSET) == (client.name, client.status)


def test_without_a_provider_the_callers_span_is_the_parent(traced: Collector) -> None:
    """A program that only passes a trace on makes no span of ours, and the server's is below its own."""
    server = only(traced.named("InspectGraph", SERVER))

    assert ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331") == (server.trace, server.parent)
    assert [] == traced.named("InspectGraph", CLIENT)


def test_nothing_of_a_request_is_in_a_span(traced: Collector) -> None:
    """No attribute, status or name of a span holds a token, a figure or a name of a request."""
    told = repr(traced.spans)
    assert "ComputeVjp" in told
    assert [] == [text for text in (TOKEN, FIGURE, INPUT) if text in told]
    assert not any(text.encode() in body for body in traced.bodies for text in (TOKEN, FIGURE, INPUT))


def test_a_client_that_does_not_trace_imports_nothing(server: str) -> None:
    """Neither the import nor a call of either kind loads OpenTelemetry."""
    script = (
        "import sys, gradoracle as go\n"
        "with go.Client(sys.argv[1]) as client:\n"
        "    client.vjp('x * x', {'x': 3.0})\n"
        "    list(client.map([go.request('vjp', 'x * x', {'x': 3.0})]))\n"
        "assert 'gradoracle.spans' in sys.modules\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, server], capture_output=True, text=True, env=os.environ)
    assert ("[]\n", "") == (done.stdout, done.stderr)

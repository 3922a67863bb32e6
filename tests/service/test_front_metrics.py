"""What Prometheus sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from front_server import Server, command, connect, eventually, failing, start
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gradoracle.v1 import service_pb2

METHODS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GradientService"].methods]
SERVICE = "gradoracle.v1.GradientService"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker for each of two devices."""
    with start("--workers", "1", environment={"FAKE_GPUS": "1"}) as server:
        yield server


def samples(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.get("/metrics")[1])
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float:
    """One sample."""
    return samples(server)[name, frozenset(labels.items())]


def test_everything_is_there_from_the_start() -> None:
    """Before the first call every method, status, phase, device, state, reason and verdict has its sample, at 0."""
    with start("--workers", "1", environment={"FAKE_GPUS": "1"}) as server:
        found = samples(server)

    names = {name for name, _ in found}
    assert {
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds_bucket",
        "gradoracle_phase_seconds_bucket",
        "gradoracle_requests_in_flight",
        "gradoracle_queue_depth",
        "gradoracle_queue_limit",
        "gradoracle_workers",
        "gradoracle_worker_restarts_total",
        "gradoracle_verdicts_total",
        "gradoracle_plan_cache_hits_total",
        "gradoracle_plan_cache_misses_total",
        "gradoracle_tensor_bytes_total",
        "gradoracle_device_memory_bytes",
        "gradoracle_build_info",
        "process_cpu_seconds_total",
    } <= names
    for method in METHODS:
        labels = {
            ("grpc_type", "bidi_stream" if method == "Stream" else "unary"),
            ("grpc_service", SERVICE),
            ("grpc_method", method),
        }
        assert 0 == found["grpc_server_started_total", frozenset(labels)]
        assert 17 == sum(1 for name, have in found if name == "grpc_server_handled_total" and labels <= have)
        assert 0 == found["grpc_server_handling_seconds_count", frozenset(labels)]
    for device in ("cpu", "cuda:0"):
        for phase in ("queue", "decode", "plan", "forward", "backward", "check", "encode"):
            labels = {("device", device), ("phase", phase), ("method", "ComputeVjp")}
            assert 0 == found["gradoracle_phase_seconds_count", frozenset(labels)]
        states = {dict(have)["state"] for name, have in found if name == "gradoracle_workers"}
        assert {"starting", "idle", "busy", "spare", "dead"} == states
        assert 1024 == found["gradoracle_queue_limit", frozenset({("device", device)})]
    verdicts = {dict(have)["verdict"] for name, have in found if name == "gradoracle_verdicts_total"}
    assert {"PASS", "FAIL", "INCONCLUSIVE", "NON_DIFFERENTIABLE", "NON_DETERMINISTIC"} == verdicts


def test_buckets_reach_from_100_microseconds_to_10_minutes(server: Server) -> None:
    """The histograms' bounds."""
    found = {dict(labels).get("le", "") for name, labels in samples(server) if name.endswith("_bucket")}
    bounds = sorted(float(bound) for bound in found - {"+Inf"})

    assert (0.0001, 600.0) == (bounds[0], bounds[-1])
    assert all(larger / smaller <= 3.01 for smaller, larger in pairwise(bounds))


def test_a_call_is_counted(server: Server) -> None:
    """A call counts once wherever it should: started, handled with its code, seconds, phases, cache, bytes, verdict."""
    rpc = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Evaluate"}
    phase = {"method": "Evaluate", "device": "cpu"}
    before = samples(server)

    def gained(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before[key]

    with connect(server) as stub:
        stub.Evaluate(command(device="cpu"))
        failing(lambda: stub.Evaluate(command("refuse 3", device="cpu")))
        failing(lambda: stub.Evaluate(command(device="cuda:9")))
    after = samples(server)

    assert 3 == gained("grpc_server_started_total", **rpc)
    assert 1 == gained("grpc_server_handled_total", grpc_code="OK", **rpc)
    assert 1 == gained("grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", **rpc)
    assert 1 == gained("grpc_server_handled_total", grpc_code="FAILED_PRECONDITION", **rpc)
    assert 3 == gained("grpc_server_handling_seconds_count", **rpc)
    assert 3 == gained("grpc_server_handling_seconds_bucket", le="+Inf", **rpc)
    assert 0 < gained("grpc_server_handling_seconds_sum", **rpc) < 30
    assert 2 == gained("gradoracle_phase_seconds_count", phase="queue", **phase)
    assert 1 == gained("gradoracle_phase_seconds_count", phase="decode", **phase)
    assert 0 == gained("gradoracle_phase_seconds_count", phase="check", **phase)
    assert 1 == gained("gradoracle_phase_seconds_bucket", phase="encode", le="1.0", **phase)
    assert 0 == gained("gradoracle_phase_seconds_bucket", phase="encode", le="0.5", **phase)
    assert abs(gained("gradoracle_phase_seconds_sum", phase="encode", **phase) - 0.6) < 1e-9
    assert 1 == gained("gradoracle_plan_cache_misses_total")
    assert 0 == gained("gradoracle_plan_cache_hits_total")
    assert 11 == gained("gradoracle_tensor_bytes_total", direction="in")
    assert 22 == gained("gradoracle_tensor_bytes_total", direction="out")
    assert 1 == gained("gradoracle_verdicts_total", verdict="PASS")


def test_memory_is_what_workers_report(server: Server) -> None:
    """Total memory from the greeting, allocated and reserved from the last answer."""
    with connect(server) as stub:
        stub.Evaluate(command(device="cuda:0"))

    for kind, expected in (("total", 1000), ("allocated", 33), ("reserved", 44)):
        assert expected == value(server, "gradoracle_device_memory_bytes", device="cuda:0", kind=kind)


def test_gauges_follow(server: Server, tmp_path: Path) -> None:
    """What waits and what runs is told while it does, by device."""
    with connect(server) as stub:
        calls = [stub.Evaluate.future(command(f"until {tmp_path / 'free'}", device="cpu")) for _ in range(3)]
        eventually(lambda: value(server, "gradoracle_queue_depth", device="cpu") == 2)

        assert 3 == value(server, "gradoracle_requests_in_flight", device="cpu")
        assert 1 == value(server, "gradoracle_workers", device="cpu", state="busy")
        assert 0 == value(server, "gradoracle_requests_in_flight", device="cuda:0")
        (tmp_path / "free").touch()
        for call in calls:
            call.result()
    assert 0 == value(server, "gradoracle_requests_in_flight", device="cpu")


def test_build_info(server: Server) -> None:
    """The versions are labels."""
    (labels,) = [dict(labels) for name, labels in samples(server) if name == "gradoracle_build_info"]

    assert {"version", "torch", "python"} == set(labels)
    assert "0.0" == labels["torch"]


def test_openmetrics_where_asked_for(server: Server) -> None:
    """Prometheus may ask for OpenMetrics, and gets it, well-formed."""
    _, text, kind = server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")

    assert kind.startswith("application/openmetrics-text")
    assert "grpc_server_started" in {family.name for family in parse_openmetrics(text)}


def test_no_series_grow_with_use(server: Server) -> None:
    """Calls make no new series, whatever is in them: labels never come from a request."""
    names = re.compile(r"^[a-z_]+(\{.*\})? ", re.MULTILINE)
    before = {match[0] for match in names.finditer(server.get("/metrics")[1])}
    with connect(server) as stub:
        failing(lambda: stub.Evaluate(command(device="no such device")))
        stub.Evaluate(command())

    assert before == {match[0] for match in names.finditer(server.get("/metrics")[1])}


def test_calls_of_streams_count_as_calls_of_their_methods(server: Server) -> None:
    """Started, handled by status, and the seconds; whether they are answered, fail, or break off with their stream."""
    labels = {"grpc_service": SERVICE, "grpc_type": "unary"}

    def counted(method: str, code: str) -> list[float]:
        mine = {**labels, "grpc_method": method}
        return [
            value(server, "grpc_server_started_total", **mine),
            value(server, "grpc_server_handled_total", **mine, grpc_code=code),
            value(server, "grpc_server_handling_seconds_count", **mine),
        ]

    asked = {
        ("Evaluate", "OK"): service_pb2.StreamCall(id=1, evaluate=command()),
        ("Evaluate", "INVALID_ARGUMENT"): service_pb2.StreamCall(id=2, evaluate=command(), attachments=1),
        ("DescribeServer", "OK"): service_pb2.StreamCall(id=3, describe_server={}),
    }
    before = {key: counted(*key) for key in asked}
    with connect(server) as stub:
        for call in asked.values():
            assert 1 == sum(len(one.answers) for one in stub.Stream(iter([service_pb2.StreamRequest(calls=[call])])))
        assert [a + b for a, b in zip(before["DescribeServer", "OK"], (1, 1, 1), strict=True)] == counted(
            "DescribeServer", "OK"
        )
        for code in ("OK", "INVALID_ARGUMENT"):
            assert [a + b for a, b in zip(before["Evaluate", code], (2, 1, 2), strict=True)] == counted(
                "Evaluate", code
            )
        cancelled = counted("Evaluate", "CANCELLED")
        long = stub.Stream(
            iter(
                [
                    service_pb2.StreamRequest(
                        calls=[service_pb2.StreamCall(id=1, evaluate=command("sleep 60", device="cpu"))]
                    )
                ]
            )
        )
        eventually(lambda: value(server, "gradoracle_requests_in_flight", device="cpu") == 1)
        long.cancel()
        eventually(lambda: counted("Evaluate", "CANCELLED")[1] == cancelled[1] + 1)

"""What the server counts, and how Prometheus sees it.

The figures are plain numbers and lists, written on the event loop alone, so that a request costs a few microseconds
(prometheus_client's own histograms take a lock and a walk over the buckets: 1.0 us an observation, these 0.17). What
the pool knows already (queues, workers, memory) is not counted again but read when somebody looks. The registry is made
of what `collect` yields, in a thread of the metrics endpoint; every combination of labels is there from the start.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gradoracle.v1 import check_pb2
from gradoracle_server.frames import METHODS, PHASES, Reply
from gradoracle_server.front.pool import RESTART_REASONS, Lane, Pool
from gradoracle_server.front.worker import STATES

SERVICE = "gradoracle.v1.GradientService"

BOUNDS = (*(float(f"{step}e{power}") for power in range(-4, 2) for step in (1, 2, 5)), 100.0, 200.0, 600.0)
"""Upper bounds of the histograms' buckets: from 100 microseconds to 10 minutes."""

_CODES: tuple[grpc.StatusCode, ...] = tuple(grpc.StatusCode)
_LES = (*(str(bound) for bound in BOUNDS), "+Inf")
_VERDICTS = {number: name.removeprefix("VERDICT_") for name, number in check_pb2.Verdict.items() if number}
_RPC = ("grpc_type", "grpc_service", "grpc_method")


class Histogram:
    """Counts by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_LES)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus counts: each with all that are below it."""
        so_far, made = 0, []
        for le, count in zip(_LES, list(self.counts), strict=True):
            so_far += count
            made.append((le, float(so_far)))
        return made


class Calls:
    """The calls of one gRPC method; those of streams count as calls of their own methods, too."""

    __slots__ = ("handled", "handling", "kind", "method", "started")

    def __init__(self, method: str, kind: str) -> None:
        self.method = method
        self.kind = kind
        self.started = 0
        self.handled = dict.fromkeys(_CODES, 0)
        self.handling = Histogram()

    def finished(self, code: grpc.StatusCode, seconds: float) -> None:
        self.handled[code] += 1
        self.handling.observe(seconds)

    @property
    def labels(self) -> list[str]:
        return [self.kind, SERVICE, self.method]


class Metrics(Collector):
    """All figures of one server."""

    def __init__(self, pool: Pool, version: str) -> None:
        self.calls = {method: Calls(method, "unary") for method in (*METHODS, "DescribeServer")}
        self.calls["Stream"] = Calls("Stream", "bidi_stream")
        self.verdicts = dict.fromkeys(_VERDICTS, 0)
        self.plan_cache = [0, 0, 0]  # not asked, hits, misses
        self.bytes_in = 0
        self.bytes_out = 0
        self.registry = CollectorRegistry()
        self._pool = pool
        self._version = version
        self._phases = {device: tuple(tuple(Histogram() for _ in PHASES) for _ in METHODS) for device in pool.lanes}
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def replied(self, lane: Lane, method: int, reply: Reply, queue_seconds: float) -> None:
        """Notes what a worker reports with an answer. Phases that did not occur are not observed."""
        histograms = self._phases[lane.device][method]
        histograms[0].observe(queue_seconds)
        for histogram, seconds in zip(histograms, reply.phases, strict=True):
            if seconds:  # as Histogram.observe does, without the call
                histogram.counts[bisect_left(BOUNDS, seconds)] += 1
                histogram.total += seconds
        self.plan_cache[reply.plan_cache] += 1
        self.bytes_in += reply.tensor_bytes_in
        self.bytes_out += reply.tensor_bytes_out
        if reply.verdict in self.verdicts:
            self.verdicts[reply.verdict] += 1

    def collect(self) -> Iterator[Metric]:
        """The families, for the registry."""
        yield from self._of_calls()
        yield from self._of_workers()
        yield _counter(
            "gradoracle_verdicts", "Gradient checks by verdict.", ["verdict"], _named(_VERDICTS, self.verdicts)
        )
        yield _counter("gradoracle_plan_cache_hits", "Graphs whose program was cached.", [], [([], self.plan_cache[1])])
        yield _counter("gradoracle_plan_cache_misses", "Graphs that were planned.", [], [([], self.plan_cache[2])])
        yield _counter(
            "gradoracle_tensor_bytes",
            "Bytes of tensors received and sent.",
            ["direction"],
            [(["in"], self.bytes_in), (["out"], self.bytes_out)],
        )
        labels = [self._version, self._pool.default.torch_version, platform.python_version()]
        yield _gauge(
            "gradoracle_build_info", "1, labelled with versions.", ["version", "torch", "python"], [(labels, 1)]
        )

    def _of_calls(self) -> Iterator[Metric]:
        calls = self.calls.values()
        yield _counter(
            "grpc_server_started",
            "Calls started, those of streams among them.",
            list(_RPC),
            [(call.labels, call.started) for call in calls],
        )
        yield _counter(
            "grpc_server_handled",
            "Calls finished, by status.",
            [*_RPC, "grpc_code"],
            [([*call.labels, code.name], call.handled[code]) for call in calls for code in _CODES],
        )
        handling = HistogramMetricFamily("grpc_server_handling_seconds", "Seconds from call to answer.", labels=_RPC)
        for call in calls:
            handling.add_metric(call.labels, call.handling.buckets(), call.handling.total)
        yield handling
        phases = HistogramMetricFamily(
            "gradoracle_phase_seconds", "Seconds in each phase of a request.", labels=["phase", "method", "device"]
        )
        for device, methods in self._phases.items():
            for method, histograms in zip(METHODS, methods, strict=True):
                for phase, histogram in zip(PHASES, histograms, strict=True):
                    phases.add_metric([phase, method, device], histogram.buckets(), histogram.total)
        yield phases

    def _of_workers(self) -> Iterator[Metric]:
        lanes = list(self._pool.lanes.items())
        device = ["device"]
        yield _gauge(
            "gradoracle_requests_in_flight",
            "Requests that wait or run.",
            device,
            [([name], lane.in_flight) for name, lane in lanes],
        )
        yield _gauge(
            "gradoracle_queue_depth",
            "Requests that wait.",
            device,
            [([name], lane.queue.depth) for name, lane in lanes],
        )
        yield _gauge(
            "gradoracle_queue_limit",
            "Requests that may wait; 0: no limit.",
            device,
            [([name], lane.queue.limit) for name, lane in lanes],
        )
        states = [([name, state], count) for name, lane in lanes for state, count in lane.states().items()]
        yield _gauge("gradoracle_workers", f"Workers by state: {', '.join(STATES)}.", ["device", "state"], states)
        yield _counter(
            "gradoracle_worker_restarts",
            "Workers replaced, by why they ended.",
            ["device", "reason"],
            [([name, reason], lane.restarts[reason]) for name, lane in lanes for reason in RESTART_REASONS],
        )
        memory = []
        for name, lane in lanes:
            memory.append(([name, "total"], lane.memory_bytes))
            memory.append(([name, "allocated"], sum(worker.memory_allocated for worker in lane.workers)))
            memory.append(([name, "reserved"], sum(worker.memory_reserved for worker in lane.workers)))
        yield _gauge(
            "gradoracle_device_memory_bytes",
            "The device's memory, and what workers had allocated and reserved of it at their last answers.",
            ["device", "kind"],
            memory,
        )


def _named(names: dict[int, str], counts: dict[int, int]) -> list[tuple[list[str], int]]:
    return [([names[number]], count) for number, count in counts.items()]


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[list[str], float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family

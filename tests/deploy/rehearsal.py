"""A rollout and a crash without a cluster: pods as the manifests say, a real load balancer, the stock client.

`python tests/deploy/run.py rehearsal` runs it and prints what was counted.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

import gradoracle as go
from deploy.balancer import NO_HAPROXY, Balancer
from deploy.kubelet import Pod
from deploy.manifests import NO_KUBECTL, containers, environment, named, pod, rendered
from deploy.resolver import Resolver

pytestmark = [
    pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL),
    pytest.mark.skipif(bool(NO_HAPROXY), reason=NO_HAPROXY),
    pytest.mark.timeout(900),
]

QUICK = "(9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1).sum()"
SLOW = "(((x @ x) @ x) @ x).sum()"  # tens to hundreds of milliseconds


class Load:
    """Threads that call a server with the stock client until told to stop, and check every bit of each answer."""

    def __init__(self, client: go.Client, threads: int = 4) -> None:
        self.client = client
        generator = np.random.default_rng(0)
        self._requests = [(QUICK, generator.normal(size=8)) for _ in range(40)]
        self._requests += [(SLOW, generator.normal(size=(500, 500)) / 23) for _ in range(2)]
        self._wanted = [self._gradient(index) for index in range(len(self._requests))]
        self.count: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)]

    def _gradient(self, index: int) -> np.ndarray:
        graph, x = self._requests[index]
        return self.client.vjp(graph, {"x": x}).gradients["x"]

    def _work(self, number: int) -> None:
        for index in itertools.islice(itertools.cycle(range(len(self._requests))), number * 7, None):
            if self._stop.is_set():
                return
            try:
                right = np.array_equal(self._gradient(index), self._wanted[index])
            except go.GradOracleError as error:
                self.count["failed"] += 1
                self.failures.append(f"{type(error).__name__}: {error}")
            else:
                self.count["right" if right else "wrong"] += 1

    def __enter__(self) -> Load:
        for (graph, x), wanted in zip(self._requests, self._wanted, strict=True):
            if graph is QUICK:
                np.testing.assert_allclose(wanted, 36 * x**3 + 6 * x**2 + 6 * x + 6, rtol=1e-12)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.client.close()

    def more(self, calls: int) -> None:
        """Waits until so many more calls have ended."""
        wanted = self.count.total() + calls
        eventually(lambda: self.count.total() >= wanted)


class Cluster:
    """Pods of one Deployment, rolled as its strategy says: one more comes up before one goes.

    `changed` are variables that have another value than in the manifests.
    """

    def __init__(
        self, on_ready: Callable[[Pod, bool], None], replicas: int = 3, changed: Mapping[str, str] | None = None
    ) -> None:
        objects = rendered("cpu")
        self.deployment = named(objects, "Deployment", "gradoracle")
        [container] = containers(self.deployment)
        self._environment = environment(objects, container) | dict(changed or {})
        self._on_ready = on_ready
        self._numbers = itertools.count(11)
        self.pods = [self._new() for _ in range(replicas)]

    def _new(self) -> Pod:
        return Pod(pod(self.deployment), self._environment, f"127.0.0.{next(self._numbers)}", self._on_ready)

    def wait(self) -> None:
        """Until all are ready."""
        eventually(lambda: all(one.ready for one in self.pods))

    def grow(self) -> None:
        """One more pod, ready."""
        self.pods.append(self._new())
        self.wait()

    def roll(self) -> list[int]:
        """Replaces every pod; returns the exit codes of the old ones."""
        assert {"maxUnavailable": 0, "maxSurge": 1} == self.deployment["spec"]["strategy"]["rollingUpdate"]
        codes = []
        for old in list(self.pods):
            self.grow()
            time.sleep(self.deployment["spec"]["minReadySeconds"])
            self.pods.remove(old)
            codes.append(old.terminate())
        return codes

    def close(self) -> None:
        """Ends all at once."""
        for one in self.pods:
            one.close()


def eventually(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


@contextlib.contextmanager
def cluster_behind(
    way: Balancer | Resolver, replicas: int = 3, changed: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Pods, all of them ready, and a way to them that is kept up to date; ends both."""
    cluster = None
    try:
        cluster = Cluster(lambda one, ready: way.endpoint(one.host, one.port, ready), replicas, changed)
        cluster.wait()
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        way.close()


@contextlib.contextmanager
def service(mode: str, replicas: int = 3) -> Iterator[tuple[Cluster, go.Client]]:
    """Pods behind a load balancer, and the stock client of that."""
    balancer = Balancer(mode)
    with cluster_behind(balancer, replicas) as cluster:
        yield cluster, go.Client(balancer.address, timeout=120)


def test_a_rollout_and_a_crash_lose_no_call() -> None:
    """Three pods rolled one by one under load, then one killed: no call fails, and no answer is wrong."""
    with service("http") as (cluster, client), Load(client) as load:
        load.more(200)
        codes = cluster.roll()
        load.more(200)
        after_roll = Counter(load.count)
        victim = cluster.pods[0]
        victim.kill()
        eventually(lambda: [-9] == victim.exit_codes)
        load.more(200)
        cluster.wait()
        load.more(200)
    print(f"\nrollout of three pods: {dict(after_roll)}, exit codes {codes}; with one killed: {dict(load.count)}")

    assert [0, 0, 0] == codes
    assert [] == load.failures[:3]
    assert {"right"} == set(load.count)


def test_a_rollout_behind_a_service_of_connections() -> None:
    """The same rollout where connections are balanced, not calls, as by a ClusterIP: nothing is lost or wrong.

    A call that reaches a server just as it begins to send its clients away may come back CANCELLED: the client repeats
    it.
    """
    with service("tcp") as (cluster, client), Load(client) as load:
        load.more(200)
        codes = cluster.roll()
        load.more(200)
    print(f"\nrollout of three pods behind a balancer of connections: {dict(load.count)}, exit codes {codes}")

    assert [0, 0, 0] == codes
    assert [] == load.failures[:3]
    assert {"right"} == set(load.count)


def test_the_load_sees_what_goes_wrong() -> None:
    """An answer that is not the expected one counts as wrong, and a call that nobody answers as failed."""
    with service("http", replicas=1) as (cluster, client), Load(client) as load:
        load.more(100)
        assert {"right"} == set(load.count)
        load._wanted[3] = load._wanted[3] + 1e-12
        eventually(lambda: load.count["wrong"] > 0)
        cluster.close()
        eventually(lambda: load.count["failed"] > 0)

"""The headless Service: the stock client's calls go round over the pods behind its name, and it finds new ones.

`python tests/deploy/run.py headless` runs it and prints what was counted.
"""

from __future__ import annotations

import urllib.request
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.kubelet import Pod
from deploy.manifests import NO_KUBECTL
from deploy.rehearsal import Load, cluster_behind, eventually
from deploy.resolver import Resolver

pytestmark = [pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL), pytest.mark.timeout(900)]


def calls(pod: Pod) -> int:
    """How many calls a pod has answered."""
    with urllib.request.urlopen(f"http://{pod.host}:9464/metrics", timeout=60) as page:
        families = text_string_to_metric_families(page.read().decode())
        return round(
            sum(
                one.value
                for family in families
                for one in family.samples
                if one.name == "grpc_server_handled_total" and one.labels["grpc_method"] == "ComputeVjp"
            )
        )


def test_calls_go_round_and_a_rollout_loses_none() -> None:
    """Each of three pods gets its share of one client's calls; all three are rolled, and no call fails or is wrong."""
    resolver = Resolver()
    with cluster_behind(resolver) as cluster, Load(resolver.client()) as load:
        eventually(lambda: all(calls(pod) for pod in cluster.pods))  # it is connected to all
        before = Counter({pod.host: calls(pod) for pod in cluster.pods})
        load.more(300)
        shares = Counter({pod.host: calls(pod) for pod in cluster.pods})
        shares.subtract(before)
        codes = cluster.roll()
        load.more(200)
        eventually(lambda: all(calls(pod) for pod in cluster.pods))
    print(f"\nheadless: shares of {shares.total()} calls {sorted(shares.values())}")
    print(f"rollout of three pods behind a name: {dict(load.count)}, exit codes {codes}")

    assert min(shares.values()) > 0.5 * max(shares.values())  # the pods are not counted at one moment
    assert [0, 0, 0] == codes
    assert [] == load.failures[:3]
    assert {"right"} == set(load.count)


@pytest.mark.parametrize(("age", "found"), [("5s", True), ("0", False)])
def test_the_age_of_connections_makes_new_pods_seen(age: str, found: bool) -> None:
    """A pod that comes beside another gets calls once a connection has reached its age; without one it gets none."""
    resolver = Resolver()
    changed = {"GRADORACLE_MAX_CONNECTION_AGE": age, "GRADORACLE_WORKERS": "1"}
    with cluster_behind(resolver, 1, changed) as cluster, Load(resolver.client(), threads=2) as load:
        load.more(50)
        cluster.grow()
        if found:
            eventually(lambda: calls(cluster.pods[1]) > 0)
        load.more(300)
        counted = [calls(pod) for pod in cluster.pods]
    print(f"\nconnections of age {age}: calls by pod {counted}")

    assert found == (counted[1] > 0)
    assert [] == load.failures[:3]
    assert {"right"} == set(load.count)

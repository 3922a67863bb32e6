"""Every query of dashboard, rules and autoscalers, run by a real Prometheus that scrapes a real, loaded server."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import gradoracle as go
from deploy import queries
from deploy.manifests import NO_KUBECTL, rendered

NO_PROMETHEUS = (
    "" if shutil.which("prometheus") else "prometheus is not installed here (Debian: apt-get install prometheus)"
)

pytestmark = [
    pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL),
    pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS),
    pytest.mark.timeout(600),
]

VARIABLES = {"$namespace": "gradoracle", "$pod": ".*", "$__rate_interval": "15s"}

NEVER_HERE = {"GradoracleDrainedTooSlowly"}
"""Rules over metrics of kube-state-metrics, which this machine has not; promtool's tests cover them."""


class Prometheus:
    """A running Prometheus with the rules of the manifests."""

    def __init__(self, target: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "rules.yml").write_text(yaml.safe_dump({"groups": queries.groups()}))
        # The labels are those that the ServiceMonitor's targets have.
        labels = {"namespace": "gradoracle", "pod": "gradoracle-0"}
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "gradoracle", "static_configs": [{"targets": [target], "labels": labels}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.log = (folder / "log").open("w+")
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self._address}",
        ]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API. Raises HTTPError where it does not take the query."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self.get("query", query=text)["result"]

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def eventually(found: Any, what: str) -> Any:
    """What a function returns once it is not empty."""
    end = time.monotonic() + 120
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if result := found():
                return result
        assert time.monotonic() < end, f"nothing came of: {what}"
        time.sleep(0.25)


def _work(address: str, stop: threading.Event) -> None:
    """Calls of every sort, some of them wrong."""
    with go.Client(address, timeout=60) as client:
        while not stop.is_set():
            client.vjp("(x**2).sum()", {"x": [1.0, 2.0]})
            client.jvp("x.sin()", {"x": 0.0}, {"x": 1.0})
            client.evaluate("x + 1", {"x": 1.0})
            client.check("(x**3).sum()", {"x": [1.0, 2.0, 3.0]})
            list(client.map([]))
            with contextlib.suppress(go.GradOracleError):
                client.evaluate("no_such_operator(x)", {"x": 1.0})
            with contextlib.suppress(go.GradOracleError):
                client.evaluate("x @ w", {"x": [[1.0]], "w": [[1.0, 2.0], [3.0, 4.0]]})


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    """A Prometheus that has scraped a loaded server, and goes on to."""
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradoracle-prometheus-")))
        address = stack.enter_context(go.local_server(workers=2))
        workers = [threading.Thread(target=_work, args=(address, stop), daemon=True) for _ in range(2)]
        for worker in workers:
            worker.start()
        stack.callback(lambda: [worker.join() for worker in workers])
        stack.callback(stop.set)
        running = Prometheus(address.metrics, folder)
        stack.callback(running.close)
        eventually(lambda: running.query("gradoracle:workers_busy:ratio"), "the recording rules")
        yield running


def filled(query: str) -> str:
    """A query of the dashboard with its variables put in, as Grafana does."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """The values of series that are numbers: 0/0 is none."""
    return [float(one["value"][1]) for one in series if one["value"][1] != "NaN"]


PANELS = [one for one in queries.panels() if not one[0].startswith("variable")]


@pytest.mark.parametrize(("title", "query"), PANELS, ids=[title for title, _ in PANELS])
def test_panel_shows_something(prometheus: Prometheus, title: str, query: str) -> None:
    """Every query of the dashboard gives numbers."""
    assert eventually(lambda: numbers(prometheus.query(filled(query))), f"{title}: {filled(query)}")


@pytest.mark.parametrize("name", [] if NO_KUBECTL else list(queries.rules("record")))
def test_recording_rule_records(prometheus: Prometheus, name: str) -> None:
    """Every recording rule makes numbers."""
    assert eventually(lambda: numbers(prometheus.query(name)), name)


def test_no_rule_fails(prometheus: Prometheus) -> None:
    """Prometheus evaluates every rule, finds the server well, and lets no alert fire but those of this short life."""
    groups = eventually(
        lambda: [
            group
            for group in [prometheus.get("rules")["groups"]]
            if all(rule["health"] == "ok" for one in group for rule in one["rules"])
        ],
        "every rule evaluated",
    )[0]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(queries.rules("record")) | set(queries.rules("alert")) == rules.keys()
    assert [] == [name for name, rule in rules.items() if rule.get("state") == "firing"]


def test_variables_of_the_dashboard(prometheus: Prometheus) -> None:
    """The series that the dashboard's variables are taken from have the label that is asked for."""
    for label in ("namespace", "pod"):
        assert prometheus.get(f"label/{label}/values", **{"match[]": "gradoracle_build_info"})


@pytest.mark.parametrize("rule", [] if NO_KUBECTL else queries.adapter(), ids=lambda rule: rule["name"]["as"])
def test_adapter_rule_gives_a_number_for_each_pod(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """What prometheus-adapter would ask gives one number for the pod."""
    series = prometheus.get("series", **{"match[]": rule["seriesQuery"]})
    assert series
    query = (
        rule["metricsQuery"]
        .replace("<<.Series>>", series[0]["__name__"])
        .replace("<<.LabelMatchers>>", 'namespace="gradoracle",pod=~"gradoracle-0"')
        .replace("<<.GroupBy>>", "pod")
    )
    assert [{"pod": "gradoracle-0"}] == [one["metric"] for one in prometheus.query(query)]


def test_keda_queries_give_one_number(prometheus: Prometheus) -> None:
    """KEDA takes a single number."""
    asked = [] if NO_KUBECTL else queries.scaling(rendered("keda"))
    assert [1] * len(asked) == [len(prometheus.query(query)) for query in asked]


def test_a_misspelt_query_shows_nothing(prometheus: Prometheus) -> None:
    """A query for what no server has gives nothing, and one that is none is refused."""
    assert [] == prometheus.query(filled('sum by (pod) (gradoracle_queue_length{pod=~"$pod"})'))
    with pytest.raises(urllib.error.HTTPError):
        prometheus.query("sum(")

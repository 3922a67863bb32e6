"""What the autoscaler, the rules and the dashboard ask Prometheus for is what a real server has."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from front_server import start
from prometheus_client.parser import text_string_to_metric_families

from deploy import queries
from deploy.manifests import DEPLOY, NO_KUBECTL, rendered

pytestmark = pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL)

Scrape = dict[str, dict[str, set[str]]]

ADDED = {"namespace": {"gradoracle"}, "pod": set(), "job": {"gradoracle"}}
"""Labels that Prometheus adds when it scrapes, and their values where the rules name one."""


@pytest.fixture(scope="module")
def scrape() -> Scrape:
    """The values of every label, by metric, of a server that has just come up."""
    found: Scrape = defaultdict(lambda: defaultdict(set))
    with start("--workers", "1") as server:
        for family in text_string_to_metric_families(server.get("/metrics")[1]):
            for sample in family.samples:
                labels = found[sample.name]
                for label, value in sample.labels.items():
                    labels[label].add(value)
    return found


def problems(query: str, scrape: Scrape) -> list[str]:
    """What a query asks for and no server has."""
    recorded = queries.rules("record")
    names = queries.metrics(query)
    missing = [f"no metric {name}" for name in sorted(names - scrape.keys() - recorded.keys() - queries.FOREIGN)]
    labels: dict[str, set[str]] = defaultdict(set, {label: set(values) for label, values in ADDED.items()})
    for name in names.union(*(queries.metrics(recorded[one]) for one in names & recorded.keys())):
        for label, values in scrape.get(name, {}).items():
            labels[label] |= values
    for label, value in sorted(queries.matchers(query)):
        if label not in labels:
            missing.append(f"no label {label}")
        elif label not in ("pod",) and value not in labels[label]:
            missing.append(f"no {label} {value}")
    return missing


def everything() -> list[tuple[str, str]]:
    """Every query there is, with where it stands."""
    found = [(f"record {name}", text) for name, text in queries.rules("record").items()]
    found += [
        (f"alert {name}", text) for name, text in queries.rules("alert").items() if name != "GradoracleDrainedTooSlowly"
    ]
    found += [(f"panel {title}", text) for title, text in queries.panels()]
    for overlay in ("autoscaling", "keda"):
        found += [(overlay, text) for text in queries.scaling(rendered(overlay))]
    found += [(f"adapter {rule['name']['as']}", rule["seriesQuery"].partition("{")[0]) for rule in queries.adapter()]
    return found


def test_every_query_asks_for_what_a_server_has(scrape: Scrape) -> None:
    """Metrics, labels and their values in rules, dashboard and autoscalers are those of a live scrape."""
    assert 40 < len(everything())
    assert [] == [(where, problems(query, scrape)) for where, query in everything() if problems(query, scrape)]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sum(rate(gradoracle_request_total[5m]))", ["no metric gradoracle_request_total"]),
        ("gradoracle:errors:rate5m > 1", ["no metric gradoracle:errors:rate5m"]),
        ('gradoracle_workers{status="idle"}', ["no label status"]),
        ('gradoracle_workers{state=~"idle|working"}', ["no state working"]),
        ('rate(gradoracle_phase_seconds_bucket{phase="queue", le="0.3"}[5m])', ["no le 0.3"]),
        ('up{job="gradorakel"}', ["no job gradorakel"]),
        ('gradoracle:calls:rate5m{grpc_code="OVERLOADED"}', ["no grpc_code OVERLOADED"]),
    ],
)
def test_what_no_server_has_is_found(scrape: Scrape, query: str, says: list[str]) -> None:
    """A misspelt metric, label or value is named."""
    assert says == problems(query, scrape)


def test_autoscaler_metrics_come_from_the_adapter() -> None:
    """The metrics of the HPA are those that the adapter's rules make, and KEDA asks for the same."""
    made = {rule["name"]["as"] for rule in queries.adapter()}
    assert made == set(queries.scaling(rendered("autoscaling")))
    assert made == set().union(*map(queries.metrics, queries.scaling(rendered("keda"))))


def test_every_alert_is_explained() -> None:
    """The README says of each alert what it means and what to do, and of no other."""
    headings = re.findall(r"^### (Gradoracle\w+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert sorted(queries.rules("alert")) == sorted(headings)
    for group in queries.groups():
        for rule in group["rules"]:
            if "alert" in rule:
                assert f"deploy/README.md, {rule['alert']}" == rule["annotations"]["runbook"]
                assert rule["labels"]["severity"] in ("critical", "warning")


def test_dashboard_is_whole() -> None:
    """Panels have titles, units and distinct ids, lie beside each other, and take their data from the variable."""
    panels = queries.dashboard()["panels"]
    assert len(panels) == len({panel["id"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {"type": "prometheus", "uid": "$datasource"} == panel["datasource"]

"""The queries that the manifests hold, and the metrics that they name."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from deploy.manifests import DEPLOY, Object, named, of_kind, rendered

FOREIGN = {"up", "kube_pod_deletion_timestamp"}
"""Metrics of others: Prometheus' own, and kube-state-metrics'."""

_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NO_METRICS = {
    *("and", "or", "unless", "by", "without", "ignoring", "on", "group_left", "group_right", "bool", "offset"),
    *("sum", "count", "rate", "increase", "histogram_quantile", "absent", "time", "max", "min", "avg", "label_values"),
}


def groups() -> list[dict[str, Any]]:
    """The rules as Prometheus takes them."""
    return named(rendered("monitoring"), "PrometheusRule", "gradoracle")["spec"]["groups"]


def rules(kind: str) -> dict[str, str]:
    """The expressions of the rules of a kind ("record" or "alert"), by name."""
    return {rule[kind]: rule["expr"] for group in groups() for rule in group["rules"] if kind in rule}


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return json.loads((DEPLOY / "components/monitoring/dashboard.json").read_text())


def panels() -> list[tuple[str, str]]:
    """Title and query of every target of the dashboard, and its variables' queries."""
    found = [(panel["title"], one["expr"]) for panel in dashboard()["panels"] for one in panel.get("targets", [])]
    variables = [one for one in dashboard()["templating"]["list"] if one["type"] == "query"]
    return found + [(f"variable {one['name']}", one["query"]) for one in variables]


def scaling(objects: list[Object]) -> list[str]:
    """The metrics and queries by which pods are scaled."""
    hpas = [one for scaler in of_kind(objects, "HorizontalPodAutoscaler") for one in scaler["spec"]["metrics"]]
    triggers = [one for scaler in of_kind(objects, "ScaledObject") for one in scaler["spec"]["triggers"]]
    return [one["pods"]["metric"]["name"] for one in hpas] + [one["metadata"]["query"] for one in triggers]


def adapter() -> list[dict[str, Any]]:
    """prometheus-adapter's rules."""
    data = named(rendered("autoscaling"), "ConfigMap", "gradoracle-adapter-rules")["data"]
    return yaml.safe_load(data["config.yaml"])["rules"]


def metrics(query: str) -> set[str]:
    """The metrics that a query names."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\$\w+', " ", query)  # strings, ranges, variables
    bare = re.sub(r"\b(?:by|without|ignoring|on|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    bare = re.sub(r"(label_values\([^,]*),[^)]*\)", r"\1", bare)
    return {word for word in _WORDS.findall(bare) if word not in _NO_METRICS}


def matchers(query: str) -> set[tuple[str, str]]:
    """Labels and the values that a query wants them to have, alternatives apart; variables left out."""
    found = re.findall(r'(\w+)\s*(?:=~|!=|=)\s*"([^"$]*)"', query)
    return {(label, value) for label, values in found for value in values.split("|") if re.fullmatch(r"[\w.+]+", value)}

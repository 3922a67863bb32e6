"""Every alert fires when it should and not when it should not: promtool's unit tests, and the tests of those."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from deploy import promtool, queries
from deploy.manifests import NO_KUBECTL

pytestmark = [
    pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL),
    pytest.mark.skipif(bool(promtool.NO_PROMTOOL), reason=promtool.NO_PROMTOOL),
]
ALERTS = () if NO_KUBECTL else tuple(queries.rules("alert"))


def test_rules_are_well_formed(tmp_path: Path) -> None:
    """promtool takes the rules."""
    assert "" == promtool.check(queries.groups(), tmp_path)


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    """An expression that is none is rejected."""
    groups = copy.deepcopy(queries.groups())
    groups[0]["rules"][0]["expr"] += ")"
    assert "could not parse expression" in promtool.check(groups, tmp_path)


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_and_does_not(alert: str, tmp_path: Path) -> None:
    """An alert fires on a series that calls for it, and not on one that nearly does."""
    cases = [one for case in promtool.TESTS["tests"] for one in case["alert_rule_test"] if one["alertname"] == alert]
    assert any(one["exp_alerts"] for one in cases)
    assert any(not one["exp_alerts"] for one in cases)
    assert "" == promtool.failures(queries.groups(), tmp_path, alert)


@pytest.mark.parametrize("fault", ["never fires", "always fires"])
@pytest.mark.parametrize("alert", ALERTS)
def test_the_tests_find_an_alert_that(alert: str, fault: str, tmp_path: Path) -> None:
    """An alert that never fires, and one that always does, fail their tests."""
    groups = copy.deepcopy(queries.groups())
    for rule in (rule for group in groups for rule in group["rules"] if rule.get("alert") == alert):
        rule["expr"] = "vector(1) > 2" if fault == "never fires" else "vector(1)"
        rule.pop("for", None)
    assert f"alertname: {alert}" in promtool.failures(groups, tmp_path, alert)

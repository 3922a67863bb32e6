"""promtool, over the rules and the tests of alerts.yaml."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

NO_PROMTOOL = "" if shutil.which("promtool") else "promtool is not installed here (Debian: apt-get install prometheus)"

TESTS = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())


def check(groups: list[dict[str, Any]], folder: Path) -> str:
    """What promtool finds wrong with rules; empty where it finds nothing."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    return _promtool(folder, "check", "rules", "rules.yaml")


def failures(groups: list[dict[str, Any]], folder: Path, alert: str = "") -> str:
    """The tests that fail, in promtool's words; empty where none does. `alert`: only the tests of this one."""
    cases = []
    for case in TESTS["tests"]:
        asked = [one for one in case["alert_rule_test"] if alert in ("", one["alertname"])]
        if asked:
            cases.append(case | {"alert_rule_test": asked})
    assert cases, f"no test of {alert}"
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (folder / "alerts.yaml").write_text(yaml.safe_dump(TESTS | {"tests": cases}))
    return _promtool(folder, "test", "rules", "alerts.yaml")


def _promtool(folder: Path, *arguments: str) -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr

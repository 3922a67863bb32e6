"""checkov over the rendered overlays and the Dockerfile. It is large, so it gets an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests import DEPLOY, NO_KUBECTL, OVERLAYS, containers, named, rendered

pytestmark = [pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL), pytest.mark.timeout(900)]

VERSION = "3.3.30"

EXEMPT = {
    "CKV_K8S_15": "IfNotPresent: a tag names one version for ever, and a pod must start where the registry is away",
    "CKV_K8S_43": "the digest is that of the image that you have built: it belongs into your copy of the overlay",
    "CKV_DOCKER_7": "the base image is a build argument; its default has a version",
}

Failed = set[tuple[str, str]]


@pytest.fixture(scope="module")
def checkov(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Failed]:
    """Runs checkov over a folder; returns what fails: id of the check, and resource."""
    home = tmp_path_factory.mktemp("checkov")
    venv.create(home, with_pip=True)
    subprocess.run(
        [home / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", f"checkov=={VERSION}"],
        check=True,
    )

    def run(folder: Path) -> Failed:
        done = subprocess.run(
            [
                *(home / "bin/checkov", "-d", folder, "--framework", "kubernetes", "dockerfile"),
                *("-o", "json", "--skip-download", "--quiet"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        reports: list[dict[str, Any]] = json.loads(done.stdout)
        assert {"kubernetes", "dockerfile"} == {one["check_type"] for one in reports}
        assert all(one["summary"]["passed"] > 20 and not one["summary"]["parsing_errors"] for one in reports)
        return {(one["check_id"], one["resource"]) for each in reports for one in each["results"]["failed_checks"]}

    return run


def _write(folder: Path) -> None:
    for overlay in OVERLAYS:
        (folder / f"{overlay}.yaml").write_text(yaml.safe_dump_all(rendered(overlay)))
    shutil.copy(DEPLOY / "Dockerfile", folder)


def test_nothing_but_the_exempt(checkov: Callable[[Path], Failed], tmp_path: Path) -> None:
    """All checks pass but those that are exempt, and each of those is still needed."""
    _write(tmp_path)
    failed = checkov(tmp_path)
    assert [] == sorted(one for one in failed if one[0] not in EXEMPT)
    assert EXEMPT.keys() == {check for check, _ in failed}


def test_a_privileged_container_is_found(checkov: Callable[[Path], Failed], tmp_path: Path) -> None:
    """What must not be is found."""
    _write(tmp_path)
    objects = rendered("cpu")
    containers(named(objects, "Deployment", "gradoracle"))[0]["securityContext"]["privileged"] = True
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump_all(objects))
    assert ("CKV_K8S_16", "Deployment.gradoracle.gradoracle") in checkov(tmp_path)

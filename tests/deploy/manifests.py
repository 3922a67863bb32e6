"""The manifests as a cluster would get them: every overlay rendered, and a few ways to look at the result."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())

Object = dict[str, Any]

NO_KUBECTL = "" if shutil.which("kubectl") else "kubectl is not installed here; it renders the overlays"


@functools.cache
def _rendered(overlay: str) -> list[Object]:
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def rendered(overlay: str) -> list[Object]:
    """The objects of an overlay, for the caller to change as it likes."""
    return copy.deepcopy(_rendered(overlay))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Those of these kinds."""
    return [one for one in objects if one["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one of this kind and name."""
    [found] = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def title(one: Object) -> str:
    """How messages call an object."""
    return f"{one['kind']}/{one['metadata']['name']}"


def workloads(objects: list[Object]) -> list[Object]:
    """What makes pods."""
    return of_kind(objects, "Deployment", "Job")


def pod(workload: Object) -> Object:
    """The spec of a workload's pods."""
    return workload["spec"]["template"]["spec"]


def pod_labels(workload: Object) -> dict[str, str]:
    """The labels of a workload's pods."""
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(workload: Object) -> list[Object]:
    """The containers of a workload's pods."""
    return pod(workload)["containers"]


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """What a container's process finds in its environment because the manifests say so."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {one["name"]: one["value"] for one in container.get("env", [])}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def probes(container: Object) -> Iterator[tuple[str, Object]]:
    """The probes of a container, with what they are for."""
    for what in ("startup", "readiness", "liveness"):
        if (probe := container.get(f"{what}Probe")) is not None:
            yield what, probe

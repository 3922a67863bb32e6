"""The overlays: their schema, and what must hold of each beyond it. Every check has a fault that it must find."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
from front_server import Server, start
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy import checks
from deploy.manifests import DEPLOY, NO_KUBECTL, OVERLAYS, Object, containers, named, of_kind, pod, rendered

pytestmark = pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL)

OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
"""Kubernetes versions. The oldest is the first that has the preStop action `sleep` without a feature gate."""

FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds of the operators' own, of which Kubernetes has no schema; promtool and the checks here look at them."""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schema(overlay: str, version: str) -> None:
    """Every object of every overlay is valid in the oldest and in the newest version, unknown fields forbidden."""
    objects = [one for one in rendered(overlay) if one["kind"] not in FOREIGN]
    assert objects
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_schema_finds_a_misspelt_field() -> None:
    """A field that Kubernetes does not know is rejected."""
    deployment = named(rendered("cpu"), "Deployment", "gradoracle")
    pod(deployment)["terminationGracePeriodSecond"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_check(overlay: str, check: checks.Check) -> None:
    """Nothing is wrong."""
    assert [] == check(rendered(overlay))


def container(objects: list[Object]) -> Any:
    """The server's."""
    return containers(named(objects, "Deployment", "gradoracle"))[0]


def setting(name: str, text: str) -> Callable[[list[Object]], None]:
    """A fault: a variable has this value."""

    def plant(objects: list[Object]) -> None:
        [found] = [one for one in of_kind(objects, "ConfigMap") if "GRADORACLE_LISTEN" in one["data"]]
        found["data"][name] = text

    return plant


def at(kind: str, path: str, value: Any) -> Callable[[list[Object]], None]:
    """A fault: a field of the first object of a kind has this value; None: it is not there."""

    def plant(objects: list[Object]) -> None:
        place: Any = of_kind(objects, kind)[0]
        *steps, last = path.split("/")
        for step in steps:
            place = place[int(step)] if isinstance(place, list) else place[step.replace("~", "/")]
        key: Any = int(last) if isinstance(place, list) else last.replace("~", "/")
        if value is None:
            del place[key]
        else:
            place[key] = value

    return plant


ONE = "spec/template/spec/containers/0"
NAME = "app.kubernetes.io~name"
FAULTS: list[tuple[str, str, Callable[[list[Object]], None], str]] = [
    ("selectors", "cpu", at("Service", f"spec/selector/{NAME}", "gradorakel"), "Service/gradoracle: no pod has"),
    ("selectors", "cpu", at("PodDisruptionBudget", f"spec/selector/matchLabels/{NAME}", "x"), "PodDisruptionBudget/"),
    ("selectors", "cpu", at("Deployment", f"spec/selector/matchLabels/{NAME}", "x"), "Deployment/gradoracle: no pod"),
    (
        "selectors",
        "cpu",
        at("Deployment", f"spec/template/spec/topologySpreadConstraints/0/labelSelector/matchLabels/{NAME}", "x"),
        "Deployment/gradoracle, topology spread: no pod has",
    ),
    (
        "selectors",
        "batch",
        at("NetworkPolicy", f"spec/podSelector/matchLabels/{NAME}", "x"),
        "NetworkPolicy/gradoracle-batch: no pod has",
    ),
    (
        "selectors",
        "cpu",
        lambda objects: named(objects, "NetworkPolicy", "gradoracle-server")["spec"]["ingress"][0]["from"][0][
            "podSelector"
        ]["matchLabels"].update({"app.kubernetes.io/name": "gradoracle"}),
        "NetworkPolicy/gradoracle-server: a peer of another namespace must carry ['app.kubernetes.io/name']",
    ),
    (
        "ports",
        "cpu",
        at("Service", "spec/ports/0/targetPort", "rpc"),
        "Service/gradoracle: no container has the port rpc",
    ),
    (
        "ports",
        "cpu",
        lambda objects: named(objects, "NetworkPolicy", "gradoracle-server")["spec"]["ingress"][1]["ports"][0].update(
            {"port": "metric"}
        ),
        "NetworkPolicy/gradoracle-server: no container has the port metric",
    ),
    ("ports", "monitoring", at("ServiceMonitor", "spec/endpoints/0/port", "http"), "no Service has the port http"),
    ("ports", "cpu", setting("GRADORACLE_LISTEN", "0.0.0.0:50052"), "is 0.0.0.0:50052, and the port grpc is 50051"),
    ("ports", "cpu", setting("GRADORACLE_METRICS_LISTEN", "127.0.0.1:9464"), "GRADORACLE_METRICS_LISTEN is 127.0.0.1"),
    ("ports", "cpu", at("Deployment", f"{ONE}/livenessProbe/grpc/port", 50052), "the liveness probe asks port 50052"),
    ("ports", "secure", at("Deployment", f"{ONE}/livenessProbe/httpGet/port", "grpc"), "liveness probe asks port grpc"),
    (
        "health",
        "cpu",
        at("Deployment", f"{ONE}/readinessProbe/grpc/service", "ready"),
        "readiness probe asks for 'ready'",
    ),
    ("health", "cpu", at("Deployment", f"{ONE}/livenessProbe/grpc/service", "readiness"), "asks for 'readiness'"),
    ("health", "cpu", at("Deployment", f"{ONE}/startupProbe/grpc/service", None), "startup probe asks for None"),
    ("health", "cpu", at("Deployment", f"{ONE}/startupProbe", None), "no startup probe"),
    ("health", "secure", at("Deployment", f"{ONE}/readinessProbe/httpGet/path", "/ready"), "asks for /ready"),
    ("health", "cpu", setting("GRADORACLE_TLS_CERT", "/x"), "which speaks no TLS"),
    ("variables", "cpu", setting("GRADORACLE_MAX_QUEU", "3"), "GRADORACLE_MAX_QUEU is no setting"),
    ("variables", "cpu", setting("GRADORACLE_DRAIN_TIMEOUT", "125 sec"), "GRADORACLE_DRAIN_TIMEOUT: expected a number"),
    ("variables", "secure", setting("GRADORACLE_TLS_KEY", ""), "--tls-key: expected the path of a file"),
    ("variables", "cpu", at("Deployment", "spec/template/spec/enableServiceLinks", None), "Services would put further"),
    ("variables", "tracing", setting("OTEL_TRACES_SAMPLR", "always_on"), "OTEL_TRACES_SAMPLR is no setting"),
    ("variables", "cpu", setting("OTEL_TRACES_SAMPLER", "always_on"), "OTEL_TRACES_SAMPLER is no setting"),
    ("variables", "tracing", setting("GRADORACLE_OTLP_ENDPOINT", "collector:4317"), "expected a URL like"),
    (
        "traces",
        "tracing",
        setting("GRADORACLE_OTLP_ENDPOINT", "http://otel.traces:4318"),
        "out to http://otel.traces:4318",
    ),
    (
        "traces",
        "tracing",
        setting("GRADORACLE_OTLP_ENDPOINT", "http://otel.observability:4319"),
        "no policy lets spans",
    ),
    (
        "traces",
        "cpu",
        setting("GRADORACLE_OTLP_ENDPOINT", "http://otel.observability:4318"),
        "no policy lets spans out",
    ),
    ("drains", "cpu", at("Deployment", "spec/template/spec/terminationGracePeriodSeconds", 140), "140 s, and stopping"),
    ("drains", "cpu", at("Deployment", f"{ONE}/lifecycle/preStop/sleep/seconds", 1), "preStop waits 1 s"),
    ("drains", "cpu", setting("GRADORACLE_REQUEST_TIMEOUT", "10m"), "a request may last 600 s, a drain 125"),
    ("drains", "cpu", setting("GRADORACLE_REQUEST_TIMEOUT", "0"), "a request may last 0 s"),
    ("memory", "cpu", setting("GRADORACLE_WORKERS", "5"), "the memory limit is 11Gi, needed 12"),
    ("memory", "cpu", setting("GRADORACLE_THREADS", "2"), "4 workers share 4 CPUs"),
    ("memory", "cpu", at("Deployment", f"{ONE}/resources/requests/memory", "1Gi"), "requests differ from limits"),
    ("references", "cpu", at("Deployment", f"{ONE}/envFrom/0/configMapRef/name", "settings"), "ConfigMap/settings"),
    ("references", "cpu", at("Deployment", "spec/template/spec/serviceAccountName", "x"), "ServiceAccount/x is not"),
    ("references", "secure", at("Deployment", "spec/template/spec/volumes/0/secret/secretName", "tls"), "Secret/tls"),
    ("references", "batch", at("Job", "spec/template/spec/volumes/0/configMap/name", "x"), "ConfigMap/x is not there"),
    (
        "references",
        "autoscaling",
        at("HorizontalPodAutoscaler", "spec/scaleTargetRef/kind", "StatefulSet"),
        "StatefulSet/",
    ),
    ("references", "autoscaling", at("Deployment", "spec/replicas", 2), "a gradoracle without replicas"),
    ("volumes", "cpu", at("Deployment", f"{ONE}/volumeMounts/1/name", "share"), "the volume share is not both"),
    ("volumes", "cpu", at("Deployment", "spec/template/spec/volumes/1/emptyDir/sizeLimit", None), "has no size"),
    ("volumes", "cpu", at("Deployment", f"{ONE}/volumeMounts/0/mountPath", "/temp"), "mounted at /tmp"),
    ("hardened", "cpu", at("Deployment", "spec/template/spec/securityContext/runAsUser", 1000), "runs as 1000:10101"),
    (
        "hardened",
        "cpu",
        at("Deployment", "spec/template/spec/securityContext/seccompProfile", None),
        "seccomp profile None",
    ),
    (
        "hardened",
        "batch",
        at("Job", f"{ONE}/securityContext/readOnlyRootFilesystem", False),
        "has the security context",
    ),
    ("hardened", "cpu", at("Deployment", "spec/template/spec/automountServiceAccountToken", True), "pods get a token"),
    ("hardened", "batch", at("Job", f"{ONE}/resources/limits", None), "has no limits"),
    ("jobs", "batch", at("Job", f"{ONE}/env/0/value", "8"), "4 indexes and 8 shards"),
    ("jobs", "batch", at("Job", "spec/podFailurePolicy/rules/1/onExitCodes/values", [1, 3]), "exit codes [1, 3]"),
    ("jobs", "batch", at("Job", "spec/podFailurePolicy/rules/1/onExitCodes/containerName", "x"), "names a container"),
    ("jobs", "batch", at("Job", "spec/podFailurePolicy/rules/0/action", "Count"), "disruptions are not ignored"),
    ("jobs", "batch", at("Job", "spec/maxFailedIndexes", 9), "maxFailedIndexes is 9"),
    ("jobs", "batch", at("Job", "spec/ttlSecondsAfterFinished", None), "has no ttlSecondsAfterFinished"),
    ("images", "cpu", at("Deployment", f"{ONE}/image", "registry.example.com/gradoracle:latest"), "the image is"),
]


@pytest.mark.parametrize(("name", "overlay", "plant", "says"), FAULTS)
def test_check_finds_a_fault(name: str, overlay: str, plant: Callable[[list[Object]], None], says: str) -> None:
    """A planted fault is found, and named."""
    objects = rendered(overlay)
    plant(objects)
    found = getattr(checks, name)(objects)
    assert 1 <= len(found), "expected the fault to be found"
    assert any(says in one for one in found), found


def test_every_check_has_a_planted_fault() -> None:
    """No check goes untested."""
    assert {check.__name__ for check in checks.CHECKS} == {name for name, *_ in FAULTS}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A front with one worker."""
    with start("--workers", "1") as server:
        yield server


def test_a_real_server_answers_every_probe(server: Server) -> None:
    """What the probes of all overlays ask for, a server that is well answers well."""
    import grpc

    asked = {
        (kind, probe[kind].get("service") or probe[kind].get("path"))
        for overlay in ("cpu", "gpu", "secure")
        for _, probe in checks.probes(container(rendered(overlay)))
        for kind in ("grpc", "httpGet")
        if kind in probe
    }
    assert {("grpc", "readiness"), ("grpc", "liveness"), ("httpGet", "/readyz"), ("httpGet", "/healthz")} == asked
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for kind, name in sorted(asked):
            if kind == "grpc":
                answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
                assert health_pb2.HealthCheckResponse.SERVING == answer.status
            else:
                assert 200 == server.get(name)[0]


def test_image_and_manifests_agree() -> None:
    """The Dockerfile's user and ports are those that the manifests name."""
    text = (DEPLOY / "Dockerfile").read_text()
    context = pod(named(rendered("cpu"), "Deployment", "gradoracle"))["securityContext"]
    ports = [str(port["containerPort"]) for port in container(rendered("cpu"))["ports"]]
    assert [f"{context['runAsUser']}:{context['runAsGroup']}"] == re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert [" ".join(ports)] == re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)


def test_readme_tells_of_every_overlay() -> None:
    """The README's table has every overlay, and its commands name no other."""
    text = (DEPLOY / "README.md").read_text()
    assert OVERLAYS == sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(re.findall(r"overlays/(\w+)", text)) <= set(OVERLAYS)

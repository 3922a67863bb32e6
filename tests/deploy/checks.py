"""What must hold of an overlay beyond its schema. Each check takes its objects and returns what is wrong, in words."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.sdk import environment_variables

from deploy.manifests import (
    Object,
    containers,
    environment,
    named,
    of_kind,
    pod,
    pod_labels,
    probes,
    quantity,
    title,
    workloads,
)
from gradoracle_server import settings
from gradoracle_server.front.health import LIVENESS, READINESS

Check = Callable[[list[Object]], list[str]]

_CLIENTS = {"GRADORACLE_ADDRESS", "GRADORACLE_SHARDS"}
"""Variables that the command line reads, not the server."""

_OPENTELEMETRY = {text for name, text in vars(environment_variables).items() if name.startswith("OTEL_")}
"""Variables that OpenTelemetry reads, where there are traces."""

_SECRETS = {"gradoracle-tls", "gradoracle-tokens"}
"""What whoever deploys brings along; the README says how."""


def _selected(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    return [one for one in workloads(objects) if labels.items() <= pod_labels(one).items()]


def selectors(objects: list[Object]) -> list[str]:
    """Every selector finds pods of this overlay, and those of foreign peers do not ask for our labels."""
    wrong = []
    for what, labels in _selectors(objects):
        if not _selected(objects, labels):
            wrong.append(f"{what}: no pod has {labels}")
    for policy in of_kind(objects, "NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        for peer in [peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]]:
            ours = {key for key in peer.get("podSelector", {}).get("matchLabels", {}) if key.startswith("app.kub")}
            if "namespaceSelector" in peer and ours:
                wrong.append(f"{title(policy)}: a peer of another namespace must carry {sorted(ours)}")
    return wrong


def _selectors(objects: list[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    for one in of_kind(objects, "Service"):
        yield title(one), one["spec"]["selector"]
    for one in of_kind(objects, "PodDisruptionBudget"):
        yield title(one), one["spec"]["selector"]["matchLabels"]
    for one in of_kind(objects, "NetworkPolicy"):
        yield title(one), one["spec"]["podSelector"].get("matchLabels", {})
    for one in of_kind(objects, "Deployment"):
        yield title(one), one["spec"]["selector"]["matchLabels"]
        for spread in pod(one).get("topologySpreadConstraints", []):
            yield f"{title(one)}, topology spread", spread["labelSelector"]["matchLabels"]


def ports(objects: list[Object]) -> list[str]:
    """Every port that something speaks to is one that a container opens, and the server listens there."""
    wrong = []
    for service in of_kind(objects, "Service"):
        for workload in _selected(objects, service["spec"]["selector"]):
            names = {port["name"] for one in containers(workload) for port in one["ports"]}
            asked = {port["targetPort"] for port in service["spec"]["ports"]}
            wrong += [f"{title(service)}: no container has the port {name}" for name in sorted(asked - names)]
    for policy in of_kind(objects, "NetworkPolicy"):
        for workload in _selected(objects, policy["spec"]["podSelector"].get("matchLabels", {})):
            names = {port["name"] for one in containers(workload) for port in one.get("ports", [])}
            asked = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]}
            wrong += [f"{title(policy)}: no container has the port {name}" for name in sorted(asked - names)]
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        watched = [one for one in of_kind(objects, "Service") if wanted <= one["metadata"].get("labels", {}).items()]
        names = {port["name"] for one in watched for port in one["spec"]["ports"]}
        asked = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        wrong += [f"{title(monitor)}: no Service has the port {name}" for name in sorted(asked - names)]
    for workload in of_kind(objects, "Deployment"):
        for container in containers(workload):
            wrong += _listening(objects, workload, container)
    return wrong


def _listening(objects: list[Object], workload: Object, container: Object) -> list[str]:
    told = environment(objects, container)
    opened = {port["name"]: port["containerPort"] for port in container["ports"]}
    wrong = []
    for name, variable in (("grpc", "GRADORACLE_LISTEN"), ("metrics", "GRADORACLE_METRICS_LISTEN")):
        host, _, port = told[variable].rpartition(":")
        if host != "0.0.0.0" or int(port) != opened[name]:  # noqa: S104 - a pod's own network
            wrong.append(f"{title(workload)}: {variable} is {told[variable]}, and the port {name} is {opened[name]}")
    for what, probe in probes(container):
        [asked] = [probe[kind]["port"] for kind in ("grpc", "httpGet") if kind in probe]
        if asked not in {"grpc" in probe and opened["grpc"], "httpGet" in probe and "metrics"}:
            wrong.append(f"{title(workload)}: the {what} probe asks port {asked}")
    return wrong


def health(objects: list[Object]) -> list[str]:
    """Probes ask for health services that the server has, each for what it is for."""
    wrong = []
    pages = {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    for workload in of_kind(objects, "Deployment"):
        for container in containers(workload):
            found = dict(probes(container))
            wrong += [f"{title(workload)}: no {what} probe" for what in pages if what not in found]
            for what, probe in found.items():
                names = {LIVENESS} if what == "liveness" else set(READINESS) - {""}
                if "grpc" in probe and probe["grpc"].get("service") not in names:
                    wrong.append(f"{title(workload)}: the {what} probe asks for {probe['grpc'].get('service')!r}")
                if "httpGet" in probe and probe["httpGet"]["path"] != pages[what]:
                    wrong.append(f"{title(workload)}: the {what} probe asks for {probe['httpGet']['path']}")
                if "grpc" in probe and "GRADORACLE_TLS_CERT" in environment(objects, container):
                    wrong.append(f"{title(workload)}: the {what} probe is of the grpc kind, which speaks no TLS")
    return wrong


def variables(objects: list[Object]) -> list[str]:
    """Variables are settings of the server (or the command line), and the server takes their values."""
    known = {option.variable for option in settings.OPTIONS} | _CLIENTS
    wrong = []
    for workload in workloads(objects):
        for container in containers(workload):
            told = environment(objects, container)
            more = _OPENTELEMETRY if "GRADORACLE_OTLP_ENDPOINT" in told else set()
            wrong += [f"{title(workload)}: {name} is no setting" for name in sorted(told.keys() - known - more)]
            if pod(workload).get("enableServiceLinks", True):
                wrong.append(f"{title(workload)}: Services would put further GRADORACLE_ variables there")
            try:
                settings.load([], told)
            except settings.SettingsError as error:
                wrong.append(f"{title(workload)}: {error}")
    return wrong


def traces(objects: list[Object]) -> list[str]:
    """Where spans are sent, a policy lets them out: to the collector's namespace and port."""
    wrong = []
    for workload in workloads(objects):
        for container in containers(workload):
            if (text := environment(objects, container).get("GRADORACLE_OTLP_ENDPOINT")) is None:
                continue
            url = urllib.parse.urlsplit(text)
            _, namespace, *_ = [*(url.hostname or "").split("."), ""]
            allowed = [
                (
                    peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name"),
                    port["port"],
                )
                for policy in of_kind(objects, "NetworkPolicy")
                if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= pod_labels(workload).items()
                for rule in policy["spec"].get("egress", [])
                for peer in rule["to"]
                for port in rule["ports"]
            ]
            if (namespace, url.port) not in allowed:
                wrong.append(f"{title(workload)}: no policy lets spans out to {text}")
    return wrong


def drains(objects: list[Object]) -> list[str]:
    """No request may last longer than a drain, and a drain fits into the pod's grace period."""
    wrong = []
    for workload in of_kind(objects, "Deployment"):
        [container] = containers(workload)
        told = settings.load([], environment(objects, container))
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = pause + told.drain_pause + told.drain_timeout + 5
        if pause < 5:
            wrong.append(f"{title(workload)}: preStop waits {pause} s; proxies need 5 to learn that a pod leaves")
        if (grace := pod(workload)["terminationGracePeriodSeconds"]) < needed:
            wrong.append(f"{title(workload)}: the grace period is {grace} s, and stopping may take {needed:g}")
        if not 0 < told.request_timeout < told.drain_timeout:
            wrong.append(
                f"{title(workload)}: a request may last {told.request_timeout:g} s, a drain {told.drain_timeout:g}"
            )
    return wrong


def memory(objects: list[Object]) -> list[str]:
    """A request at its limit in each worker, a full queue and the processes fit into the container."""
    wrong = []
    for workload in of_kind(objects, "Deployment"):
        [container] = containers(workload)
        told, limits = settings.load([], environment(objects, container)), container["resources"]["limits"]
        workers = told.workers or int(quantity(limits["cpu"]))
        processes = 2**29 + (workers + told.spare_workers) * 100 * 2**20  # the front and torch, and what workers add
        queue = quantity(limits["memory"]) / 5 if told.max_queue_bytes is None else told.max_queue_bytes
        needed = workers * (told.max_memory_bytes or 0) + queue + processes
        if needed > quantity(limits["memory"]):
            wrong.append(f"{title(workload)}: the memory limit is {limits['memory']}, needed {needed / 2**30:g}Gi")
        if workers * (told.threads or 1) > quantity(limits["cpu"]):
            wrong.append(f"{title(workload)}: {workers} workers share {limits['cpu']} CPUs")
        if container["resources"]["requests"] != limits:
            wrong.append(f"{title(workload)}: requests differ from limits")
    return wrong


def references(objects: list[Object]) -> list[str]:
    """What an object names is there: ConfigMaps, Secrets, claims, ServiceAccounts, what is scaled."""
    have = {title(one) for one in objects} | {f"Secret/{name}" for name in _SECRETS}
    have.add("PersistentVolumeClaim/gradoracle-batch")
    asked = []
    for workload in workloads(objects):
        asked.append(f"ServiceAccount/{pod(workload)['serviceAccountName']}")
        for volume in pod(workload).get("volumes", []):
            for kind, key, field in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                if key in volume:
                    asked.append(f"{kind}/{volume[key][field]}")
        for container in containers(workload):
            asked += [f"ConfigMap/{one['configMapRef']['name']}" for one in container.get("envFrom", [])]
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        asked.append(f"{target.get('kind', 'Deployment')}/{target['name']}")
        if "replicas" in named(objects, "Deployment", target["name"])["spec"]:
            asked.append(f"a {target['name']} without replicas, which {title(scaler)} sets")
    return [f"{one} is not there" for one in asked if one not in have]


def volumes(objects: list[Object]) -> list[str]:
    """What is mounted is a volume, every volume is mounted, and what lies in memory or on the node has a size."""
    wrong = []
    for workload in workloads(objects):
        have = {one["name"] for one in pod(workload).get("volumes", [])}
        used = {one["name"] for each in containers(workload) for one in each.get("volumeMounts", [])}
        wrong += [f"{title(workload)}: the volume {name} is not both there and mounted" for name in sorted(have ^ used)]
        for volume in pod(workload).get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                wrong.append(f"{title(workload)}: the volume {volume['name']} has no size")
        mounts = {one["mountPath"] for each in containers(workload) for one in each.get("volumeMounts", [])}
        if "/tmp" not in mounts:  # noqa: S108 - the pod's own
            wrong.append(f"{title(workload)}: nothing to write is mounted at /tmp")
    return wrong


def hardened(objects: list[Object]) -> list[str]:
    """Pods run as nobody in particular, can write nowhere but where they must, and hold no token."""
    wrong = []
    wanted: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for workload in workloads(objects):
        spec = pod(workload)
        context = spec.get("securityContext", {})
        if (
            not context.get("runAsNonRoot")
            or context.get("runAsUser", 0) <= 10000
            or context.get("runAsGroup", 0) <= 10000
        ):
            wrong.append(f"{title(workload)}: runs as {context.get('runAsUser')}:{context.get('runAsGroup')}")
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            wrong.append(f"{title(workload)}: has the seccomp profile {context.get('seccompProfile')}")
        if spec.get("automountServiceAccountToken") is not False:
            wrong.append(f"{title(workload)}: its pods get a token")
        for container in containers(workload):
            if container.get("securityContext") != wanted:
                wrong.append(f"{title(workload)}: has the security context {container.get('securityContext')}")
            if not {"cpu", "memory"} <= container.get("resources", {}).get("limits", {}).keys():
                wrong.append(f"{title(workload)}: has no limits")
    return wrong


def jobs(objects: list[Object]) -> list[str]:
    """An Indexed Job has as many shards as indexes, and gives up at once only on exit codes that say so."""
    wrong = []
    for job in of_kind(objects, "Job"):
        spec, name = job["spec"], title(job)
        [container] = containers(job)
        rules = spec["podFailurePolicy"]["rules"]
        final = {code for rule in rules if rule["action"].startswith("Fail") for code in rule["onExitCodes"]["values"]}
        if final != {1, 2, 4}:
            wrong.append(f"{name}: gives up at once on the exit codes {sorted(final)}, expected [1, 2, 4]")
        if rules[0]["action"] != "Ignore" or rules[0]["onPodConditions"][0]["type"] != "DisruptionTarget":
            wrong.append(f"{name}: disruptions are not ignored first of all")
        if {rule["onExitCodes"]["containerName"] for rule in rules[1:]} != {container["name"]}:
            wrong.append(f"{name}: its failure policy names a container that is not there")
        if spec.get("completionMode") == "Indexed":
            shards = environment(objects, container).get("GRADORACLE_SHARDS")
            if shards != str(spec["completions"]):
                wrong.append(f"{name}: {spec['completions']} indexes and {shards} shards")
            if not 0 < spec["maxFailedIndexes"] <= spec["completions"]:
                wrong.append(f"{name}: maxFailedIndexes is {spec['maxFailedIndexes']}")
        for field in ("ttlSecondsAfterFinished", "activeDeadlineSeconds"):
            if field not in spec:
                wrong.append(f"{name}: has no {field}")
    return wrong


def images(objects: list[Object]) -> list[str]:
    """Images have a tag that says which version they are."""
    found = [(title(one), each["image"]) for one in workloads(objects) for each in containers(one)]
    return [
        f"{name}: the image is {image}" for name, image in found if not re.fullmatch(r".+/.+:\d+\.\d+\.\d+-\w+", image)
    ]


CHECKS: tuple[Check, ...] = (
    selectors,
    ports,
    health,
    variables,
    traces,
    drains,
    memory,
    references,
    volumes,
    hardened,
    jobs,
    images,
)

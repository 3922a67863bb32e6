"""What a node does with a pod, for a rehearsal without one: starts it, probes it, stops it, as its manifest says.

A pod is one process of this machine at an address of its own on the loopback net. Only what would be the network's
or the cluster's to give is replaced in the manifest: the address to listen on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

GRADORACLE = str(Path(sys.executable).with_name("gradoracle"))  # the image's entry point


class Pod:
    """One server. `on_ready` is told whenever it becomes ready, or no longer is."""

    def __init__(
        self,
        spec: dict[str, Any],
        environment: dict[str, str],
        host: str,
        on_ready: Callable[[Pod, bool], None],
    ) -> None:
        [self._container] = spec["containers"]
        self._grace = spec["terminationGracePeriodSeconds"]
        self._environment = {key: text.replace("0.0.0.0", host) for key, text in environment.items()}  # noqa: S104
        self._on_ready = on_ready
        self.host = host
        self.port = self._container["ports"][0]["containerPort"]
        self.ready = False
        self.log = tempfile.NamedTemporaryFile("w+", prefix="gradoracle-pod-")  # noqa: SIM115 - as long as the pod
        self.exit_codes: list[int] = []
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self.process = self._start()
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        inherited = {key: text for key, text in os.environ.items() if not key.startswith("GRADORACLE_")}
        return subprocess.Popen(
            [GRADORACLE, *self._container["args"]],
            env=inherited | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def terminate(self) -> int:
        """As when the pod is deleted: out of the endpoints, preStop, SIGTERM, SIGKILL at the grace period's end."""
        end = time.monotonic() + self._grace
        self._leaving.set()
        self._thread.join()
        self._tell(False)
        time.sleep(self._container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.process.terminate()
        try:
            self.exit_codes.append(self.process.wait(max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            self.kill()
            self.exit_codes.append(self.process.wait())
        self.log.close()
        return self.exit_codes[-1]

    def close(self) -> None:
        """Ends it at once, for good."""
        self._leaving.set()
        self._thread.join()
        if self.process.poll() is None:
            self.kill()
        self.process.wait()
        self.log.close()

    def kill(self) -> None:
        """As the kernel out of memory does it: the whole container, without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def _live(self) -> None:
        """Probes until the pod leaves, and restarts the process when it ends or is not live."""
        while not self._leaving.is_set():
            if self._probed_until_it_fails("startup", wanted=True):
                self._run()
            if self._leaving.is_set():
                return
            self._tell(False)
            if self.process.poll() is None:
                self.kill()
            self.exit_codes.append(self.process.wait())
            self.process = self._start()

    def _run(self) -> None:
        """Probes readiness and liveness side by side; ends when the process has ended, or is to be ended."""
        live = threading.Event()
        ended = lambda: live.is_set() or self._leaving.is_set() or self.process.poll() is not None  # noqa: E731
        watching = threading.Thread(target=lambda: (self._probed_until_it_fails("liveness"), live.set()), daemon=True)
        watching.start()
        probe, failures = self._container["readinessProbe"], 0
        while not ended():
            failures = 0 if self._probe(probe) else failures + 1
            if failures in (0, probe["failureThreshold"]):
                self._tell(failures == 0)
            self._pause(probe["periodSeconds"], ended)

    def _probed_until_it_fails(self, what: str, *, wanted: bool = False) -> bool:
        """Runs a probe until it has failed as often as allowed (False); with `wanted`, until it succeeds (True)."""
        probe, failures = self._container[f"{what}Probe"], 0
        ended = lambda: self._leaving.is_set() or self.process.poll() is not None  # noqa: E731
        while failures < probe["failureThreshold"] and not ended():
            if self._probe(probe):
                failures = 0
                if wanted:
                    return True
            else:
                failures += 1
            self._pause(probe["periodSeconds"], ended)
        return False

    def _pause(self, seconds: float, ended: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ended():
            self._leaving.wait(0.1)

    def _probe(self, probe: dict[str, Any]) -> bool:
        """One probe of the grpc kind, on a connection of its own, as the kubelet makes it."""
        asked = probe["grpc"]
        with grpc.insecure_channel(f"{self.host}:{asked['port']}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = health_pb2.HealthCheckRequest(service=asked["service"])
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def _tell(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_ready(self, ready)

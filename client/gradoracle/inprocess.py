"""Checks in this process: the server's engine on a Python callable, loaded where it is installed.

The client imports nothing of the server. The engine makes itself known as an entry point of the group
"gradoracle.engine", and answers in the bytes that a server would send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any, Protocol

from google.rpc import status_pb2

from gradoracle import checks, requests, status
from gradoracle.checks import CheckReport
from gradoracle.graph import Graph
from gradoracle.v1 import service_pb2

Function = Callable[[Sequence[Any]], Sequence[Any]]
"""torch tensors for the inputs in, one tensor an output out."""


class Engine(Protocol):
    """What the entry point gives; see gradoracle_server.worker.callables."""

    def check(
        self,
        function: Function,
        inputs: Mapping[str, tuple[Any, bool]],
        outputs: Sequence[str],
        request: bytes,
        *,
        claimed: Mapping[str, Any],
        cotangents: Mapping[str, Any],
        raisable: bool,
        raising: bool,
    ) -> tuple[int, bytes]:
        """(0, a serialized CheckGradientsResponse) or (gRPC's code, a google.rpc.Status)."""

    def is_smooth_in_float64(self, function: Function, inputs: Sequence[Any], *, raising: bool) -> bool:
        """Whether a function of low-precision tensors is one of float64 tensors too; with `raising`, where those that
        it holds itself are raised."""


@lru_cache(maxsize=1)
def engine() -> Engine | None:
    """The engine, or None where this installation has none."""
    for found in metadata.entry_points(group="gradoracle.engine", name="callables"):
        try:
            loaded: Engine = found.load()
        except ModuleNotFoundError:
            continue
        return loaded
    return None


def options(**chosen: Any) -> bytes:
    """The options of a check, as `Client.check` has them, serialized. Raises InvalidRequestError as it does."""
    return requests.check(Graph(), {}, **chosen).head


def check(
    engine: Engine,
    function: Function,
    inputs: Mapping[str, tuple[Any, bool]],
    outputs: Sequence[str],
    request: bytes,
    *,
    claimed: Mapping[str, Any],
    cotangents: Mapping[str, Any],
    raisable: bool,
    raising: bool = False,
) -> CheckReport:
    """The report on a function of torch tensors. `inputs` has for each name the tensor and whether it is on trial."""
    # Claims stay in this process; their names tell the engine that there are any, which not all options go with.
    request += service_pb2.CheckGradientsRequest(claimed=[{"name": name} for name in claimed]).SerializeToString()
    code, answer = engine.check(
        function,
        inputs,
        outputs,
        request,
        claimed=claimed,
        cotangents=cotangents,
        raisable=raisable,
        raising=raising,
    )
    if code:
        raise status.from_status(status_pb2.Status.FromString(answer))
    return checks.report(service_pb2.CheckGradientsResponse.FromString(answer), ())

"""grpc.health.v1: whether to send calls here (readiness), and whether to restart the process (liveness)."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from gradoracle_server.front.metrics import SERVICE

READINESS = ("", SERVICE, "readiness")
"""Health services that are SERVING while a worker of the default device lives and the server is not stopping."""

LIVENESS = "liveness"
"""The health service that is SERVING as long as the front answers: a new process would not bring workers back."""


class Health:
    """Tells Check and Watch."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()
        self._ready = False
        self._told: bool | None = None
        self._telling: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self._ready

    def register(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Says what is so before the first caller asks."""
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._tell()

    def set_ready(self, ready: bool) -> None:
        """Notes a change; who watches is told soon, and of the last one where there are several."""
        self._ready = ready
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._told is not self._ready:
            self._told = self._ready
            response = health_pb2.HealthCheckResponse
            for service in READINESS:
                await self._servicer.set(service, response.SERVING if self._told else response.NOT_SERVING)

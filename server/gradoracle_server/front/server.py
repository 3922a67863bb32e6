"""The front as a whole: comes up, serves, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from gradoracle_server import environment, heap
from gradoracle_server.addresses import Address
from gradoracle_server.front import devices, neighbours
from gradoracle_server.front.admission import Queue
from gradoracle_server.front.auth import Tls, Tokens
from gradoracle_server.front.health import Health
from gradoracle_server.front.metrics import SERVICE, Metrics
from gradoracle_server.front.metrics_http import MetricsServer
from gradoracle_server.front.neighbours import Neighbours
from gradoracle_server.front.pool import Lane, Pool
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.service import Service, register
from gradoracle_server.front.streams import Streams
from gradoracle_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from gradoracle_server.front.tracing import Tracing

_LONGEST_MESSAGE = 2**31 - 1  # gRPC's own limit
_KEPT = 128 * 1024 * 1024  # bytes of freed memory that the front keeps for the next large tensors
_FLUSH = 0.5  # seconds for the last answers to leave, and for those who only watch health to be told

_log = logging.getLogger(__name__)


class Front:
    """One server. `target` is the main function of a worker process, `scout` that of one that finds devices."""

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        target: Callable[..., None],
        scout: Callable[..., None],
        version: str,
    ) -> None:
        self._settings = settings
        self._processes = processes
        self._target = target
        self._scout = scout
        self._version = version
        self._stop = asyncio.Event()
        self._signals = 0
        self._draining = False
        self._health = Health()
        self._pool: Pool | None = None
        self._metrics: Metrics | None = None
        self._tokens: Tokens | None = None
        self._tls: Tls | None = None
        self._tracing: Tracing | None = None
        self._streams: Streams | None = None
        self._neighbours: Neighbours | None = None

    async def run(self) -> None:
        """Serves until told to stop. Raises SettingsError or StartError where it cannot come up."""
        settings = self._settings
        self._listen_to_signals()
        heap.keep_freed_memory(_KEPT)
        check_address("--listen", settings.listen)
        for place in neighbours.asked_for(settings):
            check_address("--shared-memory", Address("", 0, str(place)))
        self._tls = Tls(settings) if settings.tls_cert else None
        if settings.token_file is not None:
            self._tokens = Tokens(settings.token_file, settings.health_without_token, self._refused)
        http = _metrics_server(settings.metrics_listen)
        try:
            self._tracing = _tracing(settings.otlp_endpoint, self._version)
            pool = self._pool = await self._make_pool()
            metrics = self._metrics = Metrics(pool, self._version)
            if http is not None:
                http.start(metrics.registry, self._why_not_ready)
            try:
                if await self._comes_up(pool):
                    await self._serve(pool, metrics, http)
            finally:
                await pool.close()
        finally:
            if http is not None:
                http.close()
            if self._tracing is not None:
                self._tracing.close()

    def stop(self) -> None:
        """Drains and ends."""
        self._stop.set()

    async def _make_pool(self) -> Pool:
        settings = self._settings
        found = {"cpu": 0}
        if set(settings.device) != {"cpu"}:
            found = await devices.find(self._processes, self._scout)
        chosen = devices.choose(settings.device, found)
        memory = {**found, "cpu": devices.usable_memory()}
        settings = devices.limited(settings, memory["cpu"])
        shares = devices.shares(settings, chosen, devices.usable_cores(), memory)
        # What callers are told of the limit is what holds for the default device.
        self._settings = dataclasses.replace(settings, max_memory_bytes=shares[0].options.max_memory_bytes)
        return Pool(
            [
                Lane(
                    share.options,
                    Queue(settings.max_queue, settings.max_queue_bytes or 0),
                    self._processes,
                    self._target,
                    share.workers,
                    self._workers_changed,
                    settings.spare_workers,
                )
                for share in shares
            ]
        )

    async def _comes_up(self, pool: Pool) -> bool:
        """Waits for a worker of the default device; False when the server is told to stop before there is one."""
        starting = asyncio.ensure_future(pool.start())
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            return False
        await starting
        return True

    async def _serve(self, pool: Pool, metrics: Metrics, http: MetricsServer | None) -> None:
        settings = self._settings
        service = Service(pool, metrics, settings, self._version, self._tracing)
        streams = self._streams = Streams(service, self._tokens)
        server = self._make_server(service, streams)
        address = _bind(server, settings.listen, self._tls)
        await self._health.start()
        await server.start()
        self._neighbours = Neighbours(settings, service, streams, self._tokens)
        try:
            await self._neighbours.open(address)
        except OSError as error:
            place = Address("", 0, str(error.filename))
            raise _cannot_listen("--shared-memory", place, error.strerror or str(error)) from None
        if settings.unguarded:
            missing = " and ".join(settings.unguarded)
            _log.warning("listening on %s, which other machines can reach, without %s", address, missing)
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"gradoracle listening on {address} (metrics {http.address if http else 'off'})", flush=True)
        await self._stop.wait()
        await self._drain(server, service, streams)
        self._neighbours.close()
        if address.path:
            Path(address.path).unlink(missing_ok=True)

    def _make_server(self, service: Service, streams: Streams) -> grpc.aio.Server:
        settings = self._settings
        interceptors = () if self._tokens is None else (self._tokens,)
        server = grpc.aio.server(interceptors=interceptors, options=_options(settings))
        register(server, service.handlers() | {"Stream": streams.handler()})
        self._health.register(server)
        reflection.enable_server_reflection((SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
        return server

    async def _drain(self, server: grpc.aio.Server, service: Service, streams: Streams) -> None:
        settings = self._settings
        _log.info("stopping: requests in flight have %g s to finish", settings.drain_timeout)
        self._draining = True
        self._workers_changed()
        await asyncio.sleep(settings.drain_pause)
        service.draining = True
        streams.drain()
        if self._neighbours is not None:
            self._neighbours.refuse()  # before gRPC gives up the port, by which they are found
        # From here on clients are told to go elsewhere. Those who watch health would keep this from ending, so that
        # what is waited for is counted here.
        stopping = asyncio.create_task(server.stop(settings.drain_timeout + _FLUSH))
        end = time.monotonic() + settings.drain_timeout
        while (left := service.active) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if left:
            _log.warning("stopping although %d calls have not finished within --drain-timeout", left)
        elif self._neighbours is not None:
            await self._neighbours.drain(max(_FLUSH, end - time.monotonic()))
        await server.stop(_FLUSH if not left else 0)
        await stopping

    def _refused(self, method: str) -> None:
        """A call without credentials is a call, and counted like one."""
        _, _, name = method.rpartition("/")
        if self._metrics is not None and method.startswith(f"/{SERVICE}/") and name in self._metrics.calls:
            self._metrics.calls[name].started += 1
            self._metrics.calls[name].finished(grpc.StatusCode.UNAUTHENTICATED, 0.0)

    def _workers_changed(self) -> None:
        self._health.set_ready(not self._draining and self._pool is not None and self._pool.default.alive > 0)

    def _why_not_ready(self) -> str:
        if self._draining:
            return "shutting down"
        return "" if self._health.is_ready else "no worker of the default device"

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._settings.stop_on_stdin_eof:
            threading.Thread(target=_wait_for_eof, args=(loop, self.stop), daemon=True).start()

    def _told_to_stop(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            self._processes.kill()
            os._exit(128 + number)
        self.stop()

    def _reload(self) -> None:
        """Reads the files of TLS and tokens again; what cannot be read stays as it was."""
        for what in (self._tls, self._tokens):
            if what is None:
                continue
            try:
                what.load()
                _log.info("%s: read again", type(what).__name__)
            except SettingsError as error:
                _log.error("%s: kept as before: %s", type(what).__name__, error)
        if self._streams is not None:
            self._streams.check_credentials()
        if self._neighbours is not None:
            self._neighbours.check_credentials()


def check_address(flag: str, address: Address) -> None:
    """Raises SettingsError where an address cannot be listened on."""
    try:
        if address.path:
            _check_path(Path(address.path))
            return
        _check_port(address)
    except OSError as error:
        raise _cannot_listen(flag, address, error.strerror or str(error)) from None


def _check_port(address: Address) -> None:
    """Of a name's addresses one has to be this machine's, and none may be taken: gRPC listens on those that it gets."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    missing: list[OSError] = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(place)
                sock.listen()
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing.append(error)
    if len(missing) == len(found):
        raise missing[0]


def _check_path(path: Path) -> None:
    if path.exists() or path.is_socket():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(17, "a file of that name exists and is no socket")
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(path))
            except ConnectionRefusedError:
                return  # left behind by a server that is gone
            raise OSError(98, os.strerror(98))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.unlink()


def _cannot_listen(flag: str, address: Address, why: str) -> SettingsError:
    return SettingsError(f"{flag}: expected an address that is free and of this machine, got {address}: {why}")


def _metrics_server(address: Address | None) -> MetricsServer | None:
    if address is None:
        return None
    try:
        return MetricsServer(address)
    except OSError as error:
        raise _cannot_listen("--metrics-listen", address, error.strerror or str(error)) from None


def _tracing(endpoint: str | None, version: str) -> Tracing | None:
    """What makes spans; without an endpoint nothing of OpenTelemetry is imported."""
    if endpoint is None:
        return None
    try:
        from gradoracle_server.front.tracing import Tracing

        return Tracing(endpoint, version)
    except ImportError as error:
        text = f"expected OpenTelemetry beside it (pip install 'gradoracle[otel]'), got: {error}"
        raise SettingsError(f"--otlp-endpoint: {text}") from None
    except ValueError as error:  # of the import, too: some variables are read by it
        raise SettingsError(environment.refused_by_opentelemetry(str(error))) from None


def _bind(server: grpc.aio.Server, address: Address, tls: Tls | None) -> Address:
    """Listens; returns the address with the port that it has become."""
    try:
        if tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), tls.credentials())
    except RuntimeError as error:
        raise _cannot_listen("--listen", address, str(error)) from None
    return address if address.path else Address(address.host, port)


def _options(settings: Settings) -> list[tuple[str, int]]:
    limit = settings.max_message_bytes
    options = [
        # A message that is not absurdly longer than allowed is read, and refused with an error of our own, which names
        # the flag; beyond that gRPC refuses it in its own words.
        ("grpc.max_receive_message_length", min(_LONGEST_MESSAGE, limit + max(limit, 16 * 1024 * 1024))),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        # Half-open connections are found out.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients may do the same.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]
    if settings.max_connection_age:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", round((settings.request_timeout or 600.0) * 1000)))
    return options


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # closed from the start
    loop.call_soon_threadsafe(stop)

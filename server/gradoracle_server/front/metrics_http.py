"""The HTTP endpoint beside gRPC: /metrics for Prometheus, /healthz and /readyz for whoever restarts and routes."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from gradoracle_server.addresses import Address

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class MetricsServer:
    """Answers from threads of its own, so that a scrape does not hold up the event loop."""

    def __init__(self, address: Address) -> None:
        """Takes the port; raises OSError where it cannot. Who calls before `start` waits until then."""
        self._server = _Server((address.host, address.port), _Handler, bind_and_activate=False)
        if ":" in address.host:
            self._server.socket.close()
            self._server.address_family = socket.AF_INET6
            self._server.socket = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            self._server.server_bind()
            self._server.server_activate()
        except BaseException:
            self._server.server_close()
            raise
        self.address = Address(address.host, self._server.server_address[1])
        self._serving = False

    def start(self, registry: CollectorRegistry, why_not_ready: Callable[[], str]) -> None:
        """Serves the registry's metrics. `why_not_ready` is empty while the server is ready."""
        self._server.set_app(_app(registry, why_not_ready))
        self._serving = True
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="gradoracle-metrics", daemon=True).start()

    def close(self) -> None:
        """Gives the port back."""
        if self._serving:
            self._server.shutdown()
        self._server.server_close()


def _app(registry: CollectorRegistry, why_not_ready: Callable[[], str]) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            exposition: Iterable[bytes] = metrics(environ, start_response)
            return exposition
        if path == "/healthz":
            return _text(start_response, "200 OK", "ok")
        if path == "/readyz":
            if why := why_not_ready():
                return _text(start_response, "503 Service Unavailable", f"not ready: {why}")
            return _text(start_response, "200 OK", "ready")
        return _text(start_response, "404 Not Found", "there are /metrics, /healthz and /readyz")

    return app


def _text(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Binds without looking up the host's name, which can take seconds and is not needed."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that hangs up is no event."""


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds for a caller to send its request

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""

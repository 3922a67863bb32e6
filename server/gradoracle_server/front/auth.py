"""Who may call: TLS, client certificates, and bearer tokens.

Files are read when the server starts, where a bad one is an error, and again on SIGHUP, where a bad one is logged and
what was read before stays in force. What has begun by then is not undone: a token counts for calls that begin later,
over streams and connections that were open already, too; a certificate, for connections.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc

from gradoracle_server.front import statuses
from gradoracle_server.settings import Settings, SettingsError

_HEALTH = "/grpc.health.v1.Health/"

_log = logging.getLogger(__name__)


class Tokens(grpc.aio.ServerInterceptor):
    """Lets only calls through that bring one of the tokens of a file."""

    def __init__(self, path: Path, health_without_token: bool, on_refused: Callable[[str], None]) -> None:
        """`on_refused` is told the method ("/package.Service/Method") of each call that is refused."""
        self._path = path
        self._health_without_token = health_without_token
        self._on_refused = on_refused
        self._digests: tuple[bytes, ...] = ()
        self.load()

    def load(self) -> None:
        """Reads the file. Raises SettingsError."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--token-file: expected a readable file, got {self._path}: {_why(error)}") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not tokens:
            raise SettingsError(f"--token-file: expected one token a line, got none in {self._path}")
        self._digests = tuple(_digest(token) for token in tokens)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """gRPC's hook: the handler of a call."""
        method = handler_call_details.method
        if self._health_without_token and method.startswith(_HEALTH):
            return await continuation(handler_call_details)
        problem = self.problem(handler_call_details.invocation_metadata)
        if not problem:
            return await continuation(handler_call_details)
        self._on_refused(method)
        return statuses.refusal(statuses.unauthenticated(problem))

    def problem(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """What is wrong with a call's credentials; empty where nothing is."""
        found = [value for key, value in metadata or () if key == "authorization"]
        if not found:
            return "none"
        scheme, _, token = str(found[-1]).partition(" ")
        if scheme.lower() != "bearer" or not token:
            return "another kind of credentials"
        digest = _digest(token.strip())
        # All are compared, whichever matches: the time taken tells nothing.
        return "" if sum(hmac.compare_digest(digest, known) for known in self._digests) else "an unknown token"


class Tls:
    """The server's certificate, and whose certificates it accepts."""

    def __init__(self, settings: Settings) -> None:
        """Reads the files. Raises SettingsError."""
        self._settings = settings
        self._changed = False
        self._read: tuple[bytes | None, ...] = ()
        self._configuration = self.load()

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC listens with; follows `reload`."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch,  # type: ignore[arg-type]  # the stubs forget that None means unchanged
            require_client_authentication=self._settings.tls_client_ca is not None,
        )

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files, for connections from now on. Raises SettingsError where it cannot, and keeps what was."""
        settings = self._settings
        certificate, key = _content("--tls-cert", settings.tls_cert), _content("--tls-key", settings.tls_key)
        authorities = None
        if settings.tls_client_ca is not None:
            authorities = _content("--tls-client-ca", settings.tls_client_ca)
            _check("--tls-client-ca", settings.tls_client_ca, ssl.create_default_context, cafile=settings.tls_client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _check(
            "--tls-cert", settings.tls_cert, context.load_cert_chain, settings.tls_cert, settings.tls_key, _no_password
        )
        if (read := (certificate, key, authorities)) != self._read:
            self._configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
            self._read, self._changed = read, True
        return self._configuration

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at every handshake, from its own threads; None means unchanged."""
        if not self._changed:
            return None
        self._changed = False
        return self._configuration


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _content(flag: str, path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag}: expected a readable file, got {path}: {_why(error)}") from None


def _check(flag: str, path: Path | None, load: Callable[..., object], *args: object, **kwargs: object) -> None:
    try:
        load(*args, **kwargs)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        both = " with the key of --tls-key" if flag == "--tls-cert" else ""
        raise SettingsError(f"{flag}: expected a PEM certificate{both}, got {path}: {_why(error)}") from None


def _no_password() -> str:
    """A key that asks for a password is an error, not a prompt."""
    return ""


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

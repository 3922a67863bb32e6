"""One client for a pytest session, made when it is first wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from gradoracle.client import Client

_running: list[Session] = []  # the innermost last: a test may run pytest in its own process


class Session:
    """What a session has of gradoracle."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._client: Client | None = None
        _running.append(self)

    @property
    def client(self) -> Client:
        """The client; its server is started now if it is a private one."""
        if self._client is None:
            self._client = self._made()
        return self._client

    def close(self) -> None:
        """Closes the client, and stops its server if that is a private one."""
        _running.remove(self)
        if self._client is not None:
            self._client.close()
            self._client = None

    def _made(self) -> Client:
        import pytest

        import gradoracle

        address = address_of(self._config)
        if address is None:
            return gradoracle.Client.local(workers=self._config.getoption("gradoracle_workers"))
        try:
            token_file = self._config.getoption("gradoracle_token_file")
            tls = self._config.getoption("gradoracle_tls_ca")
            return gradoracle.Client(address, token=token_file and _token(Path(token_file)), tls=tls)
        except (OSError, ValueError) as error:
            raise pytest.UsageError(f"gradoracle: {error}") from error


def address_of(config: pytest.Config) -> str | None:
    """The chosen server, or None for a private one."""
    given = config.getoption("gradoracle_address") or config.getini("gradoracle_address")
    return given or os.environ.get("GRADORACLE_ADDRESS") or None


def current() -> Session:
    """The session that is running. Raises RuntimeError where there is none."""
    if not _running:
        raise RuntimeError(
            "assert_gradients: expected to be called in a test that pytest runs, or with client=gradoracle.Client(…); "
            "no pytest session is running (gradoracle.check judges gradients anywhere)"
        )
    return _running[-1]


def _token(path: Path) -> str:
    words = path.read_text(encoding="utf-8").split()
    if not words:
        raise ValueError(f"--gradoracle-token-file {path}: expected a token in the first line, got an empty file")
    return words[0]

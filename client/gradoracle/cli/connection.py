"""Where a command finds its server: a running one, or one started for the occasion."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

import gradoracle as go
from gradoracle import channel
from gradoracle.cli.failures import InputError
from gradoracle.tls import TLS

Function = TypeVar("Function", bound=Callable[..., object])


def options(function: Function) -> Function:
    """The options that say where the server is: of every command that asks one, and can start one."""
    address = click.option(
        "--address",
        metavar="HOST:PORT",
        help="The server. Default: GRADORACLE_ADDRESS, else one that is started and stopped here.",
    )
    return address(secured(function))


def running(function: Function) -> Function:
    """The same for a command that asks a running server."""
    address = click.option(
        "--address",
        metavar="HOST:PORT",
        help=f"The server. Default: GRADORACLE_ADDRESS, else localhost:{channel.PORT}.",
    )
    return address(secured(function))


def secured(function: Function) -> Function:
    """The options that say how to speak to the server."""
    file = click.Path(path_type=Path)
    for decorate in (
        click.option("--tls-key", type=file, metavar="FILE", help="The key of --tls-cert, PEM."),
        click.option("--tls-cert", type=file, metavar="FILE", help="A certificate of one's own to show, PEM."),
        click.option("--tls-ca", type=file, metavar="FILE", help="TLS, trusting these authorities, PEM."),
        click.option("--tls", is_flag=True, help="TLS, trusting the authorities that gRPC knows."),
        click.option("--token-file", type=file, metavar="FILE", help="Send the token in this file's first line."),
        click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this many seconds."),
    ):
        function = decorate(function)
    return function


@contextlib.contextmanager
def client(
    address: str | None, timeout: float | None, *, workers: int | None = 1, **security: Any
) -> Iterator[go.Client]:
    """A client of the server that the options name, or of one that is started now with so many workers a device."""
    if address is not None or os.environ.get(channel.ADDRESS):
        with _checked():
            found = go.Client(address, timeout=timeout, **credentials(**security))
    elif given := [name for name, value in security.items() if value]:
        flag = f"--{given[0].replace('_', '-')}"
        raise InputError(f"{flag}: expected --address too; a server that is started here needs no credentials")
    else:
        with _checked():
            channel.target("localhost", tls=None, token=None, timeout=timeout, channels=1)
        if sys.stderr.isatty():
            click.echo("starting a server (--address uses a running one) ...", err=True)
        with go.local_server(workers) as own, go.Client(own, timeout=timeout) as found:
            yield found
        return
    with found:
        yield found


@contextlib.contextmanager
def bare(address: str | None, timeout: float | None, **security: Any) -> Iterator[tuple[grpc.Channel, channel.Target]]:
    """A connection for calls that are none of the service's own. The server is a running one."""
    with _checked():
        target = channel.target(address, timeout=timeout, channels=1, **credentials(**security))
    if target.credentials is None:
        connection = grpc.insecure_channel(target.address, options=target.options)
    else:
        connection = grpc.secure_channel(target.address, target.credentials, options=target.options)
    with connection:
        yield connection, target


def credentials(
    token_file: Path | None, tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> dict[str, Any]:
    """What a client is to show and to trust, as its keyword arguments."""
    if (tls_cert is None) != (tls_key is None):
        given, missing = ("--tls-cert", "--tls-key") if tls_key is None else ("--tls-key", "--tls-cert")
        raise InputError(f"{missing}: expected the file that belongs to {given}, got none")
    secure = tls or tls_ca or tls_cert or tls_key
    return {
        "tls": TLS(ca=tls_ca, cert=tls_cert, key=tls_key) if secure else None,
        "token": None if token_file is None else token(token_file),
    }


def token(file: Path) -> str:
    """The token in a file: its first line."""
    lines = file.read_text(encoding="utf-8").split()
    if not lines:
        raise InputError(f"--token-file {file}: expected a token in the first line, got an empty file")
    return lines[0]


@contextlib.contextmanager
def _checked() -> Iterator[None]:
    """Turns what a client says to unusable arguments into an error of the command line."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{error.filename}: expected a readable file, got: {error.strerror}") from error

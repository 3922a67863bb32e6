"""`gradoracle health`: grpc.health.v1, for people and for containers' health checks.

Its two messages are so small that they are written and read here by hand: the client has no need of
grpcio-health-checking, which would bring their generated code.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import click
import grpc

from gradoracle import wire
from gradoracle.cli import connection, failures, output
from gradoracle.cli.failures import InputError

STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""HealthCheckResponse.ServingStatus, by number."""

TIMEOUT = 10.0
"""Seconds for a check where --timeout gives none: who asks for health wants to know now."""


@click.command("health")
@click.option(
    "--service", default="", metavar="NAME", help="Ask about this health service. Default: the server itself."
)
@click.option("--watch", is_flag=True, help="Go on, with a line whenever the status changes.")
@connection.running
@output.json_option
def command(service: str, watch: bool, as_json: bool, timeout: float | None, **where: Any) -> int:
    """Ask a running server whether it serves. Ends with 0 if it does, else with 3.

    A server knows the health services "gradoracle.v1.GradientService", "readiness" and "liveness".
    """
    word = STATUSES[0]
    with connection.bare(timeout=timeout or (None if watch else TIMEOUT), **where) as (channel, target):
        method = "Watch" if watch else "Check"
        make: Any = channel.unary_stream if watch else channel.unary_unary
        call = make(f"/grpc.health.v1.Health/{method}")
        try:
            answer = call(request(service), timeout=target.timeout, metadata=target.metadata)
            with _ended_by_interrupt(answer) if watch else contextlib.nullcontext():
                for word in map(serving, answer if watch else [answer]):
                    if as_json:
                        output.print_json({"service": service, "status": word})
                    else:
                        click.echo(word)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise InputError(f"--service: expected one that the server knows, got {service!r}") from error
            raise target.failure(error, target.timeout) from error
    return 0 if word == "SERVING" else failures.SERVICE


@contextlib.contextmanager
def _ended_by_interrupt(call: grpc.Call) -> Iterator[None]:
    """Ctrl-C cancels the call, which then ends with KeyboardInterrupt.

    Raised wherever the program is at that moment, it could be lost in code of gRPC's that lets no exception out.
    """
    interrupted = False

    def cancel(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        call.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    except grpc.RpcError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def request(service: str) -> bytes:
    """A HealthCheckRequest: field 1 is the service."""
    return wire.bytes_field(1, service.encode()) if service else b""


def serving(response: bytes) -> str:
    """The status in a HealthCheckResponse: field 1, of one byte."""
    number = response[1] if response[:1] == b"\x08" else 0
    return STATUSES[number] if number < len(STATUSES) else str(number)

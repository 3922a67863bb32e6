"""What the server is told when it starts: flag, else environment variable, else default.

Every setting is one `Option` in `OPTIONS`, from which the command line, the environment and the help are made. A value
that cannot be used raises `SettingsError`, whose text is one line: where it was given, what was expected, what came.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from gradoracle_server.addresses import Address, parse_address, parse_metrics_address


class SettingsError(Exception):
    """A setting that cannot be used; the text is one line for the person who gave it."""


def _devices(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name) for name in names):
        raise ValueError
    return names


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError
    return int(text)


def _positive(text: str) -> int:
    if not (count := _count(text)):
        raise ValueError
    return count


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,18})\s*([kmgt]i?|)b?", text.lower())
    if not found or (size := int(found[1]) * _UNITS[found[2]]) >= 2**63:
        raise ValueError
    return size


def _message_size(text: str) -> int:
    if not 1024 <= (size := _size(text)) < 2**31:
        raise ValueError
    return size


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|)", text.lower())
    if not found:
        raise ValueError
    return float(found[1]) * _SECONDS[found[2]]


def _file(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


def _url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # port: ValueError where none
        raise ValueError
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", text):
        raise ValueError
    return text


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError
    return text


def _sandbox(text: str) -> str:
    if text not in ("auto", "on", "off"):
        raise ValueError
    return text


def _switch(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError
    return text.lower() in ("1", "true", "yes", "on")


def _shared(text: str) -> bool | Path | Literal["auto"]:
    if text == "auto":
        return "auto"
    return Path(text) if "/" in text else _switch(text)


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: `name` is the field of `Settings`, whence the flag and the environment variable."""

    name: str
    parse: Callable[[str], Any]  # text to value; ValueError where it cannot
    expected: str  # what a good value is, for messages
    help: str
    default: str | None = None  # as it would be typed; None: unset
    metavar: str = "N"
    repeatable: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "GRADORACLE_" + self.name.upper()


_ADDRESS = 'an address like "127.0.0.1:50051", "[::1]:50051" or "unix:/run/gradoracle.sock"'
_SIZE = 'a number of bytes, or one with a unit like "64MiB"'
_DURATION = 'a number of seconds, or one with a unit like "500ms", "30s", "5m" or "1h"'
_PATH = "the path of a file"
_SWITCH = '"true" or "false"'

OPTIONS: tuple[Option, ...] = (
    Option(
        "listen", parse_address, _ADDRESS, "where gRPC is served; port 0 picks a free one", "127.0.0.1:50051", "ADDRESS"
    ),
    Option(
        "shared_memory",
        _shared,
        '"auto", "true", "false" or the path of a socket like "/run/gradoracle.memory"',
        "let callers on this machine hand over large tensors as memory files, and ask without gRPC, over two further "
        "Unix sockets. auto: those of the server's own user, who find it by its port, where it has no certificate; "
        "true: who may open the socket of --listen unix:..., beside which they are, with .memory and .memory.calls "
        "behind it; PATH: who may open that, and PATH.calls, which is for clients of other makes. For callers who "
        "trust one another: they may try to harm a worker by changing its tensors while it computes",
        "auto",
        "PATH",
    ),
    Option(
        "metrics_listen",
        parse_metrics_address,
        'an address like "127.0.0.1:9464", or "off"',
        "where /metrics, /healthz and /readyz are served; port 0 picks a free one, off serves none",
        "127.0.0.1:9464",
        "ADDRESS",
    ),
    Option(
        "device",
        _devices,
        '"auto", "cpu", "cuda" or "cuda:N"',
        "a device to serve, repeatable; the first is the default of requests that name none. auto: every CUDA device "
        "and the CPU; cuda: every CUDA device",
        "auto",
        "DEVICE",
        repeatable=True,
    ),
    Option("workers", _positive, "a whole number from 1", "workers for each device (default: one a core, one a GPU)"),
    Option(
        "spare_workers",
        _count,
        "a whole number from 0",
        "workers for each device beside those, which wait until one dies and take its place at once",
        "1",
    ),
    Option(
        "threads",
        _positive,
        "a whole number from 1",
        "threads of each CPU worker (default: the cores shared out evenly)",
    ),
    Option("max_queue", _count, "a whole number from 0", "requests waiting for one device; 0: no limit", "1024"),
    Option(
        "max_queue_bytes",
        _size,
        _SIZE,
        "bytes of requests waiting for one device; answers that callers of streams have yet to read may take an eighth "
        "of it together; 0: no limit (default: a fifth of the memory of the machine or container)",
        metavar="BYTES",
    ),
    Option(
        "max_message_bytes",
        _message_size,
        _SIZE + ", from 1KiB, below 2GiB",
        "bytes of one gRPC message; larger tensors travel in a Stream",
        "256MiB",
        "BYTES",
    ),
    Option("max_graph_nodes", _count, "a whole number from 0", "nodes of one graph; 0: no limit", "50000"),
    Option(
        "max_tensor_bytes",
        _size,
        _SIZE,
        "bytes of one tensor; 0: no limit (default: a fifth of the memory of the machine or container, or 1GiB where "
        "that is more)",
        metavar="BYTES",
    ),
    Option(
        "max_memory_bytes",
        _size,
        _SIZE,
        "bytes of memory that a request may take in its worker; 0: no limit (default: four fifths of the memory of the "
        "machine or container, in even shares for the CPU workers; nine tenths of a GPU's, for its workers)",
        metavar="BYTES",
    ),
    Option(
        "request_timeout",
        _duration,
        _DURATION,
        "the longest that a request may wait and run, whatever its own deadline; 0: no limit",
        "10m",
        "SECONDS",
    ),
    Option("drain_timeout", _duration, _DURATION, "how long a stopping server lets requests finish", "30s", "SECONDS"),
    Option(
        "drain_pause",
        _duration,
        _DURATION,
        "how long a stopping server goes on accepting calls while its health says NOT_SERVING, for load balancers",
        "0",
        "SECONDS",
    ),
    Option(
        "max_connection_age",
        _duration,
        _DURATION,
        "connections of gRPC older than this are asked to reconnect; 0: never",
        "0",
        "SECONDS",
    ),
    Option("tls_cert", _file, _PATH, "certificate chain of the server, PEM", metavar="FILE"),
    Option("tls_key", _file, _PATH, "private key of the server, PEM", metavar="FILE"),
    Option("tls_client_ca", _file, _PATH, "authorities whose client certificates are required, PEM", metavar="FILE"),
    Option("token_file", _file, _PATH, "bearer tokens, one a line; a call must bring one of them", metavar="FILE"),
    Option(
        "health_without_token", _switch, _SWITCH, "serve grpc.health.v1 to callers without a token too", "false", "BOOL"
    ),
    Option(
        "otlp_endpoint",
        _url,
        'a URL like "http://localhost:4318"',
        "collector of OpenTelemetry that gets a trace of each call, as OTLP over HTTP, at URL/v1/traces; needs "
        "gradoracle[otel]. OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, "
        "OTEL_EXPORTER_OTLP_HEADERS, ...) hold",
        metavar="URL",
    ),
    Option(
        "log_format", _log_format, '"text" or "json"', "how log lines on stderr look: text or json", "text", "FORMAT"
    ),
    Option(
        "sandbox",
        _sandbox,
        '"auto", "on" or "off"',
        "keep workers from files, the network and other processes; auto: as far as the kernel can, on: or do not start",
        "auto",
        "MODE",
    ),
    Option("stop_on_stdin_eof", _switch, _SWITCH, "stop as on SIGTERM when standard input is closed", "false", "BOOL"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the server is told, checked. Limits of 0 mean none; None means not given."""

    listen: Address
    shared_memory: bool | Path | Literal["auto"]
    metrics_listen: Address | None
    device: tuple[str, ...]
    workers: int | None
    spare_workers: int
    threads: int | None
    max_queue: int
    max_queue_bytes: int | None
    max_message_bytes: int
    max_graph_nodes: int
    max_tensor_bytes: int | None
    max_memory_bytes: int | None
    request_timeout: float
    drain_timeout: float
    drain_pause: float
    max_connection_age: float
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    token_file: Path | None
    health_without_token: bool
    otlp_endpoint: str | None
    log_format: str
    sandbox: str
    stop_on_stdin_eof: bool

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("--tls-cert", "--tls-key") if self.tls_key is None else ("--tls-key", "--tls-cert")
            raise SettingsError(f"{missing}: expected the path of a file beside {given}, got none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise SettingsError("--tls-cert: expected the path of a file beside --tls-client-ca, got none")

        if self.shared_memory is True and not self.listen.path:
            raise SettingsError(
                "--shared-memory: expected the path of a socket, or an address of --listen like "
                f'"unix:/run/gradoracle.sock", got {self.listen}'
            )

    @property
    def unguarded(self) -> tuple[str, ...]:
        """What is missing although other machines can reach the server."""
        if self.listen.is_local:
            return ()
        nobody_asked = self.token_file is None and self.tls_client_ca is None
        return (("TLS",) if self.tls_cert is None else ()) + (("tokens",) if nobody_asked else ())


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists the flags")


def parser(version: str) -> argparse.ArgumentParser:
    """The command line, its values still text."""
    made = _Parser(
        prog="gradoracle serve",
        description="Serves gradients of op graphs over gRPC.",
        epilog="Each flag is also an environment variable: --max-queue is GRADORACLE_MAX_QUEUE. A flag wins.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"gradoracle {version}")
    for option in OPTIONS:
        text = option.help.replace("%", "%%") + (f" (default: {option.default})" if option.default else "")
        if option.parse in (_switch, _shared):
            made.add_argument(option.flag, nargs="?", const="true", metavar=option.metavar, help=text)
        else:
            action = "append" if option.repeatable else "store"
            made.add_argument(option.flag, action=action, metavar=option.metavar, help=text)
    return made


def load(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ, *, version: str = ""
) -> Settings:
    """The settings of a command line (default: this process's) and an environment."""
    flags = vars(parser(version).parse_args(arguments))
    values: dict[str, Any] = {}
    for option in OPTIONS:
        source: str = option.flag
        text: str | None = (
            ",".join(flags[option.name]) if option.repeatable and flags[option.name] else flags[option.name]
        )
        if text is None and (text := environment.get(option.variable) or None) is not None:
            source = option.variable
        if text is None:
            text = option.default
        values[option.name] = None if text is None else _value(option, source, text)
    return Settings(**values)


def as_given(message: str, arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """A message about flags, with the environment variables in their places where those gave the values.

    A flag that nobody gave is named as those that it is missing beside.
    """
    try:
        flags = vars(parser("").parse_args(arguments))
    except SettingsError:  # it is what the message is about
        return message
    named = [one for one in OPTIONS if flags[one.name] is None and re.search(rf"{one.flag}(?![\w-])", message)]
    if any(environment.get(one.variable) for one in named):
        for one in named:
            message = re.sub(rf"{one.flag}(?![\w-])", one.variable, message)
    return message


def _value(option: Option, source: str, text: str) -> object:
    try:
        return option.parse(text)
    except ValueError:
        raise SettingsError(f'{source}: expected {option.expected}, got "{_printable(text)}"') from None


def _printable(text: str) -> str:
    """Text of unknown origin, on one line and not long."""
    short = text if len(text) <= 100 else text[:100] + "..."
    return short.encode("unicode_escape").decode()

"""Where a client connects, and how."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from gradoracle import neighbours, status
from gradoracle.errors import DeadlineExceededError, GradOracleError, ServerUnavailableError
from gradoracle.tls import TLS

ADDRESS = "GRADORACLE_ADDRESS"
"""The environment variable that names a server."""

PORT = 50051
"""Where servers listen."""

TIMEOUT = 600.0
"""Seconds for a call where neither it nor its client names any: as long as a server works on a request."""

LONGEST = 1e9
"""Seconds of a timeout from which on it is as good as none: thirty years. gRPC reckons with the time of day in
nanoseconds, of which 64 bits hold few centuries, and takes what is beyond as over."""

ATTEMPTS = 5
"""How often a call is sent at most; gRPC allows no more."""

FIRST_PAUSE = 0.1
"""Seconds before the second attempt; doubled before each further one."""

StreamCall: TypeAlias = "grpc.StreamStreamMultiCallable[bytes, bytes]"
Begin: TypeAlias = Callable[..., Any]
"""Begins a stream: a `StreamCall`, or what stands for one."""
UnaryCall: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
_SCHEMES = ("dns:", "ipv4:", "ipv6:")  # what gRPC takes before a host, beside paths of sockets

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_SERVICE = "gradoracle.v1.GradientService"
_SERVICE_CONFIG = {
    # A name that stands for several servers, as a headless Service's does: each call goes to the next.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            # Requests are pure, so that one may always be sent again, also where a server cut it off as it ended. gRPC
            # adds the jitter, and waits as long as the server says where it does (grpc-retry-pushback-ms); where that
            # is negative, it gives up.
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": f"{FIRST_PAUSE}s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        },
        # gRPC can repeat a stream only before its first answer; gradoracle.stream goes on after it too.
        {"name": [{"service": _SERVICE, "method": "Stream"}]},
    ],
}

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A request that is longer than this is not sent again, whatever the policy; no unary one is.
    ("grpc.per_rpc_retry_buffer_size", 16 * 1024 * 1024),
    # Tensors are bounded by the server, which says so in words.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise clients of one process share their connections, behind the caller's back.
    ("grpc.use_local_subchannel_pool", 1),
    # A dead connection under a long call is noticed. gradoracle's servers allow such pings every 5 s; another that
    # does not says so, and gRPC sends them less often then.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def unary_calls(channels: Sequence[grpc.Channel], paths: Iterable[str]) -> dict[str, Iterator[UnaryCall]]:
    """By path: the call over each channel, in turn. Without serializers, since requests and answers are bytes."""
    return {path: itertools.cycle([one.unary_unary(path) for one in channels]) for path in paths}


def stream_calls(channels: Sequence[grpc.Channel], path: str) -> Iterator[StreamCall]:
    """The same of a stream."""
    return itertools.cycle([one.stream_stream(path) for one in channels])


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A server, and what a client needs to know to speak to it."""

    address: str
    credentials: grpc.ChannelCredentials | None
    metadata: Metadata
    """Of every call."""
    timeout: float
    """Seconds for a call that names no other; infinity for no limit."""
    channels: int
    memory: str | None = None
    """Where on this machine the server takes memory, if it does; None where none is to be shared."""
    insists: bool = False
    """Whether it is no good without that."""
    tls: TLS | None = None
    """What `credentials` were made of, for messages."""

    def connect(self) -> grpc.Channel:
        """A channel of the blocking kind."""
        if self.credentials is None:
            return grpc.insecure_channel(self.address, options=self.options)
        return grpc.secure_channel(self.address, self.credentials, options=self.options)

    def seconds(self, timeout: float | None) -> float | None:
        """The timeout of a call that names one or none; None for no limit. Raises ValueError where it is no number, and
        DeadlineExceededError where it has passed already."""
        chosen = seconds(self.timeout if timeout is None else timeout)
        if chosen is not None and chosen <= 0:
            raise self.late(chosen)
        return chosen

    def late(self, timeout: float | None) -> DeadlineExceededError:
        """What a call fails with that was not answered in time. `timeout` is what was asked for."""
        return DeadlineExceededError(status.late(self.address, timeout), reason="DEADLINE_EXCEEDED")

    def failure(self, error: grpc.RpcError, timeout: float | None) -> GradOracleError:
        """What a call fails with for gRPC's error. `timeout` is what was asked for."""
        return status.from_call(error, self.address, timeout, self.tls)

    def closed(self) -> ServerUnavailableError:
        """What a call fails with that was running when its client was closed."""
        return ServerUnavailableError(status.cut_off(self.address, "the client was closed"))

    @property
    def options(self) -> Sequence[tuple[str, int | str]]:
        """gRPC's options for a channel."""
        host = self.address.rpartition(":")[0]
        local = host == "localhost" or neighbours.is_loopback(host) or self.address.startswith("unix:")
        # A proxy for the outside world is no way to this machine.
        return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if local else _OPTIONS


def target(
    address: str | None,
    *,
    tls: bool | str | Path | TLS | None,
    token: str | None,
    timeout: float | None,
    channels: int,
    shared_memory: bool | None = None,
) -> Target:
    """Checks what a client was given. Raises ValueError where it cannot be meant, TypeError where it is something
    else."""
    _check_types(address, tls, token, channels)
    address = _address(address)
    memory = neighbours.place(address) if shared_memory or (shared_memory is None and not tls) else None
    if shared_memory and memory is None:
        if not neighbours.are_possible():
            raise ValueError("shared_memory: expected Linux for it, which has memory files; leave it out here")
        raise ValueError(
            f"shared_memory: expected an address of this machine beside it, like "
            f'"localhost:{PORT}" or "unix:/run/gradoracle.sock", got {address!r}'
        )
    seconds(timeout)
    if timeout is not None and not timeout > 0:
        raise _no_timeout(timeout)
    if channels < 1:
        raise ValueError(f"channels: expected 1 or more, got {channels}")
    if token is not None and (not token or not token.isascii() or not token.isprintable()):
        raise ValueError("token: expected printable ASCII characters, got others")  # not which: it is a secret
    if isinstance(tls, str | Path):
        tls = TLS(ca=tls)
    elif tls is True:
        tls = TLS()
    return Target(
        address=address,
        credentials=tls.credentials() if tls else None,
        metadata=(("authorization", f"Bearer {token}"),) if token is not None else (),
        timeout=TIMEOUT if timeout is None else timeout,
        channels=channels,
        memory=memory,
        insists=bool(shared_memory),
        tls=tls or None,
    )


def seconds(timeout: float | None) -> float | None:
    """A timeout that was asked for; None for no limit. Raises ValueError where it is NaN, TypeError where no number."""
    if timeout is None:
        return None
    try:
        is_nan = math.isnan(timeout)
    except TypeError:
        raise _not("timeout", "seconds, as a number, or None", timeout) from None
    if is_nan:
        raise _no_timeout(timeout)
    return None if timeout >= LONGEST else timeout


def _check_types(address: object, tls: object, token: object, channels: object) -> None:
    if not isinstance(address, str | None):
        raise _not("address", 'a text, "host:port" or "unix:path"', address)
    if not isinstance(tls, bool | str | Path | TLS | None):
        raise _not("tls", "True, the path of a CA's certificate, or a gradoracle.TLS", tls)
    if not isinstance(token, str | None):
        raise _not("token", "a text", token)
    if not isinstance(channels, int):
        raise _not("channels", "a whole number, 1 or more", channels)


def _not(argument: str, expected: str, given: object) -> TypeError:
    """The error for an argument of another type. It does not show what was given, which may be secret."""
    return TypeError(f"{argument}: expected {expected}, got {type(given).__name__}")


def _no_timeout(given: float) -> ValueError:
    return ValueError(f"timeout: expected seconds, more than 0, or None, got {given!r}")


def left(timeout: float | None, began: float) -> float | None:
    """What is left of a timeout, in seconds, of what began at that time.monotonic()."""
    return None if timeout is None else max(0.0, began + timeout - time.monotonic())


def _address(given: str | None) -> str:
    """Where a server is, with its port; what cannot be an address is refused by the name of where it was given."""
    source = "address" if given is not None else ADDRESS
    address = given if given is not None else os.environ.get(ADDRESS) or f"localhost:{PORT}"
    if address.startswith("unix:") or (address.startswith(_SCHEMES) and "://" not in address):
        return address
    if ":" not in address and address:
        return f"{address}:{PORT}"
    host, _, port = address.rpartition(":")
    whole = ":" not in host or (host.startswith("[") and host.endswith("]"))
    if not host or "/" in host or not whole or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f'{source}: expected "host:port" or "unix:path", got {address!r}')
    return address

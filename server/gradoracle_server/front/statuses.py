"""The one place in the front where a status is made.

A `Failure` is raised wherever a request cannot be served, and becomes what the caller sees: the gRPC code and message,
and a serialized google.rpc.Status with ErrorInfo (and RetryInfo) in the trailing metadata, or in a stream's answer.
What a worker answers arrives as such a status already, and is passed on by `from_worker`.
"""

from __future__ import annotations

import logging
import secrets
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2

from gradoracle_server.rpc_status import make_status, packed

if TYPE_CHECKING:
    from gradoracle_server.frames import Reply

_log = logging.getLogger(__name__)
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_AT_MOST = 4096  # bytes; callers take 8 kB of metadata by default, and the message is in there twice
_MESSAGE_AT_MOST = 2000  # bytes, as a header
_VALUES_AT_MOST = 1500  # bytes, of all metadata of a status that is too long


class Failure(Exception):  # noqa: N818 - a status, which only the caller may call an error
    """Why a request is not served, ready to be sent."""

    def __init__(self, code: grpc.StatusCode, status: status_pb2.Status, retry_after: float | None = None) -> None:
        super().__init__(status.message)
        self.code = code
        self.status = status
        self.retry_after = retry_after  # seconds

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata."""
        made: tuple[tuple[str, str | bytes], ...] = (("grpc-status-details-bin", self.status.SerializeToString()),)
        if self.retry_after is not None:
            made += (("grpc-retry-pushback-ms", str(round(self.retry_after * 1000))),)
        elif self.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            made += (("grpc-retry-pushback-ms", "-1"),)  # clients repeat such calls, but this one is over a limit
        return made

    def let_go(self) -> None:
        """Forgets where it was raised: the frames there hold the request, and it, until the next full collection."""
        self.__traceback__ = None

    async def abort(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> NoReturn:
        """Ends the call with this status."""
        self.let_go()
        await context.abort(self.code, self.status.message, self.metadata())
        raise AssertionError("abort returned")


def refusal(failure: Failure) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that ends any call, of whatever kind, before a message of it is read."""

    async def refuse(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await failure.abort(context)

    return grpc.stream_stream_rpc_method_handler(refuse)


def device_unavailable(device: str, devices: Iterable[str]) -> Failure:
    """The request names a device that the server does not serve."""
    served = ", ".join(devices)
    text = f'device: expected one of {served}, got "{_short(device)}"'
    return _failure(grpc.StatusCode.FAILED_PRECONDITION, "DEVICE_UNAVAILABLE", text, device=device, devices=served)


def overloaded(device: str, limit: str, allowed: int, retry_after: float) -> Failure:
    """The queue is full. `limit` is the flag that bounds it."""
    text = f"the queue of {device} is full ({limit} {allowed}); try again in {retry_after:.3g} s"
    return _failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        text,
        retry_after=retry_after,
        device=device,
        limit=limit,
        allowed=allowed,
    )


def limit_exceeded(what: str, limit: str, allowed: int, asked: int, hint: str = "", *, field: str = "") -> Failure:
    """Over a configured limit. `limit` is the flag that sets it; `field`, where it is known, the place in the request
    that is named in place of `what`."""
    text = f"{field or what}: expected at most {allowed} bytes ({limit}), got {asked}{hint}"
    metadata: dict[str, Any] = {"limit": limit, "allowed": allowed, "asked": asked}
    if field:
        metadata["field"] = field
    return _failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", text, **metadata)


def deadline_exceeded(phase: str) -> Failure:
    """The deadline passed; `phase` is "queue" or "run"."""
    while_ = "waiting for a worker" if phase == "queue" else "running"
    text = f"the deadline passed while the request was {while_}; the work is stopped"
    return _failure(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", text, phase=phase)


def worker_crashed(exit_code: int | None, refused_for: float = 0.0) -> Failure:
    """The request ended its worker; negative exit codes are signals. `refused_for`: seconds of quarantine left."""
    metadata: dict[str, Any] = {}
    if exit_code is None:
        how = "for an unknown reason"
    elif exit_code < 0:
        metadata["signal"] = signal_name(-exit_code)
        how = f"by {metadata['signal']}"
    else:
        metadata["exit_code"] = str(exit_code)
        how = f"with exit code {exit_code}"
    text = f"the request ended the process that ran it, {how}; an operator does not withstand these arguments"
    if refused_for > 0:
        text = (
            f"this request ended the processes that ran it, the last {how}, and is refused without being run for "
            f"another {refused_for:.0f} s"
        )
    return _failure(grpc.StatusCode.INTERNAL, "WORKER_CRASHED", text, **metadata)


def shutting_down() -> Failure:
    """New calls are not taken any more."""
    return _failure(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the server is shutting down; call another one")


def unauthenticated(got: str) -> Failure:
    """No or wrong credentials. `got` says which it was, never the credentials."""
    text = f'expected metadata "authorization: Bearer <token>" with one of the server\'s tokens, got {got}'
    return _failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", text)


def malformed(method: str, text: str) -> Failure:
    """The bytes do not follow the protocol."""
    return _failure(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", text, method=method)


def not_served(method: str) -> Failure:
    """A method that this version does not know."""
    text = f"expected a method of gradoracle.v1.GradientService as this version has it, got {_short(method)}"
    return _failure(grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED", text, method=method)


def memory_unknown(text: str) -> Failure:
    """The request names shared memory that is not there, or a use of it that was."""
    return _failure(grpc.StatusCode.FAILED_PRECONDITION, "MEMORY_UNKNOWN", f"memory: {text}")


def internal(error: BaseException, where: str) -> Failure:
    """A fault of the server's own: the log gets all of it, the caller an incident's id."""
    incident = secrets.token_hex(6)
    _log.error("incident %s in %s", incident, where, exc_info=error)
    return _failure(grpc.StatusCode.INTERNAL, "INTERNAL", f"internal error, incident {incident}", incident=incident)


def from_worker(reply: Reply) -> Failure:
    """A worker's error, passed on. Shortened where it would not fit into the metadata of a call."""
    try:
        status = status_pb2.Status.FromString(bytes(reply.payload))
    except message.DecodeError as error:
        return internal(error, "a worker's reply")
    code = _CODES.get(reply.code)
    if code is None or code is grpc.StatusCode.OK:
        return internal(ValueError(f"a worker answered with the code {reply.code}"), "a worker's reply")
    status.message = _cut(status.message, _MESSAGE_AT_MOST)
    if status.ByteSize() > _DETAILS_AT_MOST:
        _shorten(status)
    return Failure(code, status)


def signal_name(number: int) -> str:
    """SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failure(
    code: grpc.StatusCode, reason: str, text: str, *, retry_after: float | None = None, **metadata: object
) -> Failure:
    short = {key: _short(str(value)) for key, value in metadata.items()}
    return Failure(code, make_status(code.value[0], reason, text, short, retry_after=retry_after), retry_after)


def _shorten(status: status_pb2.Status) -> None:
    """Makes a status small: its ErrorInfo stays, with shorter values, and of the rest what fits."""
    details = list(status.details)
    del status.details[:]
    for detail in details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            kept = list(info.metadata.items())[:10]
            short = {_cut(key, 50): _cut(value, _VALUES_AT_MOST // len(kept)) for key, value in kept}
            info.metadata.clear()
            info.metadata.update(short)
            detail = packed(info)
        if status.ByteSize() + detail.ByteSize() <= _DETAILS_AT_MOST:
            status.details.append(detail)


def _short(text: str) -> str:
    return _cut(text, 200)


def _cut(text: str, longest: int) -> str:
    """As much of a text as fits into a header of so many bytes, where gRPC writes %0A for a newline."""
    length = 0
    for place, character in enumerate(text):
        length += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if length > longest:
            return text[:place] + "…"
    return text

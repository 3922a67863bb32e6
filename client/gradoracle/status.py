"""The one place where a server's statuses, and gRPC's own, become exceptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from gradoracle import errors
from gradoracle.tls import TLS, unreachable

DETAILS = "grpc-status-details-bin"
"""The metadata that holds a serialized google.rpc.Status."""

_BY_REASON: Mapping[str, type[errors.GradOracleError]] = {
    "MALFORMED_REQUEST": errors.InvalidRequestError,
    "INVALID_GRAPH": errors.InvalidGraphError,
    "UNKNOWN_REFERENCE": errors.InvalidGraphError,
    "CYCLE": errors.InvalidGraphError,
    "DUPLICATE_NAME": errors.InvalidGraphError,
    "UNKNOWN_OPERATOR": errors.UnsupportedOperatorError,
    "OPERATOR_REFUSED": errors.UnsupportedOperatorError,
    "INVALID_ARGUMENT": errors.InvalidGraphError,
    "INVALID_TENSOR": errors.TensorError,
    "INPUT_MISMATCH": errors.TensorError,
    "INVALID_COTANGENT": errors.TensorError,
    "INVALID_SELECTION": errors.InvalidRequestError,
    "COMPUTATION_FAILED": errors.ComputationError,
    "DEVICE_UNAVAILABLE": errors.DeviceUnavailableError,
    "OVERLOADED": errors.OverloadedError,
    "LIMIT_EXCEEDED": errors.ResourceLimitError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "WORKER_CRASHED": errors.WorkerCrashedError,
    "SHUTTING_DOWN": errors.ServerUnavailableError,
    "UNAUTHENTICATED": errors.AuthenticationError,
    "INTERNAL": errors.GradOracleError,
    "NOT_SERVED": errors.GradOracleError,
    "MEMORY_UNKNOWN": errors.GradOracleError,
}
"""Every reason of errors.proto."""

_BY_CODE: Mapping[int, type[errors.GradOracleError]] = {
    code.value[0]: error
    for code, error in {
        grpc.StatusCode.CANCELLED: errors.ServerUnavailableError,
        grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
        grpc.StatusCode.PERMISSION_DENIED: errors.AuthenticationError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceLimitError,
        grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailableError,
        grpc.StatusCode.UNAUTHENTICATED: errors.AuthenticationError,
    }.items()
}
"""Where there is no reason: gRPC itself, a proxy, another server, or a reason that this client does not know."""

_REASONS: Mapping[type[errors.GradOracleError], str] = {
    errors.DeadlineExceededError: "DEADLINE_EXCEEDED",
    errors.AuthenticationError: "UNAUTHENTICATED",
    errors.ResourceLimitError: "LIMIT_EXCEEDED",
}
"""The reasons that such statuses are known to have."""

_NEXT_STEPS: Mapping[type[errors.GradOracleError], str] = {
    errors.AuthenticationError: "; give one as token=, or on the command line in a file, as --token-file",
}
"""What to do about such statuses, where the server, which does not know its clients, says what is wrong only."""


def from_call(
    error: grpc.RpcError, address: str, timeout: float | None, tls: TLS | None = None
) -> errors.GradOracleError:
    """The exception for a call that failed. `address`, `timeout` and `tls` are the call's, for messages."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or ""
    status = _details(error.trailing_metadata() or ())
    if status is not None:
        return from_status(status)
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            message = unreachable(address, message, tls)
        case grpc.StatusCode.CANCELLED:
            message = cut_off(address, message)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            message = late(address, timeout)
        case grpc.StatusCode.UNIMPLEMENTED:
            message = f"the server at {address} does not know this call: {message}. Is it a gradoracle server?"
    return from_status(status_pb2.Status(code=code.value[0], message=message or code.name))


def late(address: str, timeout: float | None) -> str:
    """The message of a call that was not answered in time."""
    limit = "deadline" if timeout is None else f"timeout of {timeout:g} s"
    return f"the {limit} passed before {address} answered; the work is stopped"


def cut_off(address: str, why: str) -> str:
    """The message of a call that was ended from outside."""
    return f"the call to {address} was cut off before it was answered: {why}"


def from_status(status: status_pb2.Status) -> errors.GradOracleError:
    """The exception for a status."""
    kind, reason = _BY_CODE.get(status.code, errors.GradOracleError), None
    metadata: dict[str, str] = {}
    retry_after = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            kind, reason = _BY_REASON.get(info.reason, kind), info.reason
            metadata.update(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = error_details_pb2.BadRequest.FromString(detail.value).field_violations
            if violations and violations[0].field:
                metadata.setdefault("field", violations[0].field)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
    if reason is None:
        reason = _REASONS.get(kind, "UNSPECIFIED")
    next_step = _NEXT_STEPS.get(kind, "")
    error = kind(f"{status.message}{next_step}", reason=reason, node=metadata.get("node"), metadata=metadata)
    if isinstance(error, errors.OverloadedError):
        error.retry_after = retry_after
    return error


def _details(metadata: Iterable[Any]) -> status_pb2.Status | None:
    for key, value in metadata:
        if key == DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None

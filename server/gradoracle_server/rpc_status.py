"""The google.rpc.Status of a call that failed, as the front and the workers make it."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from gradoracle.v1 import errors_pb2

DOMAIN = "gradoracle.v1"
"""The domain of every ErrorInfo."""

_INVALID_ARGUMENT = 3  # gRPC's number


def make_status(
    code: int,
    reason: str,
    text: str,
    metadata: Mapping[str, str],
    *,
    field: str = "",
    retry_after: float | None = None,
) -> status_pb2.Status:
    """A status with ErrorInfo; with BadRequest, naming `field`, where the request is at fault; with RetryInfo, in
    seconds, where it may be tried again.

    `code` is gRPC's, `reason` a name of the proto's ErrorReason less its prefix; another one raises ValueError.
    """
    errors_pb2.ErrorReason.Value("ERROR_REASON_" + reason)
    info = {"field": field, **metadata} if field else metadata
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=info)]
    if code == _INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code, message=text)
    status.details.extend(packed(detail) for detail in details)
    return status


def packed(detail: message.Message) -> any_pb2.Any:
    """A detail as it stands in a Status."""
    found = any_pb2.Any()
    found.Pack(detail)
    return found

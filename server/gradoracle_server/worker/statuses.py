"""The one place in a worker where an exception becomes a status."""

from __future__ import annotations

import logging
import secrets

from google.protobuf import message

from gradoracle_server.engine.errors import Fault
from gradoracle_server.frames import Reply
from gradoracle_server.rpc_status import make_status

_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL = 3, 8, 12, 13  # gRPC's status codes
_CODES = {"LIMIT_EXCEEDED": _RESOURCE_EXHAUSTED, "NOT_SERVED": _UNIMPLEMENTED}
"""Every other reason that a worker gives is the request's fault: INVALID_ARGUMENT."""

_log = logging.getLogger(__name__)


def reply_for(error: Exception, method: str) -> Reply:
    """The reply that tells the caller of an error. What is not the request's fault is logged, and hidden from them."""
    if isinstance(error, Fault):
        return _reply(
            _CODES.get(error.reason, _INVALID_ARGUMENT), error.reason, error.message, error.metadata, error.field
        )
    if isinstance(error, message.DecodeError):
        expected = f"a serialized gradoracle.v1.{method}Request"
        text = f"the request's bytes are no {method}Request: expected {expected}, got {error}"
        return _reply(_INVALID_ARGUMENT, "MALFORMED_REQUEST", text, {"method": method})
    if isinstance(error, MemoryError):
        return _reply(_RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", "the worker ran out of memory", {"limit": "memory"})
    incident = secrets.token_hex(6)
    _log.error("incident %s in %s", incident, method, exc_info=error)
    return _reply(_INTERNAL, "INTERNAL", f"internal error, incident {incident}", {"incident": incident})


def _reply(code: int, reason: str, text: str, metadata: dict[str, str], field: str = "") -> Reply:
    metadata = {key: _encodable(value) for key, value in metadata.items()}
    return Reply(code, make_status(code, reason, _encodable(text), metadata, field=field).SerializeToString())


def _encodable(text: str, longest: int = 2000) -> str:
    """Text that protobuf can carry and gRPC can put into a header of bounded size."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"

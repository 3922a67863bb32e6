"""The one place in a worker where an exception becomes a status."""

from __future__ import annotations

import logging
import re
import secrets
import traceback

from google.protobuf import message

from gradoracle_server.engine import memory
from gradoracle_server.engine.errors import Fault
from gradoracle_server.frames import Reply
from gradoracle_server.rpc_status import make_status

_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL = 3, 8, 12, 13  # gRPC's status codes
_CODES = {"LIMIT_EXCEEDED": _RESOURCE_EXHAUSTED, "NOT_SERVED": _UNIMPLEMENTED}
"""Every other reason that a worker gives is the request's fault: INVALID_ARGUMENT."""

_log = logging.getLogger(__name__)


def reply_for(error: Exception, method: str, max_memory_bytes: int = 0) -> Reply:
    """The reply that tells the caller of an error. What is not the request's fault is logged, and hidden from them."""
    if not isinstance(error, Fault) and memory.is_exhausted(error):
        error = memory.exhausted(error)
    if isinstance(error, Fault):
        error = memory.allowing(error, max_memory_bytes)
        code = _CODES.get(error.reason, _INVALID_ARGUMENT)
        return _reply(code, error.reason, error.message, error.metadata, error.field)
    if isinstance(error, message.DecodeError):
        expected = f"a serialized gradoracle.v1.{method}Request"
        text = f"the request's bytes are no {method}Request: expected {expected}, got {error}"
        return _reply(_INVALID_ARGUMENT, "MALFORMED_REQUEST", text, {"method": method})
    incident = secrets.token_hex(6)
    _log.error("incident %s in %s\n%s", incident, method, _without_values(error))
    return _reply(_INTERNAL, "INTERNAL", f"internal error, incident {incident}", {"incident": incident})


_NUMBER_OR_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*"|\d[\w.]*""")


def _without_values(error: BaseException) -> str:
    """The story of an exception for the log: where and what, but no number that may be a caller's."""
    lines = []
    for part in traceback.TracebackException.from_exception(error, capture_locals=False).format():
        # The frames have line numbers, and stand between the messages of the exceptions.
        where = part.startswith("  File ")
        lines.append(part if where else _NUMBER_OR_BYTES.sub("#", part))
    return "".join(lines).rstrip()


def _reply(code: int, reason: str, text: str, metadata: dict[str, str], field: str = "") -> Reply:
    metadata = {key: _encodable(value) for key, value in metadata.items()}
    return Reply(code, make_status(code, reason, _encodable(text), metadata, field=field).SerializeToString())


def _encodable(text: str, longest: int = 2000) -> str:
    """Text that protobuf can carry and gRPC can put into a header of bounded size."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.encode("utf-8", "replace").decode()

"""The exceptions of gradoracle, one tree:

    GradOracleError
    ├── InvalidRequestError             the request is at fault; sending it again will not help
    │   ├── InvalidGraphError           its graph: names, references, arguments of operators, expressions
    │   ├── UnsupportedOperatorError    an operator that does not exist, or is not served
    │   └── TensorError                 a tensor: dtype, shape, contents; one that is missing or too many
    ├── TraceError                      a function that cannot be turned into a graph faithfully
    ├── ComputationError                torch raised while running the graph; its message is kept
    ├── DeviceUnavailableError          the server has no such device
    ├── DeadlineExceededError           the timeout passed; the work was stopped
    ├── OverloadedError                 the server's queue is full; see retry_after
    ├── ResourceLimitError              over a limit of the server: message, nodes, tensor, memory
    ├── WorkerCrashedError              the request ended the process that ran it
    ├── AuthenticationError             no or wrong credentials
    └── ServerUnavailableError          no server answers there, or it is shutting down

Faults of the server's own come as GradOracleError itself. Wrong Python types of arguments raise TypeError, as anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping


class GradOracleError(Exception):
    """The root of the tree.

    `reason` is the name of the proto's ErrorReason less its prefix, such as "UNKNOWN_REFERENCE", or "UNSPECIFIED" where
    the proto has none. `node` names the node of the graph that is at fault, where one is. `metadata` holds what the
    reason documents in errors.proto, as strings. `tag` is the request's, where the error came out of `Client.map`.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "UNSPECIFIED",
        node: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.node = node
        self.metadata: dict[str, str] = dict(metadata or {})
        self.tag: object = None


class InvalidRequestError(GradOracleError):
    """The request is at fault; sending it again will not help."""


class InvalidGraphError(InvalidRequestError):
    """The graph breaks a rule: a name, a reference, an operator's arguments, an expression that cannot be read."""


class UnsupportedOperatorError(InvalidRequestError):
    """An operator that does not exist or is not served."""


class _NoSuchOperatorError(UnsupportedOperatorError, AttributeError):
    """An AttributeError too, so that hasattr() and copy.copy() work on Values and on gradoracle.ops."""


class TensorError(InvalidRequestError):
    """A tensor whose dtype, shape and contents do not fit together or do not fit the graph; a missing one."""


class TraceError(GradOracleError):
    """A function that cannot be turned into a graph faithfully."""


class ComputationError(GradOracleError):
    """torch raised while running the graph. The message is torch's, after the node's name."""


class DeviceUnavailableError(GradOracleError):
    """The device is not one of the server's."""


class DeadlineExceededError(GradOracleError):
    """The timeout passed, while the request waited or ran. The work was stopped."""


class OverloadedError(GradOracleError):
    """The queue of the device is full. `retry_after` is when to try again, in seconds from now, or None if unknown."""

    retry_after: float | None = None


class ResourceLimitError(GradOracleError):
    """The request is over a limit, which the message names with what is allowed and what was asked."""


class WorkerCrashedError(GradOracleError):
    """The request ended the process that ran it. No other request noticed."""


class AuthenticationError(GradOracleError):
    """No credentials, or wrong ones."""


class ServerUnavailableError(GradOracleError):
    """No server answers at the address, or it is shutting down."""

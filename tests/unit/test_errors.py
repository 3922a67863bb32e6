"""The exceptions, and how statuses become them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import gradoracle as go
from gradoracle import errors, status
from gradoracle.v1 import errors_pb2

TREE = {
    "GradOracleError": "Exception",
    "InvalidRequestError": "GradOracleError",
    "InvalidGraphError": "InvalidRequestError",
    "UnsupportedOperatorError": "InvalidRequestError",
    "TensorError": "InvalidRequestError",
    "TraceError": "GradOracleError",
    "ComputationError": "GradOracleError",
    "DeviceUnavailableError": "GradOracleError",
    "DeadlineExceededError": "GradOracleError",
    "OverloadedError": "GradOracleError",
    "ResourceLimitError": "GradOracleError",
    "WorkerCrashedError": "GradOracleError",
    "AuthenticationError": "GradOracleError",
    "ServerUnavailableError": "GradOracleError",
}


def test_the_tree() -> None:
    """Every exception has the place in the tree that its module draws, and can be imported from the package."""
    public = {
        name: found.__base__.__name__
        for name, found in vars(errors).items()
        if isinstance(found, type) and not name.startswith("_")
        and issubclass(found, Exception)
    }  # fmt: skip
    assert public == TREE
    for name in TREE:
        assert getattr(go, name) is getattr(errors, name)
        assert name in (errors.__doc__ or "")


def test_tracing_without_torch() -> None:
    """Where torch is not installed, go.trace says that it needs it and which extra brings it; the rest works."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import gradoracle as go\n"
        "assert go.Graph.parse('x + 1').outputs == ('out',)\n"
        "go.trace"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: gradoracle.trace needs torch, which is not installed; install gradoracle[torch]"
    )


def test_exported_names() -> None:
    """The package exports exactly these names."""
    assert sorted(go.__all__) == sorted(
        [
            *TREE,
            *("CheckReport", "Diagnosis", "InputReport", "Mismatch", "Verdict"),
            *("AsyncClient", "Client", "EvaluateResult", "Graph", "HessianResult", "HvpResult", "Inspection"),
            *("JacobianResult", "JvpResult", "OperatorInfo", "Request", "ServerInfo", "TLS", "Timing", "Value"),
            *("ValueInfo", "ValueList", "VjpResult", "__version__"),
            *("GradcheckError", "GradcheckWarning", "check", "gradcheck", "gradgradcheck"),
            *("fill", "integers", "local_server", "normal", "ops", "request", "trace", "uniform"),
        ]
    )
    for name in go.__all__:
        assert getattr(go, name) is not None
    with pytest.raises(AttributeError, match="module 'gradoracle' has no attribute 'nonsense'"):
        _ = go.nonsense


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gradoracle", ["numpy", "grpc", "google.protobuf", "torch"]),
        ("gradoracle.errors", ["numpy", "grpc", "google.protobuf", "torch"]),
        ("gradoracle.v1.service_pb2", ["numpy", "grpc", "torch"]),
        ("gradoracle.graph", ["grpc", "torch"]),
        ("gradoracle.client", ["torch"]),
        ("gradoracle.aio", ["torch"]),
    ],
)
def test_imports_are_light(module: str, absent: list[str]) -> None:
    """What needs one part of the package imports no other, and nothing imports torch."""
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def made(reason: str, code: grpc.StatusCode, message: str = "what", **metadata: str) -> status_pb2.Status:
    """A status as servers send it."""
    return packed(code, message, error_details_pb2.ErrorInfo(reason=reason, domain="gradoracle.v1", metadata=metadata))


def packed(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    """A status with details."""
    found = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        any_of = any_pb2.Any()
        any_of.Pack(detail)
        found.details.append(any_of)
    return found


def test_every_reason_has_its_exception() -> None:
    """No reason of the proto is forgotten."""
    reasons = {name.removeprefix("ERROR_REASON_") for name, value in errors_pb2.ErrorReason.items() if value}
    assert set(status._BY_REASON) == reasons
    for reason in reasons:
        error = status.from_status(made(reason, grpc.StatusCode.UNKNOWN))
        assert type(error) is status._BY_REASON[reason]
        assert error.reason == reason


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError, "UNSPECIFIED"),
        (grpc.StatusCode.CANCELLED, errors.ServerUnavailableError, "UNSPECIFIED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceLimitError, "LIMIT_EXCEEDED"),
        (grpc.StatusCode.UNAVAILABLE, errors.ServerUnavailableError, "UNSPECIFIED"),
        (grpc.StatusCode.UNAUTHENTICATED, errors.AuthenticationError, "UNAUTHENTICATED"),
        (grpc.StatusCode.PERMISSION_DENIED, errors.AuthenticationError, "UNAUTHENTICATED"),
        (grpc.StatusCode.INTERNAL, errors.GradOracleError, "UNSPECIFIED"),
    ],
)
def test_codes_without_a_reason(code: grpc.StatusCode, kind: type[errors.GradOracleError], reason: str) -> None:
    """Where gRPC itself, or a proxy, made the status, its code decides."""
    error = status.from_status(packed(code, "what"))
    assert type(error) is kind
    assert error.reason == reason
    assert str(error).partition("; give one as token=")[0] == "what"


def test_unknown_reasons_fall_back_on_the_code() -> None:
    """A reason of a newer server is kept, and the code decides."""
    error = status.from_status(made("NEWER", grpc.StatusCode.INVALID_ARGUMENT))
    assert type(error) is errors.InvalidRequestError
    assert error.reason == "NEWER"


def test_details() -> None:
    """Node, metadata and the field of a BadRequest are read."""
    info = error_details_pb2.ErrorInfo(reason="UNKNOWN_REFERENCE", metadata={"node": "h1", "reference": "y"})
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="graph.nodes[0].args[1]", description="d")
    error = status.from_status(packed(grpc.StatusCode.INVALID_ARGUMENT, 'node "h1": …', info, bad))
    assert type(error) is errors.InvalidGraphError
    assert error.node == "h1"
    assert error.metadata == {"node": "h1", "reference": "y", "field": "graph.nodes[0].args[1]"}


def test_retry_after() -> None:
    """An overloaded server says when to try again."""
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED")
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = status.from_status(packed(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info, retry))
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after == 1.5


class Call(grpc.RpcError):
    """A call that failed."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any = ()) -> None:
        super().__init__()
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        """Its status."""
        return self._code

    def details(self) -> str:
        """Its message."""
        return self._details

    def trailing_metadata(self) -> Any:
        """What came with it."""
        return self._metadata


@pytest.mark.parametrize(
    ("code", "timeout", "text"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            None,
            "no gradoracle server answers at host:1: refused. Is it running? `gradoracle serve` starts one, and "
            "gradoracle.Client.local() one of your own",
        ),
        (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            0.5,
            "the timeout of 0.5 s passed before host:1 answered; the work is stopped",
        ),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, "the deadline passed before host:1 answered; the work is stopped"),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            None,
            "the server at host:1 does not know this call: refused. Is it a gradoracle server?",
        ),
        (grpc.StatusCode.CANCELLED, None, "the call to host:1 was cut off before it was answered: refused"),
        (grpc.StatusCode.INTERNAL, None, "refused"),
    ],
)  # fmt: skip
def test_grpcs_own_failures(code: grpc.StatusCode, timeout: float | None, text: str) -> None:
    """What gRPC says by itself is said with the address and what to do."""
    assert str(status.from_call(Call(code, "refused"), "host:1", timeout)) == text


def test_credentials_that_are_refused() -> None:
    """The server says what it expects; where the caller gives it, the client says."""
    refused = status.from_call(Call(grpc.StatusCode.UNAUTHENTICATED, "expected a token, got none"), "host:1", None)
    assert type(refused) is errors.AuthenticationError
    text = "expected a token, got none; give one as token=, or on the command line in a file, as --token-file"
    assert str(refused) == text


def test_details_of_a_call() -> None:
    """A call's status stands in its trailing metadata; what is no status there is passed over."""
    inner = made("CYCLE", grpc.StatusCode.INVALID_ARGUMENT, "ring").SerializeToString()
    error = status.from_call(Call(grpc.StatusCode.INVALID_ARGUMENT, "ring", ((status.DETAILS, inner),)), "host:1", None)
    assert type(error) is errors.InvalidGraphError
    broken = Call(grpc.StatusCode.INVALID_ARGUMENT, "other", (("a", "b"), (status.DETAILS, b"\xff")))
    assert str(status.from_call(broken, "host:1", None)) == "other"


def test_errors_travel_between_processes() -> None:
    """An exception survives pickling, for pools of processes."""
    error = status.from_status(made("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, "full", device="cpu"))
    assert isinstance(error, errors.OverloadedError)
    error.retry_after = 2.0
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # what was just made here
    assert type(again) is type(error)
    assert (str(again), again.reason, again.metadata, again.retry_after) == ("full", "OVERLOADED", {"device": "cpu"}, 2)

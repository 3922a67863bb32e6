"""Statuses: code, message, reason, metadata; and never too long for a header."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gradoracle_server.frames import Reply
from gradoracle_server.front import statuses
from gradoracle_server.front.statuses import Failure

Code = grpc.StatusCode


def info(failure: Failure) -> Any:
    """The ErrorInfo of a failure."""
    found = error_details_pb2.ErrorInfo()
    assert failure.status.details[0].Unpack(found)
    return found


CASES = [
    (
        statuses.device_unavailable("cuda:7", ["cuda:0", "cpu"]),
        Code.FAILED_PRECONDITION,
        "DEVICE_UNAVAILABLE",
        'device: expected one of cuda:0, cpu, got "cuda:7"',
        {"device": "cuda:7", "devices": "cuda:0, cpu"},
    ),
    (
        statuses.overloaded("cpu", "--max-queue", 4, 0.25),
        Code.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        "the queue of cpu is full (--max-queue 4); try again in 0.25 s",
        {"device": "cpu", "limit": "--max-queue", "allowed": "4"},
    ),
    (
        statuses.limit_exceeded("the request", "--max-message-bytes", 10, 11),
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        "the request: expected at most 10 bytes (--max-message-bytes), got 11",
        {"limit": "--max-message-bytes", "allowed": "10", "asked": "11"},
    ),
    (
        statuses.deadline_exceeded("queue"),
        Code.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed while the request was waiting for a worker; the work is stopped",
        {"phase": "queue"},
    ),
    (
        statuses.deadline_exceeded("run"),
        Code.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed while the request was running; the work is stopped",
        {"phase": "run"},
    ),
    (
        statuses.worker_crashed(-11),
        Code.INTERNAL,
        "WORKER_CRASHED",
        "the request ended the process that ran it, by SIGSEGV; an operator does not withstand these arguments",
        {"signal": "SIGSEGV"},
    ),
    (
        statuses.worker_crashed(3),
        Code.INTERNAL,
        "WORKER_CRASHED",
        "the request ended the process that ran it, with exit code 3; an operator does not withstand these arguments",
        {"exit_code": "3"},
    ),
    (
        statuses.worker_crashed(-6, 12.4),
        Code.INTERNAL,
        "WORKER_CRASHED",
        "this request ended the processes that ran it, the last by SIGABRT, and is refused without being run for "
        "another 12 s",
        {"signal": "SIGABRT"},
    ),
    (
        statuses.shutting_down(),
        Code.UNAVAILABLE,
        "SHUTTING_DOWN",
        "the server is shutting down; call another one",
        {},
    ),
    (
        statuses.unauthenticated("none"),
        Code.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        'expected metadata "authorization: Bearer <token>" with one of the server\'s tokens, got none',
        {},
    ),
    (statuses.malformed("Stream", "why"), Code.INVALID_ARGUMENT, "MALFORMED_REQUEST", "why", {"method": "Stream"}),
]


@pytest.mark.parametrize(("failure", "code", "reason", "text", "metadata"), CASES)
def test_status(failure: Failure, code: Code, reason: str, text: str, metadata: dict[str, str]) -> None:
    """Each situation has its code, its reason, a message with expected and got, and the same values as metadata."""
    assert (code, code.value[0]) == (failure.code, failure.status.code)
    assert text == failure.status.message == str(failure)
    assert ("gradoracle.v1", reason, metadata) == (
        info(failure).domain,
        info(failure).reason,
        dict(info(failure).metadata),
    )
    assert dict(failure.metadata())["grpc-status-details-bin"] == failure.status.SerializeToString()


def test_overload_says_when_to_come_back() -> None:
    """Overload has RetryInfo and gRPC's own pushback, which agree."""
    failure = statuses.overloaded("cpu", "--max-queue", 4, 0.25)
    retry = error_details_pb2.RetryInfo()

    assert failure.status.details[1].Unpack(retry)
    assert 250 == retry.retry_delay.ToMilliseconds()
    assert "250" == dict(failure.metadata())["grpc-retry-pushback-ms"]


def test_unknown_reason_is_a_mistake() -> None:
    """A reason that the proto does not document cannot be sent."""
    with pytest.raises(ValueError, match="ERROR_REASON_NO_SUCH"):
        statuses._failure(Code.INTERNAL, "NO_SUCH", "text")


def test_internal_error_hides_what_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    """The caller sees an incident's id and nothing of the error; the log has both."""
    try:
        raise RuntimeError("the password is 12345")
    except RuntimeError as error:
        with caplog.at_level(logging.ERROR):
            failure = statuses.internal(error, "Evaluate")

    incident = info(failure).metadata["incident"]
    assert f"internal error, incident {incident}" == failure.status.message
    assert b"12345" not in failure.status.SerializeToString()
    assert f"incident {incident} in Evaluate" in caplog.text
    assert "the password is 12345" in caplog.text


def worker_status(message: str, *details: Any) -> Reply:
    """A worker's error."""
    status = status_pb2.Status(code=3, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Reply(3, status.SerializeToString())


def test_workers_errors_are_passed_on() -> None:
    """A worker's status arrives as it was made."""
    reply = worker_status("why", error_details_pb2.ErrorInfo(reason="CYCLE", metadata={"node": "a"}))

    failure = statuses.from_worker(reply)

    assert Code.INVALID_ARGUMENT is failure.code
    assert reply.payload == failure.status.SerializeToString()


@pytest.mark.parametrize("letter", ["x", "é", "\n"])
def test_long_errors_are_shortened(letter: str) -> None:
    """However long a worker's error is, message and details fit into what clients take of metadata (8 kB)."""
    long = letter * 100_000
    violation = error_details_pb2.BadRequest.FieldViolation(field="graph", description=long)
    many = {f"key {index}": long for index in range(100)}
    reply = worker_status(
        long,
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.ErrorInfo(reason="CYCLE", domain="gradoracle.v1", metadata=many),
    )

    failure = statuses.from_worker(reply)

    percent_encoded = sum(1 if " " <= character <= "~" else 3 * len(character.encode()) for character in str(failure))
    details = dict(failure.metadata())["grpc-status-details-bin"]
    assert percent_encoded + len(details) < 7500
    assert "CYCLE" == info(failure).reason
    assert failure.status.message.endswith("…")


@pytest.mark.parametrize("reply", [Reply(3, b"\xff\xff"), Reply(99, b""), Reply(-1, b"")])
def test_nonsense_from_a_worker_is_an_internal_error(reply: Reply) -> None:
    """A status that is none becomes INTERNAL, not an exception."""
    assert "INTERNAL" == info(statuses.from_worker(reply)).reason

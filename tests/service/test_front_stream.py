"""Stream: many calls by id, answered as they are ready, large tensors in chunks."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from front_server import Refusal, Server, command, connect, eventually, failing, pid_of, refusal_of, start
from google.rpc import status_pb2

from gradoracle.v1 import service_pb2, service_pb2_grpc

Stub = service_pb2_grpc.GradientServiceStub
Code = grpc.StatusCode
CHUNK = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two workers."""
    with start("--workers", "2", "--max-tensor-bytes", "40MiB", "--max-queue-bytes", "100MiB") as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def stub(server: Server) -> Iterator[Stub]:
    """A connection to it."""
    with connect(server) as stub:
        yield stub


def call(number: int, text: str = "echo", attachments: int = 0, **kwargs: Any) -> service_pb2.StreamRequest:
    """A message with one call."""
    message = service_pb2.StreamRequest()
    message.calls.add(id=number, attachments=attachments, evaluate=command(text, **kwargs))
    return message


def chunk(number: int, attachment: int, data: bytes) -> service_pb2.StreamRequest:
    """A message with one chunk."""
    message = service_pb2.StreamRequest()
    message.chunks.add(call_id=number, attachment=attachment, data=data)
    return message


def answers(stub: Stub, requests: Iterable[service_pb2.StreamRequest]) -> dict[int, service_pb2.StreamAnswer]:
    """All answers of a stream, by id."""
    found: dict[int, service_pb2.StreamAnswer] = {}
    for response in stub.Stream(iter(requests)):
        for answer in response.answers:
            assert answer.id not in found
            found[answer.id] = answer
    return found


def refusal(answer: service_pb2.StreamAnswer) -> Refusal:
    """The failure that an answer holds."""
    assert "status" == answer.WhichOneof("response")
    status = status_pb2.Status.FromString(answer.status)
    return refusal_of(status, {code.value[0]: code for code in Code}[status.code], {})


class Talk:
    """A stream that is spoken to step by step."""

    def __init__(self, stub: Stub, **kwargs: Any) -> None:
        self._requests: queue.Queue[service_pb2.StreamRequest | None] = queue.Queue()
        self.call = stub.Stream(iter(self._requests.get, None), **kwargs)

    def say(self, *messages: service_pb2.StreamRequest) -> None:
        for message in messages:
            self._requests.put(message)

    def finish(self) -> None:
        """Closes this side."""
        self._requests.put(None)

    def hear(self) -> service_pb2.StreamAnswer:
        """The next message's only answer."""
        (answer,) = next(self.call).answers
        return answer


def test_calls_are_answered_by_id(stub: Stub) -> None:
    """Every call gets its own answer, with timing, whatever their number and order."""
    found = answers(stub, (call(number, data=b"%d" % number) for number in range(500)))

    assert set(range(500)) == set(found)
    for number, answer in found.items():
        assert b"%d" % number == answer.evaluate.outputs[0].tensor.data
        assert 0.6 == answer.evaluate.timing.encode
        assert 0 < answer.evaluate.timing.queue


def test_answers_come_as_they_are_ready(stub: Stub, tmp_path: Path) -> None:
    """A quick call is answered before a slow one that was asked earlier."""
    talk = Talk(stub)
    talk.say(call(1, f"until {tmp_path / 'free'}"), call(2))

    assert 2 == talk.hear().id
    (tmp_path / "free").touch()
    assert 1 == talk.hear().id
    talk.finish()
    assert [] == list(talk.call)


def test_many_calls_in_one_message(stub: Stub) -> None:
    """A message may hold many calls; answers that are ready together share a message."""
    message = service_pb2.StreamRequest()
    for number in range(300):
        message.calls.add(id=number, evaluate=command())
    responses = list(stub.Stream(iter([message])))

    assert list(range(300)) == sorted(answer.id for response in responses for answer in response.answers)
    assert len(responses) < 300


def test_every_method(stub: Stub) -> None:
    """Any method may be called, and its answer is of its kind; the front's own too."""
    kinds = [field.name for field in service_pb2.StreamCall.DESCRIPTOR.oneofs[0].fields]
    requests = []
    for number, kind in enumerate(kinds):
        message = service_pb2.StreamRequest()
        getattr(message.calls.add(id=number), kind).SetInParent()
        requests.append(message)

    found = answers(stub, requests)

    assert kinds == [found[number].WhichOneof("response") for number in range(len(kinds))]
    assert 2 == found[kinds.index("describe_server")].describe_server.devices[0].workers


def test_attachments_come_in_chunks(stub: Stub) -> None:
    """Attachments are put together from their chunks, those of two calls interleaved, each at an aligned place."""
    parts = {number: [os.urandom(3_000_001), b"", os.urandom(17)] for number in (1, 2)}
    requests = []
    for index in range(3):
        for number in (1, 2):
            data = parts[number][index]
            pieces = [data[start : start + CHUNK] for start in range(0, max(1, len(data)), CHUNK)]
            requests += [chunk(number, index, piece) for piece in pieces]
    requests += [call(number, attachments=3) for number in (1, 2)]

    found = answers(stub, requests)

    for number in (1, 2):
        assert b"|".join(parts[number]) == found[number].evaluate.outputs[0].tensor.data


def test_chunks_may_stand_behind_their_call(stub: Stub) -> None:
    """In one message the order of calls and chunks does not matter."""
    message = call(1, attachments=1)
    message.chunks.add(call_id=1, data=b"abc")

    assert b"abc" == answers(stub, [message])[1].evaluate.outputs[0].tensor.data


def test_large_answers_come_in_chunks(stub: Stub) -> None:
    """Attachments of an answer come before it, in chunks of 1 MiB; smaller answers do not wait for all of them."""
    size = 20 * CHUNK + 5
    received: dict[int, dict[int, bytearray]] = {1: {}, 2: {}}
    order = []
    for response in stub.Stream(iter([call(1, f"attach {size}"), call(2, f"attach {size}"), call(3)])):
        for part in response.chunks:
            assert len(part.data) <= CHUNK
            assert part.call_id not in order
            received[part.call_id].setdefault(part.attachment, bytearray()).extend(part.data)
        for answer in response.answers:
            order.append(answer.id)
            assert answer.attachments == (0 if answer.id == 3 else 2)

    assert {1, 2, 3} == set(order)
    for number in (1, 2):
        assert {0: b"a" * size, 1: b"bbb"} == received[number]


def test_error_of_one_call_is_its_answer(stub: Stub, tmp_path: Path) -> None:
    """A call that fails gets a status; the calls beside it and the stream go on."""
    requests = [
        call(1, "signal SIGSEGV"),
        call(2, device="cuda:5"),
        call(3, "refuse 3"),
        call(4, f"kill-once {tmp_path / 'mark'}"),
        service_pb2.StreamRequest(calls=[service_pb2.StreamCall(id=5)]),
        call(6, attachments=1),
        call(7),
    ]

    found = answers(stub, requests)

    assert {"signal": "SIGSEGV"} == refusal(found[1]).metadata
    assert "DEVICE_UNAVAILABLE" == refusal(found[2]).reason
    assert Code.INVALID_ARGUMENT is refusal(found[3]).code
    assert found[4].evaluate.outputs
    assert "calls: expected a request in call 5, got none" == refusal(found[5]).message
    assert "calls: expected 1 attachments before call 6, got 0" == refusal(found[6]).message
    assert "MALFORMED_REQUEST" == refusal(found[6]).reason
    assert found[7].evaluate.outputs


def test_attachments_out_of_order_are_refused(stub: Stub) -> None:
    """Attachments come one after another; a gap is the call's fault, and what still comes of it is dropped."""
    found = answers(stub, [chunk(1, 0, b"a"), chunk(1, 2, b"b"), chunk(1, 1, b"c"), call(1, attachments=3), call(2)])

    assert "chunks: expected attachment 0 or 1 of call 1, got 2" == refusal(found[1]).message
    assert found[2].evaluate.outputs


@pytest.mark.parametrize(
    ("attachments", "limit", "allowed", "what"),
    [
        ([41 * CHUNK], "--max-tensor-bytes", 40 * CHUNK, "attachment 0 of call 1"),
        ([39 * CHUNK] * 3, "--max-queue-bytes", 100 * CHUNK, "the attachments of call 1"),
    ],
)
def test_attachments_are_bounded(stub: Stub, attachments: list[int], limit: str, allowed: int, what: str) -> None:
    """Attachments over a limit are refused as they come, naming limit, allowed and asked; the stream goes on."""
    piece = bytes(CHUNK)
    requests = (chunk(1, index, piece) for index, size in enumerate(attachments) for _ in range(size // CHUNK))

    def all_requests() -> Iterator[service_pb2.StreamRequest]:
        yield from requests
        yield call(1, attachments=len(attachments))
        yield call(2)

    found = answers(stub, all_requests())

    refused = refusal(found[1])
    assert (Code.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED") == (refused.code, refused.reason)
    assert {"limit": limit, "allowed": str(allowed), "asked": str(allowed + CHUNK)} == refused.metadata
    assert f"{what}: expected at most {allowed} bytes ({limit}), got {allowed + CHUNK}" == refused.message
    assert found[2].evaluate.outputs


def test_attachments_of_streams_together_are_bounded(stub: Stub) -> None:
    """What streams that are open hold counts for each other: overload, to be tried again, not a fault of the call's."""
    holder = Talk(stub)
    holder.say(*(chunk(1, index, bytes(CHUNK)) for index in range(70)), call(2))
    assert holder.hear().evaluate.outputs

    refused = refusal(answers(stub, [*(chunk(1, i, bytes(CHUNK)) for i in range(40)), call(1, attachments=40)])[1])

    assert (Code.RESOURCE_EXHAUSTED, "OVERLOADED") == (refused.code, refused.reason)
    holder.call.cancel()
    eventually(
        lambda: answers(stub, [*(chunk(1, i, bytes(CHUNK)) for i in range(40)), call(1, attachments=40)])[1].HasField(
            "evaluate"
        )
    )


def test_id_in_use_ends_the_stream(stub: Stub) -> None:
    """An id that is not yet answered cannot be used again: whose answer is whose could not be told."""
    refused = failing(lambda: answers(stub, [call(1, "sleep 60"), call(1)]))

    assert (Code.INVALID_ARGUMENT, "MALFORMED_REQUEST") == (refused.code, refused.reason)
    assert "calls: expected an id that is not in use, got 1, whose call is not yet answered" == refused.message


def test_nonsense_ends_the_stream(server: Server) -> None:
    """Bytes that are no StreamRequest end the stream with a status."""
    with grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_stream("/gradoracle.v1.GradientService/Stream")

        refused = failing(lambda: list(stream(iter([b"\x0a\xff"]))))

    assert (Code.INVALID_ARGUMENT, {"method": "Stream"}) == (refused.code, refused.metadata)
    assert refused.message.startswith("the message's bytes are no StreamRequest: ")


def memory_files(server: Server) -> int:
    """The memory files that the front holds."""
    count = 0
    for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += "memfd:" in str(file.readlink())
    return count


def test_cancelled_stream_stops_its_calls(server: Server, stub: Stub) -> None:
    """When the stream breaks, what ran for it is ended, what waited is dropped, and memory is given back."""
    eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="idle"}') == 2)
    eventually(lambda: memory_files(server) == 0)  # one may be ready for a while, after a large upload
    talk = Talk(stub)
    for number in range(6):
        talk.say(chunk(number, 0, b"x"), call(number, "sleep 60", attachments=1))
    talk.say(chunk(100, 0, b"never called"))
    eventually(lambda: server.metric('gradoracle_queue_depth{device="cpu"}') == 4)
    assert 7 == memory_files(server)

    talk.call.cancel()

    eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 0)
    eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="idle"}') == 2)
    eventually(lambda: memory_files(server) == 0)
    assert stub.Evaluate(command()).outputs


def test_a_cancelled_call_stops_and_is_not_answered(server: Server, stub: Stub, tmp_path: Path) -> None:
    """Others of its stream go on; its id may be used again, and ids that nobody has do nothing."""
    talk = Talk(stub)
    talk.say(call(1, f"until {tmp_path / 'never'}"), call(2, f"until {tmp_path / 'free'}"))
    eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 2)
    talk.say(service_pb2.StreamRequest(cancelled=[1, 77]))
    talk.say(call(3))
    assert 3 == talk.hear().id  # the worker of call 1 was stopped, and another serves
    talk.say(call(1))
    assert 1 == talk.hear().id
    (tmp_path / "free").touch()
    assert 2 == talk.hear().id
    talk.finish()
    assert [] == list(talk.call)


def test_a_call_has_a_timeout_of_its_own(stub: Stub) -> None:
    """It is answered with DEADLINE_EXCEEDED when it has passed; others of its stream are not concerned."""
    late, free, never, wrong = call(1, "sleep 60"), call(2), call(3), call(4)
    late.calls[0].timeout_seconds = 0.2
    free.calls[0].timeout_seconds = float("inf")
    never.calls[0].timeout_seconds = 1e300
    wrong.calls[0].timeout_seconds = -1
    found = answers(stub, [late, free, never, wrong])

    late_one = refusal(found[1])
    assert (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED") == (late_one.code, late_one.reason)
    assert ["evaluate", "evaluate"] == [found[place].WhichOneof("response") for place in (2, 3)]
    assert refusal(found[4]).message == "calls.timeout_seconds: expected 0 or more in call 4, got -1"


def test_half_close_waits_for_answers(stub: Stub) -> None:
    """A client that has said all still gets every answer."""
    talk = Talk(stub)
    talk.say(call(1, "sleep 0.5"))
    talk.finish()

    assert [1] == [answer.id for response in talk.call for answer in response.answers]


def test_stream_ends_with_its_deadline(stub: Stub) -> None:
    """The stream's deadline is its calls' deadline: gRPC ends the stream, or the call is answered just before that."""
    try:
        found = answers(stub, [])
        for response in stub.Stream(iter([call(1, "sleep 60")]), timeout=0.3):
            found |= {answer.id: answer for answer in response.answers}
        code = refusal(found[1]).code
    except grpc.RpcError as error:
        code = error.code()

    assert Code.DEADLINE_EXCEEDED is code


def test_reading_stops_while_too_much_is_unanswered(server: Server, stub: Stub) -> None:
    """A client that sends and sends is held up, not buffered without end: with 1024 unanswered, no more is read."""
    sent, small = 0, 200  # the first ones tell that the answers are not large

    def endless() -> Iterator[service_pb2.StreamRequest]:
        nonlocal sent
        while sent < 100_000:
            sent += 1
            yield call(sent, "sleep 60", data=bytes(10_000)) if sent > small else call(sent)

    stream = stub.Stream(endless())
    eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') >= 1000)
    reached: list[int] = []

    def stands_still() -> bool:
        reached.append(sent)
        threading.Event().wait(0.3)
        return len(reached) > 1 and reached[-1] == reached[-2]

    eventually(stands_still)
    assert sent < 20_000
    assert server.metric('gradoracle_requests_in_flight{device="cpu"}') <= 1024
    stream.cancel()
    eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 0)


def test_slow_reader_does_not_stop_others(server: Server, stub: Stub) -> None:
    """A client that reads no answers holds up its own stream alone."""
    slow = Talk(stub)
    slow.say(*(call(number, f"attach {8 * CHUNK}") for number in range(20)))

    with connect(server) as other:
        assert [pid_of(other.Evaluate(command())) for _ in range(100)]
    slow.call.cancel()


def test_streams_that_are_open_obey_sighup(tmp_path: Path) -> None:
    """Calls of a token that is taken away are refused over a stream that it opened, too; what runs by then finishes."""
    path, free = tmp_path / "tokens", tmp_path / "free"
    path.write_text("first\nsecond\n")
    flags = ("--workers", "1", "--token-file", str(path), "--max-queue-bytes", "1MiB")
    with start(*flags) as server, connect(server) as stub:
        talks = {token: Talk(stub, metadata=[("authorization", f"Bearer {token}")]) for token in ("first", "second")}
        for talk in talks.values():
            talk.say(call(1))
            assert "evaluate" == talk.hear().WhichOneof("response")
        talks["first"].say(call(2, f"until {free}"), chunk(3, 0, bytes(1000_000)))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)

        path.write_text("second")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "Tokens: read again" in server.log)

        refused = (
            'expected metadata "authorization: Bearer <token>" with one of the server\'s tokens, got an unknown token'
        )
        talks["first"].say(call(3, attachments=1), chunk(4, 0, bytes(1000_000)), call(4, attachments=1), call(5))
        for number in (3, 4, 5):
            answer = talks["first"].hear()
            found = refusal(answer)
            assert (number, Code.UNAUTHENTICATED, refused) == (answer.id, found.code, found.message)
        talks["second"].say(chunk(2, 0, bytes(1000_000)))  # what the refused ones held was given back
        talks["second"].say(call(2, attachments=1))
        free.touch()
        assert "evaluate" == talks["second"].hear().WhichOneof("response")
        answer = talks["first"].hear()
        assert (2, "evaluate") == (answer.id, answer.WhichOneof("response"))
        for talk in talks.values():
            talk.finish()
            assert [] == list(talk.call)

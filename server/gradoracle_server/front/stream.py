"""The bidirectional Stream: many calls by id, answered as they are ready, large tensors in chunks.

One task reads, one writes (stream_answers.py); a call costs no task of its own. What a stream may have unanswered is
bounded by not reading on, so a client that sends faster than its calls are served, or reads no answers, is held up by
gRPC's flow control, or that of whatever else the calls come over. What the answers of all streams may take together is
told in unread.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING

import grpc

from gradoracle_server import wire_format
from gradoracle_server.frames import METHODS
from gradoracle_server.front import statuses, stream_wire, wire
from gradoracle_server.front.admission import Outcome, Ticket
from gradoracle_server.front.auth import Tokens
from gradoracle_server.front.pool import Lane
from gradoracle_server.front.service import Connection, Immediate, Service, gone
from gradoracle_server.front.stream_answers import Answers
from gradoracle_server.front.stream_wire import Answer, Call, Chunk
from gradoracle_server.front.unread import Share, Unread
from gradoracle_server.front.uploads import Budget, Upload

if TYPE_CHECKING:
    from gradoracle_server.front.tracing import StreamTrace

CALLS_AT_MOST = 1024
"""Unanswered calls of one stream, above which it is not read on."""

BYTES_AT_MOST = 256 * 1024 * 1024
"""Bytes of unanswered requests and unsent answers of one stream, above which it is not read on."""

_SMALL = 4096  # bytes of a request that is quicker to copy than to view
_FIELDS_AT_ONCE = 256  # calls and chunks of one message before others have a go


class Stream:
    """One stream: its calls, whatever they come over."""

    def __init__(
        self,
        service: Service,
        budget: Budget,
        unread: Unread,
        connection: Connection,
        trace: StreamTrace | None,
        tokens: Tokens | None = None,
        immediate: Immediate | None = None,
    ) -> None:
        """`immediate` is the connection once more, where it is one."""
        self._service = service
        if immediate is not None:
            immediate.on_message = self._take_at_once
        self._trace = trace
        self._budget = budget
        self._connection = connection
        self._tokens = tokens
        self._problem = ""  # with the caller's credentials
        self._share = Share(unread)
        self._taking = False  # whether a message is being taken apart
        self._uploads: dict[int, Upload] = {}  # by call, which has not come yet
        self._calls: dict[int, tuple[Lane, Ticket, Upload | None]] = {}  # by id, not yet answered
        self._held = 0  # bytes of their requests
        self._reader: asyncio.Task[None] | None = None
        self._drained = False
        self._room = asyncio.Event()  # for the reader: something was sent
        self._lane: Lane | None = None  # whose worker has given the last answer
        self._answers = Answers(connection, self._share, self._calls, self._worker_may_wait, self._room.set, immediate)

    async def run(self) -> None:
        """Serves the stream to its end. Raises Failure where that is not the client's regular end."""
        self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._answers.send())
        try:
            await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer  # it failed: it does not end before the reader otherwise
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._answers.end()
            await writer
            if self._drained:
                raise statuses.shutting_down()
        finally:
            self._reader.cancel()
            writer.cancel()
            self._give_back()
            await asyncio.wait({self._reader, writer})  # a call that the reader has just begun ends with it

    @property
    def is_idle(self) -> bool:
        """Whether all that came is answered, and all answers are sent."""
        return self._share.is_empty and not self._taking

    def check_credentials(self) -> None:
        """Looks whether the caller's credentials are good for the calls from now on. Those that have begun finish."""
        if self._tokens is None:
            return
        self._problem = self._tokens.problem(self._connection.invocation_metadata())
        if self._problem:
            for upload in self._uploads.values():
                upload.fail(statuses.unauthenticated(self._problem))

    def drain(self) -> None:
        """Reads no more calls."""
        if self._reader is not None and not self._reader.done():
            self._drained = True
            self._reader.cancel()

    def _give_back(self) -> None:
        """Nobody waits for anything of this stream any more."""
        self._answers.close()
        reason = "deadline" if gone(self._connection) is grpc.StatusCode.DEADLINE_EXCEEDED else "cancelled"
        for lane, ticket, _ in list(self._calls.values()):
            lane.abandon(ticket, reason)  # its done callback gives the rest back
        for upload in self._uploads.values():
            upload.close()
        self._share.close()

    async def _read(self) -> None:
        while True:
            while self._is_full():
                await self._sent()
            message = await self._connection.read()
            if message is grpc.aio.EOF:
                return
            self._taking = True
            try:
                await self._take(memoryview(message))
            except wire_format.MalformedError as error:
                text = f"the message's bytes are no StreamRequest: {error}"
                raise statuses.malformed("Stream", text) from None
            self._taking = False

    def _is_full(self) -> bool:
        unanswered = len(self._calls) + self._answers.count
        return unanswered >= CALLS_AT_MOST or self._held + self._answers.held >= BYTES_AT_MOST or self._share.is_full

    async def _sent(self) -> None:
        """Waits until answers have left."""
        self._room.clear()
        await self._room.wait()

    async def _take(self, message: memoryview) -> None:
        calls = []
        for count, part in enumerate(stream_wire.split(message), 1):
            if isinstance(part, Call):
                calls.append(part)
            elif isinstance(part, Chunk):
                self._add(part.call_id, part.attachment, part.data)
            else:
                self._cancel(part.ids)
            if count % _FIELDS_AT_ONCE == 0:
                await asyncio.sleep(0)
        # A call's chunks may stand behind it in the same message.
        for count, call in enumerate(calls, 1):
            while self._share.is_full:
                await self._sent()
            await self._start(call)
            if count % _FIELDS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _take_at_once(self, message: bytes) -> bool:
        """Begins with a lone call, while the reader waits for one; False where anything is left for that to look at."""
        if self._calls or self._uploads or len(message) > _SMALL or self._is_full():
            return False
        call = stream_wire.lone_call(message)
        if call is None or not wire.names_no_device(call.request):
            return False
        arrived, upload = self._begun(call)
        self._start_on("", call, upload, arrived)
        return True

    def _cancel(self, ids: list[int]) -> None:
        """Nobody waits for these calls any more."""
        for call_id in ids:
            if call_id in self._calls:
                lane, ticket, _ = self._calls[call_id]
                lane.abandon(ticket, "cancelled")  # its done callback gives the rest back
            elif (upload := self._uploads.pop(call_id, None)) is not None:
                upload.close()

    def _add(self, call_id: int, attachment: int, data: memoryview) -> None:
        upload = self._uploads.get(call_id)
        if upload is None:
            if len(self._uploads) >= CALLS_AT_MOST:
                text = f"chunks: expected attachments of at most {CALLS_AT_MOST} calls that have not come, got more"
                raise statuses.malformed("Stream", text)
            upload = self._uploads[call_id] = Upload(self._budget, call_id)
            if self._problem:
                upload.fail(statuses.unauthenticated(self._problem))
        upload.add(attachment, data)

    def _upload_of(self, call_id: int) -> Upload | None:
        """What has come of a call before itself. Raises Failure where another has its id."""
        upload = self._uploads.pop(call_id, None)
        if call_id in self._calls:
            if upload is not None:
                upload.close()
            text = f"calls: expected an id that is not in use, got {call_id}, whose call is not yet answered"
            raise statuses.malformed("Stream", text)
        return upload

    async def _start(self, call: Call) -> None:
        if len(call.request) <= _SMALL:
            call.request = bytes(call.request)  # so that it does not keep the others in its message, and is quicker
        arrived, upload = self._begun(call)
        device = ""
        if not wire.names_no_device(call.request):
            try:
                device = await self._service.device(call.request)
            except asyncio.CancelledError:  # the stream ended, or is drained
                if upload is not None:
                    upload.close()
                if call.method is not None:
                    self._ended_with(call.method, arrived, gone(self._connection))
                raise
        self._start_on(device, call, upload, arrived)

    def _begun(self, call: Call) -> tuple[float, Upload | None]:
        """Takes note of a call that has come: when, and what came of it before."""
        arrived = time.perf_counter()
        upload = self._upload_of(call.id)
        if call.method is not None:
            self._service.metrics.calls[_name(call.method)].started += 1
        return arrived, upload

    def _start_on(self, device: str, call: Call, upload: Upload | None, arrived: float) -> None:
        try:
            self._check(call, upload)
            if call.method == stream_wire.DESCRIBE_SERVER:
                if upload is not None:
                    upload.close()
                self._answers.add(Answer(call.id, stream_wire.field_of(call.method), [self._service.describe()]))
                self._ended_with(call.method, arrived, grpc.StatusCode.OK)
                return
            self._admit(device, call, upload, arrived)
        except Exception as error:
            if upload is not None:
                upload.close()
            failure = self._refuse(call.id, error)
            if call.method is not None:
                self._ended_with(call.method, arrived, failure.code, failure=failure)

    def _check(self, call: Call, upload: Upload | None) -> None:
        """Raises Failure where a call is not let in, or does not follow the protocol."""
        if self._problem:
            raise statuses.unauthenticated(self._problem)
        if upload is not None and upload.failure is not None:
            known = call.method is not None and upload.failure_of(call.request, _name(call.method), call.attachments)
            raise known or upload.failure
        if call.method is None:
            raise statuses.malformed("Stream", f"calls: expected a request in call {call.id}, got none")
        if not call.timeout >= 0:
            text = f"calls.timeout_seconds: expected 0 or more in call {call.id}, got {call.timeout:g}"
            raise statuses.malformed("Stream", text)
        came = 0 if upload is None else len(upload.spans)
        if came != call.attachments:
            text = f"calls: expected {call.attachments} attachments before call {call.id}, got {came}"
            raise statuses.malformed("Stream", text)

    def _admit(self, device: str, call: Call, upload: Upload | None, arrived: float) -> None:
        assert call.method is not None  # noqa: S101 - checked
        attachments = None if upload is None else upload.attachments()
        outcome = Outcome()
        try:
            lane, ticket = self._service.admit(
                call.method,
                call.request,
                device,
                self._connection,
                arrived,
                outcome,
                attachments,
                attachments_welcome=True,
                timeout=call.timeout,
            )
        except BaseException:
            if attachments is not None:
                attachments.close()
            raise
        self._calls[call.id] = lane, ticket, upload
        self._held += ticket.size
        self._share.begin()
        outcome.add_done_callback(functools.partial(self._finished, call.id, call.method))

    def _finished(self, call_id: int, method: int, outcome: Outcome) -> None:
        """A call has an answer, or nobody waits for one any more. What it is answered is sent before it is noted."""
        lane, ticket, upload = self._calls.pop(call_id)
        self._lane = lane
        self._held -= ticket.size
        self._share.end()
        code, failure = grpc.StatusCode.OK, None
        if outcome.cancelled():
            code = grpc.StatusCode.CANCELLED
        else:
            try:
                reply = outcome.result()
                parts = self._service.response(ticket, reply)
                self._answers.add(Answer(call_id, stream_wire.field_of(method), parts, reply.attachments))
            except Exception as error:
                failure = self._refuse(call_id, error)
                code = failure.code
            if outcome.exception() is None:
                self._service.note(lane, ticket, outcome.result())
        if ticket.job.attachments is not None:
            ticket.job.attachments.close()
        if upload is not None:
            upload.close(answered=not outcome.cancelled() and outcome.exception() is None)
        self._ended_with(method, ticket.arrived, code, lane, ticket, failure)

    def _ended_with(
        self,
        method: int,
        arrived: float,
        code: grpc.StatusCode,
        lane: Lane | None = None,
        ticket: Ticket | None = None,
        failure: statuses.Failure | None = None,
    ) -> None:
        """Takes note of a call that is over."""
        self._service.metrics.calls[_name(method)].finished(code, time.perf_counter() - arrived)
        if self._trace is not None:
            self._trace.call(_name(method), arrived, code, lane, ticket, failure)

    def _refuse(self, call_id: int, error: Exception) -> statuses.Failure:
        """Answers a call with why it is not served."""
        failure = error if isinstance(error, statuses.Failure) else statuses.internal(error, "Stream")
        failure.let_go()
        self._answers.add(Answer(call_id, stream_wire.STATUS_FIELD, [failure.status.SerializeToString()]))
        return failure

    def _worker_may_wait(self) -> bool:
        """Whether fewer calls wait than there are workers: one of those may have to wait for what the client sends."""
        return self._lane is None or self._lane.queue.depth < self._lane.size


def _name(method: int) -> str:
    return "DescribeServer" if method == stream_wire.DESCRIBE_SERVER else METHODS[method]

"""Marked tests: each makes its cases in its turn, they are judged over one stream, and are reported as verdicts come.

A test runs whole: setup, its function, teardown. What it returned is sent, and its reports wait for the verdicts, while
the next test runs. A wrong gradient then replaces the report of the call. Reports are handed on in the order of the
tests; a run of marked tests is one stream, at whose end everything is waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import queue
import threading
import unittest
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from _pytest.runner import runtestprotocol  # what plugins that hold reports back use; pytest exports no other way

from gradoracle.pytest_plugin import asking
from gradoracle.pytest_plugin.session import Session

if TYPE_CHECKING:
    from gradoracle.checks import CheckReport
    from gradoracle.client import Client
    from gradoracle.requests import Request

WINDOW = 32
"""Requests that are on their way at a time."""

_RETURNED = pytest.StashKey[Any]()
_PREPARED = pytest.StashKey[list[Any]]()


class WrongGradientError(AssertionError):
    """A verdict that is no PASS."""

    __module__ = "builtins"  # as pytest's own outcomes have it: the short summary shows the name alone


# ---- In the test's turn


def check_usable(item: pytest.Function) -> None:
    """Raises UsageError for a marked test whose result pytest does not let through."""
    what = None
    if item.cls is not None and issubclass(item.cls, unittest.TestCase):
        what = "a method of unittest.TestCase"
    elif inspect.iscoroutinefunction(item.obj) or inspect.isasyncgenfunction(item.obj):
        what = "a coroutine"
    if what:
        raise pytest.UsageError(
            f"{item.nodeid}: expected a function that returns its cases under gradoracle_cases, got {what}; "
            "call assert_gradients in it instead"
        )


@contextlib.contextmanager
def kept(item: pytest.Function) -> Iterator[None]:
    """Keeps what the test's function returns."""
    function = item.obj

    @functools.wraps(function)
    def keeping(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        item.stash[_RETURNED] = function(*args, **kwargs)

    item.obj = keeping
    try:
        yield
    finally:
        item.obj = function


def prepare(item: pytest.Function) -> None:
    """Turns what the test returned into requests. Fails where it returned no cases."""
    returned = item.stash[_RETURNED]
    del item.stash[_RETURNED]
    cases = returned if isinstance(returned, list | tuple) else [returned]
    item.stash[_PREPARED] = [_request(item, one) for one in cases] or _refuse(item, "an empty list")


def _request(item: pytest.Function, found: Any) -> Request[CheckReport] | CheckReport:
    from gradoracle.requests import Request

    if isinstance(found, asking.Case):
        return found.request()
    if isinstance(found, Request) and found.method.name == "check":
        return dataclasses.replace(found)
    return _refuse(item, repr(found) if found is None or isinstance(found, Request) else type(found).__name__)


def _refuse(item: pytest.Function, got: str) -> NoReturn:
    pytest.fail(
        f"{item.name} is marked gradoracle_cases: expected it to return gradoracle.pytest_plugin.case(graph, *inputs), "
        f'gradoracle.request("check", …), or a list of such, got {got}',
        pytrace=False,
    )


# ---- Afterwards


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """A case whose answer is to come."""

    tag: int


@dataclasses.dataclass(slots=True)
class Waiting:
    """A test that ran."""

    item: pytest.Item
    reports: list[pytest.TestReport]
    cases: list[Any]
    """For each of its cases: Sent, or a CheckReport or an exception that is there already."""


class Streamed:
    """The marked tests of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stream: Stream | None = None
        self._waiting: deque[Waiting] = deque()

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, *, is_last: bool) -> None:
        """Runs a test; reports those whose turn and verdicts have come, all of them if it is the last of its run."""
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        cases = [self._sent(one) for one in item.stash.get(_PREPARED, [])]
        self._waiting.append(Waiting(item, reports, cases))
        if is_last and self._stream is not None:
            self._stream.end()
        while self._waiting and (is_last or self._is_ready(self._waiting[0])):
            self._report(self._waiting.popleft())
        if is_last:
            self._stream = None

    def abandon(self) -> None:
        """Ends the stream; tests whose verdicts are not there are not reported, as those that did not run are not."""
        self._waiting.clear()
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None

    def _sent(self, request: Any) -> Any:
        from gradoracle.checks import CheckReport

        if isinstance(request, CheckReport):
            return request
        try:
            if self._stream is None:
                self._stream = Stream(self._session.client)
        except (Exception, pytest.UsageError) as error:
            return error  # a private server that does not start
        return Sent(self._stream.send(request))

    def _is_ready(self, one: Waiting) -> bool:
        return all(self._stream is None or self._stream.has(case.tag) for case in one.cases if isinstance(case, Sent))

    def _report(self, one: Waiting) -> None:
        found = [self._stream.take(case.tag) if self._stream and isinstance(case, Sent) else case for case in one.cases]
        hook, nodeid, location = one.item.ihook, one.item.nodeid, one.item.location
        hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for report in one.reports:
            judged = _judged(one.item, report, found) if report.when == "call" else report
            hook.pytest_runtest_logreport(report=judged)
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)


def _judged(item: pytest.Item, report: pytest.TestReport, found: list[Any]) -> pytest.TestReport:
    """The report of the call, with the verdicts: another in its place if one of them is not good."""
    marker = item.get_closest_marker("gradoracle_cases")
    allowed = bool(marker is not None and marker.kwargs.get("allow_inconclusive", False))
    failures = [one for one in found if isinstance(one, BaseException)]
    texts = []
    for number, one in enumerate(found, 1):
        text = "" if isinstance(one, BaseException) else asking.complaint(one, allow_inconclusive=allowed)
        if text:
            texts.append(text if len(found) == 1 else f"case {number} of {len(found)}: {text}")

    def fail() -> None:
        raise failures[0] if failures else WrongGradientError("\n\n".join(texts))

    if not failures and not texts:
        return report
    call = pytest.CallInfo.from_call(fail, when="call")
    judged: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if judged.failed and call.excinfo is not None:
        shown = call.excinfo.getrepr(style="value")  # no traceback: the test has ended
        if failures:
            shown.reprtraceback.reprentries[0].lines = call.excinfo.exconly().splitlines()  # its class, too
        judged.longrepr = shown
    judged.duration = report.duration
    judged.start, judged.stop = report.start, report.stop
    return judged


class Stream:
    """One stream of Client.map, driven by a thread of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._requests: queue.Queue[Request[CheckReport] | None] = queue.Queue(maxsize=WINDOW)
        self._answers: dict[object, Any] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._has_ended = False
        self._count = 0
        threading.Thread(target=self._run, name="gradoracle cases", daemon=True).start()

    def send(self, request: Request[CheckReport]) -> int:
        """Sends a request, once there is room for it. Gives its tag."""
        self._count += 1
        request.tag = self._count
        self._put(request)
        return self._count

    def end(self) -> None:
        """There will be no more requests."""
        self._put(None)

    def abandon(self) -> None:
        """Nobody waits for the answers any more. Where this cannot be said at once, closing the client says it."""
        with contextlib.suppress(queue.Full):
            self._requests.put_nowait(None)

    def has(self, tag: int) -> bool:
        """Whether that answer is there, or will never be."""
        with self._changed:
            return self._has_ended or tag in self._answers

    def take(self, tag: int) -> Any:
        """The answer, a CheckReport or an exception; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or tag in self._answers)
            return self._answers.pop(tag, self._failure)

    def _put(self, request: Request[CheckReport] | None) -> None:
        while not self._has_ended:
            with contextlib.suppress(queue.Full):
                self._requests.put(request, timeout=0.1)
                return

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            asked = iter(self._requests.get, None)
            for answer in self._client.map(asked, window=WINDOW, ordered=False, return_exceptions=True):
                with self._changed:
                    self._answers[answer.tag] = answer
                    self._changed.notify_all()
        except BaseException as error:
            failure = error
        with self._changed:
            self._failure = failure or RuntimeError("the stream ended without an answer to this case")
            self._has_ended = True
            self._changed.notify_all()

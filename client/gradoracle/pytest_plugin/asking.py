"""Cases of tests: judged at once, or turned into requests of a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import gradoracle
from gradoracle import requests
from gradoracle.checks import CheckReport
from gradoracle.client import Client
from gradoracle.graph import Graph
from gradoracle.requests import Request


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A function or graph at a point, and perhaps gradients that are claimed: the arguments of `gradoracle.check`."""

    fn: Any
    inputs: tuple[Any, ...]
    claimed: Any = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def judged_by(self, client: Client) -> CheckReport:
        """The report of that client's server, or of this process where only that can run the function."""
        __tracebackhide__ = True
        return gradoracle.check(self.fn, *self._positional(), claimed=self.claimed, client=client, **self.options)

    def request(self) -> Request[CheckReport] | CheckReport:
        """What to ask a server; or the report itself, where only this process can run the function."""
        try:
            return self.judged_by(_Recorder())
        except _Asked as asked:
            return asked.request

    def _positional(self) -> tuple[Any, ...]:
        """The inputs in the order of the graph's; `gradoracle.check` says what is wrong with them."""
        is_graph = isinstance(self.fn, str | Graph)
        if not (is_graph and len(self.inputs) == 1 and isinstance(self.inputs[0], Mapping)):
            return self.inputs
        (given,) = self.inputs
        names = requests.graph_of(self.fn).inputs
        if set(names) != set(given):
            listed = ", ".join(f'"{name}"' for name in names) or "none"
            got = ", ".join(f'"{name}"' for name in given) or "none"
            raise gradoracle.InvalidRequestError(f"inputs: expected {listed}, got {got}", reason="INPUT_MISMATCH")
        return tuple(given[name] for name in names)


class _Asked(BaseException):  # not an Exception, lest somebody on the way catches it
    """The request that would have been sent."""

    def __init__(self, request: Request[CheckReport]) -> None:
        self.request = request


class _Recorder(Client):
    """A client of no server, which keeps what it is asked for."""

    def __init__(self) -> None:
        pass

    def check(self, graph: Graph | str, primals: Any, *, timeout: float | None = None, **options: Any) -> NoReturn:
        """Raises _Asked."""
        if timeout is not None:
            raise ValueError(f"timeout: expected none for a case of a stream, which is one call, got {timeout:g}")
        raise _Asked(requests.request("check", graph, primals, **options))


def complaint(report: CheckReport, *, allow_inconclusive: bool) -> str:
    """Why a test with this report fails; "" where it does not."""
    if report.passed or (allow_inconclusive and not report.wrong):
        return ""
    from gradoracle.batch import report_text

    return f"{report_text.sentence(report)}\n{report.render()}"

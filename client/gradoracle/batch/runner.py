"""Runs a file of cases: each becomes a request, and its answer, or what was wrong with it, a result."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

from gradoracle.batch.array_files import ArrayFiles
from gradoracle.batch.arrays import CaseError
from gradoracle.batch.case_files import CaseFile, Entry
from gradoracle.batch.cases import Case, Requests
from gradoracle.batch.packing import Kind, Packer, kind_of, packed, unpacked
from gradoracle.batch.record_json import heat
from gradoracle.batch.records import GROUPS, Fault, Record, graph_record, tensor_record
from gradoracle.batch.results import ResultsFile
from gradoracle.batch.sending import Parcel, Sender
from gradoracle.batch.shards import Plan
from gradoracle.batch.tally import Tally
from gradoracle.batch.text import one_line, sentences
from gradoracle.check_text import NOTHING
from gradoracle.checks import CheckReport
from gradoracle.client import Client
from gradoracle.errors import GradOracleError
from gradoracle.requests import Request
from gradoracle.results import Inspection, Result

WINDOW = 64
"""Requests under way, unless told otherwise."""
PACK = 32
"""Cases of one request, unless told otherwise."""
KEEP = 1000
"""Elements of a tensor that a result holds, unless told otherwise."""
PATIENCE = 300.0
"""Seconds for which a server may be away, unless told otherwise."""

_YOUNG = 100_000  # objects, which are made and not given back, between two looks for garbage

REMARKS = 20
"""Records that are told in words at the end of a run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run goes about it."""

    window: int = WINDOW
    pack: int = PACK
    keep: int = KEEP
    patience: float = PATIENCE
    timeout: float | None = None
    fail_fast: bool = False


class Run:
    """One run over a file of cases.

    `added` is called with each record when it has been written, `notice` with sentences for people.
    """

    def __init__(
        self,
        file: CaseFile,
        plan: Plan,
        results: ResultsFile,
        settings: Settings,
        *,
        files: ArrayFiles | None = None,
        added: Callable[[Record], None] = lambda _: None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._plan = plan
        self._results = results
        self._settings = settings
        self._requests = Requests(files or ArrayFiles(file.base))
        self._added = added
        self._notice = notice
        self._stopped = False
        self.tally = Tally()
        """Of the records that this run added."""
        self.remarks: list[str] = []
        """One line for each of the first records that are not good."""

    def run(self, client: Client) -> None:
        """Runs to the end. What is interrupted has written every record that was added."""
        settings = self._settings
        sender = Sender(
            client,
            window=settings.window,
            patience=settings.patience,
            timeout=settings.timeout,
            notice=self._notice,
        )
        with _seldom_collected():
            self._run(sender)

    def _run(self, sender: Sender) -> None:
        for parcel, result in sender.run(self._parcels()):
            if parcel.kind is not None and isinstance(result, GradOracleError):
                self._take_apart(parcel, sender)
                continue
            parts = [result] if parcel.kind is None else unpacked(result, len(parcel.cases))
            for case, one in zip(parcel.cases, parts, strict=True):
                self._add(self._record(case, parcel, one))
            if self._stopped:
                sender.stop()

    def _parcels(self) -> Iterator[Parcel]:
        for kind, items in Packer(self._settings.pack).packs(self._made()):
            if self._stopped:
                return
            cases, parts = [case for case, _ in items], [part for _, part in items]
            if kind is None or len(items) == 1:
                yield from (Parcel([case], part) for case, part in items)
            else:
                yield Parcel(cases, packed(kind, parts), kind, parts)

    def _made(self) -> Iterator[tuple[Kind | None, tuple[Case, Request[Any]]]]:
        """The cases that are to run, with their requests. Those that have none become records at once."""
        for entry in self._plan.entries(self._file):
            if self._stopped:
                return
            if self._results.done.matches(entry.id, entry.digest):
                continue
            if entry.case is None:
                self._add(_broken(entry))
                continue
            case = entry.case
            try:
                request = self._requests.make(case)
            except (GradOracleError, TypeError) as error:
                self._add(_failed(case, error, self._graph(case)))
                continue
            case.arrays = {}  # thousands of cases are under way, and their numbers are in the requests
            kind = None
            if self._settings.pack > 1 and case.request is None:
                kind = kind_of(case.method, self._requests.graph(case), request, case.options)
            yield kind, (case, request)

    def _take_apart(self, parcel: Parcel, sender: Sender) -> None:
        """Sends the cases of a pack that failed again, each alone."""
        for case, part in zip(parcel.cases, parcel.parts, strict=True):
            sender.again(Parcel([case], part))

    def _add(self, record: Record) -> None:
        self._results.write(record)
        self.tally.add(record)
        self._added(record)
        if not record.is_good and len(self.remarks) < REMARKS:
            self.remarks.append(remark(record))
        if self._settings.fail_fast and record.outcome in ("FAIL", "ERROR"):
            self._stopped = True

    def _record(self, case: Case, parcel: Parcel, result: Any) -> Record:
        graph = self._graph(case)
        if isinstance(result, GradOracleError):
            return _failed(case, result, graph)
        record = Record(
            id=case.id,
            line=case.line,
            digest=case.digest,
            method=case.method,
            labels=case.labels,
            device=case.device,
            timing=result.timing,
            packed=len(parcel.cases) if parcel.kind is not None else None,
            graph=graph,
        )
        fill(record, result, self._settings.keep)
        return record

    def _graph(self, case: Case) -> dict[str, Any] | None:
        if case.request is None:
            return graph_record(case.graph)
        from gradoracle.batch import protobuf

        return graph_record({"graph": protobuf.graph_of(case.request)})


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Looks for cycles of garbage less often, and not among what was there before.

    The cases under way are a hundred thousand objects that are no garbage, and through which Python would look again
    and again: that takes two fifths of the time of a small case. What they leave behind goes without it.
    """
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    if not frozen:
        gc.freeze()
    gc.set_threshold(before[0] and max(before[0], _YOUNG), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()


def fill(record: Record, result: Result | Inspection, keep: int) -> None:
    """Puts what a method gave into a record. Tensors of more than `keep` elements leave their norm."""
    if isinstance(result, CheckReport):
        record.report = result
        for name, one in result.inputs.items():
            if one.errors is not None and one.errors.size:
                record.shapes[name] = one.errors.shape
                result.inputs[name] = dataclasses.replace(one, errors=heat(one.errors))
        return
    if isinstance(result, Inspection):
        record.values = {name: dataclasses.asdict(one) for name, one in result.items()}
        return
    for group in GROUPS:
        found = getattr(result, group, None)
        if found is None:
            continue
        kept: dict[str, Any] = {}
        for name, array in found.items():
            tensor = None if array is None else tensor_record(array, keep=keep)
            if isinstance(name, tuple):
                kept.setdefault(name[0], {})[name[1]] = tensor
            else:
                kept[name] = tensor
        record.tensors[group] = kept


def _broken(entry: Entry) -> Record:
    assert entry.error is not None  # noqa: S101  # an entry without a case has one
    return Record(id=entry.id, line=entry.line, digest=entry.digest, error=fault(entry.error, entry.line))


def _failed(case: Case, error: Exception, graph: dict[str, Any] | None) -> Record:
    return Record(
        id=case.id,
        line=case.line,
        digest=case.digest,
        method=case.method,
        labels=case.labels,
        device=case.device,
        error=fault(error, case.line),
        graph=graph,
    )


def fault(error: Exception, line: int) -> Fault:
    """What a record says of an exception."""
    message = str(error)
    if not isinstance(error, GradOracleError):  # a TypeError of the request's making: the case is at fault
        return Fault("CaseError", "BAD_CASE", f"line {line}: {message}", line=line)
    if isinstance(error, CaseError) and not message.startswith(("line ", "message ")):
        message = f"line {line}: {message}"
    return Fault(
        type(error).__name__, error.reason, message, node=error.node, line=line, field=error.metadata.get("field")
    )


def remark(record: Record) -> str:
    """What is to be said of a record that is not good, on one line that any terminal can show."""
    return one_line(_remark(record))


def _remark(record: Record) -> str:
    if record.error is not None:
        return f"ERROR {record.id}: {record.error.message}"
    assert record.report is not None  # noqa: S101  # it would be good
    found = [
        f"{name}: {f'{one.diagnosis}: ' if one.diagnosis else ''}{one.explanation}"
        for name, one in record.report.inputs.items()
        if not one.passed
    ]
    found += [f"{one.name}: {one.explanation}" for one in record.report.opinions if one.verdict == "FAIL"]
    return f"{record.outcome} {record.id}: {sentences(found) if record.report.inputs else NOTHING}"

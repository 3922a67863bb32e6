"""The pass over a file of cases before anything is sent: what would only be noticed halfway is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradoracle.batch.array_files import ArrayFileError, ArrayFiles
from gradoracle.batch.arrays import sources
from gradoracle.batch.case_files import CaseFile, Entry
from gradoracle.batch.ids import Ids
from gradoracle.batch.shards import Plan
from gradoracle.batch.text import one_line
from gradoracle.errors import InvalidRequestError

_SHOWN = 20


class BadCasesError(InvalidRequestError):
    """Duplicate ids, missing files, unreadable tensors: `count` of them, the first in words as `problems`."""

    def __init__(self, name: str, problems: list[str], count: int) -> None:
        more = f", of which the first {len(problems)} are told" if count > len(problems) else ""
        super().__init__(
            f"{name}: {count} problem{'s' if count != 1 else ''}{more}; nothing was sent: {'; '.join(problems)}",
            reason="BAD_CASE",
        )
        self.problems = problems
        self.count = count


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What a run has before it."""

    cases: int
    """The results that there will be of this run's share, repetitions counted."""
    done: int
    """Those that are there already."""

    @property
    def remaining(self) -> int:
        """Those to come."""
        return self.cases - self.done


def survey(file: CaseFile, plan: Plan, files: ArrayFiles, done: Ids) -> Survey:
    """Reads every case once, and looks at the files that this run's cases name. Raises BadCasesError."""
    ids, cases, finished, problems = Ids(), 0, 0, _Problems(file.name)
    for entry, mine in plan.mine(file.entries()):
        ids.add(entry.id)
        if not mine:
            continue
        before = finished
        for one in plan.repeated(entry):
            cases += 1
            finished += one.id in done
        if finished - before < (plan.repeat if entry.case else 1):
            _look_at_files(entry, files, problems)
    ids.freeze()
    twice = ids.twice()
    if len(twice):
        for text in _duplicates(file, plan, twice):
            problems.add(text)
    problems.tell()
    return Survey(cases, finished)


class _Problems:
    def __init__(self, name: str) -> None:
        self._name = name
        self._texts: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        self._count += 1
        if len(self._texts) < _SHOWN:
            self._texts.append(one_line(text))

    def tell(self) -> None:
        if self._count:
            raise BadCasesError(self._name, self._texts, self._count)


def _look_at_files(entry: Entry, files: ArrayFiles, problems: _Problems) -> None:
    case = entry.case
    if case is None:
        return
    if "graph_file" in case.graph:
        try:
            files.path(case.graph["graph_file"])
        except ArrayFileError as error:
            problems.add(f"line {case.line}: graph_file: {error}")
    for field, document in case.arrays.items():
        for name, source in sources(document):
            try:
                files.check(source, name)
            except ArrayFileError as error:
                problems.add(f'line {case.line}: {field}["{name}"]: {error}')


def _duplicates(file: CaseFile, plan: Plan, twice: Ids) -> Iterator[str]:
    first: dict[str, int] = {}
    for entry, _ in plan.mine(file.entries()):
        if entry.id in twice:
            if entry.id in first:
                yield f'line {entry.line}: the id "{entry.id}" stands already in line {first[entry.id]}'
            first.setdefault(entry.id, entry.line)

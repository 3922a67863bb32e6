"""The pass over a file of cases before anything is sent: what would only be noticed halfway is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gradoracle import dtypes
from gradoracle.batch.array_files import ArrayFileError, ArrayFiles
from gradoracle.batch.arrays import sources
from gradoracle.batch.case_files import CaseFile, Entry
from gradoracle.batch.ids import Ids, Index
from gradoracle.batch.selection import FIELDS, Selection
from gradoracle.batch.shards import Plan
from gradoracle.batch.text import one_line, one_or_many
from gradoracle.errors import InvalidRequestError

_SHOWN = 20
_LABELS = 200  # names that are remembered


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
    known: Index | None = None
    """All cases of the file, of other shards too, as this run's repetitions name them; None without earlier results."""
    doubts: list[str] = dataclasses.field(default_factory=list)
    """Sentences on what the caller may not have meant."""

    @property
    def remaining(self) -> int:
        """Those to come."""
        return self.cases - self.done


def survey(file: CaseFile, plan: Plan, files: ArrayFiles, done: Index) -> Survey:
    """Reads every case once, and looks at the files that this run's cases name. `done` are the results that stay.

    Raises BadCasesError, or InvalidRequestError where there is no case to run. A shard may have none.
    """
    ids, known, cases, finished, problems = Ids(), Index(), 0, 0, _Problems(file.name)
    chosen = _Chosen(file.name, plan.selection)
    for entry, selected, mine in plan.mine(file.entries()):
        ids.add(entry.id)
        chosen.add(entry, selected)
        if len(done):
            for one in plan.repeated(entry):
                known.add(one.id, one.digest)
        if not mine:
            continue
        before = finished
        for one in plan.repeated(entry):
            cases += 1
            finished += done.matches(one.id, one.digest)
        if finished - before < (plan.repeat if entry.case else 1):
            _look_at_files(entry, files, problems)
    doubts = chosen.doubts()
    ids.freeze()
    known.freeze()
    twice = ids.twice()
    if len(twice):
        for text in _duplicates(file, plan, twice):
            problems.add(text)
    problems.tell()
    return Survey(cases, finished, known if len(done) else None, doubts)


def check_shard(file: CaseFile, plan: Plan, path: Path, there: Index) -> None:
    """Whether a shard may begin its results anew in `path`, where `there` are results: not of cases that other shards
    take. Raises InvalidRequestError."""
    if plan.shard.count == 1 or not len(there):
        return
    others = sum(
        one.id in there for entry, _, mine in plan.mine(file.entries()) if not mine for one in plan.repeated(entry)
    )
    if others:
        each = f"{path.with_suffix('')}.{{shard}}{path.suffix}"
        raise InvalidRequestError(
            f"--out {path}: expected a file of shard {plan.shard}'s own, got {one_or_many(others, 'result')} of cases "
            f'that other shards take; write --out "{each}", or add to the file with --resume'
        )


class _Chosen:
    """Which of the cases a selection takes, and what it might have meant."""

    def __init__(self, name: str, selection: Selection | None) -> None:
        self._name = name
        self._selection = selection
        self._labels: dict[str, None] = {}
        self._entries = self._readable = self._selected = 0

    def add(self, entry: Entry, selected: bool) -> None:
        self._entries += 1
        if entry.case is None:
            return
        self._readable += 1
        self._selected += selected
        if self._selection is not None and len(self._labels) < _LABELS:
            self._labels.update(dict.fromkeys(entry.case.labels))

    def doubts(self) -> list[str]:
        """What is to be said of a selection that takes cases. Raises InvalidRequestError where none is taken."""
        if not self._entries:
            raise InvalidRequestError(f"{self._name}: expected a case on each line, got none; the file holds no cases")
        if self._selection is None or not self._readable:
            return []
        unknown = [name for name in self._selection.labels if name not in self._labels]
        if len(self._labels) >= _LABELS:  # not all of them are remembered
            unknown = []
        if not self._selected:
            here = f"labels here: {', '.join(self._labels)}" if self._labels else "the cases have no labels"
            hint = "".join(self._hint(name) for name in unknown[:1])
            raise InvalidRequestError(f"{self._name}: no case matches --select {self._selection.text!r}; {here}{hint}")
        return [
            f'--select: no case of {self._name} has a label "{name}", so that it counts as empty{self._hint(name)}'
            for name in unknown
        ]

    def _hint(self, name: str) -> str:
        return dtypes.suggestion(dtypes.nearest(name, [*self._labels, *FIELDS], count=1))


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
    for entry, *_ in plan.mine(file.entries()):
        if entry.id in twice:
            if entry.id in first:
                yield f'line {entry.line}: the id "{entry.id}" stands already in line {first[entry.id]}'
            first.setdefault(entry.id, entry.line)

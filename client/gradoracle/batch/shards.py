"""Which of the cases a process takes: one shard of those selected, each so many times."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping

from gradoracle.batch.case_files import CaseFile, Entry
from gradoracle.batch.selection import Selection
from gradoracle.errors import InvalidRequestError

INDEX = "JOB_COMPLETION_INDEX"
"""The environment variable in which Kubernetes tells a pod of an Indexed Job its number."""
COUNT = "GRADORACLE_SHARDS"
"""The environment variable that tells how many there are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th of the cases, from the `index`-th on; both from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of a text such as "0/4". Raises InvalidRequestError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if found is None or not int(found[1]) < int(found[2]):
            raise InvalidRequestError(f"shard: expected i/n with i from 0 to n - 1, such as 0/4, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """The shard that Kubernetes' variables tell; everything, where they are not set. Raises InvalidRequestError."""
        index, count = environment.get(INDEX), environment.get(COUNT)
        if not index and not count:
            return cls()
        for given, name, other in ((index, INDEX, COUNT), (count, COUNT, INDEX)):
            if not given:
                raise InvalidRequestError(f"shard: {other} is set, expected {name} too; --shard i/n needs neither")
        try:
            return cls.parse(f"{index}/{count}")
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{error} (from {INDEX} and {COUNT})") from None


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes of a file of cases."""

    shard: Shard = Shard()
    selection: Selection | None = None
    repeat: int = 1

    def mine(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, bool, bool]]:
        """Every entry, whether it is selected, and whether this run takes it.

        The selected cases go to the shards in turn. A line that cannot be read is always among the selected.
        """
        place = 0
        for entry in entries:
            selected = self.selection is None or entry.case is None or self.selection.matches(entry.case)
            yield entry, selected, selected and place % self.shard.count == self.shard.index
            place += selected

    def entries(self, file: CaseFile) -> Iterator[Entry]:
        """The entries that this run takes, repeated ones under ids of their own.

        The k-th repetition of a check has a seed that is k higher, so that it looks in other directions; of other
        methods it is the same request again.
        """
        for entry, _, mine in self.mine(file.entries()):
            if mine:
                yield from self.repeated(entry)

    def repeated(self, entry: Entry) -> Iterator[Entry]:
        """An entry as often as it is to run."""
        if self.repeat == 1 or entry.case is None:
            yield entry
            return
        for k in range(self.repeat):
            name = f"{entry.id} [{k + 1}/{self.repeat}]"
            options = dict(entry.case.options)
            if entry.case.method == "check":
                options["seed"] = (options.get("seed", 0) + k) % 2**63
            case = dataclasses.replace(entry.case, id=name, options=options)
            yield Entry(name, entry.line, case=case, digest=entry.digest)

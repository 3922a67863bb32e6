"""The options of `gradoracle batch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gradoracle.batch.runner import Settings
    from gradoracle.batch.shards import Plan

Function = TypeVar("Function", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What was asked for."""

    out: str
    resume: bool
    retry_errors: bool
    form: str | None
    shard: str | None
    select: str | None
    repeat: int
    concurrency: int
    pack: int
    keep: int
    patience: float
    fail_fast: bool
    allow_inconclusive: bool
    quiet: bool
    as_json: bool
    report: Path | None
    junit: Path | None
    json_summary: Path | None
    annotations: bool

    @classmethod
    def taken(cls, given: dict[str, Any]) -> BatchOptions:
        """Takes its own out of what click gives, and leaves the rest."""
        return cls(**{field.name: given.pop(field.name) for field in dataclasses.fields(cls)})

    def plan(self) -> Plan:
        """Which of the cases to take. Raises InvalidRequestError."""
        from gradoracle.batch.selection import Selection
        from gradoracle.batch.shards import Plan, Shard

        shard = Shard.parse(self.shard) if self.shard is not None else Shard.of_environment()
        return Plan(shard, None if self.select is None else Selection(self.select), self.repeat)

    def settings(self, timeout: float | None) -> Settings:
        """How to go about it."""
        from gradoracle.batch.runner import Settings

        return Settings(
            window=self.concurrency,
            pack=self.pack,
            keep=self.keep,
            patience=self.patience,
            timeout=timeout,
            fail_fast=self.fail_fast,
        )


def options(function: Function) -> Function:
    """The arguments and options but those that say where the server is."""
    for decorate in reversed([*_ARGUMENTS, *_RUN, *_REPORTS]):
        function = decorate(function)
    return function


_FILE = click.Path(path_type=Path, dir_okay=False)

_ARGUMENTS = (
    click.argument("cases", metavar="CASES"),
    click.option(
        "--out",
        required=True,
        metavar="FILE",
        help="Where results go: .jsonl, or .parquet with gradoracle[parquet]. {shard} in it is the shard's number.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the results that are in FILE."),
    click.option("--retry-errors", is_flag=True, help="With --resume: run the cases again whose result is an error."),
)
_RUN = (
    click.option(
        "--format",
        "form",
        type=click.Choice(["jsonl", "protobuf"]),
        help="What CASES is; by default protobuf where its suffix is .pb or .binpb, else jsonl. Either may be .gz.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Take every N-th case from the I-th on, counted from 0. Default: JOB_COMPLETION_INDEX/GRADORACLE_SHARDS.",
    ),
    click.option(
        "--select",
        metavar="EXPR",
        help="Take these cases: words of id and labels, and comparisons: 'softmax and not dtype == float32'.",
    ),
    click.option(
        "--repeat",
        type=click.IntRange(1),
        default=1,
        metavar="N",
        help="Run each case N times; each repetition of a check has the next seed.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        metavar="N",
        help="Requests under way at a time.",
    ),
    click.option(
        "--pack",
        type=click.IntRange(1, 256),
        default=32,
        show_default=True,
        metavar="N",
        help="Send so many small vjp or evaluate cases of one graph as one request; 1 sends each alone.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(0),
        default=1000,
        show_default=True,
        metavar="N",
        help="Keep the elements of results of at most N elements, the norm of others.",
    ),
    click.option(
        "--patience",
        type=click.FloatRange(0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="How long a server may be away in the middle.",
    ),
    click.option("--fail-fast", is_flag=True, help="Send nothing more after the first wrong gradient or error."),
    click.option(
        "--allow-inconclusive",
        is_flag=True,
        help="Exit with 0 where there is no verdict, too, but for a gradient outside the slopes of a kink: 1.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Show no progress."),
)
_REPORTS = (
    click.option("--report", type=_FILE, metavar="FILE", help="Write an HTML page of the results."),
    click.option("--junit", type=_FILE, metavar="FILE", help="Write the results as JUnit's XML."),
    click.option("--json-summary", type=_FILE, metavar="FILE", help="Write counts and figures as JSON."),
    click.option("--annotations", is_flag=True, help="Print GitHub's annotations of what is not good on stdout."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
)

"""`gradoracle batch`: many cases from a file, each judged and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from gradoracle.cli import batch_files, batch_options, connection, failures
from gradoracle.cli.batch_options import BatchOptions
from gradoracle.cli.failures import InputError

if TYPE_CHECKING:
    from gradoracle.batch.array_files import ArrayFiles
    from gradoracle.batch.case_files import CaseFile
    from gradoracle.batch.progress import Progress
    from gradoracle.batch.results import ResultsFile
    from gradoracle.batch.runner import Run
    from gradoracle.batch.shards import Plan, Shard
    from gradoracle.batch.survey import Survey
    from gradoracle.client import Client

HELP = """\b
A case is one JSON object a line:
  {"id": "one", "expression": "softmax(x, dim=-1)",
   "inputs": {"x": {"random": "normal", "shape": [8, 64]}}}
with "graph" (the proto's JSON) or "graph_file" in place of "expression", and
"method" (default "check"), "cotangents", "claimed", "tangents", "vectors",
"options" (the method's: device, seed, wrt, …), "labels" (texts by name).
An array is nested numbers, {"data": …, "dtype": …}, {"npy": FILE},
{"npz": FILE, "key": …}, {"safetensors": FILE, "key": …}, or one that the
server makes: {"random": "normal"|"uniform"|"integers", "shape": …,
"dtype": …, "seed": …, …} or {"fill": …, "shape": …}. Files are looked for
beside the file of cases. A protobuf file holds length-delimited
gradoracle.v1.StreamRequest messages.

\b
Exit codes: 0 all good, 1 a gradient is wrong, 2 usage or a case that cannot
be run, 3 the service failed, 4 no verdict, 130 interrupted. Where there are
several: 1, then 3, 2, 4.
"""
"""What a file of cases holds, at the end of --help."""


@click.command("batch", epilog=HELP)
@batch_options.options
@connection.options
def command(cases: str, **given: Any) -> int:
    """Run the cases of the file CASES and write each result to a file as it comes.

    "-" stands for stdin, and "corpus:float64" for a sweep over every operator that comes with gradoracle.

    --resume goes on with what was interrupted, in whatever way. Cases that have changed since run again; a file that a
    case names is not looked into. Results of cases that are not in CASES stay in FILE, but count nowhere. Without
    --resume, results that are there already are set aside as FILE.old, FILE.old.2 and so on.

    In the FILE of --out, --report, --junit and --json-summary, {shard} stands for the shard's number, so that shards
    with the same options write files of their own.
    """
    from gradoracle.batch.survey import BadCasesError

    options = BatchOptions.taken(given)
    if options.retry_errors and not options.resume:
        raise InputError("--retry-errors: expected --resume too; a run that starts anew has no errors to retry")
    try:
        return _batch(cases, options, given)
    except BadCasesError as error:
        for problem in error.problems:
            click.echo(f"{cases}, {problem}", err=True)
        raise InputError(f"{cases}: {error.count} problem{'s'[: error.count > 1]}; nothing was sent") from error


def _batch(cases: str, options: BatchOptions, where: dict[str, Any]) -> int:
    from gradoracle.batch.case_files import CaseFile

    plan = options.plan()
    options = _of_shard(options, plan.shard)
    out = Path(options.out)
    batch_files.check(cases, out, options)
    with batch_files.used(cases):
        file = CaseFile(cases, options.form)
    with contextlib.closing(file):
        return _over(file, plan, out, options, where)


def _of_shard(options: BatchOptions, shard: Shard) -> BatchOptions:
    """The options with the shard's number for {shard} in the names of files."""
    number = str(shard.index)

    def named(path: Path | None) -> Path | None:
        return None if path is None else Path(str(path).replace("{shard}", number))

    return dataclasses.replace(
        options,
        out=options.out.replace("{shard}", number),
        report=named(options.report),
        junit=named(options.junit),
        json_summary=named(options.json_summary),
    )


def _over(file: CaseFile, plan: Plan, out: Path, options: BatchOptions, where: dict[str, Any]) -> int:
    """The run over a file that is open."""
    from gradoracle.batch.array_files import ArrayFiles
    from gradoracle.batch.progress import Progress
    from gradoracle.batch.runner import Run

    files = ArrayFiles(file.base)
    before, results = _opened(file, plan, files, out, options)
    try:
        progress = Progress(before.cases, before.done, quiet=options.quiet)
        settings = options.settings(where["timeout"])
        told: list[int] = []  # the signals that came

        def say(text: str) -> None:
            if not told:  # connections that end are meant to, then
                progress.say(text)

        for text in (*before.doubts, *_remarks(results, file.name)):
            say(text)
        run = Run(file, plan, results, settings, files=files, added=progress.add, notice=say)
        ended = _run(run, progress, where, told) if before.remaining else None
    finally:
        results.finish()
    return _finish(run, results, progress, options, file.name, ended)


def _opened(
    file: CaseFile, plan: Plan, files: ArrayFiles, out: Path, options: BatchOptions
) -> tuple[Survey, ResultsFile]:
    """Looks at all cases, and opens the results file only when there is something to run."""
    from gradoracle.batch import earlier
    from gradoracle.batch.ids import Index
    from gradoracle.batch.results import ResultsFile
    from gradoracle.batch.survey import check_shard, survey

    there = Index()
    if options.resume or plan.shard.count > 1:
        with batch_files.used(f"--out {out}"):
            there = earlier.index(out, errors=not options.retry_errors)
    with batch_files.used(file.name):
        before = survey(file, plan, files, there if options.resume else Index())
        if not options.resume:
            check_shard(file, plan, out, there)
    with batch_files.used(f"--out {out}"):
        results = ResultsFile(out, resume=options.resume, retry=options.retry_errors, known=before.known)
    return before, results


def _remarks(results: ResultsFile, cases: str) -> Iterator[str]:
    """What became of the results that were there."""
    from gradoracle.batch.text import one_or_many

    if results.set_aside is not None:
        yield f"{results.path}: the results from before are in {results.set_aside.name} now"
    if results.changed:
        yield f"{results.path}: {one_or_many(results.changed, 'case')} changed since, and will run again"
    if results.foreign:
        yield (
            f"warning: {results.path} holds {one_or_many(results.foreign, 'result')} of cases that are not in {cases}; "
            "they stay in it, and count neither here nor in reports"
        )


def _run(run: Run, progress: Progress, where: dict[str, Any], told: list[int]) -> BaseException | None:
    """Runs to the end, or to what ended it before."""
    from gradoracle.errors import GradOracleError

    try:
        with connection.client(workers=None, **where) as client, _interrupted(client, told):
            client.server_info()  # a server that is not there, or wants credentials, is told at once
            with progress:
                run.run(client)
    except KeyboardInterrupt as error:
        return error
    except Exception as error:
        if told:
            return KeyboardInterrupt(told[0])
        if isinstance(error, GradOracleError):
            return error
        raise
    return None


@contextlib.contextmanager
def _interrupted(client: Client, told: list[int]) -> Iterator[None]:
    """Ctrl-C, and SIGTERM, with which pods are stopped, close the client, so that its calls fail; `told` has which it
    was. A second one raises at once.

    An exception out of the blue could be lost in code of gRPC's that lets none out, or leave its locks held.
    """

    def stop(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) > 1:
            raise KeyboardInterrupt(number)
        threading.Thread(target=client.close, daemon=True).start()

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(
    run: Run,
    results: ResultsFile,
    progress: Progress,
    options: BatchOptions,
    cases: str,
    ended: BaseException | None,
) -> int:
    from gradoracle.batch.tally import worst

    tally = results.earlier + run.tally
    for text in run.remarks:
        click.echo(text, err=True)
    click.echo(progress.summary(tally), err=True)
    written = batch_files.write(results, options, cases)
    code = worst(written, tally.exit_code(allow_inconclusive=options.allow_inconclusive))
    if ended is None:
        return code
    kept = f"{results.path} has what was finished; --resume goes on"
    if isinstance(ended, KeyboardInterrupt):
        click.echo(f"interrupted; {kept}", err=True)
        return 128 + (ended.args[0] if ended.args else signal.SIGINT)
    why, message = failures.explain(ended) if isinstance(ended, Exception) else (failures.SERVICE, str(ended))
    click.echo(f"error: {message}. {kept}", err=True)
    return worst(why, code)

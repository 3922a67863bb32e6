"""Judges operators in processes of their own, since some samples of some operators end the process that runs them."""

from __future__ import annotations

import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch

import gradoracle as go
from conformance.judge import Ask, Judgement, Outcome, judge, through
from conformance.samples import Case, cases, full_name, operators

_TIMEOUT = 300  # seconds for one request

Serve: TypeAlias = Callable[[str, str, int | None, Connection], None]
"""(address, dtype, limit, pipe): takes names from the pipe, and for each puts judgements and then None into it."""


def judgements(
    address: str,
    dtype: str,
    names: Sequence[str],
    *,
    limit: int | None = None,
    jobs: int = 1,
    serve: Serve | None = None,
) -> Iterator[tuple[str, list[Judgement]]]:
    """Each operator with its judgements, as they come. `serve` is what a process does."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names:
        waiting.put(name)
    done: SimpleQueue[tuple[str, list[Judgement]]] = SimpleQueue()
    for _ in range(jobs):
        arguments = (serve or _serve, address, dtype, limit, waiting, done)
        threading.Thread(target=_feed, args=arguments, daemon=True).start()
    for _ in names:
        yield done.get()


def _feed(
    serve: Serve,
    address: str,
    dtype: str,
    limit: int | None,
    waiting: SimpleQueue[str],
    done: SimpleQueue[tuple[str, list[Judgement]]],
) -> None:
    """Keeps one process busy, and starts another where it died."""
    process: Any = None
    while not waiting.empty():
        name = waiting.get()
        if process is None:
            here, there = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=serve, args=(address, dtype, limit, there), daemon=True)
            process.start()
            there.close()
        found: list[Judgement] = []
        try:
            here.send(name)
            while (one := here.recv()) is not None:
                found.append(one)
        except (EOFError, OSError):
            process.join()
            reason = f"the process of the suite ended with code {process.exitcode}"
            found.append(Judgement(name, len(found), Outcome.WRONG, reason))
            process = None
        done.put((name, found))


def _serve(address: str, dtype: str, limit: int | None, pipe: Connection) -> None:
    with go.Client(address, timeout=_TIMEOUT) as client:
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            for one in sweep([name], getattr(torch, dtype), through(client), limit):
                pipe.send(one)
            pipe.send(None)


def sweep(names: Sequence[str], dtype: torch.dtype, ask: Ask, limit: int | None = None) -> Iterator[Judgement]:
    """The judgements of the operators of those names, in this process."""
    torch.set_num_threads(1)  # as the workers; more threads add in another order
    wanted = set(names)
    for operator in operators(dtype):
        if full_name(operator) in wanted:
            for case in cases(operator, dtype, limit):
                yield judged(case, ask)


def judged(case: Case, ask: Ask) -> Judgement:
    """A judgement even where the harness, the sample or eager torch fails."""
    try:
        return judge(case, ask)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Judgement(case.operator, case.index, Outcome.WRONG, f"the harness failed: {text[:500]}")

"""The checks of right gradients, of one operator after another, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import gradoracle as go
from conformance.corpus import checkers
from conformance.corpus.graphs import checked, plan_of
from conformance.corpus.subjects import wrapped
from conformance.corpus.work import answer_names
from conformance.samples import Case, cases, full_name, operators, parts, silence
from gradoracle.tracing import trace
from gradoracle_server.engine.check import Options
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.report import Mode, Report, Verdict

_ROOT = Path(__file__).resolve().parents[3]
SAMPLES = {"float64": 8, "float32": 4, "complex128": 4, "bfloat16": 2, "complex64": 2, "float64 order 2": 4}
"""Of each operator, by kind."""


def kind(name: str) -> tuple[str, int]:
    """The dtype and the order of a kind of sweep."""
    dtype, _, order = name.partition(" order ")
    return dtype, int(order or 1)


def records(name: str, of: str, mode: Mode, limit: int | None, seeds: int = 1) -> Iterator[dict[str, Any]]:
    """Of each sample of an operator, with each of so many seeds: its verdict, or why there is none, and what was said.

    A seed draws the cotangents, the directions and the moves by rounding; the sample stays the same.
    """
    dtype, order = kind(of)
    tensors = getattr(torch, dtype)
    for operator in operators(tensors):
        if full_name(operator) == name:
            for case in cases(operator, tensors, limit):
                for seed in range(seeds):
                    options = Options(order=order, mode=mode, seed=seed)
                    verdict, said = _verdict(case, wrapped(operator, case), options)
                    found = {"operator": name, "sample": case.index, "verdict": verdict, "said": said}
                    yield {**found, "seed": seed} if seeds > 1 else found


def _verdict(case: Case, fn: Callable[..., Any], options: Options) -> tuple[str, str]:
    try:
        with checkers.patience():
            return _said(_checked(case, fn, options))
    except checkers.OutOfPatienceError as error:
        return "TIMEOUT", str(error)
    except go.TraceError as error:
        return "NOT_TRACED", str(error).replace(f"{_ROOT}/", "")[:300]
    except Fault as fault:
        return fault.reason, fault.message[:300]
    except Exception as error:
        return "CRASHED", f"{type(error).__name__}: {error}"[:300]


def _checked(case: Case, fn: Callable[..., Any], options: Options) -> Report:
    graph = trace(fn, *case.args, **case.kwargs)
    pieces = parts(case)
    primals = {name: piece.tensor for name, piece in zip(graph.inputs, pieces, strict=True)}
    leaves = pytree.tree_leaves((case.args, case.kwargs))
    wanted = tuple(
        name
        for name, piece in zip(graph.inputs, pieces, strict=True)
        if leaves[piece.place].requires_grad and (piece.tensor.is_floating_point() or piece.tensor.is_complex())
    )
    return checked(plan_of(graph), primals, wrt=wanted, options=options)


def _said(report: Report) -> tuple[str, str]:
    """The verdict, and for what is no PASS the words and figures of the input that decided it."""
    if report.verdict is Verdict.PASS:
        return "PASS", ""
    for one in report.inputs:
        if one.verdict is report.verdict:
            words = f"{one.name}: {one.diagnosis.name}: {one.explanation} "
            words += f"error {one.max_error:.3g}, bound {one.error_bound:.3g}"
            if one.worst:
                worst = one.worst[0]
                words += f"; at {list(worst.index)} claimed {worst.claimed:.12g}, numerical {worst.numerical:.12g}"
            return report.verdict.name, words
    failing = [one for one in report.opinions if one.verdict is report.verdict]
    return report.verdict.name, "; ".join(f"{one.name}: {one.explanation}" for one in failing)


def serve(address: str, dtype: str, limit: int | None, pipe: Connection) -> None:
    """Takes names from the pipe and puts records into it, and then None. `address` is the mode and, after a blank, how
    many seeds."""
    torch.set_num_threads(1)
    silence()
    mode, _, seeds = address.partition(" ")
    answer_names(pipe, lambda name: records(name, dtype, Mode[mode.upper()], limit, int(seeds or 1)))

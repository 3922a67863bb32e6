"""What a process does with an operator: its cases, each judged by everybody who is asked."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from conformance.corpus import cases, checkers, kinks, low, others
from conformance.samples import silence

OTHERS, KINKS = "(other functions' derivatives)", "(kinks)"
"""In the place of an operator's name."""

_SECOND = 3  # of so many operators, one has its second derivatives judged, too: a third of the time goes into those


def records(name: str, dtype: torch.dtype, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of each case of an operator: operator, sample, fault, and what each checker said."""
    asked = {**checkers.OURS, **{peer: checkers.PEERS[peer] for peer in peers}}
    if dtype is torch.float32:
        yield from low.records(name, asked)
        return
    subject, broadcast = cases.chosen(name, dtype)
    if subject is not None:
        second = cases.seconds(subject) if zlib.crc32(name.encode()) % _SECOND == 0 else ()
        for case in itertools.chain(
            [cases.right_case(subject)], cases.backwards(subject), cases.claims(subject), second
        ):
            yield {"operator": name, "sample": subject.index, **checkers.asked(case, asked)}
    if broadcast is not None and broadcast is not subject:
        for case in itertools.chain(cases.backwards(broadcast), cases.claims(broadcast)):
            if "broadcast" in case.fault:
                yield {"operator": name, "sample": broadcast.index, **checkers.asked(case, asked)}


def extra(group: str, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The cases that are of no operator of op_db alone."""
    asked = {**checkers.OURS, **{peer: checkers.PEERS[peer] for peer in peers}}
    for case in {OTHERS: others.cases, KINKS: kinks.cases}[group]():
        found = checkers.asked(case, asked)
        if group == KINKS:
            found["said"] = kinks.said(case)
        yield {"operator": case.operator, "sample": 0, **found}


def serve(address: str, dtype: str, limit: int | None, pipe: Connection) -> None:
    """Takes names from the pipe and puts records into it, and then None. `address` holds the peers' names."""
    torch.set_num_threads(1)
    silence()
    peers = [peer for peer in address.split(",") if peer]

    def found(name: str) -> Iterator[dict[str, Any]]:
        return extra(name, peers) if name in (OTHERS, KINKS) else records(name, getattr(torch, dtype), peers)

    answer_names(pipe, found)


def answer_names(pipe: Connection, found: Callable[[str], Iterator[dict[str, Any]]]) -> None:
    """For each name that comes through the pipe the records that are found, and then None; until the pipe is closed."""
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            for one in found(name):
                pipe.send(one)
        except Exception as error:
            pipe.send({"operator": name, "broken": f"{type(error).__name__}: {error}"[:500]})
        pipe.send(None)

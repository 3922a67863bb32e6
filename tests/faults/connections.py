"""Connections that are opened and dropped, at every stage of getting to know each other."""

from __future__ import annotations

import socket
import struct
from collections import Counter

from faults.callers import calling
from faults.outcome import Outcome, percentile
from faults.servers import memory, open_files, serving, until

SHORT = {"count": 400}
LONG = {"count": 10_000}

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_HEADERS = b"\0\0\x01\1\4\0\0\0\1\x88"  # the beginning of a call
_WORDS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    _PREFACE[:10],
    _PREFACE,
    _PREFACE + _SETTINGS,
    _PREFACE + _SETTINGS + _HEADERS,
)
_AT_ONCE = 100


def run(count: int) -> Outcome:
    """Opens so many connections, a hundred at a time, says something on each, and hangs up, in order or not."""
    outcome = Outcome(
        "connections dropped",
        f"{count} connections opened and dropped, {_AT_ONCE} at a time, a caller beside them",
        "the caller's answers right, none lost; descriptors and memory given back",
    )
    with serving("--workers", "1") as server:
        host, _, port = server.address.rpartition(":")
        with calling(server.address, pause=0.01) as other:
            until(lambda: other.answered > 20)
            files, before = open_files(server.pid), memory(server.pid)
            kinds: Counter[str] = Counter()
            for start in range(0, count, _AT_ONCE):
                opened = [socket.create_connection((host, int(port))) for _ in range(min(_AT_ONCE, count - start))]
                for number, each in enumerate(opened):
                    kinds[_drop(each, start + number)] += 1
            until(lambda: open_files(server.pid) <= files + 2)
            grown = memory(server.pid) - before
        outcome.figures = {
            "opened": sum(kinds.values()),
            **dict(kinds),
            "descriptors kept": max(0, open_files(server.pid) - files),
            "front's memory grown MB": grown / 1e6,
            "caller answered": other.answered,
            "caller's p99 ms": percentile(other.seconds, 0.99) * 1000,
            "caller wrong": len(other.wrong),
            "caller lost": other.lost,
        }
        outcome.require(not other.wrong and not other.lost, f"{other.wrong[:3]} {other.failed}")
        outcome.require(grown < 32e6, f"the front's memory has grown by {grown / 1e6:.0f} MB")
    return outcome


def _drop(opened: socket.socket, number: int) -> str:
    """Says something and hangs up; which way."""
    in_order = number // len(_WORDS) % 2 == 0
    with opened:
        try:
            opened.sendall(_WORDS[number % len(_WORDS)])
            if not in_order:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return "hung up by the server"
    return "closed" if in_order else "reset"

"""Clients that read no answers, connections on which nobody speaks, and those that speak a byte at a time."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np

from faults.answers import call
from faults.callers import calling
from faults.outcome import Outcome, percentile
from faults.servers import connection_to_stream, memory, open_files, serving
from gradoracle import request

SHORT = {"readers": 4, "silent": 50, "seconds": 2.0}
LONG = {"readers": 16, "silent": 1000, "seconds": 15.0}

_ANSWER = 8 * 1024 * 1024  # bytes of each of the answers that are not read
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def run(readers: int, silent: int, seconds: float) -> Outcome:
    """Holds such clients for so long, beside two callers whose answers are known."""
    outcome = Outcome(
        "slow readers, half-open connections",
        f"{readers} streams whose 20 answers of 8 MiB nobody reads, {silent} silent connections, 20 that send a byte "
        f"at a time, for {seconds:g} s; two callers beside them",
        "the callers' answers right, none lost; descriptors given back",
    )
    asked = request("evaluate", "x.expand(1024, -1) * 1.0", {"x": np.ones(_ANSWER // 8 // 1024)}).to_bytes()
    done = threading.Event()
    with serving("--workers", "2") as server:
        host, _, port = server.address.rpartition(":")
        files, before = open_files(server.pid), memory(server.pid)
        threads = [threading.Thread(target=_reader, args=(server.address, asked, done)) for _ in range(readers)]
        threads += [threading.Thread(target=_speaker, args=(host, int(port), done)) for _ in range(20)]
        quiet = [socket.create_connection((host, int(port))) for _ in range(silent)]
        for each in threads:
            each.start()
        with calling(server.address, 2) as others:
            time.sleep(seconds)
        held = memory(server.pid) - before
        done.set()
        for each in threads:
            each.join()
        for opened in quiet:
            opened.close()
        end = time.monotonic() + 60
        while (kept := open_files(server.pid) - files) > 2 and time.monotonic() < end:
            time.sleep(0.1)
        outcome.figures = {
            "answered": others.answered,
            "wrong": len(others.wrong),
            "lost": others.lost,
            "p50 ms": percentile(others.seconds, 0.5) * 1000,
            "p99 ms": percentile(others.seconds, 0.99) * 1000,
            "front's memory meanwhile MB": held / 1e6,
            "descriptors kept": max(0, kept),
        }
        outcome.require(not others.wrong and not others.lost, f"{others.wrong[:3]} {others.failed}")
        outcome.require(others.answered > 0, "the callers were not served")
        outcome.require(kept <= 2, f"{kept} descriptors were not given back")
        limit = readers * 256 * 1024 * 1024
        outcome.require(held < limit, f"the front took {held / 1e6:.0f} MB for answers that nobody reads")
    return outcome


def _reader(address: str, asked: bytes, done: threading.Event) -> None:
    """Asks for large answers and reads none."""
    with connection_to_stream(address) as converse:
        message = b"".join(call(number, "Evaluate", asked) for number in range(20))
        stream = converse(iter([message]))
        done.wait()
        stream.cancel()  # type: ignore[attr-defined]


def _speaker(host: str, port: int, done: threading.Event) -> None:
    """Begins to speak HTTP/2, very slowly."""
    with socket.create_connection((host, port)) as opened:
        for byte in _PREFACE:
            if done.wait(0.5):
                return
            opened.sendall(bytes([byte]))
        done.wait()

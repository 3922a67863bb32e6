"""A client that signals interrupt again and again, in streams and in single calls over gRPC; then both answer still.

`python interrupted_client.py ADDRESS TIMES`. Ends with "answered" on its standard output.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import Any

import numpy as np

import gradoracle as go


class Interruption(BaseException):
    """As KeyboardInterrupt is."""


def interrupt(*_: Any) -> None:
    raise Interruption


def ask(client: go.Client, size: int) -> None:
    requests = [go.request("evaluate", "x + 1", {"x": np.ones(size)}) for _ in range(2)]
    assert [float(one.outputs["out"][0]) for one in client.map(requests, timeout=20)] == [2.0, 2.0]


def stop_the_clock() -> None:
    while True:
        with contextlib.suppress(Interruption):
            signal.setitimer(signal.ITIMER_REAL, 0)
            return


def main() -> None:
    address, times = sys.argv[1], int(sys.argv[2])
    draw = np.random.default_rng(0)
    client = go.Client(address, shared_memory=False)
    ask(client, 1)
    signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    while interrupted < times:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.006 * draw.random() + 1e-5)
            if draw.random() < 0.7:
                ask(client, 1)
            else:
                client.evaluate("x + 1", {"x": np.ones(1)}, timeout=20)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interruption:
            interrupted += 1
        finally:
            stop_the_clock()
    ask(client, 1)
    assert float(client.evaluate("x + 1", {"x": 1.0}, timeout=20).outputs["out"]) == 2.0
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    print("answered", flush=True)


if __name__ == "__main__":
    main()

"""A process that forks while it has a result in shared memory: `forked_results.py ADDRESS HOW`.

The result is 3.0 in every element. What each side then does to its own is in `HOW`; each says what it sees, the child
first, which waits for what the parent does before.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

import numpy as np

import gradoracle as go
from gradoracle import shared_memory


def main(address: str, how: str) -> None:
    """Prints a line for each side."""
    client: go.Client | None = go.Client(address, shared_memory=True)
    assert client is not None
    x = np.zeros(131_072)
    r = client.vjp("sum(x * 3)", {"x": x}).gradients["x"]
    assert r is not None
    assert isinstance(r.base, shared_memory._Held)
    if how == "dropped":
        before = value(r)
        child = in_child(lambda: print("child", before, value(r)))
        del r
        for _ in range(3):
            last = client.vjp("sum(x * 7)", {"x": x}).gradients["x"]
        child()
        print("parent", value(last))
        return
    if how in ("closed", "forgotten"):
        client.close()
        if how == "forgotten":
            client = None
            gc.collect()
    if how == "written by the parent":
        before = value(r)
        child = in_child(lambda: print("child", before, value(r)))
        r[:] = -2.0
        child()
    elif how == "written before and after":
        half = len(r) // 2
        r[:] = -4.0
        child = in_child(lambda: print("child", value(r[:half]), written(r[half:], -5.0)))
        r[half:] = -6.0
        child()
        print("parent", value(r[:half]), value(r[half:]))
        return
    elif how == "twice":
        in_child(lambda: None)()
        r[:] = -2.0

        def grand() -> None:
            before = value(r)
            r[:] = -3.0
            in_child(lambda: print("child", before, value(r), flush=True))()

        in_child(grand)()
    else:
        in_child(lambda: print("child", written(r, -1.0)))()
    print("parent", value(r))


def in_child(work: Callable[[], None]) -> Callable[[], None]:
    """Forks off a child that works when what is returned is called, which waits for its end."""
    hears, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(hears, 1)
        work()
        sys.stdout.flush()
        os._exit(0)

    def go_on() -> None:
        os.write(tells, b"x")
        assert os.waitpid(child, 0)[1] == 0

    return go_on


def value(r: np.ndarray) -> float:
    """That of all elements."""
    assert (r == r[0]).all()
    return float(r[0])


def written(r: np.ndarray, new: float) -> float:
    """The same, written."""
    r[:] = new
    return value(r)


if __name__ == "__main__":
    main(*sys.argv[1:])

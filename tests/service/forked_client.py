"""A process that forks in the middle of calls, whose child goes on with the client: `forked_client.py ADDRESS HOW`.

`HOW` is "threads" (others are inside gRPC at that moment), "stream" (a map is under way, which both go on with) or
"end" (the child ends in order, and so closes what it has of the client). Both say what they got.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import gradoracle as go


def main(address: str, how: str) -> None:
    """Prints a line for each process, and ends."""
    client = go.Client(address, shared_memory=False)
    client.server_info()
    stop = threading.Event()
    threads = [threading.Thread(target=ask, args=(client, stop)) for _ in range(6)]
    results = client.map([go.request("vjp", "x**2", {"x": float(k)}) for k in range(40)], window=4)
    if how == "threads":
        for one in threads:
            one.start()
        time.sleep(0.3)
    if how == "stream":
        next(results)
    child = os.fork()
    if child == 0:
        with client:
            found = [three(client) for _ in range(3)]
            found += [float(one.gradients["x"]) for one in results][-1:] if how == "stream" else []
            found += by_many(client)
        print("child", *found, flush=True)
        if how == "end":
            sys.exit(0)  # what it has inherited dies here
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    stop.set()
    for one in threads:
        if one.ident is not None:
            one.join()
    found = [float(one.gradients["x"]) for one in results][-1:] if how == "stream" else []
    print("parent", three(client), *found, "status", status, flush=True)
    client.close()


def three(client: go.Client) -> float:
    """6."""
    return float(client.vjp("x**2", {"x": 3.0}, timeout=30).gradients["x"])  # type: ignore[arg-type]


def by_many(client: go.Client) -> list[float]:
    """The sum of what eight threads get, which go together."""
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(three(client))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return [sum(found)]


def ask(client: go.Client, stop: threading.Event) -> None:
    """Small calls, one after another."""
    while not stop.is_set():
        three(client)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How the front starts a worker without importing torch: what a new process is given, and the function it calls."""

from __future__ import annotations

import dataclasses
import socket


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """All that a worker is told when it starts."""

    device: str  # "cpu" or "cuda:N"
    threads: int  # for torch's operators; CPU workers only
    max_graph_nodes: int  # 0: no limit, here and below
    max_tensor_bytes: int
    max_memory_bytes: int
    sandbox: str = "auto"  # "auto", "on" or "off"
    log_format: str = "text"  # "text" or "json"


PRELOAD = "gradoracle_server.worker.main"
"""The module that the fork server imports once, torch with it, so that a worker is a fork of a warm process."""


def run_worker(sock: socket.socket, options: WorkerOptions) -> None:
    """The main function of a worker process: greets over `sock`, then answers jobs until the front closes it."""
    from gradoracle_server.front import logs
    from gradoracle_server.worker import main  # torch comes with it

    logs.configure(options.log_format)
    main.serve(sock, options)


def scout(sock: socket.socket) -> None:
    """The main function of a process that looks which devices there are, answers with JSON over `sock`, and ends.

    In a process of its own because asking for CUDA devices may initialise CUDA, after which nothing may be forked.
    """
    from gradoracle_server.worker import devices

    devices.report(sock)

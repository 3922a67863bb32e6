"""Which devices are served, and with how many workers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradoracle_server.front.pool import StartError
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.transport import first_reply
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.settings import Settings, SettingsError

_SCOUT_TIMEOUT = 120.0  # seconds; drivers can be slow


@dataclasses.dataclass(frozen=True)
class Share:
    """What one device gets."""

    options: WorkerOptions
    workers: int


async def find(processes: Processes, scout: Callable[..., None]) -> list[str]:
    """The names of the devices that torch finds, asked in a process of its own. Raises StartError."""
    process, sock = await processes.start(scout)
    try:
        reply = await first_reply(sock, _SCOUT_TIMEOUT)
        found: dict[str, Any] = json.loads(bytes(reply.payload))
        return [str(device["name"]) for device in found["devices"]]
    except (EOFError, TimeoutError, ValueError, KeyError) as error:
        raise StartError(f"cannot find out which devices there are: {str(error) or type(error).__name__}") from None
    finally:
        await processes.ended(process)


def choose(asked: Sequence[str], found: Sequence[str]) -> list[str]:
    """The devices to serve, the default one first. Raises SettingsError where one is asked for that is not there."""
    gpus = [name for name in found if name.startswith("cuda:")]
    chosen: list[str] = []
    for name in asked:
        if name == "auto":
            chosen += [*gpus, "cpu"]
        elif name == "cuda" and gpus:
            chosen += gpus
        elif name in found:
            chosen.append(name)
        else:
            raise SettingsError(f'--device: expected a device that torch finds here ({", ".join(found)}), got "{name}"')
    return list(dict.fromkeys(chosen))


def shares(settings: Settings, devices: Sequence[str], cores: int) -> list[Share]:
    """How many workers and threads each device gets: a worker for each core, or for each GPU, unless told otherwise."""
    made = []
    for device in devices:
        workers = settings.workers or (cores if device == "cpu" else 1)
        options = WorkerOptions(
            device=device,
            threads=settings.threads or max(1, cores // workers),
            max_graph_nodes=settings.max_graph_nodes,
            max_tensor_bytes=settings.max_tensor_bytes,
            max_memory_bytes=settings.max_memory_bytes,
        )
        made.append(Share(options, workers))
    return made


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use: those it may run on, or fewer where its container has a smaller share."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or "max"
        return cores

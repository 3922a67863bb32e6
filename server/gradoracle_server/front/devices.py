"""Which devices are served, and with how many workers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradoracle_server.front.pool import StartError
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.transport import first_reply
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.settings import Settings, SettingsError

_SCOUT_TIMEOUT = 120.0  # seconds; drivers can be slow
_OF_MEMORY, _OF_A_GPU = 0.8, 0.9  # what workers may take of it; the rest is for the front, and for CUDA itself
_OF_QUEUES = 0.2  # of the machine's: what workers leave, for large tensors that come, wait and go
_A_TENSOR = 2**30  # may be of so many bytes on any machine; queues and workers have limits of their own


@dataclasses.dataclass(frozen=True)
class Share:
    """What one device gets."""

    options: WorkerOptions
    workers: int


async def find(processes: Processes, scout: Callable[..., None]) -> dict[str, int]:
    """The devices that torch finds, asked in a process of its own: bytes of memory by name. Raises StartError."""
    process, sock = await processes.start(scout)
    try:
        reply = await first_reply(sock, _SCOUT_TIMEOUT)
        found: dict[str, Any] = json.loads(bytes(reply.payload))
        return {str(device["name"]): int(device["memory_bytes"]) for device in found["devices"]}
    except (EOFError, TimeoutError, ValueError, KeyError) as error:
        raise StartError(f"cannot find out which devices there are: {str(error) or type(error).__name__}") from None
    finally:
        await processes.ended(process)


def choose(asked: Sequence[str], found: Collection[str]) -> list[str]:
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


def limited(settings: Settings, memory: int) -> Settings:
    """The settings, with numbers for the bytes of queues and tensors, of which nobody told, out of the machine's."""
    share = int(memory * _OF_QUEUES)
    queue, tensor = settings.max_queue_bytes, settings.max_tensor_bytes
    return dataclasses.replace(
        settings,
        max_queue_bytes=share if queue is None else queue,
        max_tensor_bytes=max(share, _A_TENSOR) if tensor is None else tensor,
    )


def shares(settings: Settings, devices: Sequence[str], cores: int, memory: Mapping[str, int]) -> list[Share]:
    """How many workers, threads and bytes of `memory` each device gets: a worker for each core, or for each GPU, unless
    told otherwise."""
    made = []
    for device in devices:
        workers = settings.workers or (cores if device == "cpu" else 1)
        limit = settings.max_memory_bytes
        if limit is None:
            limit = int(memory[device] * (_OF_MEMORY if device == "cpu" else _OF_A_GPU) / workers)
        options = WorkerOptions(
            device=device,
            threads=settings.threads or max(1, cores // workers),
            max_graph_nodes=settings.max_graph_nodes,
            max_tensor_bytes=settings.max_tensor_bytes or 0,
            max_memory_bytes=limit,
            sandbox=settings.sandbox,
            log_format=settings.log_format,
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


def usable_memory(
    limit_files: Sequence[Path] = (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ),
) -> int:
    """The bytes of memory of this machine, or fewer where this process's container has less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in limit_files:
        try:
            found = min(found, int(file.read_text()))
        except (OSError, ValueError):  # no such version of control groups, or "max"
            continue
    return found

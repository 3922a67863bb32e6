"""Devices: which are served, by how many workers, with how many threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradoracle_server import settings
from gradoracle_server.front import devices

GPUS = ["cpu", "cuda:0", "cuda:1"]
MEMORY = {"cpu": 10_000, "cuda:0": 1_000, "cuda:1": 1_000}


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        (["auto"], ["cpu"], ["cpu"]),
        (["auto"], GPUS, ["cuda:0", "cuda:1", "cpu"]),
        (["cpu"], GPUS, ["cpu"]),
        (["cuda"], GPUS, ["cuda:0", "cuda:1"]),
        (["cuda:1", "cpu"], GPUS, ["cuda:1", "cpu"]),
        (["cpu", "auto"], GPUS, ["cpu", "cuda:0", "cuda:1"]),
    ],
)
def test_choice(asked: list[str], found: list[str], expected: list[str]) -> None:
    """What is asked for is served, each once, the first as the default; auto puts CUDA first."""
    assert expected == devices.choose(asked, found)


@pytest.mark.parametrize(
    ("asked", "found", "message"),
    [
        ("cuda", ["cpu"], '--device: expected a device that torch finds here (cpu), got "cuda"'),
        ("cuda:2", GPUS, '--device: expected a device that torch finds here (cpu, cuda:0, cuda:1), got "cuda:2"'),
    ],
)
def test_device_that_is_not_there(asked: str, found: list[str], message: str) -> None:
    """Asking for CUDA where there is none is an error with the devices there are."""
    with pytest.raises(settings.SettingsError) as caught:
        devices.choose([asked], found)

    assert message == str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [("cuda:0", 1, 8), ("cpu", 8, 1)]),
        (["--workers", "3"], [("cuda:0", 3, 2), ("cpu", 3, 2)]),
        (["--workers", "20"], [("cuda:0", 20, 1), ("cpu", 20, 1)]),
        (["--threads", "5"], [("cuda:0", 1, 5), ("cpu", 8, 5)]),
    ],
)
def test_shares(flags: list[str], expected: list[tuple[str, int, int]]) -> None:
    """One worker for each GPU and one for each core, unless told; the cores are shared out among CPU workers."""
    made = devices.shares(settings.load(flags, {}), ["cuda:0", "cpu"], 8, MEMORY)

    assert expected == [(share.options.device, share.workers, share.options.threads) for share in made]


@pytest.mark.parametrize(("content", "expected"), [("50000 100000\n", 1), ("max 100000\n", None), ("nonsense", None)])
def test_cores_of_a_container(tmp_path: Path, content: str, expected: int | None) -> None:
    """A container's share of the cores counts where it is smaller; without one, the cores that may be used."""
    (tmp_path / "cpu.max").write_text(content)
    without = devices.usable_cores(tmp_path / "absent")

    assert without >= 1
    assert (without if expected is None else expected) == devices.usable_cores(tmp_path / "cpu.max")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [900, 1000]),  # nine tenths of 1,000 for the GPU's one worker; an eighth of four fifths of 10,000
        (["--workers", "2"], [450, 4000]),
        (["--max-memory-bytes", "777"], [777, 777]),
        (["--max-memory-bytes", "0"], [0, 0]),  # no limit
    ],
)
def test_shares_of_memory(flags: list[str], expected: list[int]) -> None:
    """Most of each device's memory is shared out among its workers, unless told; 0 is no limit."""
    made = devices.shares(settings.load(flags, {}), ["cuda:0", "cpu"], 8, MEMORY)

    assert expected == [share.options.max_memory_bytes for share in made]


@pytest.mark.parametrize(
    ("flags", "memory", "queue", "tensor"),
    [
        ([], 20 * 2**30, 4 * 2**30, 4 * 2**30),  # a tensor of 3 GiB waits in no more than workers leave
        ([], 2**31, 2**31 // 5, 2**30),
        (["--max-queue-bytes", "3MiB"], 20 * 2**30, 3 * 2**20, 4 * 2**30),
        (["--max-tensor-bytes", "3MiB"], 20 * 2**30, 4 * 2**30, 3 * 2**20),
        (["--max-tensor-bytes", "0", "--max-queue-bytes", "0"], 20 * 2**30, 0, 0),  # no limit
    ],
)
def test_limits_of_memory(flags: list[str], memory: int, queue: int, tensor: int) -> None:
    """Queues get what the workers leave of the memory, and a tensor as much, unless told; 0 is no limit."""
    found = devices.limited(settings.load(flags, {}), memory)

    assert (queue, tensor) == (found.max_queue_bytes, found.max_tensor_bytes)
    (share,) = devices.shares(found, ["cpu"], 1, {"cpu": memory})
    assert tensor == share.options.max_tensor_bytes
    assert queue + share.options.max_memory_bytes <= memory or flags


def test_workers_are_told_of_sandbox_and_logs() -> None:
    """What the front was told of them, each worker is."""
    made = devices.shares(settings.load(["--sandbox", "on", "--log-format", "json"], {}), ["cpu"], 1, MEMORY)

    assert [("on", "json")] == [(share.options.sandbox, share.options.log_format) for share in made]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (["5000000\n", ""], 5_000_000),
        (["", "6000000\n"], 6_000_000),
        (["max\n", "9223372036854771712\n"], None),
        (["nonsense", ""], None),
    ],
)
def test_memory_of_a_container(tmp_path: Path, contents: list[str], expected: int | None) -> None:
    """A container's limit counts where it is smaller, in either version of control groups."""
    files = [tmp_path / "memory.max", tmp_path / "limit_in_bytes"]
    for file, content in zip(files, contents, strict=True):
        if content:
            file.write_text(content)
    without = devices.usable_memory([tmp_path / "absent"])

    assert without > 2**28
    assert (without if expected is None else expected) == devices.usable_memory(files)

"""A folder of candidates: Python files, each run in a process of its own, and saved results."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gradoracle.batch.array_files import ArrayFileError, ArrayFiles
from gradoracle.kernels import handover
from gradoracle.tensors import Array

SUFFIXES = (".py", ".npz", ".safetensors")

_PLACE = re.compile(r'[ |]*(?P<place>File "(?P<file>(?!<frozen ).+)", line \d+)')
"""A line of a traceback that says where; what Python imports with is left out."""
_PACKAGE = Path(__file__).parent.parent


class CandidateError(Exception):
    """A candidate that gave no results. `reason` is CANDIDATE_FAILED, CANDIDATE_CRASHED or CANDIDATE_TIMED_OUT."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What every candidate is to compute."""

    inputs: Mapping[str, Array]
    """In the graph's order."""
    cotangents: Mapping[str, Array]
    """By output, in the graph's order."""
    wanted: tuple[str, ...]
    """The inputs whose gradients are wanted."""
    timeout: float = 60.0
    """Seconds for one candidate."""
    device: str | None = None
    """Where torch candidates find their tensors; None is the CPU."""


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """What a candidate computed."""

    kind: str
    outputs: Mapping[str, Array | None]
    gradients: Mapping[str, Array | None]


def found(folder: Path) -> list[Path]:
    """The candidates of a folder, by name. Those that begin with "_" or "." are none."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file() and path.name[0] not in "_."
    )


def results(path: Path, task: Task) -> Results:
    """What the candidate computes, or what is saved. Raises CandidateError."""
    return _run(path, task) if path.suffix == ".py" else _saved(path, task)


def _run(path: Path, task: Task) -> Results:
    with tempfile.TemporaryDirectory(prefix="gradoracle-") as folder:
        given, made = Path(folder) / "task.npz", Path(folder) / "result.npz"
        groups = {
            "inputs": task.inputs,
            "cotangents": task.cotangents,
            "wanted": dict.fromkeys(task.wanted),
        }
        handover.write(given, groups, device=task.device)
        command = [sys.executable, "-m", "gradoracle.kernels.child", str(path), str(given), str(made)]
        with (Path(folder) / "stderr").open("w+b") as stderr:
            _wait(command, stderr.fileno(), path, task.timeout, Path(folder) / "stderr")
        if not made.exists():
            raise CandidateError(f"{path.name}: it ended before it gave results", "CANDIDATE_CRASHED")
        read, notes = handover.read(made)
    return Results(str(notes["kind"]), read.get("outputs", {}), read.get("gradients", {}))


def _wait(command: list[str], stderr: int, path: Path, timeout: float, log: Path) -> None:
    """Runs the process, in a group of its own, so that what it started ends with it."""
    process = subprocess.Popen(  # noqa: S603  # the candidate is the user's own code
        command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
    )
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise CandidateError(
            f"{path.name}: expected results within {timeout:g} s, got none; --candidate-timeout gives it more",
            "CANDIDATE_TIMED_OUT",
        ) from None
    finally:
        _end(process)
    if code < 0:
        raise CandidateError(f"{path.name}: {signal.Signals(-code).name} ended it", "CANDIDATE_CRASHED")
    if code:
        said = _last(log.read_text(encoding="utf-8", errors="replace"))
        raise CandidateError(f"{path.name}: {said or f'exit code {code}'}", "CANDIDATE_FAILED")


def _last(text: str) -> str:
    """What a process said last, after the place where it was raised; a place in this package tells nothing."""
    lines = text.strip().splitlines() or [""]
    last, places = lines[-1][:500], list(filter(None, map(_PLACE.match, lines)))
    if not places or Path(places[-1]["file"]).is_relative_to(_PACKAGE):
        return last
    return f"{places[-1]['place']}: {last}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _saved(path: Path, task: Task) -> Results:
    """Results in a file: arrays "outputs.NAME" and "gradients.NAME"."""
    files, kind = ArrayFiles(path.parent), path.suffix[1:]

    def read(group: str, names: tuple[str, ...]) -> dict[str, Array | None]:
        return {name: files.load(kind, {kind: path.name, "key": f"{group}.{name}"}, name) for name in names}

    try:
        return Results("saved", read("outputs", tuple(task.cotangents)), read("gradients", task.wanted))
    except ArrayFileError as error:
        raise CandidateError(str(error), "CANDIDATE_FAILED") from error

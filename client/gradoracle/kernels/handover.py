"""Arrays between processes, in a .npz file: by group and name, with their dtypes, which numpy's files forget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradoracle import dtypes
from gradoracle.tensors import Array

Groups = Mapping[str, Mapping[str, Array | None]]


def write(path: Path, groups: Groups, **notes: object) -> None:
    """Writes arrays, and notes that JSON can hold."""
    arrays: dict[str, Array] = {}
    index: list[tuple[str, str, str | None]] = []
    for group, named in groups.items():
        for name, array in named.items():
            index.append((group, name, None if array is None else array.dtype.name))
            if array is not None:
                arrays[f"a{len(index) - 1}"] = array
    head = json.dumps({"index": index, "notes": notes}).encode()
    with path.open("wb") as file:
        np.savez(file, head=np.frombuffer(head, np.uint8), allow_pickle=False, **arrays)


def read(path: Path) -> tuple[dict[str, dict[str, Array | None]], dict[str, object]]:
    """What `write` wrote."""
    with np.load(path, allow_pickle=False) as loaded:
        head = json.loads(loaded["head"].tobytes())
        groups: dict[str, dict[str, Array | None]] = {}
        for place, (group, name, dtype) in enumerate(head["index"]):
            array = None if dtype is None else loaded[f"a{place}"]
            if array is not None and array.dtype.kind == "V":
                array = array.view(dtypes.TO_NUMPY[dtypes.NUMBERS[dtype]])
            groups.setdefault(group, {})[name] = array
    return groups, head["notes"]

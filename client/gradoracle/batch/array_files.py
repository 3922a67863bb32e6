"""Arrays in files: .npy, .npz and safetensors.

safetensors files are read here and not by the package of that name, which has no bfloat16 and no float8 for numpy. The
format is eight bytes of a length, a JSON header of that length, and the elements.
"""

from __future__ import annotations

import functools
import json
import math
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gradoracle import dtypes
from gradoracle.tensors import Array

KINDS = ("npy", "npz", "safetensors")
"""The kinds of files, which are also the keys under which a case names one."""

_KEPT_BYTES = 64 << 20  # of arrays that were read and may be wanted again
_HEADERS = 1024  # files whose headers are remembered
_HEADER_AT_MOST = 100 << 20  # bytes of a safetensors header; the format's own limit

_SAFETENSORS: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
"""torch's names by the format's."""


class ArrayFileError(ValueError):
    """A file that is missing or cannot be read, or does not hold the array that is asked for."""


class ArrayFiles:
    """The files that cases name, relative to the folder of the cases, or else to the working directory."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._arrays: OrderedDict[tuple[str, Path, str], Array] = OrderedDict()
        self._bytes = 0
        self._keys = functools.lru_cache(maxsize=_HEADERS)(_keys)

    def path(self, text: object) -> Path:
        """The file of that name. Raises ArrayFileError where there is none."""
        if not isinstance(text, str):
            raise ArrayFileError(f"expected the path of a file, got {text!r}")
        for path in dict.fromkeys((self._base / text, Path(text))):
            if path.is_file():
                return path
        raise ArrayFileError(f"expected a file, got {text}, which is not there (looked in {self._base.absolute()})")

    def check(self, source: Mapping[str, Any], name: str) -> None:
        """Whether the file is there, can be read, and holds the array, by its header. Raises ArrayFileError.

        Elements are not read: damage among them is found when the case runs.
        """
        (kind,) = (kind for kind in KINDS if kind in source)
        path = self.path(source[kind])
        _chosen(self._keys(kind, path), source.get("key"), name, path)

    def load(self, kind: str, source: Mapping[str, Any], name: str) -> Array:
        """The array, which nobody may change. Raises ArrayFileError."""
        path = self.path(source[kind])
        key = _chosen(self._keys(kind, path), source.get("key"), name, path)
        place = (kind, path, key)
        if place in self._arrays:
            self._arrays.move_to_end(place)
            return self._arrays[place]
        try:
            found = _READERS[kind](path, key)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise ArrayFileError(_unreadable(kind, path, error)) from error
        self._keep(place, found)
        return found

    def _keep(self, place: tuple[str, Path, str], found: Array) -> None:
        if found.nbytes > _KEPT_BYTES // 4:
            return
        self._arrays[place] = found
        self._bytes += found.nbytes
        while self._bytes > _KEPT_BYTES:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes


def _chosen(keys: tuple[str, ...], key: object, name: str, path: Path) -> str:
    if key is None:
        if len(keys) == 1:
            return keys[0]
        key = name
    if key not in keys:
        near = dtypes.suggestion(dtypes.nearest(str(key), keys))
        shown = ", ".join(keys[:20]) or "none"
        raise ArrayFileError(f'{path}: expected an array "{key}", got {shown}{near}')
    return str(key)


def _unreadable(kind: str, path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path}: expected a readable {kind} file, got: {reason or type(error).__name__}"


def _keys(kind: str, path: Path) -> tuple[str, ...]:
    """The names of the arrays in a file whose headers are sound. The one array of a .npy file has none."""
    try:
        return _HEADERS_OF[kind](path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ArrayFileError(_unreadable(kind, path, error)) from error


# ---- npy, npz


def _npy_keys(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        _npy_header(file, path.stat().st_size)
    return ("",)


def _npz_keys(path: Path) -> tuple[str, ...]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                try:
                    _npy_header(file, member.file_size)
                except ValueError as error:
                    raise ValueError(f'"{name}": {error}') from error
            found.append(name)
    return tuple(found)


def _npy_header(file: IO[bytes], size: int) -> None:
    """Reads the header of an array of `size` bytes in all. Raises ValueError where they do not fit together."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    needed = file.tell() + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise ValueError(f"it is cut off: expected {needed} bytes, got {size}")


def _read_npy(path: Path, _: str) -> Array:
    found: Array = np.load(path, allow_pickle=False)
    return found


def _read_npz(path: Path, key: str) -> Array:
    with np.load(path, allow_pickle=False) as loaded:
        found: Array = loaded[key]
        return found


# ---- safetensors


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the elements begin. Raises ValueError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_AT_MOST):
            raise ValueError(f"the length of its header, {length}, does not fit a file of {size} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    for name, one in header.items():
        _safetensors_entry(name, one, size - 8 - length)
    return header, 8 + length


def _safetensors_entry(name: str, one: Mapping[str, Any], size: int) -> None:
    dtype, shape, (start, end) = one["dtype"], one["shape"], one["data_offsets"]
    if dtype not in _SAFETENSORS:
        raise ValueError(f'"{name}": its dtype {dtype} is none of {", ".join(_SAFETENSORS)}')
    needed = math.prod(shape) * _numpy_dtype(dtype).itemsize
    if not 0 <= start <= end <= size or end - start != needed:
        raise ValueError(f'"{name}": expected {needed} bytes of {size}, got those from {start} to {end}')


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return dtypes.TO_NUMPY[dtypes.NUMBERS[_SAFETENSORS[name]]]


def _safetensors_keys(path: Path) -> tuple[str, ...]:
    return tuple(_safetensors_header(path)[0])


def _read_safetensors(path: Path, key: str) -> Array:
    header, start = _safetensors_header(path)
    one = header[key]
    with path.open("rb") as file:
        file.seek(start + one["data_offsets"][0], os.SEEK_SET)
        data = file.read(one["data_offsets"][1] - one["data_offsets"][0])
    return np.frombuffer(data, _numpy_dtype(one["dtype"])).reshape(one["shape"])


_HEADERS_OF: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "npy": _npy_keys,
    "npz": _npz_keys,
    "safetensors": _safetensors_keys,
}
_READERS: Mapping[str, Callable[[Path, str], Array]] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
}

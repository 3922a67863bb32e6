"""Freed memory that is kept is used again without page faults, and can be given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from pathlib import Path
from gradoracle_server import heap

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def use():  # three blocks at once, as a gradient has
    held = [library.malloc(size) for _ in range(3)]
    for one in held:
        ctypes.memset(one, 1, size)
    for one in held:
        library.free(one)

size = (48 if sys.argv[1] == "large blocks" else 16) << 20
if sys.argv[1] == "large blocks":
    heap.keep_freed_memory(256 << 20, large_blocks=True)
if sys.argv[1] == "keep":
    heap.keep_freed_memory(64 << 20)
for _ in range(3):
    use()
before = faults()
for _ in range(10):
    use()
kept = pages()
heap.give_back()
print(faults() - before, kept - pages())
"""


def measured(mode: str) -> tuple[int, int]:
    """Page faults of ten rounds of three blocks of 4,096 pages, or of 12,288, and the pages given back after them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=60)
    faults, given_back = done.stdout.split()
    return int(faults), int(given_back)


@pytest.mark.skipif(not hasattr(__import__("ctypes").CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_used_again_and_given_back() -> None:
    """48 MiB, or 144, again and again: without keeping any, each round faults anew."""
    faults, given_back = measured("keep")
    assert faults < 1000
    assert given_back > 3 * 4096 - 500
    faults, given_back = measured("large blocks")
    assert faults < 1000
    assert given_back > 3 * 12288 - 500
    faults, given_back = measured("")
    assert faults > 10 * 4096
    assert given_back < 2 * 4096

"""What this process has written to stdout and stderr, and nobody takes."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def forget_what_nobody_takes() -> None:
    """Lets go of output that a closed pipe or a full disk did not take.

    It would be written again at every flush, and fail: when a worker is started, and as Python ends, whose exit code
    would be 120 for that. What is written later is tried again, since a disk may have room then.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _flush_into_nowhere(stream)


def _flush_into_nowhere(stream: TextIO) -> None:
    descriptor = stream.fileno()
    real, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        stream.flush()
    finally:
        os.dup2(real, descriptor)
        os.close(real)
        os.close(nowhere)

"""Fresh memory as zeros, for operators that may return some of it unwritten.

Torch's private operators, and those that make up backward formulas, trust their arguments: given shapes that do not
belong together, `_weight_norm` or `_cdist_backward` leave parts of their results as the memory was, and what that
held may be another caller's. A graph that names one runs with memory that the C library has zeroed, and so does one
that names `linalg_lstsq`, whose default driver takes what memory held for a choice of pivots. All others run at full
speed: the other public operators write all that they return, and a test holds them to it. On a GPU, whose memory is
not the C library's, this does nothing.

Complete only where the process was started with glibc.malloc.tcache_count=0 in GLIBC_TUNABLES: pieces that a thread
has kept aside are handed out as they are.
"""

from __future__ import annotations

import ctypes
import re

from gradoracle_server.engine.graph import GraphSpec

_libc = ctypes.CDLL(None)
_M_PERTURB = -6  # <malloc.h>: fresh memory is filled with the complement of this byte; 0 turns that off
_DOUBTFUL = re.compile(r"aten\.(_\w+|\w*_backward\w*|\w*_jvp|linalg_lstsq)\.\w+")

_state = [0]


def needed(spec: GraphSpec) -> bool:
    """Whether a graph, or one of its functions, names an operator that may return memory that it did not write."""
    inner = (graph for one in spec.functions for graph in (one.forward, one.backward))
    return any(_DOUBTFUL.fullmatch(node.target) for node in spec.nodes) or any(map(needed, inner))


def zero(wanted: bool) -> None:
    """Makes the memory that is allocated from now on hold zeros, or what it happens to hold."""
    filling = 0xFF if wanted else 0
    if filling != _state[0] and hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_PERTURB, filling)
        _state[0] = filling

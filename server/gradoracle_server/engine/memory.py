"""Requests that need more memory than there is: the error they get, and how torch's own errors of that kind are told
from others."""

from __future__ import annotations

import re

import torch

from gradoracle_server.engine.errors import Fault

LIMIT = "max-memory-bytes"
"""The limit's name in an error's metadata: the flag of the server that sets it."""

UNCOUNTABLE = 2**63
"""Bytes asked for where torch cannot even count them: so many, or more."""

_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB|TiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_OVERFLOW = re.compile(r"integer multiplication overflow|Storage size calculation overflowed")
_EXHAUSTED = re.compile(
    r"DefaultCPUAllocator|CUDA out of memory|std::bad_alloc|bad_array_new_length|vector::_M_\w+|larger than max_size"
    r"|Could not allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
)


def too_much(what: str, asked: int, allowed: int, *, field: str = "", node: str = "", target: str = "") -> Fault:
    """The error of a request that is refused because it needs too much; `what` says what does."""
    text = f"{what} {asked} bytes, over the server's limit of {allowed} for one request (--{LIMIT})"
    return Fault(
        "LIMIT_EXCEEDED", text, field=field, node=node, target=target, limit=LIMIT, allowed=allowed, asked=asked
    )


def is_overflow(error: BaseException) -> bool:
    """Whether torch raised because a tensor has more bytes than 64 bits can count."""
    return bool(_OVERFLOW.search(str(error)))


def is_exhausted(error: BaseException) -> bool:
    """Whether torch, or Python, raised because memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_EXHAUSTED.search(str(error)) or is_overflow(error))


def ran_out(error: BaseException) -> bool:
    """Whether a request ended because memory could not be had, and not because what it needs was known to be too
    much."""
    if isinstance(error, Fault):
        return error.metadata.get("limit") == LIMIT and "allowed" not in error.metadata
    return is_exhausted(error)


def tried(error: BaseException) -> int | None:
    """The bytes of the allocation that failed, where the error tells."""
    if is_overflow(error):
        return UNCOUNTABLE
    found = _TRIED.search(str(error))
    return None if found is None else round(float(found[1]) * _UNITS[found[2]])


def exhausted(error: BaseException, *, location: str = "", node: str = "", target: str = "") -> Fault:
    """The error of a request for which memory could not be had while it ran.

    What was allowed is not known here: the worker adds it, with `allowing`.
    """
    asked = tried(error)
    if asked is None or asked == UNCOUNTABLE:
        text = f"{location}out of memory: {str(error).strip() or type(error).__name__}"
    else:
        text = f"{location}out of memory: {asked} bytes could not be had on top of what the request held by then"
    return Fault("LIMIT_EXCEEDED", text, node=node, target=target, limit=LIMIT, asked=asked)


def allowing(fault: Fault, allowed: int) -> Fault:
    """An error of `exhausted`, with what was allowed (0: all that the machine had) in its words and figures."""
    if fault.metadata.get("limit") != LIMIT or "allowed" in fault.metadata or not allowed:
        return fault
    # The limit is on all that the process holds, so that the allocation that failed need not be above it by itself.
    asked = fault.metadata.get("asked", "")
    asked = asked if asked.isdigit() and int(asked) > allowed else f"more than {allowed}"
    text = f"{fault.message}; the server's limit is {allowed} for one request (--{LIMIT})"
    return Fault(fault.reason, text, field=fault.field, **{**fault.metadata, "allowed": str(allowed), "asked": asked})

"""Cotangents that a check draws itself, as large as it takes for faults to show.

A gradient of a sum hides the part of an output whose own is a billionth of another's; and in float16 a cotangent of 2
may be too large for a gradient that is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gradoracle_server.engine.norms import norm
from gradoracle_server.engine.raising import raised
from gradoracle_server.engine.trial import Subject

Cotangents = list[torch.Tensor | None]

_UNLIKE = 2.0**10  # times, that outputs, and their gradients, differ by before they are brought closer
_FAINT = 1e-6  # of an output, that an input moves it by: what is less may be rounding
_SMALLER = 2.0**-8  # of a cotangent whose gradient overflows
_MOST = 16  # outputs, for each of which there is a pull-back


def between_outputs(subject: Subject, outputs: Sequence[torch.Tensor], cotangents: Cotangents) -> Cotangents:
    """Larger ones, by powers of two, for outputs whose gradient is nothing beside the others', by every input. Asked
    only where the outputs themselves are of sizes that differ by much."""
    live = [place for place, one in enumerate(cotangents) if one is not None and one.numel()]
    if not 2 <= len(live) <= _MOST:
        return cotangents
    sizes = [_size(outputs[place]) for place in live]
    known = [one for one in sizes if 0 < one < math.inf]
    if len(known) < 2 or max(known) <= _UNLIKE * min(known):
        return cotangents
    tape = subject.tape()
    alone: Cotangents = [None] * len(cotangents)
    lengths = [_size(one) for one in tape.targets]
    moves = []
    for place in live:
        found = tape.pull([*alone[:place], cotangents[place], *alone[place + 1 :]])
        moves.append([_size(one) * length for one, length in zip(found, lengths, strict=True)])
    most = [max(column) for column in zip(*moves, strict=True)]
    balanced = list(cotangents)
    for place, size, row in zip(live, sizes, moves, strict=True):
        share = max((mine / whole for mine, whole in zip(row, most, strict=True) if 0 < whole < math.inf), default=0.0)
        one = cotangents[place]
        if one is not None and 0 < share < 1 / _UNLIKE and max(row) > _FAINT * size:
            room = torch.finfo(one.dtype).max ** 0.25
            balanced[place] = one * min(2.0 ** -math.ceil(math.log2(share)), 2.0 ** math.floor(math.log2(room)))
    return balanced


def in_range(subject: Subject, cotangents: Cotangents, gradients: Sequence[torch.Tensor]) -> Cotangents:
    """Smaller ones, where those of a low precision have gradients that are not finite, and smaller ones' are."""
    narrow = [one for one in gradients if one.dtype in (torch.float16, torch.complex32)]
    if all(bool(one.isfinite().all()) for one in narrow):
        return cotangents
    smaller = [None if one is None else one * _SMALLER for one in cotangents]
    found = subject.tape().pull(smaller)
    return smaller if all(bool(one.isfinite().all()) for one in found) else cotangents


def _size(tensor: torch.Tensor) -> float:
    """Of a typical element."""
    wide = raised(tensor.detach())
    return norm(wide) / math.sqrt(max(1, wide.numel()))

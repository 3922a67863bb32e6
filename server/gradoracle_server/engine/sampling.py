"""Values along directions: one ladder of steps at a time, all points of it in one batch where there are any."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.slopes import Question, Questions, Values


@torch.inference_mode(False)
def sample(passes: Passes, space: Space, directions: torch.Tensor, ladder: list[float]) -> Values:
    """Evaluates one ladder along directions of one input, (P, C): 2 K passes a direction."""
    lengths = _both_ways(ladder)
    count = directions.shape[0]
    found = []
    # Directions one after another where the points of all would be large.
    together = count if passes.batching else 1
    for start in range(0, count, together):
        points = space.moved(directions[start : start + together], lengths)
        found.append(passes.at({space.place: points}, points.shape[0]))
    values = torch.cat(found) if len(found) > 1 else found[0]
    return Values(ladder, values.reshape(count, 2, len(ladder), passes.centre.numel()))


def asked(passes: Passes, question: Question | Questions, ladder: list[float]) -> Values:
    """The same along the directions of a question, or of several, one's after another's."""
    if isinstance(question, Question):
        return sample(passes, question.space, question.directions, ladder)
    if len(question.parts) == 1:
        return asked(passes, question.parts[0], ladder)
    return _together(passes, question.parts, ladder)


@torch.inference_mode(False)
def _together(passes: Passes, questions: Sequence[Question], ladder: list[float]) -> Values:
    """The directions of several inputs in one batch, if there are any."""
    if not passes.batching:
        found = [sample(passes, one.space, one.directions, ladder).found for one in questions]
        return Values(ladder, torch.cat(found))
    lengths = _both_ways(ladder)
    count = sum(one.directions.shape[0] for one in questions)
    total, start = count * len(lengths), 0
    points: dict[int, torch.Tensor] = {}
    for one in questions:
        moved = one.space.moved(one.directions, lengths)
        base = one.space.base.expand(total, *one.space.base.shape)
        stop = start + moved.shape[0]
        points[one.space.place] = torch.cat([base[:start], moved, base[stop:]])
        start = stop
    values = passes.at(points, total)
    return Values(ladder, values.reshape(count, 2, len(ladder), passes.centre.numel()))


def _both_ways(ladder: list[float]) -> list[float]:
    return [*ladder, *(-step for step in ladder)]

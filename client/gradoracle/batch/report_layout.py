"""Where the boxes of a graph go: layers from what needs nothing down to what nothing needs.

Each box stands one layer below the lowest of those that it needs; edges over several layers pass through places that
are kept free for them. Layers are put in order by the mean place of their neighbours, again and again, and the order
with the fewest crossings wins. Then each layer goes where its neighbours are, as near as its order and widths allow.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

BETWEEN_LAYERS, BETWEEN_BOXES = 34.0, 18.0
"""Pixels that stay free."""

_SWEEPS = 8
_STRAIGHT = 8.0  # the weight of an edge's own places against that of boxes: long edges shall not zigzag


@dataclasses.dataclass(slots=True)
class Box:
    """What is to be placed, and then where it is. Sizes are in pixels."""

    width: float
    height: float
    sources: Sequence[int] = ()
    """Boxes that it needs; each comes before it."""
    layer: int = 0
    x: float = 0.0
    """Its middle."""
    y: float = 0.0
    """Its upper edge."""

    @property
    def is_place(self) -> bool:
        """Whether it only keeps a place free for an edge."""
        return self.height == 0


def place(boxes: list[Box]) -> list[list[tuple[float, float]]]:
    """Places the boxes. Gives a line of points for each of their sources, box by box."""
    _layer(boxes)
    everything, edges = _with_places(boxes)
    above, below = _neighbours(everything, edges)
    layers = _ordered(everything, above, below)
    _across(everything, layers, above, below)
    _down(everything, layers)
    left = min((one.x - one.width / 2 for one in everything), default=0.0)
    for one in everything:
        one.x -= left
    return [_line([everything[place] for place in edge]) for edge in edges]


def _layer(boxes: list[Box]) -> None:
    users: dict[int, int] = {}  # the highest layer of those that need a box
    for one in boxes:
        one.layer = max((boxes[source].layer + 1 for source in one.sources), default=0)
        for source in one.sources:
            users[source] = min(users.get(source, one.layer), one.layer)
    for number, one in enumerate(boxes):
        if not one.sources and number in users:
            one.layer = users[number] - 1  # inputs stand just above their first user


def _with_places(boxes: list[Box]) -> tuple[list[Box], list[list[int]]]:
    """The boxes and the places that edges pass; and each edge as the numbers of those that it connects."""
    everything = list(boxes)
    edges = []
    for number, one in enumerate(boxes):
        for source in one.sources:
            edge = [source]
            for layer in range(boxes[source].layer + 1, one.layer):
                edge.append(len(everything))
                everything.append(Box(2.0, 0.0, layer=layer))
            edges.append([*edge, number])
    return everything, edges


def _neighbours(boxes: Sequence[Box], edges: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """For each box those above it and those below it, one layer away."""
    above: list[list[int]] = [[] for _ in boxes]
    below: list[list[int]] = [[] for _ in boxes]
    for edge in edges:
        for upper, lower in itertools.pairwise(edge):
            above[lower].append(upper)
            below[upper].append(lower)
    return above, below


# ---- The order within layers


def _ordered(boxes: Sequence[Box], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    layers: list[list[int]] = [[] for _ in range(max((one.layer for one in boxes), default=-1) + 1)]
    for number, one in enumerate(boxes):
        layers[one.layer].append(number)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        for layer in layers if downwards else reversed(layers):
            _sort(layer, neighbours, layers, boxes)
        crossings = _crossings(layers, below)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _sort(layer: list[int], neighbours: list[list[int]], layers: list[list[int]], boxes: Sequence[Box]) -> None:
    """Sorts by the mean place of the neighbours; a box without any stays about where it is."""
    keys: dict[int, float] = {}
    for now, number in enumerate(layer):
        near = neighbours[number]
        if near:
            beside = {other: place for place, other in enumerate(layers[boxes[near[0]].layer])}
            keys[number] = sum(beside[other] for other in near) / len(near)
        else:
            keys[number] = float(now)
    layer.sort(key=keys.__getitem__)


def _crossings(layers: list[list[int]], below: list[list[int]]) -> int:
    """How many pairs of edges cross."""
    count = 0
    for upper, lower in itertools.pairwise(layers):
        beside = {number: place for place, number in enumerate(lower)}
        seen: list[int] = []
        for number in upper:
            ends = sorted(beside[other] for other in below[number])
            count += sum(len(seen) - bisect.bisect_right(seen, end) for end in ends)
            for end in ends:
                bisect.insort(seen, end)
    return count


# ---- Coordinates


def _across(boxes: Sequence[Box], layers: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    for layer in layers:
        x = 0.0
        for number in layer:
            boxes[number].x = x + boxes[number].width / 2
            x += boxes[number].width + BETWEEN_BOXES
    # By those on one side, which carries a place along a whole chain in one sweep; in the end by those on both.
    both = [up + down for up, down in zip(above, below, strict=True)]
    for sweep in range(_SWEEPS + 2):
        downwards = sweep % 2 == 0
        neighbours = both if sweep >= _SWEEPS else above if downwards else below
        for layer in layers if downwards else reversed(layers):
            _settle([boxes[number] for number in layer], [_wish(boxes, one, neighbours) for one in layer])


def _wish(boxes: Sequence[Box], number: int, neighbours: list[list[int]]) -> float:
    """Where a box would stand by its neighbours alone."""
    near = neighbours[number]
    return sum(boxes[other].x for other in near) / len(near) if near else boxes[number].x


def _settle(layer: list[Box], wishes: list[float]) -> None:
    """Puts boxes as near to their wishes as their order and widths allow: least squares, by pooling neighbours."""
    offset = 0.0
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many boxes: of boxes that touch
    offsets = []
    for number, (one, wish) in enumerate(zip(layer, wishes, strict=True)):
        if number:
            offset += (layer[number - 1].width + one.width) / 2 + BETWEEN_BOXES
        offsets.append(offset)
        mean, weight, count = wish - offset, _STRAIGHT if one.is_place else 1.0, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, more = blocks.pop()
            mean, weight, count = (mean * weight + other * heavy) / (weight + heavy), weight + heavy, count + more
        blocks.append((mean, weight, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for one, mean, away in zip(layer, means, offsets, strict=True):
        one.x = mean + away


def _down(boxes: Sequence[Box], layers: list[list[int]]) -> None:
    y = 0.0
    for layer in layers:
        height = max(boxes[number].height for number in layer)
        for number in layer:
            boxes[number].y = y + (height - boxes[number].height) / 2
        y += height + BETWEEN_LAYERS


def _line(passed: list[Box]) -> list[tuple[float, float]]:
    """From the lower edge of the first to the upper edge of the last."""
    first, *between, last = passed
    return [(first.x, first.y + first.height), *((one.x, one.y) for one in between), (last.x, last.y)]

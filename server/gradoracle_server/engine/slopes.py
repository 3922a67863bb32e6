"""Slopes: derivatives of <weight, outputs> along directions of one input, with bars, kinks and edges of the domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gradoracle_server.engine import derivatives, finite_difference
from gradoracle_server.engine.derivatives import Derivative
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space

_SHORT = 2.0**-4  # the longest step of the three that do for most smooth functions


@dataclasses.dataclass(slots=True)
class Slopes:
    """What values say of P directions; all of shape (P,) but the coordinates'.

    `low` and `high` differ where an output has a kink: the one-sided slopes. `value` is then their mean.
    """

    value: torch.Tensor
    bar: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    kinked: torch.Tensor  # bool: an output has a kink, or an infinite slope
    coordinates: Derivative  # of the outputs, (P, M)
    smooth: bool = False  # no direction has a kink or an infinite bar, so that `low` and `high` are `value`
    first: list[Values] = dataclasses.field(default_factory=list)  # along the first direction, weighted; by ladder
    _noise: torch.Tensor | None = None

    def noise(self, passes: Passes) -> torch.Tensor:
        """(P,): how far the slopes are off, as far as the outputs' errors are independent of each other.

        Bars are added up as if all errors pointed the same way; these are not: it is no bound, but a reason to look.
        A bar can be narrower than its outputs' are, where it is that of a mean.
        """
        if self._noise is None:
            self._noise = torch.minimum(passes.normed(self.coordinates.bar), self.bar)
        return self._noise

    def of(self, rows: torch.Tensor | slice) -> Slopes:
        """Those of some directions, (P,) of bool or a slice."""
        rows = derivatives.places(rows)
        value = self.value[rows]
        return Slopes(
            value,
            self.bar[rows],
            value if self.smooth else self.low[rows],
            value if self.smooth else self.high[rows],
            self.kinked[rows],
            self.coordinates.of(rows),
            self.smooth,
        )

    def scaled(self, factor: float) -> Slopes:
        """Those along directions so many times as long."""
        value = self.value * factor
        return Slopes(
            value,
            self.bar * factor,
            value if self.smooth else self.low * factor,
            value if self.smooth else self.high * factor,
            self.kinked,
            self.coordinates.scaled(factor),
            self.smooth,
        )

    @staticmethod
    def joined(pieces: Sequence[Slopes]) -> Slopes:
        """Those of several lists of directions, one after another."""
        return Slopes(
            torch.cat([one.value for one in pieces]),
            torch.cat([one.bar for one in pieces]),
            torch.cat([one.low for one in pieces]),
            torch.cat([one.high for one in pieces]),
            torch.cat([one.kinked for one in pieces]),
            derivatives.joined([one.coordinates for one in pieces], 0),
            all(one.smooth for one in pieces),
            pieces[0].first,
        )

    def replaced(self, rows: torch.Tensor, others: Slopes) -> Slopes:
        """These with some directions' slopes (P of bool) taken from others, which has one for each such direction."""

        if bool(rows.all()):
            return dataclasses.replace(others, first=self.first + others.first)

        index = derivatives.places(rows)

        def mixed(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return mine.index_copy(0, index, theirs)

        value = mixed(self.value, others.value)
        alike = self.smooth and others.smooth
        return Slopes(
            value,
            mixed(self.bar, others.bar),
            value if alike else mixed(self.low, others.low),
            value if alike else mixed(self.high, others.high),
            mixed(self.kinked, others.kinked),
            self.coordinates.replaced(index, others.coordinates),
            alike,
            self.first + others.first if rows[0] else self.first,
        )


@dataclasses.dataclass(slots=True)
class Values:
    """Values along P directions: what one ladder saw."""

    ladder: list[float]
    found: torch.Tensor  # at the positive steps and the negative ones: (P, 2, K, M), or (P, 2, K) once weighted

    @property
    def plus(self) -> torch.Tensor:
        """(P, K, M), at the positive steps."""
        return self.found[:, 0]

    @property
    def minus(self) -> torch.Tensor:
        """The same at the negative ones."""
        return self.found[:, 1]


@dataclasses.dataclass(slots=True)
class Question:
    """Directions of one input, (P, C), and the bars, (P,), that are narrow enough to look no further."""

    space: Space
    directions: torch.Tensor
    wanted: torch.Tensor
    quickly: bool = False  # with a short ladder first: where there are so many that passes count

    @property
    def ladder(self) -> list[float]:
        """The first ladder."""
        if self.quickly:
            return finite_difference.steps(_SHORT, 3)
        return finite_difference.steps(finite_difference.LADDERS[0])

    @property
    def further(self) -> tuple[float, ...]:
        """The longest steps of the ladders after that."""
        return finite_difference.LADDERS if self.quickly else finite_difference.LADDERS[1:]

    def of(self, rows: torch.Tensor | slice) -> Question:
        """The same of some directions."""
        rows = derivatives.places(rows)
        return Question(self.space, self.directions[rows], self.wanted[rows], self.quickly)


@dataclasses.dataclass(slots=True)
class Questions:
    """Questions of several inputs, none `quickly`, as if their directions, one's after another's, were of one."""

    parts: Sequence[Question]
    quickly: bool = dataclasses.field(default=False, init=False)
    wanted: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.wanted = torch.cat([one.wanted for one in self.parts])

    def of(self, rows: torch.Tensor) -> Questions:
        """The same of some directions, (P,) of bool."""
        masks = rows.split_with_sizes([len(one.wanted) for one in self.parts])
        return Questions([one.of(mask) for one, mask in zip(self.parts, masks, strict=True) if bool(mask.any())])

"""Directions of one input, what was measured along them, and what that says of a gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from gradoracle_server.engine import finite_difference, ladders, sampling, tolerances
from gradoracle_server.engine.passes import Passes
from gradoracle_server.engine.probes import Space
from gradoracle_server.engine.products import Assessment, Products, distance, root_mean_square
from gradoracle_server.engine.report import Verdict
from gradoracle_server.engine.sharpening import Reach
from gradoracle_server.engine.slopes import Question, Slopes

FEW_UNITS = 64
"""Real coordinates up to which no element can hide behind larger ones: each is moved on its own, or without batches,
where that is dear, each that directions of all would not show."""

_FAINT = 1e-3  # of the function's size: a gradient that is less is as good as zero
_LAST_BITS = 16 * torch.finfo(torch.float64).eps


class Measurement:
    """One input: its directions, and the slopes along them."""

    def __init__(
        self,
        passes: Passes,
        space: Space,
        generator: torch.Generator,
        *,
        probes: int,
        every: bool,
        expected: torch.Tensor,
        spread: Callable[[], torch.Tensor],
        asked: float = tolerances.ASKED,
        fault: float = tolerances.FAULT,
    ) -> None:
        """`expected`, (C,), is about what the gradient is: only its size matters. `every`: units instead of probes.
        `spread` gives what rounding of the inputs does to each gradient element, (C,), when it comes to that. `fault`:
        the relative one in a single element that pains are taken to see.
        Nothing is measured yet: `slopes` are to be those of `question`."""
        self.passes, self.space, self.generator = passes, space, generator
        self.fault = fault
        finite = math.isfinite(float(expected.sum()))
        self._expected = expected if finite else expected.nan_to_num(0.0, 0.0, 0.0)
        self._spread, self._asked, self._quickly = spread, asked, every and space.size > FEW_UNITS
        self.units = every or space.size <= FEW_UNITS
        self._drawn = False
        self._directions = None if self.units else space.drawn(probes, generator)
        self._alone = space.lengths() if self.units and not space.kind else None
        self.slopes: Slopes
        self._reach: Reach | None = None  # of the steps; None where all are the usual ones
        self._blind: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor | None, Products] | None = None

    def draw(self, probes: int) -> None:
        """Takes random directions for elements that were to be moved alone, if these are fewer: where an operator has
        no batches, passes are what a check costs. What would not show along those can still be moved alone."""
        if self.units and self.space.size > probes:
            self.units, self._alone, self._drawn = False, None, True
            self._directions = self.space.drawn(probes, self.generator)

    def move_alone(self) -> bool:
        """Moves each element alone after all, where directions were drawn in place of that. Whether they were."""
        if not self._drawn:
            return False
        self.units, self._drawn = True, False
        self._directions, self._alone = None, None if self.space.kind else self.space.lengths()
        self._reach, self._blind, self._last = None, None, None
        self.slopes = ladders.measure(self.passes, self.question)
        return True

    @property
    def directions(self) -> torch.Tensor:
        """(P, C); along every axis where every element is moved alone."""
        if self._directions is None:
            self._directions = self.space.axes()
        return self._directions

    def _products(self, gradient: torch.Tensor) -> Products:
        """The gradient, (C,), along the directions; kept for the last one, of which much is asked."""
        if self._last is None or self._last[0] is not gradient or self._last[1] is not self._directions:
            found = (
                Products.of(gradient, self.directions) if self._alone is None else Products.alone(gradient, self._alone)
            )
            self._last = gradient, self._directions, found
        return self._last[2]

    @property
    def question(self) -> Question:
        """What is to be measured first."""
        wanted = self._wanted(self._products(self._expected))
        return Question(self.space, self.directions, wanted, quickly=self._quickly)

    def first(self, gradient: torch.Tensor) -> float:
        """The gradient along the first direction."""
        return float(gradient[0] * self._alone[0] if self._alone is not None else gradient @ self.directions[0])

    def measured(self, directions: torch.Tensor, enough: float | torch.Tensor = 0.0) -> Slopes:
        """Slopes along directions, (P, C), with bars of about `enough`, for all or for each of them, (P,)."""
        wanted = self._wanted(Products.of(self._expected, directions)).clamp(min=enough)
        return ladders.measure(self.passes, Question(self.space, directions, wanted))

    def _wanted(self, expected: Products) -> torch.Tensor:
        """Bars, (P,), that are narrow enough to look no further."""
        fine = tolerances.RELATIVE / 10 * max(1.0, math.sqrt(self.space.size) / 10)
        if self._quickly:
            fine = max(fine, self.fault / 4)
        return fine * self._typical(expected, self._expected)

    def assess(
        self,
        gradient: torch.Tensor,
        *,
        generous: bool = False,
        allowance: torch.Tensor | None = None,
        unrest: torch.Tensor | None = None,
        asked: float | None = None,
    ) -> Assessment:
        """The gradient, (C,), along the directions; `generous` allows for what rounding of the inputs does to it,
        `allowance`, (C,), for what each element may be off by beside, and `unrest`, (M,), for what each output may be
        off by, at the longest step. `asked` is the resolution that makes a proof, where it is not the usual one."""
        uncertain = [
            self._products(one) for one in (self._spread() if generous else None, allowance) if one is not None
        ]
        wider, likely = _added([one.most for one in uncertain]), _added([one.size for one in uncertain])
        if unrest is not None:
            strength = self.passes.strength * unrest / finite_difference.LADDERS[0]
            least = strength.sum().expand_as(self.slopes.bar)
            if self._reach is not None:
                least = (self._reach.touched.to(strength.dtype) @ strength) / self._reach.longer
            wider, likely = (least if one is None else one + least for one in (wider, likely))
        return self._assessed(gradient, self._products(gradient), self.slopes, wider, likely, asked)

    def assessed(
        self,
        gradient: torch.Tensor,
        directions: torch.Tensor,
        found: Slopes,
        allowance: torch.Tensor | None = None,
        *,
        generous: bool = True,
        asked: float | None = None,
    ) -> Assessment:
        """The same along other directions."""
        if not generous:
            return self._assessed(gradient, Products.of(gradient, directions), found, None, None, asked)
        spread = self._spread() if allowance is None else torch.maximum(self._spread(), allowance)
        moves = Products.of(spread, directions)
        return self._assessed(gradient, Products.of(gradient, directions), found, moves.most, moves.size, asked)

    def _assessed(
        self,
        gradient: torch.Tensor,
        products: Products,
        found: Slopes,
        wider: torch.Tensor | None,
        likely: torch.Tensor | None,
        asked: float | None = None,
    ) -> Assessment:
        """What elements are uncertain by comes to `wider` at most along each direction, (P,), and to `likely` where
        they are off independently of each other."""
        error = distance(products.sum, found)
        allowance = products.allowance
        noise = None if self.units else self._noise(found, products)
        if wider is not None:
            allowance = allowance + wider
            noise = None if noise is None or likely is None else noise + likely
        if wider is not None or not found.smooth:
            allowance = allowance.nan_to_num(0.0, 0.0)
        scale = torch.maximum(self._typical(products, gradient), found.value.abs())
        # A gradient that is as good as zero is held against the function's own size.
        faint = scale <= found.bar + allowance
        asked = self._asked if asked is None else asked
        nothing = None
        if bool(faint.any()):
            own = scale
            scale = torch.where(faint, scale.clamp(min=self.passes.magnitude * _FAINT), scale)
            if not bool((found.bar + allowance <= asked * scale)[faint].all()):  # it may be 0 here, as at a minimum
                scale = torch.where(faint, scale.clamp(min=self._moved * _FAINT), scale)
            nothing = faint & ~(found.bar + allowance <= asked * own)
            if not bool(nothing.any()) or not bool((nothing | (products.size == 0)).all()):
                nothing = None
        judged = tolerances.judge(error, found.bar, allowance, scale, asked)
        verdict = judged.verdict
        if verdict is Verdict.FAIL and bool((judged.failed & products.sum.isinf()).any()):
            error = torch.where(self._overflows(products, found), 0.0, error)
            judged = tolerances.judge(error, found.bar, allowance, scale, asked)
            verdict = judged.verdict
        kinked = not found.smooth and bool(found.kinked.any())
        return Assessment(verdict, judged, kinked, noise, products.directions, nothing)

    def _overflows(self, products: Products, found: Slopes) -> torch.Tensor:
        """(P,) of bool: where a gradient is infinite, as slopes are once they are divided by how far the input moves:
        that is what a large number is rounded to."""
        large = found.value.abs() > torch.finfo(torch.float64).max * products.length
        return products.sum.isinf() & large & (found.value.sign() == products.sum.sign())

    @functools.cached_property
    def _moved(self) -> float:
        """How far the function moves, all of its terms together, when the input moves by a long step."""
        length = finite_difference.LADDERS[0]
        values = sampling.sample(self.passes, self.space, self.space.drawn(1, self.generator), [length]).found
        moves = torch.where(self.passes.strength == 0, 0.0, (values - self.passes.centre).abs() * self.passes.strength)
        moved = float(moves.nan_to_num(0.0, 0.0).sum(-1).max())
        return moved / length

    def _typical(self, products: Products, gradient: torch.Tensor) -> torch.Tensor:
        """(P,): the size of a gradient along directions; along single axes not less than a typical element's."""
        if not (self.units or self._drawn) or not gradient.numel():
            return products.size
        typical = root_mean_square(gradient)
        if not math.isfinite(typical):
            typical = root_mean_square(gradient[gradient.isfinite()])
        return torch.maximum(products.size, products.length * typical)

    def _noise(self, found: Slopes, products: Products) -> torch.Tensor:
        """(P,): what slopes and a right gradient differ by where nothing is wrong."""
        return torch.add(found.noise(self.passes), products.size, alpha=_LAST_BITS)

    def doubts(self, part: torch.Tensor, gradient: torch.Tensor, found: Slopes, *, loudly: bool) -> tuple[float, float]:
        """Claimed minus numerical slope along one direction, (1, C), and what it is held against: the tolerance, or,
        unless `loudly`, the noise."""
        products = Products.of(gradient, part)
        known = Products.of(gradient.nan_to_num(0.0, 0.0, 0.0), part)
        bound = found.bar + known.allowance if loudly else self._noise(found, known)
        return float(products.sum - found.value[0]), float(bound[0])

    def notices(self, gradient: torch.Tensor, coordinate: int, relative: float) -> bool:
        """Whether a relative fault in one element would be seen: the negative control of a gradient that passed."""
        if self._alone is not None:
            size = float(gradient[coordinate] * self._alone[coordinate])
            off = abs((1 + relative) * size - float(self.slopes.value[coordinate]))
            return off > float(self.slopes.bar[coordinate]) + (tolerances.RELATIVE + _LAST_BITS) * abs(size)
        products = self._products(gradient)
        fault = self.directions[:, coordinate] * (relative * gradient[coordinate])
        error = distance(products.sum + fault, self.slopes)
        seen = self.slopes.bar + products.allowance
        if not self.units:
            seen = torch.fmin(seen, self._noise(self.slopes, products))
        return bool((error > seen).any())

    def blind(self, gradient: torch.Tensor) -> torch.Tensor:
        """(C,): the smallest relative fault in each element that would show along one of the directions."""
        if self._blind is None:
            products = self._products(gradient)
            units = self._alone is not None
            bound = self.slopes.bar + products.allowance if units else self._noise(self.slopes, products)
            self._blind = products.smallest_fault(bound).clamp_(min=tolerances.RELATIVE)
        return self._blind

    def _exchange(self, rows: torch.Tensor, others: Slopes, reach: Reach | None) -> None:
        """Takes other slopes along some directions, (P,) of bool; `reach` is that of their steps where these are not
        the usual ones."""
        self._blind = None
        self.slopes = self.slopes.replaced(rows, others)
        if reach is not None:
            self._reach = (self._reach or Reach.usual(self.slopes)).replaced(rows, reach)

    def _add(self, directions: torch.Tensor, others: Slopes, reach: Reach | None) -> None:
        """Adds directions and the slopes along them."""
        self._blind = None
        if reach is not None or self._reach is not None:
            self._reach = (self._reach or Reach.usual(self.slopes)).joined(reach or Reach.usual(others))
        self._directions = torch.cat([self.directions, directions])
        self.slopes = Slopes.joined([self.slopes, others])


def _added(terms: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return None if not terms else functools.reduce(torch.add, terms)

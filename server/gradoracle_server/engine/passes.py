"""Forward passes: one program at many points, in one batch where its operators allow, and counted."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch._C import _functorch
from torch._functorch.vmap import lazy_load_decompositions  # type: ignore[attr-defined]

from gradoracle_server.engine import finite_difference
from gradoracle_server.engine.evaluate import RandomState, seed_everything
from gradoracle_server.engine.norms import norms
from gradoracle_server.engine.program import in_words, is_refusal

Map = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""A function of all inputs."""

BatchedMap = Callable[[Sequence[torch.Tensor], Sequence[bool], int], Sequence[torch.Tensor | None]]
"""The same for a number of points at once: the inputs, which of them carry a leading axis of points, how many."""

_BATCH_BYTES = 64 * 1024 * 1024  # of inputs and outputs that are evaluated together
_SETTLED = 1e-10
_ILL = 1e-12
_NOISES = 4.0  # times what values are off by, that a difference of them is at the most
_REORDERED = 1024.0  # units in the last place
_WORTH_BATCHING = 1 << 16  # elements of one point from which on a batch gains nothing over a loop


class NoBatchesError(Exception):
    """An operator has no rule for batches: each point takes a pass of its own, and other points may be wanted then."""


class _OtherShapeError(Exception):
    """The map gives an output of another shape than at the base point."""


class Passes:
    """Evaluates a map at points that differ from a base point in some inputs.

    Every pass draws the same random numbers, so that all of them see one function. Batches are not taken on trust:
    who finds anything but agreement asks again with `batching` off.
    """

    def __init__(
        self,
        function: Map,
        base: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor | None],
        *,
        device: torch.device,
        seed: int,
        batched: BatchedMap | None = None,
        epsilon: float = torch.finfo(torch.float64).eps,
        flat: bool = False,
    ) -> None:
        """`weights` are the cotangents: an output whose weight is None is not looked at. `epsilon` is the machine
        epsilon of the precision in which the map computes. `flat`: it is constant where steps do not move it, as the
        gradient of a function that is linear between its kinks, and not rounded to a grain."""
        self._function = function
        self._batched = batched or self._vmapped
        self._device, self._seed, self.flat = device, seed, flat
        self.base = list(base)
        self.count = 0
        self.refusal = ""
        """What the map did last at a point that it does not take, in words: "raises …"."""
        self._draws = False  # whether it is known to draw random numbers
        self.shortest = math.sqrt(epsilon)
        """A step, relative to a coordinate, below which differences of values are rounding above all."""
        self.unsteady = epsilon if epsilon > finite_difference.EPSILON else 0.0
        """How far a moved coordinate is off, relative to itself: in low precision it is rounded."""
        self._looked_at = [one is not None for one in weights]
        with torch.no_grad():
            outputs = self._once(self.base, seeded=True)
        self._like = [
            (one.new_empty(0), one.shape) for one, looked in zip(outputs, self._looked_at, strict=True) if looked
        ]
        self.centre = self._gathered([one[None] for one in outputs])[0]
        """The outputs' real coordinates at the base point, of shape (M,)."""
        self.weight = self._gathered([None if one is None else one[None] for one in weights])[0]
        """The cotangents', likewise."""
        self.epsilon = _joined(
            [_per_coordinate(max(epsilon, torch.finfo(one.dtype).eps), one, shape) for one, shape in self._like], 0
        )
        """The machine epsilon of each."""
        self.units: finite_difference.Epsilon = self.epsilon
        """That of all, if they have the same."""
        if len({one.dtype for one, _ in self._like}) == 1:
            self.units = max(epsilon, torch.finfo(self._like[0][0].dtype).eps)
        self.noise: torch.Tensor | None = None
        """(M,): what values are off by beside; None where nothing is known of it."""
        self.strength = self.weight.abs()
        """(M,): |weight|."""
        self._size = sum(one.numel() for one in self.base) + self.centre.numel()
        self.batching = self._size < _WORTH_BATCHING
        self._patient = True  # whether points may be gone through one by one
        self._together: set[frozenset[int]] = set()  # inputs that were moved in one batch

    @functools.cached_property
    def magnitude(self) -> float:
        """The sum of |weight * output|: the size of what is differentiated."""
        return float(self._terms.sum())

    @functools.cached_property
    def total(self) -> float:
        """The sum of weight * output at the base point."""
        return float(self.weight @ self.centre)

    @functools.cached_property
    def rounding(self) -> float:
        """What rounding may add to that."""
        found = float(self._terms @ self.epsilon)
        if self.noise is None:
            return found
        return found + float(torch.where(self.strength == 0, 0.0, self.strength * self.noise).sum())

    @functools.cached_property
    def _terms(self) -> torch.Tensor:
        """(M,): |weight * output|."""
        return (self.weight * self.centre).abs_().nan_to_num_(0.0, 0.0)

    @functools.cached_property
    def floor(self) -> float:
        """About the narrowest bar that rounding of the outputs allows."""
        return finite_difference.FLOOR * self.rounding

    @functools.cached_property
    def floors(self) -> torch.Tensor:
        """(M,): the same of each output alone, whatever its weight."""
        rounding = finite_difference.Rounding(self.epsilon, self.noise)
        return finite_difference.FLOOR * rounding.at(self.centre.abs()).nan_to_num_(0.0, 0.0)

    @functools.cached_property
    def loud(self) -> float:
        """What a difference of values is above where it is neither rounding nor noise."""
        loud = finite_difference.loud(self.centre)
        return loud if self.noise is None else max(loud, _NOISES * float(self.noise.max()))

    @functools.cached_property
    def faint(self) -> float:
        """What a difference of values is above where it is no rounding on the way to the largest of them."""
        return finite_difference.faint(self.centre, finite_difference.Rounding(self.epsilon, self.noise))

    @functools.cached_property
    def settled(self) -> torch.Tensor:
        """(M,): bars that are narrow beside the output itself."""
        return self.centre.abs().nan_to_num_(0.0, 0.0).mul_(_SETTLED)

    @functools.cached_property
    def _all_count(self) -> bool:
        """Whether no weight is 0."""
        return bool(self.strength.all())

    def summed(self, bars: torch.Tensor) -> torch.Tensor:
        """(P,): bars of the outputs, (P, M), times their |weight|, added up. What is not known of an output of weight 0
        does not matter."""
        if self._all_count:
            return bars @ self.strength
        return torch.where(self.strength == 0, 0.0, bars * self.strength).sum(1)

    def normed(self, bars: torch.Tensor) -> torch.Tensor:
        """The same where errors are independent of each other: the root of the sum of squares."""
        terms = bars * self.strength
        if not self._all_count:
            terms = torch.where(self.strength == 0, 0.0, terms)
        return norms(terms)

    def take_noise(self, noise: torch.Tensor | None) -> None:
        """Takes values to be off by so much, (M,), from now on, beside rounding of the outputs."""
        if noise is self.noise:  # nothing nearly always, and what is derived from it may stay
            return
        self.noise = noise
        for name in ("rounding", "floor", "floors", "loud", "faint"):
            self.__dict__.pop(name, None)

    @torch.inference_mode(False)
    @torch.no_grad()
    def at(self, points: Mapping[int, torch.Tensor], count: int) -> torch.Tensor:
        """The outputs' real coordinates, of shape (count, M): each input named by its place has a leading axis."""
        if self.batching and count > 1:
            found = self._in_batches(points, count)
            if found is not None:
                return found
            self.batching = False
            if not self._patient:
                raise NoBatchesError
        return self._in_turn(points, count)

    @contextlib.contextmanager
    def in_batches(self) -> Iterator[None]:
        """Raises NoBatchesError inside where it turns out that the map has none, instead of a pass after another."""
        self._patient = False
        try:
            yield
        finally:
            self._patient = True

    @torch.inference_mode(False)
    @torch.no_grad()
    def tried(self, points: Mapping[int, torch.Tensor], count: int) -> torch.Tensor | None:
        """The same at points that the map may refuse; None where it does, or has no batches."""
        return self._in_batches(points, count) if self.batching else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def batches_agree(self, place: int) -> bool:
        """Whether a batch that moves an input gives at the base point what one pass gives there, up to the order of
        additions, and so all that moved several: batching rules can be wrong, and a batch may lie in memory otherwise,
        so that its random numbers go elsewhere."""
        return all(self._agree_at_base(places) for places in {frozenset([place]), *self._together})

    def _agree_at_base(self, places: Iterable[int]) -> bool:
        found = self._in_batches({place: torch.stack([self.base[place]] * 2) for place in places}, 2)
        if found is None:
            return False
        known = self.centre.isfinite()
        size = float(self.centre[known].abs().max()) if bool(known.any()) else 0.0
        return bool(((found - self.centre).abs()[:, known] <= _REORDERED * self.epsilon[known] * size).all())

    @torch.inference_mode(False)
    @torch.no_grad()
    def unrest(self, roundings: Iterable[contextlib.AbstractContextManager[object]]) -> torch.Tensor:
        """(M,): how far each output moves in contexts that round inside of the function: what is lost where large
        numbers cancel on the way to small ones."""
        widest = torch.zeros_like(self.centre)
        for rounding in roundings:
            with rounding:
                moved = self._in_turn({}, 1)[0]
            widest = torch.maximum(widest, (moved - self.centre).abs().nan_to_num(0.0, 0.0))
        # What is exactly 0 may be 1 - 1 inside of one operator, as ndtr is far from 0; and what moves by more than some
        # thousand last places is no rounding, but another branch, as another of the numbers that a quantile is between.
        least = finite_difference.EPSILON
        widest = torch.where(self.centre == 0, widest.clamp(min=least), widest)
        return torch.minimum(widest, (_ILL * self.centre.abs()).nan_to_num(0.0, 0.0).clamp(min=least))

    def _in_turn(self, points: Mapping[int, torch.Tensor], count: int) -> torch.Tensor:
        """One pass after another; NaN where an operator refuses the point, or the caller's function does, whatever it
        raises, or gives outputs of other shapes there: the base point is at the edge of its domain.

        Few maps draw. Until one does, the generators are seeded once, and looked at after the last pass."""
        if not self._draws and count > 1:
            seed_everything(self._seed, self._device)
            state = RandomState(self._device)
            found = self._looped(points, count, seeded=False)
            if state.is_current:
                return found
            self._draws = True
        return self._looped(points, count, seeded=True)

    def _looped(self, points: Mapping[int, torch.Tensor], count: int, *, seeded: bool) -> torch.Tensor:
        kept = [one.new_empty((count, *shape)) for one, shape in self._like]
        rows = zip(*(one.unbind() for one in kept), strict=True)
        moved = [(place, one.unbind()) for place, one in points.items()]
        point = list(self.base)
        for number, row in enumerate(rows):
            for place, one in moved:
                point[place] = one[number].clone()  # because as_strided and its like see the memory behind a tensor
            try:
                self._put(self._once(point, seeded=seeded), row)
            except Exception as error:
                if not is_refusal(error):
                    raise
                self.refusal = str(error) if isinstance(error, _OtherShapeError) else f"raises {in_words(error)}"
                for one in row:
                    one.fill_(math.nan)
        return _joined([real_coordinates(one) for one in kept], 1)

    def _put(self, outputs: Sequence[torch.Tensor], row: Sequence[torch.Tensor]) -> None:
        """Copies the outputs that are looked at: the map may use their memory again. Raises _OtherShapeError."""
        kept = outputs if len(row) == len(outputs) else itertools.compress(outputs, self._looked_at)
        for one, output in zip(row, kept, strict=True):
            if one.shape != output.shape:
                raise _OtherShapeError(f"gives an output of shape {tuple(output.shape)}, not {tuple(one.shape)}")
            one.copy_(output.detach())

    def _once(self, inputs: Sequence[torch.Tensor], *, seeded: bool) -> Sequence[torch.Tensor]:
        """`seeded`: with the generators seeded before."""
        self.count += 1
        if seeded:
            seed_everything(self._seed, self._device)
        return self._function(inputs)

    def _gathered(self, outputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """(B, M) from the outputs that are looked at, each with a leading axis."""
        kept = [
            real_coordinates(output.detach())
            for output, looked in zip(outputs, self._looked_at, strict=True)
            if looked and output is not None
        ]
        found = _joined(kept, 1)
        return found.clone() if found._is_zerotensor() else found  # autograd's zeros have no memory to be written to

    def _in_batches(self, points: Mapping[int, torch.Tensor], count: int) -> torch.Tensor | None:
        """None where vmap cannot batch the map."""
        if len(points) > 1:
            self._together.add(frozenset(points))
        pieces = []
        most = max(1, _BATCH_BYTES // (8 * max(1, self._size)))
        carried = [place in points for place in range(len(self.base))]
        for start in range(0, count, most):
            stop = min(count, start + most)
            inputs = [points[k][start:stop] if k in points else one for k, one in enumerate(self.base)]
            seed_everything(self._seed, self._device)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "performance drop because we have not yet implemented …"
                    outputs = self._batched(inputs, carried, stop - start)
            except Exception:
                return None  # a fault of the data raises again, in its own words, in the loop
            pieces.append(self._gathered(outputs))
            self.count += stop - start
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _vmapped(
        self, inputs: Sequence[torch.Tensor], carried: Sequence[bool], count: int
    ) -> Sequence[torch.Tensor | None]:
        # What torch.func.vmap does, without its handling of nested arguments, which takes longer than a small function.
        lazy_load_decompositions()
        level = _functorch._vmap_increment_nesting(count, "same")
        try:
            point = [
                _functorch._add_batch_dim(one, 0, level) if yes else one
                for one, yes in zip(inputs, carried, strict=True)
            ]
            return [
                _functorch._remove_batch_dim(output, level, count, 0) if looked else None
                for output, looked in zip(self._function(point), self._looked_at, strict=True)
            ]
        finally:
            _functorch._vmap_decrement_nesting()


def _joined(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _per_coordinate(value: float, like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    count = shape.numel() * (2 if like.dtype.is_complex else 1)
    return torch.full((count,), value, dtype=torch.float64, device=like.device)


def real_coordinates(stacked: torch.Tensor) -> torch.Tensor:
    """(B, …) to (B, C) in float64: a complex number is two coordinates, its real and its imaginary part."""
    if stacked.dtype.is_complex:
        stacked = torch.view_as_real(stacked.resolve_conj())
    flat = stacked.reshape(stacked.shape[0], stacked.numel() // max(1, stacked.shape[0]))
    return flat if flat.dtype is torch.float64 else flat.to(torch.float64)

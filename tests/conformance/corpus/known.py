"""Gradients of torch 2.13 that are not the derivative, as the check found them: what a check rightly fails."""

from __future__ import annotations

import dataclasses
import fnmatch


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """An operator's gradient that is wrong."""

    operator: str  # a pattern
    why: str
    orders: tuple[int, ...] = (1, 2)
    dtypes: tuple[str, ...] = ("*",)


KNOWN = (
    Known("as_strided_scatter", "the source's places have a gradient by the overwritten input, too"),
    Known("as_strided.partial_views", "elements beside the view that as_strided is called on have a gradient of 0"),
    Known("nn.functional.hardsigmoid", "its slope is float32's 1/6", dtypes=("float64",)),
    Known(
        "native_group_norm", "without a cotangent of the output, its mean and deviation have no gradient", orders=(1,)
    ),
    Known("normal*", "0 by its mean and its standard deviation, by decision, though its samples move with them"),
    Known("nn.functional.max_unpool[123]d", "of copies that overwrite each other, each gets a gradient"),
    Known("nn.functional.linear_cross_entropy.chunked*", "the second derivative is lost", orders=(2,)),
    Known(
        "logcumsumexp",
        "it goes through the logarithm of the cotangent plus the inputs, whose last place at 1e4 is 64 in bfloat16",
        dtypes=("bfloat16", "float16", "float32", "complex64"),
    ),
    Known("linalg.norm.subgradients_at_zero", "the second derivative of orders below 0 is NaN", orders=(2,)),
    Known("masked.logaddexp", "the second derivative is NaN", orders=(2,)),
)


def why(operator: str, dtype: str, order: int) -> str | None:
    """What is wrong with the gradient of an operator, if anything is known."""
    for one in KNOWN:
        fits = fnmatch.fnmatchcase(operator, one.operator) and order in one.orders
        if fits and any(fnmatch.fnmatchcase(dtype, pattern) for pattern in one.dtypes):
            return one.why
    return None

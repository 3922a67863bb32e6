"""Small cases of gradients that are wrong in torch 2.13: what a check must not pass, and a reference not hide.

Each has the mathematical function beside torch's, as Python that mpmath can differentiate to any precision: nothing of
this project decides what is right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

_DIGITS = 40


def _f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _c128(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.complex128)


@dataclasses.dataclass(frozen=True, slots=True)
class Minimal:
    """A function at a point, with the gradient that torch gives and the one that is right.

    Both are of the sum of the outputs, with torch's convention for complex numbers: the conjugate of the derivative.
    """

    name: str
    shown: str
    """The call, for people."""
    why: str
    """What torch does in place of the derivative."""
    function: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    place: int
    """Of the input whose gradient is wrong."""
    torchs: Any
    """The gradient that torch gives, nested as its elements are."""
    exact: Callable[[Sequence[Any]], Any]
    """The sum of the outputs as a function of that input's elements, the others as they are in `inputs`."""
    order: int = 1
    """2: the gradient of the sum of the input's gradient."""

    def points(self) -> list[Any]:
        """The elements of the input, exactly."""
        return [mpmath.mpmathify(one) for one in self.inputs[self.place].reshape(-1).tolist()]

    def right(self) -> torch.Tensor:
        """The right gradient, in float64 or complex128: mpmath's derivative of `exact`, to 40 digits before that."""
        where = self.inputs[self.place]
        with mpmath.workdps(_DIGITS):
            points = self.points()
            found = [mpmath.conj(self._derivative(points, k)) for k in range(len(points))]
        kind = complex if where.is_complex() else float
        dtype = torch.complex128 if where.is_complex() else torch.float64
        return torch.tensor([kind(one) for one in found], dtype=dtype).reshape(where.shape)

    def _derivative(self, points: Sequence[Any], k: int) -> Any:
        """By the k-th element; of order 2, of the sum of the gradient's elements."""

        def moved(t: Any, s: Any = 0) -> Any:
            return self.exact([one + s + (t if j == k else 0) for j, one in enumerate(points)])

        return mpmath.diff(moved, 0) if self.order == 1 else mpmath.diff(moved, (0, 0), (1, 1))


def _ctc(x: torch.Tensor) -> torch.Tensor:
    return torch.ctc_loss(x, torch.tensor([[1]]), [2], [1], reduction=2)  # the sum


def _ctc_exact(x: Sequence[Any]) -> Any:
    """Two frames of three classes, 0 the blank; the label 1 is read in both, in the first or in the second."""
    (a0, a1, _), (b0, b1, _) = x[:3], x[3:]
    return -mpmath.log(mpmath.exp(a1 + b1) + mpmath.exp(a1 + b0) + mpmath.exp(a0 + b1))


def _twice(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function that writes two numbers into the same place."""
    return lambda x, s: operator(x, 0, torch.tensor([0, 0]), s)


MINIMAL = (
    Minimal(
        "as_strided_scatter",
        "`torch.as_strided_scatter(x, src, (), (), 0)`, by x",
        "the place that src overwrites has a gradient of 1",
        lambda x, s: torch.as_strided_scatter(x, s, (), (), 0),
        (_f64([2.0]), _f64(3.0)),
        0,
        [1.0],
        lambda x: mpmath.mpf(3),
    ),
    Minimal(
        "as_strided, of a view",
        "`x[3:4].as_strided((1,), (1,), 0)`",
        "it reads x[0], which is outside of the view, and has a gradient of 0 there",
        lambda x: x[3:4].as_strided((1,), (1,), 0),
        (_f64([1.0, 2.0, 3.0, 4.0]),),
        0,
        [0.0, 0.0, 0.0, 0.0],
        lambda x: x[0],
    ),
    Minimal(
        "hardsigmoid",
        "`hardsigmoid(x)` at 0.3 in float64",
        "1/6 is taken in single precision",
        F.hardsigmoid,
        (_f64(0.3),),
        0,
        0.1666666716337204,
        lambda x: x[0] / 6 + mpmath.mpf(1) / 2,
    ),
    Minimal(
        "native_group_norm, its mean",
        "`native_group_norm(x, None, None, 1, 1, 2, 1, 0.0)[1]`",
        "where the normalized output has no cotangent, the mean has no gradient, and neither has the deviation",
        lambda x: torch.native_group_norm(x, None, None, 1, 1, 2, 1, 0.0)[1],
        (_f64([[[1.0, 3.0]]]),),
        0,
        [[[0.0, 0.0]]],
        lambda x: (x[0] + x[1]) / 2,
    ),
    Minimal(
        "celu",
        "`celu(x, 1.3)` at -0.7 in float64",
        "alpha is taken in single precision",
        lambda x: F.celu(x, 1.3),
        (_f64(-0.7),),
        0,
        0.5836454880241843,
        lambda x: mpmath.mpf(1.3) * mpmath.expm1(x[0] / mpmath.mpf(1.3)),
    ),
    Minimal(
        "ldexp",
        "`torch.ldexp(x, -1)`, the exponent an int64",
        "2 to the power of the exponent is taken in whole numbers, which is 0 for negative ones",
        lambda x: torch.ldexp(x, torch.tensor([-1])),
        (_f64([3.0]),),
        0,
        [0.0],
        lambda x: x[0] / 2,
    ),
    Minimal(
        "max_unpool1d, an index twice",
        "`max_unpool1d(x, [[0, 0]], 2)`",
        "of copies that overwrite each other, each gets a gradient",
        lambda x: F.max_unpool1d(x, torch.tensor([[0, 0]]), (2,)),
        (_f64([[1.0, 2.0]]),),
        0,
        [[1.0, 1.0]],
        lambda x: x[1],
    ),
    Minimal(
        "scatter, an index twice",
        "`x.scatter(0, [0, 0], src)`, by src",
        "the element that is overwritten has a gradient of 1 (documented as undefined)",
        _twice(torch.scatter),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        lambda s: s[1],
    ),
    Minimal(
        "index_put, an index twice",
        "`x.index_put(([0, 0],), src)`, by src",
        "the same",
        lambda x, s: x.index_put((torch.tensor([0, 0]),), s),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        lambda s: s[1],
    ),
    Minimal(
        "index_copy, an index twice",
        "`x.index_copy(0, [0, 0], src)`, by src",
        "the same",
        _twice(torch.index_copy),
        (_f64([1.0]), _f64([2.0, 3.0])),
        1,
        [1.0, 1.0],
        lambda s: s[1],
    ),
    Minimal(
        "scatter_reduce, prod, an index shorter than the source",
        '`x.scatter_reduce(0, [0], src, "prod")`, by src of two elements',
        "the element that no index reads has a gradient",
        lambda x, s: x.scatter_reduce(0, torch.tensor([0]), s, "prod"),
        (_f64([2.0]), _f64([3.0, 7.0])),
        1,
        [2.0, 6.0 / 7.0],
        lambda s: 2 * s[0],
    ),
    Minimal(
        "ctc_loss, of what is not normalised",
        "`ctc_loss(zeros(2, 1, 3), [[1]], [2], [1])`",
        "the gradient is that of inputs whose exponentials sum to 1; behind a log_softmax it is right",
        _ctc,
        (_f64([[[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]),),
        0,
        [[[2 / 3, 1 / 3, 1.0]], [[2 / 3, 1 / 3, 1.0]]],
        _ctc_exact,
    ),
    Minimal(
        "silu_, of complex numbers",
        "`silu_(z)` at 0.5+1j; `silu` refuses to be differentiated",
        "the derivative is not conjugated",
        lambda z: torch.ops.aten.silu_.default(z.clone()),
        (_c128([0.5 + 1j]),),
        0,
        [0.8796328594438018 + 0.5020748041028869j],
        lambda z: z[0] / (1 + mpmath.exp(-z[0])),
    ),
    Minimal(
        "scatter_reduce_, prod, of complex numbers",
        '`x.scatter_reduce_(0, [0], src, "prod")`, by src; `scatter_reduce` refuses to be differentiated',
        "the derivative is not conjugated",
        lambda x, s: x.clone().scatter_reduce_(0, torch.tensor([0]), s, "prod"),
        (_c128([2 + 1j]), _c128([1 - 3j])),
        1,
        [2 + 1j],
        lambda s: mpmath.mpc(2, 1) * s[0],
    ),
    Minimal(
        "index_reduce_, prod, of complex numbers",
        '`x.index_reduce_(0, [0], src, "prod")`, by src of two dimensions; `index_reduce` refuses',
        "the derivative is not conjugated",
        lambda x, s: x.clone().index_reduce_(0, torch.tensor([0]), s, "prod"),
        (_c128([[2 + 1j]]), _c128([[1 - 3j]])),
        1,
        [[2 + 1j]],
        lambda s: mpmath.mpc(2, 1) * s[0],
    ),
    Minimal(
        "thnn_conv2d, of a strided input",
        "`thnn_conv2d(x.mT, weight, [1, 2])`, by weight",
        "x is read in the order of memory, as if it were contiguous",
        lambda x, w: torch.ops.aten.thnn_conv2d(x.mT, w, [1, 2]),
        (_f64([[[[1.0, 2.0], [3.0, 4.0]]]]), _f64([[[[1.0, 1.0]]]])),
        1,
        [[[[4.0, 6.0]]]],
        lambda w: (1 + 2) * w[0] + (3 + 4) * w[1],
    ),
    Minimal(
        "logcumsumexp, in bfloat16",
        "`0.25 * logcumsumexp([9984], 0)` in bfloat16",
        "it goes through the logarithm of the cotangent plus the inputs, whose last place is 64",
        lambda x: 0.25 * torch.logcumsumexp(x, 0),
        (torch.tensor([9984.0], dtype=torch.bfloat16),),
        0,
        [1.0],
        lambda x: x[0] / 4,
    ),
    Minimal(
        "matrix_exp, in bfloat16",
        "`matrix_exp([[0.5]])` in bfloat16",
        "the gradient is the exponential of a matrix twice as large, and from 2x2 on the values overflow, too",
        torch.matrix_exp,
        (torch.tensor([[0.5]], dtype=torch.bfloat16),),
        0,
        [[-math.inf]],
        lambda x: mpmath.exp(x[0]),
    ),
    Minimal(
        "matrix_exp, in float16",
        "`matrix_exp([[0.5]])` in float16",
        "the same",
        torch.matrix_exp,
        (torch.tensor([[0.5]], dtype=torch.float16),),
        0,
        [[-math.inf]],
        lambda x: mpmath.exp(x[0]),
    ),
    Minimal(
        "_weight_norm, order 2",
        "`_weight_norm(v, g)` at v = [[3, 4]], g = [[5]], by v",
        "the norm of v, which the first gradient has, is taken for a constant",
        torch._weight_norm,
        (_f64([[3.0, 4.0]]), _f64([[5.0]])),
        0,
        [[-0.56, -0.56]],
        lambda v: 5 * (v[0] + v[1]) / mpmath.sqrt(v[0] ** 2 + v[1] ** 2),
        order=2,
    ),
    Minimal(
        "logsigmoid, order 2",
        "`logsigmoid(x)` at 40",
        "the second derivative is lost where the first one rounds to 0",
        F.logsigmoid,
        (_f64(40.0),),
        0,
        -0.0,
        lambda x: -mpmath.log1p(mpmath.exp(-x[0])),
        order=2,
    ),
    Minimal(
        "binary_cross_entropy, of what is certain",
        "`binary_cross_entropy(x, [1])` at 1",
        "the gradient is (x - target) / max(x (1 - x), 1e-12), which is 0 / 1e-12",
        lambda x: F.binary_cross_entropy(x, _f64([1.0])),
        (_f64([1.0]),),
        0,
        [0.0],
        lambda x: -mpmath.log(x[0]),
    ),
    Minimal(
        "sinc, order 2",
        "`sinc(x)` at 0",
        "the second derivative is 0 / 0",
        torch.sinc,
        (_f64(0.0),),
        0,
        math.nan,
        lambda x: mpmath.sincpi(x[0]),
        order=2,
    ),
)


def page() -> str:
    """The list, as `wrong_in_torch.md` has it."""
    rows = [f"| {one.name} | {one.shown} | {_torchs(one)} | {_numbers(one.right())} | {one.why} |" for one in MINIMAL]
    return "\n".join([_HEAD, *rows, _TAIL])


def _torchs(one: Minimal) -> str:
    return _numbers(torch.tensor(one.torchs, dtype=one.right().dtype))


def _numbers(found: torch.Tensor) -> str:
    """The elements, with enough digits to tell torch's from the right ones."""
    return ", ".join(_number(one) for one in found.reshape(-1).tolist())


def _number(one: complex | float) -> str:
    return f"{one.real:.9g}{one.imag:+.9g}j" if isinstance(one, complex) else f"{one:.9g}"


_HEAD = """\
# Gradients that are wrong in torch 2.13

Each case is a few lines in `corpus/wrong_in_torch.py`, with torch's gradient and the function as mathematics. A test
(`test_wrong_in_torch.py`) holds that torch's values are that function's, that its gradient is the one in the third
column, that mpmath's derivative is the one in the fourth, and that the check says FAIL. Gradients are those of the sum
of the outputs; of complex numbers, torch's convention, the conjugate of the derivative.

| operator | case | torch | right | why |
| --- | --- | --- | --- | --- |"""

_TAIL = """
Others go wrong in another way; the same tests hold these, and that the check says FAIL:

- The backward pass of `conv_tbc` raises ("view size is not compatible") for a cotangent that is not contiguous, such as
  comes back through a transposition of its output. For the same numbers, lying contiguously, it is right.
- `_masked_softmax` of a transposed tensor and `_scaled_dot_product_flash_attention_for_cpu` of tensors whose last axis
  has a stride misread them: their values are wrong, and their gradients are not the derivatives of those values either.
  (`softmax` and `scaled_dot_product_attention` call them with contiguous tensors alone.)
- The second derivative of `linalg.vector_norm(x, ord)` of zeros is NaN for every `ord` below 0, although the first one
  is 0 there by torch's own choice, and the norm stays 0 along every axis.
- `torch.func.vmap` over the backward pass of `cdist` gives wrong numbers, though each row by itself is right.
- The forward mode of `logcumsumexp` adds 1e-13 to the sum of exponentials, which are taken relative to the largest of
  all: at [0, 30] the tangent of the first value is 0.483 times the right one. Its gradient is right.

`python tests/conformance/corpus/wrong_in_torch.py` prints this page.
"""

if __name__ == "__main__":
    print(page(), end="")

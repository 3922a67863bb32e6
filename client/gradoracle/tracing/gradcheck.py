"""`gradcheck` and `gradgradcheck` with torch's signatures: a test-suite moves by changing an import.

The function is run in this process on the tensors that it was given (`originals`) and judged by the engine of the
server, whose numerical derivatives are ten orders finer than torch's. Functions of float32 and coarser tensors, which
torch's own gradcheck fails even where they are right, are judged in float64 if they can be run there, as they are or as
a graph, and else by what low precision can tell.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.gradcheck import GradcheckError as TorchGradcheckError

from gradoracle.checks import CheckReport, Diagnosis, InputReport, Verdict
from gradoracle.judging import GradcheckWarning
from gradoracle.tracing import judged, sidechecks
from gradoracle.tracing.callables import left_alone
from gradoracle.tracing.elements import check_inputs, is_sparse, layout_of
from gradoracle.tracing.naming import name_of
from gradoracle.tracing.originals import Originals

Tensors = Any
"""A tensor, or a tuple or list of them and of whatever else the function takes."""

_TORCHS_ATOL, _TORCHS_RTOL = 1e-5, 1e-3  # the defaults of the signatures


class GradcheckError(TorchGradcheckError):
    """A gradient is wrong: torch's GradcheckError, a RuntimeError, with the report as its message.

    The report's figures are of gradients pulled back from random cotangents, where an output is no real scalar.
    `report` is the CheckReport, or None where the fault is none of numbers: a backward that cannot take undefined
    gradients, say.
    """

    def __init__(self, message: str, report: CheckReport | None = None) -> None:
        super().__init__(message)
        self.report = report


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensors,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """As torch.autograd.gradcheck: True where the gradients of `func` by the tensors in `inputs` that require grad are
    right; otherwise GradcheckError, or False with `raise_exception=False`.

    What differs from torch:

    - `eps` and `fast_mode` are taken and have no say: steps are chosen from the point and the function.
    - `atol` and `rtol` at torch's defaults, or below, have no say either: a gradient is right within what rounding
      explains, about 1e-9 of its size in float64. A gradient that is 0.01 % off fails. Wider ones were chosen by
      somebody: what is wrong by no more than them, in the elements that the report names, passes with a
      GradcheckWarning that has the report.
    - At a kink, where torch fails every gradient but the mean of the slopes, one between the slopes passes with a
      GradcheckWarning, and one outside fails. So does what the numerics cannot tell pass, with the reason. Nothing
      that is not proven passes without that warning.
    - float32 and lower precisions are judged by their own rounding.
    - Faults are not looked for in elements of less than a ten-thousandth of the largest of their input.
    - The gradient by each input must be the same while the others require no grad, as in a net of which layers are
      frozen. Where a run says that it is another function then, that is not asked.
    - A tensor that is given twice is two tensors then, with memory of their own.
    - What draws random numbers draws the same ones in every run, and is differentiated as it is then.
    - Of a sparse input every element is on trial, those too that it leaves out, and with `masked=True` its values only,
      whatever the gradient says elsewhere. The values are named "x.values".
    - Runs on the same tensors may differ by the order of additions. With `nondet_tol`, gradients may differ by that
      much between two runs, and from the right ones.

    Raises ValueError where no input requires grad or an output is sparse, and for forward mode by a sparse input, which
    torch does not have; RuntimeError for an input with a dimension of stride 0; AssertionError for flags that exclude
    each other: all as torch does. RuntimeError, too, for an input whose elements share memory in another way, as those
    of `unfold` do. ValueError where what requires grad is nested, a batch of compressed sparse tensors, or of a
    subclass with a `__torch_dispatch__` of its own. And whatever `func` raises at the point itself: what it raises
    beside that is an edge of its domain, which steps keep away from.
    """
    if not (check_forward_ad or check_backward_ad):
        raise AssertionError("expected check_forward_ad or check_backward_ad to be True, got neither")
    if check_batched_grad and not check_backward_ad:
        raise AssertionError("check_batched_grad=True needs check_backward_ad=True")
    if check_batched_forward_grad and not check_forward_ad:
        raise AssertionError("check_batched_forward_grad=True needs check_forward_ad=True")
    given = _as_tuple(inputs)
    check_inputs(given, forward=check_forward_ad)
    asked = _Asked(
        _wider(atol, _TORCHS_ATOL), _wider(rtol, _TORCHS_RTOL), nondet_tol, check_undefined_grad, check_grad_dtypes,
        check_batched_grad, check_batched_forward_grad, check_forward_ad, check_backward_ad, bool(masked),
    )  # fmt: skip
    return _answer(lambda: _doubts("gradcheck", func, given, None, asked), raise_exception)


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Tensors,
    grad_outputs: Tensors | None = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """As torch.autograd.gradgradcheck: whether gradients of the gradients are right, by the tensors in `inputs` and in
    `grad_outputs` that require grad. `grad_outputs` are drawn where they are left out.

    See `gradcheck` for what differs from torch. A gradient that requires no grad, for it was detached on the way, must
    depend on nothing; torch leaves it out. The gradient of an input's gradient by itself must be the same while the
    other inputs require no grad, in double precision. Raises TypeError, as torch does, where no output requires grad
    and no `grad_outputs` are given.
    """
    if not (check_fwd_over_rev or check_rev_over_rev):
        raise AssertionError("expected check_fwd_over_rev or check_rev_over_rev to be True, got neither")
    if check_undefined_grad and not check_rev_over_rev:
        raise AssertionError("check_undefined_grad=True needs check_rev_over_rev=True")
    if check_batched_grad and not check_rev_over_rev:
        raise AssertionError("check_batched_grad=True needs check_rev_over_rev=True")
    given = _as_tuple(inputs)
    check_inputs(given, forward=check_fwd_over_rev)
    if grad_outputs is None:
        with left_alone(_tensors(given)):
            pulled = _drawn(Originals(func, given).differentiable(), strided=gen_non_contig_grad_outputs)
        if not pulled:
            raise TypeError(
                f"gradgradcheck: no output of {name_of(func)} requires grad, so that it has no gradients to "
                "differentiate; see that it does not detach what it computes"
            )
    else:
        pulled = _as_tuple(grad_outputs)
    asked = _Asked(
        _wider(atol, _TORCHS_ATOL), _wider(rtol, _TORCHS_RTOL), nondet_tol, check_undefined_grad, check_grad_dtypes,
        check_batched_grad, False, check_fwd_over_rev, check_rev_over_rev, masked,
    )  # fmt: skip
    names = [*Originals(func, given).all_names, *(f"grad_outputs.{place}" for place in range(len(pulled)))]
    gradients = _gradients_of(func, given, pulled)

    def attempt() -> list[str]:
        doubts = _doubts("gradgradcheck", gradients, (*given, *pulled), names, asked)
        run = Originals(func, given)
        with left_alone(_tensors((*given, *pulled))):
            failure = sidechecks.frozen(run, pulled) if check_rev_over_rev and not nondet_tol else ""
        if failure:
            raise GradcheckError(f"gradgradcheck: {name_of(func)}: {failure}")
        return doubts

    return _answer(attempt, raise_exception)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """What a caller chose. Tolerances are 0 where they are not wider than torch's defaults."""

    atol: float
    rtol: float
    nondet_tol: float
    undefined: bool
    dtypes: bool
    batched: bool
    batched_forward: bool
    forward: bool
    backward: bool
    masked: bool


def _wider(tolerance: float, default: float) -> float:
    return tolerance if tolerance > default else 0.0


def _answer(attempt: Callable[[], list[str]], raise_exception: bool) -> bool:
    try:
        doubts = attempt()
    except GradcheckError:
        if raise_exception:
            raise
        return False
    for doubt in doubts:
        warnings.warn(doubt, GradcheckWarning, stacklevel=3)
    return True


# ---- What is checked


def _as_tuple(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _tensors(given: Sequence[Any]) -> list[torch.Tensor]:
    return [one for one in given if isinstance(one, torch.Tensor)]


def _drawn(outputs: Sequence[torch.Tensor], *, strided: bool) -> tuple[torch.Tensor, ...]:
    """Cotangents from -1 to 1, which require grad."""
    generator = torch.Generator().manual_seed(0x9A)
    found = []
    for one in outputs:
        dtype = torch.complex128 if one.dtype.is_complex else torch.float64
        roomy = (*one.shape[:-1], 2 * one.shape[-1]) if one.dim() and strided else tuple(one.shape)
        parts = torch.rand((*roomy, 2), generator=generator, dtype=torch.float64) * 2 - 1
        value = (torch.view_as_complex(parts) if dtype.is_complex else parts[..., 0].contiguous()).to(
            one.device, one.dtype
        )
        found.append((value[..., ::2] if roomy != tuple(one.shape) else value).detach().requires_grad_())
    return tuple(found)


def _gradients_of(func: Callable[..., Any], given: Sequence[Any], pulled: Sequence[Any]) -> Callable[..., Any]:
    """The gradients of `func`, as a function of its inputs and of the cotangents."""
    tracked = [isinstance(one, torch.Tensor) and one.requires_grad for one in (*given, *pulled)]

    def gradients(*arguments: Any) -> tuple[torch.Tensor, ...]:
        # In forward mode they come without.
        arguments = tuple(one.requires_grad_() if yes else one for one, yes in zip(arguments, tracked, strict=True))
        inputs, cotangents = arguments[: len(given)], arguments[len(given) :]
        found = func(*inputs)
        outputs = [one for one in _as_tuple(found) if one.requires_grad]
        wanted = [one for one, yes in zip(inputs, tracked, strict=False) if yes]
        if len(outputs) != len(cotangents):
            raise ValueError(
                f"grad_outputs: expected {len(outputs)}, one for each output that requires grad, got {len(cotangents)}"
            )
        pairs = [(o, u) for o, u in zip(outputs, cotangents, strict=True) if u is not None]
        if not pairs:
            raise ValueError("grad_outputs: expected a tensor for one output at least, got none")
        slopes = torch.autograd.grad(
            [o for o, _ in pairs], wanted, [u for _, u in pairs], create_graph=True, allow_unused=True
        )
        found = tuple(one for one in slopes if one is not None)
        for one in found:
            if one.layout is not torch.strided:
                raise ValueError(
                    f"gradgradcheck: a gradient of {name_of(func)} is a tensor of {layout_of(one)}, whose own "
                    "gradients are not supported; take dense inputs, and make that tensor of them in the function"
                )
        # One that requires no grad depends on nothing, says autograd: that is on trial, too.
        moving = [one for one in (*wanted, *cotangents) if isinstance(one, torch.Tensor) and one.requires_grad]
        return tuple(one if one.requires_grad else _with_no_slope(one, moving) for one in found)

    gradients.__qualname__ = f"the gradients of {name_of(func)}"
    return gradients


def _with_no_slope(constant: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same numbers, with gradients of 0 by strided tensors, if there are any."""
    own = next((one for one in tensors if one.layout is torch.strided), None)
    if own is None:
        return constant
    nothing = own.masked_fill(torch.ones_like(own, dtype=torch.bool), 0).sum()  # also where it is no number
    return constant + (nothing.real if nothing.is_complex() else nothing).to(constant.device, constant.dtype)


def _doubts(
    what: str, func: Callable[..., Any], given: tuple[Any, ...], names: list[str] | None, asked: _Asked
) -> list[str]:
    """What was not proven, a text each, where nothing is wrong. Raises GradcheckError where something is."""
    doubts = []
    for forward in (False, True):
        if not (asked.forward if forward else asked.backward):
            continue
        head = f"{what}: {'forward mode' if forward else 'backward'} of {name_of(func)}"
        run = Originals(
            func, given, forward_mode=forward, names=names, nondet_tol=asked.nondet_tol, masked=asked.masked,
            freezes=names is None,
        )  # fmt: skip
        with left_alone(run.tensors):
            if not run.results():
                none = "no output is floating or complex" if names is None else "no output depends on an input"
                doubts.append(f"{head}: {none}, so that there was nothing to check")
                continue
            report = judged.report(run, batched=asked.batched and not forward)
        if run.scatter > asked.nondet_tol > 0:
            raise GradcheckError(
                f"{head}: two runs gave gradients that differ by {run.scatter:.2g}, "
                f"over the nondet_tol of {asked.nondet_tol:g}"
            )
        wrong, unsure = _sorted(report, asked)
        if wrong and not asked.masked and any(is_sparse(one) for one in run.tensors):
            wrong.append("elements that a sparse input leaves out are on trial, too, unless masked=True")
        if wrong:
            raise GradcheckError(f"{head}: {'; '.join(wrong)}\n{_told(report)}", report)
        if unsure:
            doubts.append(f"{head}: {'; '.join(unsure)}\n{_told(report)}")
    run = Originals(func, given, names=names, masked=asked.masked)
    with left_alone(run.tensors):
        for check in (
            sidechecks.gradient_dtypes if asked.dtypes and asked.backward else None,
            sidechecks.batched_tangents if asked.batched_forward else None,
            sidechecks.undefined_cotangents if asked.undefined and asked.backward else None,
        ):
            failure = check(run) if check is not None else ""
            if failure:
                raise GradcheckError(f"{what}: {name_of(func)}: {failure}")
    return doubts


# ---- What a report says


def _told(report: CheckReport) -> str:
    """The report as text; without the advice on cotangents, which nobody can give here."""
    return dataclasses.replace(report, random_cotangents=False).render()


def _sorted(report: CheckReport, asked: _Asked) -> tuple[list[str], list[str]]:
    """What is wrong, and what was not proven; a text each."""
    wrong, unsure = [], []
    for name, one in report.inputs.items():
        if one.verdict is Verdict.FAIL:
            if _forgiven(one, report, asked):
                unsure.append(f'the gradient of "{name}" is off by no more than the tolerance that was asked for')
            else:
                wrong.append(f'the gradient of "{name}" is wrong')
        elif one.verdict is Verdict.NON_DETERMINISTIC:
            wrong.append("two runs on the same tensors differ")
        elif one.verdict is Verdict.INCONCLUSIVE:
            unsure.append(f'the numerics cannot tell whether the gradient of "{name}" is right')
        elif one.wrong:
            wrong.append(f'at a kink, the gradient of "{name}" lies outside the one-sided slopes')
        elif one.claim_inside:
            unsure.append(f'at a kink, the gradient of "{name}" lies between the one-sided slopes')
    for opinion in report.opinions:
        if opinion.name == "batched" and opinion.verdict is not Verdict.PASS:
            wrong.append(f"check_batched_grad: {opinion.explanation}")
    return list(dict.fromkeys(wrong)), unsure


def _forgiven(one: InputReport, report: CheckReport, asked: _Asked) -> bool:
    """Whether it is off by no more than what somebody asked for, and not by its nature."""
    if not one.worst:
        return one.max_error <= asked.nondet_tol
    # Not Taylor's remainder, which says once more that the numbers are off.
    failed = [two for two in report.opinions if two.verdict is Verdict.FAIL]
    crooked = [two for two in failed if two.name.startswith("linear_") or two.name in judged.PARTS]
    if one.diagnosis is Diagnosis.IGNORES_COTANGENT or any(two.error > asked.nondet_tol for two in crooked):
        return False
    return all(row.error <= max(asked.nondet_tol, asked.atol + asked.rtol * abs(row.numerical)) for row in one.worst)

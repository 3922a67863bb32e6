"""The outcome of a gradient check."""

from __future__ import annotations

import dataclasses
import enum
import functools

from gradoracle import results
from gradoracle.results import Attachments, Result
from gradoracle.tensors import Array, decode
from gradoracle.v1 import check_pb2, service_pb2, tensor_pb2

Number = float | complex


class Verdict(enum.StrEnum):
    """What a check says. Each member is also its name, a string."""

    PASS = "PASS"  # noqa: S105 - no password
    """The gradient agrees with the numerical derivative."""
    FAIL = "FAIL"
    """It does not."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The numerics cannot tell at this point."""
    NON_DIFFERENTIABLE = "NON_DIFFERENTIABLE"
    """A kink; `claim_inside` says whether the gradient lies between the one-sided slopes."""
    NON_DETERMINISTIC = "NON_DETERMINISTIC"
    """Two runs on the same tensors differ."""


class Diagnosis(enum.StrEnum):
    """What is wrong with a failing gradient, as far as its shape tells. Each member is also its name, a string."""

    SIGN_FLIPPED = "SIGN_FLIPPED"
    """The negative of the right one."""
    SCALED = "SCALED"
    """A constant factor times the right one."""
    TRANSPOSED = "TRANSPOSED"
    """The right one with two axes exchanged."""
    CONJUGATED = "CONJUGATED"
    """The complex conjugate of the right one."""
    NOT_REDUCED = "NOT_REDUCED"
    """A broadcast axis was not summed."""
    DUPLICATES_LOST = "DUPLICATES_LOST"
    """Contributions of repeated indices were overwritten, not added."""
    ZEROED = "ZEROED"
    """Zero where the right one is not."""
    IGNORES_COTANGENT = "IGNORES_COTANGENT"
    """The same whatever the cotangent."""
    SINGLE_ELEMENTS = "SINGLE_ELEMENTS"
    """Right but for a few elements."""
    NAN = "NAN"
    """NaN where the right one is finite."""
    UNKNOWN = "UNKNOWN"
    """None of these."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mismatch:
    """One element of a gradient beside what it should be. Complex numbers are in torch's convention."""

    index: tuple[int, ...]
    """Position in the input, outermost first."""
    claimed: Number
    """The gradient on trial."""
    reference: Number
    """Autograd's, in float64."""
    numerical: Number
    """By differences."""
    error: float
    """|claimed - numerical|."""
    error_bound: float
    """What the error was held against."""
    output: str = ""
    """In full mode, where an element of autograd's Jacobian is wrong: the output whose derivative it is."""
    output_index: tuple[int, ...] = ()
    """Position in that output, outermost first."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class InputReport:
    """The findings for one input."""

    name: str
    """The input's name."""
    verdict: Verdict
    """Its verdict."""
    worst: list[Mismatch]
    """The worst elements, the worst first, ten at most."""
    diagnosis: Diagnosis | None
    """What is wrong, where the verdict is FAIL."""
    factor: float | None
    """The factor, where the diagnosis is SCALED."""
    max_error: float
    """The largest error seen, beside its bound: of one element of the gradient, or where none was looked at alone, of
    the derivative along a direction in which each element moves by about its own size."""
    error_bound: float
    """The bound that held where it was seen."""
    kink: tuple[float, float] | None
    """The one-sided slopes, the lower first, where the verdict is NON_DIFFERENTIABLE."""
    claim_inside: bool | None
    """At a kink: whether the gradient lies between the slopes."""
    explanation: str
    """One sentence."""
    detection_power: float
    """The smallest relative fault in one element of usual size that would have been caught; 0 without a PASS."""
    errors: Array | None
    """|claimed - right| of every element, where the verdict is FAIL and all are known."""

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict is Verdict.PASS

    @property
    def wrong(self) -> bool:
        """Whether the gradient is wrong: FAIL, or a kink outside of whose one-sided slopes it lies."""
        return is_wrong(self.verdict, self.claim_inside)


def is_wrong(verdict: str, claim_inside: bool | None) -> bool:
    """Whether an input's verdict, and at a kink `claim_inside`, say that its gradient is wrong.

    It is right for no choice among the slopes of a kink, so that no leave to have no verdict covers it.
    """
    return verdict == Verdict.FAIL or (verdict == Verdict.NON_DIFFERENTIABLE and claim_inside is False)


@dataclasses.dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder of step sizes."""

    step: float
    """Relative to the input."""
    error: float
    """The plain central difference's distance from the accepted derivative."""
    error_bound: float
    """The bound on it: truncation, and rounding."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opinion:
    """An identity that every right gradient obeys, which needs no step size."""

    name: str
    """ "linear_zero", "linear_negative", "linear_doubled", "linear_strided", "linear_transposed", "linear_expanded",
    "linear_scaled", "linear_cotangent", "linear_outputs", "frozen", "second_by_cotangent", "forward_mode", "batched" or
    "taylor"; check.proto says what each is."""
    verdict: Verdict
    """PASS, FAIL, or INCONCLUSIVE where the operators have no such derivative, where "taylor" does not show, or where
    the function is another one while inputs are "frozen"."""
    error: float
    """How far the gradients are from obeying it."""
    error_bound: float
    """What the error was held against."""
    explanation: str
    """One sentence."""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class CheckReport(Result):
    """The whole outcome of a check."""

    verdict: Verdict
    """The worst verdict of the inputs and opinions: FAIL, then NON_DETERMINISTIC, INCONCLUSIVE, NON_DIFFERENTIABLE,
    PASS. Inputs of integer dtype have no say in it."""
    inputs: dict[str, InputReport]
    """By the inputs' names, in the graph's order."""
    detection_power: float
    """The smallest relative fault in one element of usual size, the median's, that this run would have caught. In much
    smaller elements only larger ones are."""
    evaluations: int
    """Forward passes spent."""
    ladder: list[Rung]
    """Error against step."""
    opinions: list[Opinion]
    """Second opinions, where autograd's own gradients are on trial."""
    random_cotangents: bool = False
    """Whether random numbers stood for the cotangents, which figures then contain: neither these nor claims were given,
    and an output is no real scalar. False in reports that are read from a results file."""

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict is Verdict.PASS

    @property
    def wrong(self) -> bool:
        """Whether a gradient is wrong: the verdict is FAIL, or one lies outside the one-sided slopes of a kink."""
        return self.verdict is Verdict.FAIL or any(one.wrong for one in self.inputs.values())

    def render(self, *, color: bool = False, width: int = 100) -> str:
        """The report as text for a terminal: verdicts, the worst elements, a sentence of diagnosis."""
        from gradoracle import check_text

        return check_text.render(self, color=color, width=width)

    def to_html(self) -> str:
        """The report as one HTML page: the same, error against step, and where in the input the errors are."""
        from gradoracle import check_html

        return check_html.page(self)

    def __str__(self) -> str:
        return self.render()

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{name}={one.verdict}" for name, one in self.inputs.items())
        return f"<CheckReport {self.verdict}{f': {verdicts}' if verdicts else ''}>"


# ---- From messages


def report(message: service_pb2.CheckGradientsResponse, attached: Attachments) -> CheckReport:
    """Reads a response."""
    found = message.report
    return CheckReport(
        verdict=_verdict(found.verdict),
        inputs={one.name: _input(one, attached) for one in found.inputs},
        detection_power=found.detection_power,
        evaluations=found.evaluations,
        ladder=[Rung(one.step, one.error, one.error_bound) for one in found.ladder],
        opinions=[
            Opinion(one.name, _verdict(one.verdict), one.error, one.error_bound, one.explanation)
            for one in found.opinions
        ],
        random_cotangents=found.random_cotangents,
        timing=results.timing(message),
    )


@functools.cache
def _verdict(number: check_pb2.Verdict) -> Verdict:
    return Verdict(check_pb2.Verdict.Name(number).removeprefix("VERDICT_"))


def _input(message: check_pb2.InputReport, attached: Attachments) -> InputReport:
    diagnosis = None
    if message.diagnosis:
        diagnosis = Diagnosis(check_pb2.Diagnosis.Name(message.diagnosis).removeprefix("DIAGNOSIS_"))
    return InputReport(
        name=message.name,
        verdict=_verdict(message.verdict),
        worst=[
            Mismatch(
                tuple(one.index),
                _number(one.claimed),
                _number(one.reference),
                _number(one.numerical),
                one.error,
                one.error_bound,
                one.output,
                tuple(one.output_index),
            )
            for one in message.worst
        ],
        diagnosis=diagnosis,
        factor=message.factor if message.HasField("factor") else None,
        max_error=message.max_error,
        error_bound=message.error_bound,
        kink=(message.kink.low, message.kink.high) if message.HasField("kink") else None,
        claim_inside=message.claim_inside if message.HasField("claim_inside") else None,
        explanation=message.explanation,
        detection_power=message.detection_power,
        errors=decode(message.errors, attached) if message.HasField("errors") else None,
    )


def _number(message: tensor_pb2.Scalar) -> Number:
    if message.WhichOneof("value") == "complex":
        return complex(message.complex.real, message.complex.imag)
    return message.real

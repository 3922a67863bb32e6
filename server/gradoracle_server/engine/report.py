"""What a gradient check found, as plain data. The numbers of the enums are the proto's."""

from __future__ import annotations

import dataclasses
import enum

import torch


class Verdict(enum.IntEnum):
    """The outcome of a check; see check.proto."""

    PASS = 1
    FAIL = 2
    INCONCLUSIVE = 3
    NON_DIFFERENTIABLE = 4
    NON_DETERMINISTIC = 5


_WORST_FIRST = (
    Verdict.FAIL,
    Verdict.NON_DETERMINISTIC,
    Verdict.INCONCLUSIVE,
    Verdict.NON_DIFFERENTIABLE,
    Verdict.PASS,
)


def worst_verdict(verdicts: list[Verdict]) -> Verdict:
    """The verdict on all inputs together; PASS where there are none."""
    for one in _WORST_FIRST:
        if one in verdicts:
            return one
    return Verdict.PASS


class Diagnosis(enum.IntEnum):
    """What is wrong with a failing gradient; see check.proto."""

    UNSPECIFIED = 0
    SIGN_FLIPPED = 1
    SCALED = 2
    TRANSPOSED = 3
    CONJUGATED = 4
    NOT_REDUCED = 5
    DUPLICATES_LOST = 6
    ZEROED = 7
    IGNORES_COTANGENT = 8
    SINGLE_ELEMENTS = 9
    NAN = 10
    UNKNOWN = 11


class Mode(enum.IntEnum):
    """How hard to look; see check.proto."""

    PROBE = 1
    FULL = 2


Number = float | complex


@dataclasses.dataclass(slots=True)
class Mismatch:
    """One element of a gradient beside what it should be."""

    index: tuple[int, ...]
    claimed: Number
    reference: Number
    numerical: Number
    error: float
    error_bound: float
    output: str = ""  # in full mode, the output and its element whose derivative this is
    output_index: tuple[int, ...] = ()


@dataclasses.dataclass(slots=True)
class InputReport:
    """The findings for one input."""

    name: str
    verdict: Verdict
    explanation: str = ""
    worst: list[Mismatch] = dataclasses.field(default_factory=list)
    diagnosis: Diagnosis = Diagnosis.UNSPECIFIED
    factor: float | None = None
    max_error: float = 0.0
    error_bound: float = 0.0
    kink: tuple[float, float] | None = None
    claim_inside: bool | None = None
    detection_power: float = 0.0
    errors: torch.Tensor | None = None  # |claimed - right| of each element, of the input's shape
    counts: bool = True  # whether it decides the overall verdict: not where the input has no gradient at all


@dataclasses.dataclass(slots=True)
class Rung:
    """One step size."""

    step: float
    error: float
    error_bound: float


@dataclasses.dataclass(slots=True)
class Opinion:
    """One identity that right gradients obey, and how far these are from obeying it."""

    name: str
    verdicts: list[Verdict]  # one an input on trial
    error: float
    bound: float
    explanation: str
    faint: bool = False  # the gradients in question were so small that it says little

    @property
    def verdict(self) -> Verdict:
        """The worst of the inputs'."""
        return worst_verdict(self.verdicts)


@dataclasses.dataclass(slots=True)
class Report:
    """The whole outcome."""

    verdict: Verdict
    inputs: list[InputReport]
    detection_power: float
    evaluations: int
    ladder: list[Rung]
    opinions: list[Opinion] = dataclasses.field(default_factory=list)
    random_cotangents: bool = False  # whether random numbers stood for those

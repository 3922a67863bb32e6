"""Functions whose values are off by more than rounding of the outputs explains: what is right does not fail there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from check_cases import check, planted

from gradoracle_server.engine import noise
from gradoracle_server.engine.report import Mode, Report, Verdict

Function = Callable[[torch.Tensor], torch.Tensor]

WAVES: Function = lambda x: (3e6 * x).sin().sum()  # noqa: E731 - a table's entry
CANCELLED: Function = lambda x: ((x + 1e5) ** 2 - 1e10 - 2e5 * x).sum()  # noqa: E731 - x squared, to four digits
BOTH = pytest.mark.parametrize("function", [WAVES, CANCELLED], ids=["waves", "cancelled"])


def at(seed: int) -> torch.Tensor:
    """A point."""
    return torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(function: Function, x: torch.Tensor) -> torch.Tensor:
    """Autograd's."""
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    return found


@BOTH
@pytest.mark.parametrize("mode", Mode)
def test_what_is_right_does_not_fail(function: Function, mode: Mode) -> None:
    """Neither autograd's gradient nor the same one as a claim."""
    for seed in range(8):
        x = at(seed)
        for claimed in (None, {"x": gradient(function, x)}):
            assert check(function, x, claimed=claimed, mode=mode).verdict is not Verdict.FAIL, seed


def test_it_would_fail_if_nobody_listened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above see what they are for: bars that know of the outputs' rounding alone are too narrow."""
    faster: Function = lambda x: (1e7 * x).sin().sum()  # noqa: E731 - as in the table

    def failed() -> int:
        return sum(check(faster, at(seed)).verdict is Verdict.FAIL for seed in range(12))

    assert failed() == 0
    monkeypatch.setattr(noise, "heard", lambda *_: None)
    assert failed() > 0


@BOTH
@pytest.mark.parametrize("fault", ["sign", "scaled", "element"])
def test_what_is_wrong_fails_where_it_shows(function: Function, fault: str) -> None:
    """The noise is an allowance of its own size, and no more."""
    for seed in range(6):
        x = at(seed)
        claimed = gradient(function, x)
        if fault == "element":
            claimed[1] *= 10
        else:
            claimed *= -1 if fault == "sign" else 2
        report = check(function, x, claimed={"x": claimed})
        assert report.verdict is Verdict.FAIL, seed
        if fault == "element":
            assert [(1,)] == [one.index for one in report.inputs[0].worst[:1]]


@pytest.mark.parametrize("frequency", [3e4, 1e6])
@pytest.mark.parametrize("factor", [2.0, -1.0, 1.001])
def test_waves_faster_than_noise_is_heard_are_no_excuse(frequency: float, factor: float) -> None:
    """Steps short enough to see them say the same at two lengths, which noise does not."""

    def wave(x: torch.Tensor) -> torch.Tensor:
        return (frequency * x).sin()

    wrong = planted(wave, lambda inputs, cotangent, right: factor * right[0])
    for seed in range(4):
        assert check(planted(wave, lambda inputs, cotangent, right: right), at(seed)).verdict is Verdict.PASS
        assert check(wrong, at(seed)).verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e200, 1e-200])
def test_the_level_of_noise(size: float) -> None:
    """Noise of a known level, on a smooth function, for each output alone."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(-8, 9, dtype=torch.float64)[None, :, None] * 2.0 ** -torch.arange(48, 23, -6)[:, None, None]
    smooth = (torch.exp(t) + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)) * min(1.0, 1e6 * size)
    uniform = torch.rand((5, 17, 3), dtype=torch.float64, generator=generator) - 0.5
    found = noise.level(smooth + uniform * torch.tensor([0.0, size, 0.0], dtype=torch.float64))
    assert size / 12**0.5 / 2 < float(found[1]) < size / 12**0.5 * 2.5
    assert float(found[[0, 2]].max()) < 1e-15 * min(1.0, 1e6 * size)  # rounding of the outputs


@pytest.mark.parametrize("kind", ["step", "kink", "waves", "nan", "constant"])
def test_what_is_no_noise(kind: str) -> None:
    """A jump, a kink, what oscillates slowly enough to be followed, no number, and what does not move at all."""
    t = torch.arange(-8, 9, dtype=torch.float64)[None, :, None] * 2.0 ** -torch.arange(48, 23, -6)[:, None, None]
    values = {
        "step": (t > 0).to(torch.float64),
        "kink": t.abs(),
        "waves": (1e6 * t).sin(),
        "nan": torch.full_like(t, torch.nan),
        "constant": torch.ones_like(t),
    }[kind]
    assert float(noise.level(values)) < 1e-15


@pytest.mark.parametrize("count", [1e8, 1e10, 2 * torch.pi * 2.0**20])  # the last has steps for whole periods
def test_steps_that_agree_by_accident_are_no_evidence(count: float) -> None:
    """Waves that are shorter than any step: in ten elements some slopes look sharp, and none of them is the slope."""
    for seed in range(8):
        x = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert check(lambda x: (count * x).sin().sum(), x).verdict is not Verdict.FAIL, seed


@pytest.mark.parametrize("shift", [0.0, 1e-12, 1e-6])
def test_noise_is_that_of_the_values_and_not_relative_to_them(shift: float) -> None:
    """At the root of a function it is as large as elsewhere."""
    failed = 0
    for seed in range(8):
        x = at(seed)
        with torch.no_grad():
            base = CANCELLED(x) - shift
        report = check(lambda x, base=base: CANCELLED(x) - base, x)
        assert report.verdict is not Verdict.FAIL, seed
        wrong = {"x": 1.5 * gradient(CANCELLED, x)}
        failed += check(lambda x, base=base: CANCELLED(x) - base, x, claimed=wrong).verdict is Verdict.FAIL
    assert failed >= 6


def test_noise_of_one_input_is_not_that_of_another() -> None:
    """What moves only one input leaves the noise of the other where it is; and their order does not matter."""

    def sharp(report: Report) -> float:
        (found,) = (one for one in report.inputs if one.name == "b")
        assert found.verdict is Verdict.FAIL
        return found.error_bound

    a, b = at(1), at(2)
    claimed = {"a": 1.5e7 * torch.cos(1e7 * a), "b": 2 * b * (1 + 1e-6)}
    first = check(lambda a, b: (1e7 * a).sin().sum() + b.square().sum(), a, b, claimed=claimed)
    second = check(lambda b, a: (1e7 * a).sin().sum() + b.square().sum(), b, a, claimed=claimed)
    assert sharp(first) == pytest.approx(sharp(second), rel=0.5)
    assert sharp(first) < 5e-9


def test_what_is_no_number_is_wrong_whatever_the_noise() -> None:
    """Nothing is listened to there."""
    x = at(0)
    for function in (CANCELLED, WAVES):
        claimed = gradient(function, x)
        claimed[1] = torch.nan
        report = check(function, x, claimed={"x": claimed})
        assert report.verdict is Verdict.FAIL
        assert [(1,)] == [one.index for one in report.inputs[0].worst[:1]]


def test_where_no_steps_agree_that_is_said() -> None:
    """Waves that none of them follows."""
    report = check(lambda x: (1e12 * x).sin().sum(), at(0))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.inputs[0].explanation.startswith("No steps around this point agree on a slope.")

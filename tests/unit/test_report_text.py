"""A check's report as text: what stands together at the widths of terminals, and what is said beside the figures."""

from __future__ import annotations

import re
from typing import Any

import pytest
from batch_cases import input_report, report

from gradoracle import check_text
from gradoracle.batch.records import Record
from gradoracle.batch.report_text import sentence
from gradoracle.batch.runner import remark
from gradoracle.checks import CheckReport, Diagnosis, Mismatch
from gradoracle.cli import tables

NUMBERS = ["-4.53016291129e-10", "-1.23456789012e+100", "-0.000123456789012"]
KINK = "The function has a kink here in 1 coordinate; the slopes at [12, 3, 104] are -4.53016e-10 and 1.39696."


def of_all_kinds(*names: str) -> CheckReport:
    """A report with a kink, and with wrong elements of a Jacobian, for each name."""
    figures: Any = dict(zip(("claimed", "reference", "numerical"), map(float, NUMBERS), strict=True))
    inputs = []
    for name in names:
        row = Mismatch((12, 3, 104), **figures, error=4.5e-10, error_bound=1.2e-13, output="out", output_index=(7, 8))
        fault: dict[str, Any] = {"worst": [row], "diagnosis": Diagnosis.SCALED, "factor": 1.00000012}
        inputs.append(input_report(name, "FAIL", **fault))
        inputs.append(input_report(f"{name}_2", "NON_DIFFERENTIABLE", claim_inside=False, explanation=KINK))
    return report(*inputs)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("names", [("x",), tuple(f"weight_{k}" for k in range(30)), ("a_long_name" * 9,)])
def test_what_belongs_together_is_never_split(width: int, names: tuple[str, ...]) -> None:
    """Verdicts, diagnoses, indices and numbers stand on one line at any width. Long names alone pass its end."""
    text = of_all_kinds(*names).render(width=width)
    lines = text.splitlines()
    whole = ["FAIL", "NON_DIFFERENTIABLE", "SCALED by 1.00000012", "outside the slopes", "[12, 3, 104]", *NUMBERS]
    for one in [*whole, "4.5e-10", "1.2e-13", "out[7, 8]"]:
        assert sum(one in line for line in lines) >= len(names), one
    assert len(names) * 2 == sum(line.count("[12, 3, 104]") for line in lines)
    for line in lines:
        assert len(line) <= width or names[0] in line, line
        assert line == line.rstrip()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_sentence_has_room(width: int) -> None:
    """Where a column would be narrow, a sentence stands below the table in lines of the terminal's width."""
    text = of_all_kinds("x").render(width=width)
    told = text[text.index("The function has") : text.index("1.39696.")]
    assert told.count("\n") <= len(KINK) // (width - 14)
    if width == 80:
        assert "\nx_2: The function has a kink" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_colours_change_nothing_else(width: int) -> None:
    """In colour, the verdicts are coloured, and the text is the same."""
    found = of_all_kinds("x", "y")
    coloured = found.render(color=True, width=width)
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == found.render(width=width).splitlines()
    assert 2 <= coloured.count("\x1b[1;36mNON_DIFFERENTIABLE")
    assert 3 <= coloured.count("\x1b[1;31mFAIL")


def test_a_pipe_gets_no_trailing_blanks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line prints to no terminal ends where the text does, other tables too."""
    monkeypatch.setenv("COLUMNS", "80")
    screen = tables.console()
    table = tables.table("name", "value")
    table.add_row("x", "1")
    screen.print(table)
    for part in check_text.parts(of_all_kinds("x"), screen.width):
        screen.print(part, crop=False)
    lines = capsys.readouterr().out.split("\n")
    assert " x     1" in lines
    assert [line.rstrip() for line in lines] == lines


# ---- What the figures cannot say


def test_where_nothing_is_on_trial_that_is_said() -> None:
    """Without an input that requires grad there are no rows: the report, the page and a batch say why."""
    found = report(input_report(verdict="NON_DIFFERENTIABLE"))
    found.inputs, found.evaluations = {}, 1
    text = "No input requires grad, so that there was nothing to judge."
    assert ["NON_DIFFERENTIABLE  1 forward pass", text] == found.render().splitlines()
    assert f"<p>{text}</p>" in found.to_html()
    assert text == sentence(found)
    assert f"NON_DIFFERENTIABLE a: {text}" == remark(Record(id="a", line=1, method="check", report=found))


@pytest.mark.parametrize("verdict", ["NON_DIFFERENTIABLE", "FAIL", "PASS"])
@pytest.mark.parametrize("at_random", [True, False])
def test_random_cotangents_are_told(verdict: str, at_random: bool) -> None:
    """Where figures contain cotangents that nobody gave, a line says so, but for a pass, whose figures say nothing."""
    found = report(input_report(verdict=verdict))
    found.random_cotangents = at_random
    told = at_random and verdict != "PASS"
    text = "No cotangents were given: outputs that are not scalars had random ones, which these figures contain."
    assert told is (text in found.render(width=200).splitlines())
    assert told is (f"<p>{text}</p>" in found.to_html())

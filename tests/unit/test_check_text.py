"""Reports as text: names and sentences stand in them as they are, whatever they look like."""

from __future__ import annotations

import pytest
from batch_cases import input_report, report

from gradoracle import check_text
from gradoracle.checks import Mismatch, Opinion, Verdict
from gradoracle.cli import tables

STRANGE = ["x[/]", "x[red]", "[bold]", "a[link=b]", ":warning:", "x\\[red]", "back\\"]


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("color", [False, True])
def test_no_name_is_markup(name: str, color: bool) -> None:
    """An input, an output and an opinion may have any name, and a sentence any words."""
    row = Mismatch((1,), 1.0, 2.0, 2.0, 1.0, 1e-9, output=name, output_index=(0,))
    found = report(input_report(name, "FAIL", worst=[row], explanation=f"It is {name}."))
    found.opinions.append(Opinion(name, Verdict.FAIL, 1.0, 1e-9, f"of {name}"))
    text = found.render(color=color, width=200)
    assert any(line.startswith(f" {name} ") for line in text.splitlines())
    assert f"It is {name}." in text
    assert f"Worst elements of {name}:" in text
    assert f"d {name}[0] / d [1]" in text
    assert f"{name}: of {name} (error 1)" in text


@pytest.mark.parametrize("name", STRANGE)
def test_nor_is_it_on_the_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line's own console prints strings as they are, in tables and alone."""
    screen = tables.console()
    table = tables.table("name")
    table.add_row(name)
    screen.print(table)
    screen.print(name)
    for part in check_text.parts(report(input_report(name))):
        screen.print(part)
    assert 3 == sum(name in line for line in capsys.readouterr().out.splitlines())


def test_what_would_have_been_caught() -> None:
    """A pass says how small a fault it would have caught, and in which elements: not in tiny ones."""
    found = report(input_report())
    said = "51 forward passes would have caught a relative fault of 1e-07 in one element of usual size"
    assert found.render().splitlines()[0] == f"PASS  {said}"
    assert f"<p>{said}</p>" in found.to_html()

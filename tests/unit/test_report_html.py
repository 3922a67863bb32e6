"""A check's report as a page: what it says of elements, by table and by heat map."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from batch_cases import input_report, report

from gradoracle.batch.records import Record
from gradoracle.batch.report_text import at_length, sentence
from gradoracle.checks import Mismatch

_SQUARE = re.compile(r'fill="([^"]+)"><title>([^<]+)</title>')


def squares(page: str) -> dict[str, str]:
    """Colours by title."""
    return {title: colour for colour, title in _SQUARE.findall(page)}


def test_the_output_of_a_jacobians_element_is_named() -> None:
    """The page, the sentence and JUnit's text say which output's derivative is wrong, as the terminal does."""
    row = Mismatch((1,), 0.0, 0.0, 0.25, 0.25, 1e-9, output="<out>", output_index=(2,))
    found = report(input_report(verdict="FAIL", worst=[row], max_error=0.25))
    page = found.to_html()
    assert "<td>d &lt;out&gt;[2] / d [1]</td>" in page
    assert "<out>" not in page
    assert "error 0.25 at d <out>[2] / d [1], bound" in sentence(found)
    assert "  d <out>[2] / d [1]: claimed 0" in at_length(Record(id="a", line=1, report=found))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5), (2, 100, 70)])
def test_a_square_names_the_element_that_it_shows(shape: tuple[int, ...]) -> None:
    """A heat map's titles are positions in the input, whatever its rank, also where a square covers many elements."""
    errors = np.random.default_rng(0).random(shape)
    errors[tuple(size - 1 for size in shape)] = 2.5
    page = report(input_report(verdict="FAIL", errors=errors)).to_html()
    assert f"{[size - 1 for size in shape]}: 2.5" in squares(page)
    for title in squares(page):
        index, value = title.split(": ")
        assert f"{errors[tuple(map(int, index[1:-1].split(',')))]:.2g}" == value
    assert "Largest: 2.5</p>" in page


def test_errors_that_are_no_numbers_have_colours_of_their_own() -> None:
    """NaN and infinite errors are called so, look like no finite error, and the legend counts them."""
    errors = np.array([[0.0, 2.9], [math.nan, math.inf], [math.nan, 1.0]])
    page = report(input_report(verdict="FAIL", errors=errors, max_error=math.nan)).to_html()
    found = squares(page)
    assert {"[0, 0]: 0", "[0, 1]: 2.9", "[1, 0]: NaN", "[1, 1]: inf", "[2, 0]: NaN", "[2, 1]: 1"} == set(found)
    assert found["[1, 0]: NaN"] == found["[2, 0]: NaN"]
    assert 5 == len(set(found.values()))
    assert "Largest finite one: 2.9; " in page
    for title, said in (("[1, 0]: NaN", "NaN: 2 of 6"), ("[1, 1]: inf", "infinite: 1 of 6")):
        assert f'<span class="key" style="background:{found[title]}"></span> {said}' in page
    assert '<td class="number">NaN</td>' in page
    assert "Largest" not in report(input_report(verdict="FAIL", errors=np.full(2, math.nan))).to_html()


def test_one_nan_among_many_is_seen() -> None:
    """A square that covers a NaN shows it, however large the finite errors beside it."""
    errors = np.ones(1000)
    errors[777] = math.nan
    assert "[777]: NaN" in squares(report(input_report(verdict="FAIL", errors=errors)).to_html())


def test_numbers_are_in_one_piece() -> None:
    """Neither a cell nor a sentence breaks a number at its minus sign."""
    row = Mismatch((1,), 1.1e-9, 2.2e-9, 3.3e-9, 4.4e-9, 5.5e-9)
    page = report(input_report(verdict="FAIL", worst=[row], explanation="It is off by 1.1e-09 < 2.")).to_html()
    assert ".number { white-space: nowrap }" in page
    for cell in ("1.1e-09", "2.2e-09", "3.3e-09", "4.4e-09", "5.5e-09"):
        assert f'<td class="number">{cell}</td>' in page
    assert 'It is off by <span class="number">1.1e-09</span> &lt; 2.' in page

"""The page of a batch in a real browser: it opens, filters, draws, and lets nothing of a case become a program.

Screenshots are kept in $GRADORACLE_ARTIFACTS where that is set, else in pytest's temporary folder.
"""

from __future__ import annotations

import base64
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, installed, running
from report_records import HOSTILE, checked, every_outcome, failed, many

from gradoracle.batch.report import Limits, write_report

pytestmark = [
    pytest.mark.skipif(installed() is None, reason="no chromium here (on Debian: apt-get install chromium)"),
    pytest.mark.timeout(300),
]

NIGHT = 10_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One chromium for all."""
    with running(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Page:
    """A tab of its own."""
    return Page(browser)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every outcome."""
    path = tmp_path_factory.mktemp("report") / "small.html"
    write_report(every_outcome(), path, title="cases.jsonl")
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of ten thousand cases, and its summary."""
    path = tmp_path_factory.mktemp("report") / "night.html"
    return path, write_report(many(NIGHT), path, title="nightly.jsonl", limits=Limits(good_details=200_000))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where pictures are kept."""
    path = Path(os.environ.get("GRADORACLE_ARTIFACTS", tmp_path))
    path.mkdir(parents=True, exist_ok=True)
    return path


CASES = "tr.row .case"


def test_the_driver_notices_what_is_wrong(page: Page, tmp_path: Path) -> None:
    """A page that throws, complains and asks the network is told apart from one that does not."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); throw new Error('oh')</script>")
    page.open(bad)
    assert any("oh" in one for one in page.complaints())
    assert "http://127.0.0.1:9/x.png" in page.requests()


def test_it_opens(page: Page, small: Path) -> None:
    """The page shows the run, asks for nothing but itself, and nothing in it fails."""
    page.open(small)
    assert "cases.jsonl · gradoracle" == page.run("document.title")
    assert ["1 wrong gradient, 1 case without a result, 3 cases without a verdict, of 8 cases"] == page.texts(
        ".told strong"
    )
    assert ["doubled", "mm", "dropout", "too flat", "at a kink", "right", "right again", "a vjp"] == page.texts(CASES)
    assert [] == page.complaints()
    assert [small.as_uri()] == page.requests()


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("verdict=FAIL", ["doubled"]),
        ("verdict=FAIL,ERROR", ["doubled", "mm"]),
        ("q=SCALED", ["doubled"]),
        ("q=right+again", ["right again"]),
        ("q=cannot%20be%20multiplied", ["mm"]),
        ("diagnosis=COMPUTATION_FAILED", ["mm"]),
        ("label.method=vjp", ["a vjp"]),
        ("verdict=PASS&sort=time", ["right again", "right"]),
        ("verdict=PASS&label.operator=aten.mul.Tensor&q=again", ["right again"]),
        ("q=nothing%20like%20this", []),
        ("verdict=NO_SUCH&page=99", 8),
        ("sort=line", ["right", "doubled", "at a kink", "too flat", "dropout", "mm", "a vjp", "right again"]),
    ],
)
def test_addresses_filter(page: Page, small: Path, fragment: str, shown: list[str] | int) -> None:
    """Every view has an address, which opens it."""
    page.open(small, fragment)
    found = page.texts(CASES)
    assert shown == (len(found) if isinstance(shown, int) else found)
    assert (found == []) == (["No case matches these filters."] == page.texts(".nothing"))
    assert [] == page.complaints()


def test_people_filter(page: Page, small: Path) -> None:
    """Chips, search and reset change what is shown, and the address with it."""
    page.open(small)
    page.click('.chip[data-outcome="PASS"]')
    assert ["right", "right again"] == page.texts(CASES)
    assert "true" == page.run("""document.querySelector('.chip[data-outcome="PASS"]').getAttribute("aria-pressed")""")
    page.press("/")
    page.type("again")
    assert ["right again"] == page.texts(CASES)
    assert "#verdict=PASS&q=again" == page.run("location.hash")
    assert ["1 of 8 cases"] == page.texts("#shown")
    page.press("Escape")
    assert ["right", "right again"] == page.texts(CASES)
    page.click("#reset")
    assert 8 == page.count(CASES)
    page.run(
        """new Promise((done) => {
            addEventListener("hashchange", () => done(0));
            location.hash = "#verdict=ERROR";
        })"""
    )
    assert ["mm"] == page.texts(CASES)


def test_a_case_opens_by_keyboard(page: Page, small: Path) -> None:
    """j and k go through the cases, Enter opens and closes one; screen readers are told."""
    page.open(small)
    page.press("j")
    page.press("j")
    page.press("k")
    assert "doubled" == page.run("document.activeElement.textContent")
    expanded = "document.activeElement.getAttribute('aria-expanded')"
    assert "false" == page.run(expanded)
    page.press("Enter")
    assert "true" == page.run(expanded)
    assert page.run("document.getElementById(document.activeElement.getAttribute('aria-controls')) !== null")
    assert "#case=doubled" == page.run("location.hash")
    page.press("Enter")
    assert 0 == page.count(".opened")


def test_details_of_a_wrong_gradient(page: Page, small: Path) -> None:
    """An open case has verdict, diagnosis, worst elements, the curve, the heat map and the graph."""
    page.open(small, "case=doubled")
    assert "doubled" == page.run("document.activeElement.textContent")
    (text,) = page.texts(".details")
    assert all(part in text for part in ("SCALED by 2", "It is twice the right gradient.", "[1, 2]", "1.0e-9"))
    assert ["sum(x * 2)"] == page.texts(".details > pre")
    assert 6 == page.count("circle.dot")
    assert ["bound", "curve"] == page.each("polyline", "classList[0]")
    shades = page.each(".heat-top", "getAttribute('fill-opacity')")
    assert ["0.00"] * 5 + ["1.00"] == shades
    assert "[1, 2]: 0.5" == page.texts(".heat-top title")[-1]
    assert ["x", "mul", "sum", "out"] == page.texts(".graph .label")
    assert 3 == page.count(".edge")
    assert ["1 identity holds"] == page.texts(".details details summary")[-1:]
    assert [] == page.complaints()


def test_every_case_opens(page: Page, small: Path) -> None:
    """All kinds of results can be looked at: errors with the node at fault, tensors of a vjp, slopes of a kink."""
    page.open(small)
    page.click("#open-all")
    assert 8 == page.count(".opened")
    text = "\n".join(page.texts(".details"))
    assert all(part in text for part in ("COMPUTATION_FAILED", "between the slopes", "None: independent", "[3,4]"))
    assert [] == page.complaints()
    page.click("#open-all")
    assert 0 == page.count(".opened")


def test_nothing_of_a_case_is_run(page: Page, tmp_path: Path) -> None:
    """Ids, labels, messages, names and graphs that are HTML are shown as what they are."""
    nasty = f"{HOSTILE}{{{{x}}}}"
    labels = {nasty: nasty, "operator": nasty}
    graph = {"graph": {"inputs": [{"name": nasty}], "outputs": [{"name": nasty, "value": nasty}]}}
    bad = checked(nasty, 1, "FAIL", labels=labels, graph=graph)
    assert bad.report is not None
    bad.report.inputs[nasty] = bad.report.inputs.pop("x")
    results = [bad, failed(f"{nasty}2", 2, kind=nasty, message=nasty, node=nasty), checked("right", 3)]
    path = tmp_path / "nasty.html"
    write_report(results, path, title=nasty)
    page.open(path)
    page.click("#open-all")
    assert 'onerror="document.title=' in page.run("document.title")
    assert [nasty, f"{nasty}2"] == page.texts(CASES)[:2]
    assert f"{nasty[:25]}…" == page.texts(".graph .label")[0]
    assert 0 == page.count("img")
    assert 3 == page.count("script")
    assert [] == page.complaints()
    assert [path.as_uri()] == page.requests()


def test_the_policy_stops_what_slips_through(page: Page, small: Path) -> None:
    """Even markup that got into the page could neither run nor reach the network."""
    page.open(small)
    page.run(
        """new Promise((done) => {
            document.body.insertAdjacentHTML("beforeend", "<img onerror='document.title = 1'>");
            document.body.lastChild.addEventListener("error", done);
            document.body.lastChild.src = "http://127.0.0.1:9/x.png";
        }).then(() => 0)"""
    )
    assert "cases.jsonl · gradoracle" == page.run("document.title")
    assert any("Content Security Policy" in one for one in page.complaints())


def test_ten_thousand_cases(page: Page, night: tuple[Path, dict[str, Any]]) -> None:
    """The list is paged, filters reach every case, links open cases on later pages, and what was left out is said."""
    path, summary = night
    page.open(path, "sort=line")
    assert ["10,000 cases"] == page.texts("#shown")
    assert 100 == page.count(CASES)
    last = many(NIGHT)
    *_, final = last
    page.run("[...document.querySelectorAll('.pages button')].find((one) => one.textContent === 'Next').click()")
    assert page.texts(CASES)[0].endswith("#101")
    assert "#sort=line&page=2" == page.run("location.hash")
    page.open(path, f"case={final.id.replace('#', '%23').replace(' ', '%20')}")
    assert [final.id] == page.texts("tr.row.open .case")
    page.open(path, "verdict=FAIL&label.operator=aten.softmax.int")
    assert page.count(CASES) == summary["operators"]["aten.softmax.int"]["FAIL"]
    (told,) = page.texts("#left-out")
    assert told.startswith("To keep this page small it leaves out curves, heat maps and graphs of 9,")
    assert [] == page.complaints()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["small", "night"])
def test_pictures(
    page: Page, small: Path, night: tuple[Path, dict[str, Any]], artifacts: Path, theme: str, size: str
) -> None:
    """Pictures for people to look at, light and dark, with few cases and many."""
    page.dark(is_dark=theme == "dark")
    page.open(small if size == "small" else night[0], "case=doubled" if size == "small" else "verdict=FAIL,ERROR")
    colour = page.run("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in re.findall(r"\d+", colour))
    assert (lightness < 150) == (theme == "dark")
    picture = page.screenshot(artifacts / f"report-{size}-{theme}.png")
    assert (b"\x89PNG", (1280, 900)) == (picture[:4], struct.unpack(">II", picture[16:24]))


def test_it_prints(page: Page, small: Path, artifacts: Path) -> None:
    """The browser makes a document of it, with the open case and without the filters."""
    page.open(small, "case=doubled")
    document = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    (artifacts / "report-small.pdf").write_bytes(document)
    assert b"%PDF-" == document[:5]
    page.call("Emulation.setEmulatedMedia", media="print")
    assert "none" == page.run("getComputedStyle(document.getElementById('filters')).display")
    assert "none" != page.run("getComputedStyle(document.querySelector('.graph')).display")


def test_everything_has_a_name(page: Page, small: Path) -> None:
    """Whatever can be used or is a picture has a name for screen readers."""
    page.open(small, "case=doubled")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "combobox", "searchbox", "img", "link", "image", "table"} - {"table"}
    roles = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one.get("ignored")]
    found = {role for role, _ in roles}
    assert {"button", "combobox", "searchbox", "link"} <= found
    assert [] == [(role, name) for role, name in roles if role in wanted and not name]


def test_without_scripts_there_are_the_counts(page: Page, small: Path) -> None:
    """Where scripts are forbidden, as in some CI systems' viewers, the page says so and has the counts."""
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.open(small)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    (text,) = page.texts("noscript") or [""]
    assert "This page needs JavaScript to show the cases." in text
    assert "FAIL" in text

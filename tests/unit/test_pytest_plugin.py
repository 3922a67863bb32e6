"""The pytest plugin, against a client of no server: what it loads, asks, reports and refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import gradoracle as go
from gradoracle.checks import CheckReport, InputReport, Mismatch, Verdict
from gradoracle.pytest_plugin import (
    asking,  # loaded here, or every inner run loads its own
    assert_gradients,
    session,
    streamed,  # noqa: F401  # the same
)
from gradoracle.results import Timing

pytest_plugins = ["pytester"]


class FakeClient(go.Client):
    """Judges by the device that a case names: "cpu" passes, "cuda" fails, "cuda:1" is inconclusive, "cuda:9" raises."""

    def __init__(self) -> None:
        self.streams: list[list[str]] = []
        self.closed = 0

    def check(self, graph: Any, primals: Any, *, device: str | None = None, **options: Any) -> CheckReport:
        return verdict(device)

    def map(self, requests: Iterable[go.Request[Any]], **options: Any) -> Iterator[Any]:  # type: ignore[override]
        """Answers from the last request to the first, once there are no more: the order must not matter."""
        assert options["ordered"] is False
        asked = list(requests)
        self.streams.append([device_of(one) for one in asked])
        for one in reversed(asked):
            answer: Any
            if device_of(one) == "cuda:9":
                answer = go.DeviceUnavailableError("no device cuda:9")
            elif device_of(one) == "cuda:8":
                raise go.ServerUnavailableError("the server has gone")
            else:
                answer = verdict(device_of(one))
            answer.tag = one.tag
            yield answer

    def close(self) -> None:
        self.closed += 1


def device_of(request: go.Request[Any]) -> str:
    """The device that a request names."""
    return str(request.method.request.FromString(request.head).device)


def verdict(device: str | None) -> CheckReport:
    """A report."""
    found = {"cuda": Verdict.FAIL, "cuda:1": Verdict.INCONCLUSIVE}.get(device or "", Verdict.PASS)
    one = InputReport(
        name="x",
        verdict=found,
        worst=[Mismatch((2,), 27.5, 27.0, 27.0, 0.5, 1e-9)] if found is Verdict.FAIL else [],
        diagnosis=go.Diagnosis.SINGLE_ELEMENTS if found is Verdict.FAIL else None,
        factor=None,
        max_error=0.5,
        error_bound=1e-9,
        kink=None,
        claim_inside=None,
        explanation="So it is.",
        detection_power=0.0,
        errors=None,
    )
    return CheckReport(
        verdict=found,
        inputs={"x": one},
        detection_power=0.0,
        evaluations=5,
        ladder=[],
        opinions=[],
        timing=Timing(),
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client of every session that pytest starts in here."""
    client = FakeClient()
    monkeypatch.delenv("GRADORACLE_ADDRESS", raising=False)
    monkeypatch.setattr(session.Session, "_made", lambda self: client)
    return client


@pytest.fixture
def tested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs pytest, with this plugin alone, on a test file; gives the result."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(text: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(
            "import pytest, unittest\nimport gradoracle as go\n"
            f"from gradoracle.pytest_plugin import assert_gradients as check, case\n{text}"
        )
        plugin = ("-p", "gradoracle.pytest_plugin", "-p", "no:cacheprovider")
        warnings = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # it was imported before
        return pytester.runpytest_inprocess(*plugin, *warnings, *arguments)

    return run


MARKED = "@pytest.mark.gradoracle_cases\n"


# ---- What it costs whom it does not serve


def test_loading_it_loads_nothing_heavy() -> None:
    """Every pytest run loads the plugin: it must bring neither grpc nor numpy nor torch, nor its own other parts."""
    program = "import sys, gradoracle.pytest_plugin; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "gradoracle.pytest_plugin.session" in loaded
    assert set() == {name for name in loaded if name.partition(".")[0] in ("grpc", "numpy", "torch", "google")}
    ours = {"gradoracle", "gradoracle.pytest_plugin", "gradoracle.pytest_plugin.session"}
    assert ours == {name for name in loaded if name.partition(".")[0] == "gradoracle"}


def test_pytest_finds_it_by_its_entry_point(pytester: pytest.Pytester) -> None:
    """A run of tests that have nothing to do with gradients has the options, and loads no numpy through the plugin."""
    pytester.makepyfile(
        "import sys\ndef test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('gradoracle')\n"
        "    assert not {'grpc', 'numpy', 'torch'} & set(sys.modules)\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1)


def test_no_client_is_made_unless_wanted(fake: FakeClient, tested: Any) -> None:
    """The server starts at first use, and is stopped with the session."""
    tested("def test_it(): pass").assert_outcomes(passed=1)
    assert 0 == fake.closed
    tested("def test_it(gradoracle): assert gradoracle is not None").assert_outcomes(passed=1)
    assert 1 == fake.closed


# ---- assert_gradients


def test_a_right_gradient_passes(fake: FakeClient, tested: Any) -> None:
    """The fixture and the function are the same, and give the report."""
    result = tested(
        "def test_fixture(assert_gradients):\n    assert assert_gradients('sin(x)', 1.0).passed\n"
        "def test_function():\n    assert check('sin(x)', {'x': 1.0}).passed\n"
    )
    result.assert_outcomes(passed=2)


def test_the_failure_message_is_the_report(fake: FakeClient, tested: Any) -> None:
    """A wrong gradient shows the line of the test, what is wrong in one line, and the report with its elements."""
    result = tested("def test_it(assert_gradients):\n    assert_gradients('sin(x)', 1.0, device='cuda')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_gradients('sin(x)', 1.0, device='cuda')",
            "E*AssertionError: x: SINGLE_ELEMENTS; error 0.5 at [[]2[]], bound 1e-09. So it is.",
            "E*FAIL  5 forward passes",
            "E*[[]2[]]*27.5*27*27*0.5*1e-09",
            "FAILED * - AssertionError: x: SINGLE_ELEMENTS*",
        ]
    )
    result.stdout.no_fnmatch_line("*__tracebackhide__*")


@pytest.mark.parametrize(("device", "allowed"), [("cuda:1", True), ("cuda", False)])
def test_no_verdict_may_be_allowed(fake: FakeClient, device: str, allowed: bool) -> None:
    """Without a verdict a test fails, unless that is allowed; a wrong gradient is never allowed."""
    with pytest.raises(AssertionError, match=r"^x: "):
        assert_gradients("sin(x)", 1.0, client=fake, device=device)
    if allowed:
        report = assert_gradients("sin(x)", 1.0, client=fake, device=device, allow_inconclusive=True)
        assert report.verdict is Verdict.INCONCLUSIVE
    else:
        with pytest.raises(AssertionError, match="SINGLE_ELEMENTS"):
            assert_gradients("sin(x)", 1.0, client=fake, device=device, allow_inconclusive=True)


@pytest.mark.parametrize("inside", [True, False])
def test_no_leave_covers_what_lies_outside_the_slopes_of_a_kink(inside: bool) -> None:
    """At a kink a test that allows no verdict fails all the same where the gradient is none of the slopes between."""
    found = verdict("cpu")
    found.verdict = Verdict.NON_DIFFERENTIABLE
    found.inputs["x"] = dataclasses.replace(found.inputs["x"], verdict=found.verdict, claim_inside=inside)
    assert asking.complaint(found, allow_inconclusive=False).startswith("x: So it is.")
    assert inside is not bool(asking.complaint(found, allow_inconclusive=True))


def test_inputs_by_name_must_be_the_graphs(fake: FakeClient) -> None:
    """A mapping that does not name the graph's inputs is refused, with both."""
    with pytest.raises(go.InvalidRequestError, match='inputs: expected "x", "y", got "x", "z"'):
        assert_gradients("x * y", {"x": 1.0, "z": 2.0}, client=fake)


def test_outside_of_pytest_there_is_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a session and without a client, the error says what to do."""
    monkeypatch.setattr(session, "_running", [])
    with pytest.raises(RuntimeError, match=r"or with client=gradoracle\.Client\(…\); no pytest session is running"):
        assert_gradients("sin(x)", 1.0)


# ---- Streamed cases


def test_each_parameter_has_its_own_verdict(fake: FakeClient, tested: Any) -> None:
    """All cases go over one stream, whose answers come in any order, and each test is reported as its own case."""
    result = tested(
        "@pytest.mark.parametrize('device', ['cpu', 'cuda', 'cpu', 'cuda:1', 'cuda:9'])\n"
        f"{MARKED}def test_it(device, tmp_path):\n    assert tmp_path.exists()\n"
        "    return case('sin(x)', 1.0, device=device)\n"
        f"{MARKED}def test_other():\n    return case('cos(x)', 1.0, device='cpu')\n",
        "-v",
    )
    result.assert_outcomes(passed=3, failed=3)
    assert [["cpu", "cuda", "cpu", "cuda:1", "cuda:9", "cpu"]] == fake.streams
    result.stdout.fnmatch_lines(
        [
            "*::test_it[[]cpu0[]] PASSED*",
            "*::test_it[[]cuda[]] FAILED*",
            "*::test_it[[]cpu1[]] PASSED*",
            "*::test_it[[]cuda:1[]] FAILED*",
            "*::test_it[[]cuda:9[]] FAILED*",
            "*::test_other PASSED*",
            "*_ test_it[[]cuda[]] _*",
            "x: SINGLE_ELEMENTS; error 0.5 at [[]2[]], bound 1e-09. So it is.",
            "*[[]2[]]*27.5*",
            "gradoracle.errors.DeviceUnavailableError: no device cuda:9",
            "FAILED *cuda[]] - WrongGradientError: x: SINGLE_ELEMENTS*",
        ]
    )


def test_a_test_may_return_several_cases(fake: FakeClient, tested: Any) -> None:
    """A list of cases and requests is judged as a whole, and the message says which one is wrong."""
    result = tested(
        f"{MARKED}def test_it():\n"
        "    right = go.request('check', 'sin(x)', {'x': 1.0}, device='cpu')\n"
        "    return [right, case('sin(x)', 1.0, device='cuda'), right]\n"
        "@pytest.mark.gradoracle_cases(allow_inconclusive=True)\n"
        "def test_allowed(): return [case('sin(x)', 1.0, device='cuda:1')]\n"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["case 2 of 3: x: SINGLE_ELEMENTS*"])
    assert [["cpu", "cuda", "cpu", "cuda:1"]] == fake.streams


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ("None", "None"),
        ("[]", "an empty list"),
        ("3", "int"),
        ("go.request('vjp', 'sin(x)', {'x': 1.0})", "<Request vjp>"),
    ],
)
def test_a_test_that_returns_no_case_fails(fake: FakeClient, tested: Any, returned: str, got: str) -> None:
    """A marked test that gives nothing to judge must not pass."""
    result = tested(f"{MARKED}def test_it():\n    return {returned}\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*test_it is marked gradoracle_cases: expected it to return *, got {got}"])
    assert [] == fake.streams


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"{MARKED}async def test_it(): return case('x', 1.0)", "a coroutine"),
        (
            "class TestIt(unittest.TestCase):\n    @pytest.mark.gradoracle_cases\n    def test_it(self): pass\n",
            "a method of unittest.TestCase",
        ),
    ],
)
def test_a_test_that_cannot_return_is_refused(fake: FakeClient, tested: Any, text: str, what: str) -> None:
    """Where pytest does not hand on what a test returns, the mark is a usage error."""
    result = tested(text)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"*expected a function that returns its cases under gradoracle_cases, got {what}; *"])


def test_marks_of_pytest_hold(fake: FakeClient, tested: Any) -> None:
    """skip, xfail (also strict, and with the exception named) and failing setups mean what they mean elsewhere."""
    result = tested(
        "@pytest.fixture\ndef broken(): raise ValueError('broken setup')\n"
        f"{MARKED}@pytest.mark.skip(reason='not now')\ndef test_skip(): return case('x', 1.0)\n"
        f"{MARKED}@pytest.mark.xfail(raises=AssertionError, strict=True)\n"
        "def test_xfail(): return case('x', 1.0, device='cuda')\n"
        f"{MARKED}@pytest.mark.xfail(strict=True)\ndef test_xpass(): return case('x', 1.0, device='cpu')\n"
        f"{MARKED}@pytest.mark.xfail(raises=go.DeviceUnavailableError)\n"
        "def test_error(): return case('x', 1.0, device='cuda:9')\n"
        f"{MARKED}def test_setup(broken): return case('x', 1.0)\n"
        f"{MARKED}def test_raises(): raise KeyError('in the function')\n"
    )
    result.assert_outcomes(skipped=1, xfailed=2, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*ValueError: broken setup*", "*KeyError: 'in the function'*"])
    assert [["cuda", "cpu", "cuda:9"]] == fake.streams


def test_other_tests_part_streams(fake: FakeClient, tested: Any) -> None:
    """Before a test that is not marked runs, everything before it is reported."""
    result = tested(
        f"{MARKED}def test_a(): return case('x', 1.0, device='cuda')\ndef test_b(): pass\n"
        f"{MARKED}def test_c(): return case('x', 1.0, device='cpu')\n",
        "-v",
    )
    result.assert_outcomes(passed=2, failed=1)
    assert [["cuda"], ["cpu"]] == fake.streams
    result.stdout.fnmatch_lines(["*::test_a FAILED*", "*::test_b PASSED*", "*::test_c PASSED*"])


def test_workers_report_at_once(fake: FakeClient, tested: Any, pytester: pytest.Pytester) -> None:
    """A worker of pytest-xdist breaks where a test is reported late: there each test has a stream of its own."""
    pytester.makeconftest("def pytest_configure(config): config.workerinput = {}")
    result = tested(
        "@pytest.mark.parametrize('device', ['cpu', 'cuda'])\n"
        f"{MARKED}def test_it(device): return [case('x', 1.0, device=device), case('x', 1.0, device='cpu')]\n"
    )
    result.assert_outcomes(passed=1, failed=1)
    assert [["cpu", "cpu"], ["cuda", "cpu"]] == fake.streams


def test_the_first_failure_stops(fake: FakeClient, tested: Any) -> None:
    """With -x nothing is reported after a wrong gradient but what ran before its verdict was there."""
    result = tested(
        "@pytest.mark.parametrize('device', ['cpu', 'cuda', 'cpu'])\n"
        f"{MARKED}def test_it(device): return case('x', 1.0, device=device)\n"
        "def test_later(): raise SystemError('it ran')\n",
        "-x",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_an_interruption_ends_the_stream(fake: FakeClient, tested: Any) -> None:
    """When the run is ended in a test, nothing waits for verdicts, and the client is closed."""
    result = tested(
        f"{MARKED}def test_a(): return case('x', 1.0, device='cpu')\n{MARKED}def test_b(): pytest.exit('enough')\n"
    )
    result.assert_outcomes()
    assert pytest.ExitCode.INTERRUPTED == result.ret
    result.stdout.fnmatch_lines(["*enough*"])
    assert 1 == fake.closed


def test_a_stream_that_breaks_fails_what_it_owes(fake: FakeClient, tested: Any) -> None:
    """When the server goes, tests without an answer fail with that reason; those with one keep theirs."""
    result = tested(
        "@pytest.mark.parametrize('device', ['cpu', 'cuda:8', 'cpu'])\n"
        f"{MARKED}def test_it(device): return case('x', 1.0, device=device)\n"
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["gradoracle.errors.ServerUnavailableError: the server has gone"])


def test_junit_has_each_test_once(fake: FakeClient, tested: Any, pytester: pytest.Pytester) -> None:
    """Reports that are held back do not make a second test case in pytest's own JUnit file."""
    tested(
        "@pytest.mark.parametrize('device', ['cpu', 'cuda'])\n"
        f"{MARKED}def test_it(device): return case('x', 1.0, device=device)\n",
        "--junitxml=found.xml",
    )
    text = (pytester.path / "found.xml").read_text()
    assert 2 == text.count("<testcase ")
    assert 1 == text.count("<failure ")


# ---- Where the server is


def test_the_address_is_said(fake: FakeClient, tested: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option wins over the ini option, that over the environment; the header says which server is asked."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", "from.environment:1")
    text = "def test_it(): pass"
    tested(text).stdout.fnmatch_lines(["gradoracle: from.environment:1"])
    ini = ("-o", "gradoracle_address=from.ini:2")
    tested(text, *ini).stdout.fnmatch_lines(["gradoracle: from.ini:2"])
    tested(text, *ini, "--gradoracle-address=from.option:3").stdout.fnmatch_lines(["gradoracle: from.option:3"])


def test_a_token_file_that_is_none(pytester: pytest.Pytester, tested: Any) -> None:
    """A token file that is missing or empty is an error that names it."""
    pytester.makefile(".txt", token="")
    text = "def test_it(gradoracle): pass"
    given = ("--gradoracle-address=localhost:1", "--gradoracle-token-file")
    tested(text, *given, "token.txt").stdout.fnmatch_lines(["*token.txt: expected a token in the first line*"])
    tested(text, *given, "none.txt").stdout.fnmatch_lines(["*No such file or directory: 'none.txt'*"])


def test_the_mark_is_registered(fake: FakeClient, tested: Any) -> None:
    """--strict-markers knows it, and --markers explains it."""
    tested("def test_it(): pass", "--markers").stdout.fnmatch_lines(["@pytest.mark.gradoracle_cases(*"])
    text = f"{MARKED}def test_it(): return case('x', 1.0, device='cpu')"
    tested(text, "--strict-markers").assert_outcomes(passed=1)

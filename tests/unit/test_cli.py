"""The command line without a server: help, usage errors, exit codes, what is loaded when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import gradoracle as go
from gradoracle import cli, errors
from gradoracle.cli import failures, health, tutorial
from gradoracle.cli.failures import InputError

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here speaks to a server: the address leads nowhere."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", "127.0.0.1:1")


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = cli.main(arguments)
    return code, *capsys.readouterr()


def test_help_lists_the_commands(capsys: Captured) -> None:
    """--help lists every command with what it does, and the exit codes."""
    code, out, err = run(capsys, "--help")

    assert (0, "") == (code, err)
    width = max(map(len, cli.COMMANDS))
    for name, text in cli.COMMANDS.items():
        assert f"  {name:<{width}}  {text}" in out
    assert "2 usage or bad input" in out


def test_no_command_is_answered_with_help(capsys: Captured) -> None:
    """`gradoracle` alone shows the help on stderr, and is a usage error."""
    code, out, err = run(capsys)

    assert (2, "") == (code, out)
    assert err.startswith("Usage: ")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "serve"])
def test_each_command_has_help(capsys: Captured, name: str) -> None:
    """Every command explains itself, and explains every option; lines fit 80 columns."""
    code, out, err = run(capsys, name, "--help")
    command = cli.cli.get_command(click.Context(cli.cli), name)

    assert (0, "") == (code, err)
    assert max(map(len, out.splitlines())) <= 80
    assert command is not None
    assert [] == [one.name for one in command.params if isinstance(one, click.Option) and not one.help]


def test_version(capsys: Captured) -> None:
    """--version tells the installed version."""
    assert (0, f"gradoracle {go.__version__}\n", "") == run(capsys, "--version")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grda"], "no command 'grda'; did you mean 'grad'? (see gradoracle --help)"),
        (["grad"], "Missing argument 'GRAPH'. (see gradoracle grad --help)"),
        (["eval", "x", "x=1", "--xyzzy"], "No such option '--xyzzy'. (see gradoracle eval --help)"),
        (
            ["eval", "-x", "x=1"],
            "No such option '-x'. What begins with - but is an expression goes after --: gradoracle eval -- -x x=2",
        ),
        (["eval", "x", "x"], "input: expected NAME=VALUE, such as x=2 or x=[1,2,3], got 'x'"),
        (
            ["grad", "x", "x=1", "--cotangent", "1"],
            "--cotangent: expected NAME=VALUE, such as x=2 or x=[1,2,3], got '1'",
        ),
        (["eval", "none.json"], "none.json: expected a graph as JSON, got no readable file: No such file or directory"),
        (
            ["eval", "x", "x=1", "--seed", "-1"],
            "Invalid value for '--seed': -1 is not in the range x>=0. (see gradoracle eval --help)",
        ),
        (
            ["grad", "x * w", "x=1", "--no-grad-input", "xx"],
            "--no-grad-input: expected one of the graph's inputs, x, w, got 'xx'; did you mean \"x\"?",
        ),
        (
            ["eval", "x", "x=1", "--address", "http://here"],
            'address: expected "host:port" or "unix:path", got \'http://here\'',
        ),
        (["eval", "x", "x=1", "--timeout", "0"], "timeout: expected seconds, more than 0, or None, got 0.0"),
        (
            ["eval", "x", "x=1", "--tls-ca", "none.pem"],
            "none.pem: expected a readable file, got: No such file or directory",
        ),
        (
            ["eval", "x", "x=1", "--tls-cert", "a.pem"],
            "--tls-key: expected the file that belongs to --tls-cert, got none",
        ),
        (
            ["eval", "x", "x=1", "--token-file", "none"],
            "none: expected a readable file, got: No such file or directory",
        ),
        (
            ["eval", "x", "x=1", "--inputs", "none.npz"],
            "none.npz: expected a .npy or .npz file, got no file of that name",
        ),
    ],
)
def test_usage_errors(capsys: Captured, arguments: list[str], message: str) -> None:
    """A usage error is one line on stderr, and exit code 2; nothing was sent."""
    assert (2, "", f"error: {message}\n") == run(capsys, *arguments)


def test_credentials_need_an_address(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for no server in particular are a mistake, told before a server is started."""
    monkeypatch.delenv("GRADORACLE_ADDRESS")

    expected = "error: --tls: expected --address too; a server that is started here needs no credentials\n"

    assert (2, "", expected) == run(capsys, "eval", "x", "x=1", "--tls")


def test_an_empty_address_is_no_address(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that is not set: no server is started in place of the one that was meant."""
    monkeypatch.delenv("GRADORACLE_ADDRESS")

    expected = 'error: address: expected "host:port" or "unix:path", got \'\'\n'

    assert (2, "", expected) == run(capsys, "eval", "x", "x=1", "--address", "")


@pytest.mark.parametrize("more", [[], ["--claim", "x=1"]])
def test_claims_of_nothing(capsys: Captured, tmp_path: Path, more: list[str]) -> None:
    """A file without gradients is refused: as no claim at all it would leave autograd's own on trial, and pass."""
    file = tmp_path / "empty.npz"
    np.savez(file)

    expected = (
        f"error: --claimed {file}: expected one gradient at least, got none; "
        "leave it out for autograd's own gradients\n"
    )

    assert (2, "", expected) == run(capsys, "check", "sin(x)", "x=1", "--claimed", str(file), *more)


def test_empty_token_file(capsys: Captured, tmp_path: Path) -> None:
    """A token file without a token is told as such."""
    file = tmp_path / "token"
    file.write_text("\n")

    expected = f"error: --token-file {file}: expected a token in the first line, got an empty file\n"

    assert (2, "", expected) == run(capsys, "eval", "x", "x=1", "--token-file", str(file))


def test_bad_expression_is_told_before_a_server_is_asked(capsys: Captured) -> None:
    """An expression that cannot be read is bad input, whether or not a server is there."""
    code, out, err = run(capsys, "grad", "x +", "x=1")

    assert (2, "") == (code, out)
    assert err.startswith("error: ")
    assert 1 == err.count("\n")


@pytest.mark.parametrize(
    ("name", "contents", "text"),
    [
        ("graph.json", b'{"nodez": []}', "expected a gradoracle.v1.Graph in the proto's JSON: "),
        ("graph.json", b"\xff", "expected a graph as JSON, got no readable file: it is not UTF-8"),
        ("graph.pb", b"\xff\xff", "expected a serialized gradoracle.v1.Graph, got 2 bytes that are none"),
        ("graph.binpb", None, "expected a graph as the proto's bytes, got no readable file: No such file or directory"),
    ],
)
def test_unreadable_graph_file(capsys: Captured, tmp_path: Path, name: str, contents: bytes | None, text: str) -> None:
    """A file that is no graph is bad input, by its name."""
    file = tmp_path / name
    if contents is not None:
        file.write_bytes(contents)

    code, out, err = run(capsys, "eval", str(file))

    assert (2, "") == (code, out)
    assert err.startswith(f"error: {file}: {text}")
    assert 1 == err.count("\n")


@pytest.mark.parametrize("arguments", [["eval", "x", "x=1"], ["info"], ["ops"], ["health"], ["demo"]])
def test_no_server_there(capsys: Captured, arguments: list[str]) -> None:
    """Where no server answers, every command says so in one line and ends with 3."""
    code, out, err = run(capsys, *arguments, "--timeout", "20")

    assert (3, "") == (code, out)
    assert err.startswith("error: no gradoracle server answers at 127.0.0.1:1")
    assert 1 == err.count("\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (click.UsageError("x"), 2),
        (errors.InvalidRequestError("x"), 2),
        (errors.InvalidGraphError("x"), 2),
        (errors.UnsupportedOperatorError("x"), 2),
        (errors.TensorError("x"), 2),
        (errors.TraceError("x"), 2),
        (errors.ComputationError("x"), 2),
        (errors.DeviceUnavailableError("x"), 2),
        (errors.ResourceLimitError("x"), 2),
        (errors.AuthenticationError("x"), 2),
        (errors.GradOracleError("x"), 3),
        (errors.DeadlineExceededError("x"), 3),
        (errors.OverloadedError("x"), 3),
        (errors.WorkerCrashedError("x"), 3),
        (errors.ServerUnavailableError("x"), 3),
        (RuntimeError("x"), 3),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    """2 where the caller can mend it, 3 where the service failed."""
    got, message = failures.explain(error)

    assert code == got
    assert message.startswith("x" if not isinstance(error, RuntimeError) else "RuntimeError: x (unforeseen: ")


def test_messages_are_one_line() -> None:
    """However many lines an error's text has, one comes out; a line that points at another is left out."""
    assert (2, 'no operator "sinn" sinn(x)') == failures.explain(
        errors.InvalidGraphError('no operator "sinn"\n  sinn(x)\n  ^^^^')
    )
    assert (3, "did not start; it wrote: Traceback last line") == failures.explain(
        errors.ServerUnavailableError("did not start; it wrote:\nTraceback\n\n  last line\n")
    )


def test_unforeseen_errors_show_where_only_if_asked(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own is one line too; GRADORACLE_TRACEBACK shows where it came from."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli.cli, "invoke", fail)

    code, out, err = run(capsys, "info")

    assert (3, "") == (code, out)
    assert err.startswith("error: ZeroDivisionError: division by zero (unforeseen: ")
    monkeypatch.setenv("GRADORACLE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


def test_ctrl_c_is_quiet(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command with 130 and without a word."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "invoke", interrupt)

    assert (130, "", "") == run(capsys, "info")


def test_serve_says_what_to_install(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of [server], serve says how to get them."""
    monkeypatch.setattr("gradoracle.cli.serve.NEEDED", ("torch", "no_such_package"))

    expected = (
        "error: serve: expected the packages of gradoracle[server], got none of the name no_such_package; "
        "install them with: pip install 'gradoracle[server]'\n"
    )

    assert (2, "", expected) == run(capsys, "serve")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"grpc", "numpy", "rich", "torch"}),
        (["eval", "--help"], {"rich", "torch"}),
        (["eval", "x.exp()", "x=1"], {"rich", "torch"}),
    ],
)
def test_loads_only_what_it_needs(arguments: list[str], absent: set[str]) -> None:
    """Help waits for no numpy, a one-shot command for no rich, and nothing for torch."""
    program = (
        "import sys; from gradoracle.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: sys.stderr.write('loaded: ' + ' '.join({absent!r} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))

    assert result.stderr.endswith("loaded: "), result.stderr


def test_health_messages() -> None:
    """The hand-written messages are those of grpc.health.v1."""
    from grpc_health.v1 import health_pb2

    statuses = health_pb2.HealthCheckResponse.ServingStatus

    for service in ("", "readiness", "x" * 300):
        assert health_pb2.HealthCheckRequest(service=service).SerializeToString() == health.request(service)
    for name, number in statuses.items():
        assert name == health.serving(health_pb2.HealthCheckResponse(status=number).SerializeToString())


def test_judge_names_candidates_as_they_are(capsys: Captured) -> None:
    """A file's name is no markup."""
    from gradoracle.batch.records import Fault, Record
    from gradoracle.cli import judge

    names = ["[/].py", "a[red].npz", ":warning:.py"]
    judge._show([Record(id=one, line=1, method="check", error=Fault("CandidateError", "X", "no")) for one in names])
    out = capsys.readouterr().out
    assert all(f" {one} " in out for one in names)


def test_demo_notices_a_wrong_answer() -> None:
    """A case passes only if every answer is exactly as expected: None, words, arrays, shapes."""
    right = [("w", "w"), (None, None), (330.0, 330.0)]
    wrong = [("w", "v"), (None, "w"), (1.0, None), (None, 1.0), (330.0, 330.00000000000006), ([1.0, 1.0], 1.0)]

    assert [True] * 3 == [tutorial.Found("", *pair).right for pair in right]
    assert [False] * 6 == [tutorial.Found("", *pair).right for pair in wrong]


def test_demo_ends_with_1_if_an_answer_is_wrong(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's exit code, table and summary tell a wrong answer."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    info = SimpleNamespace(default_device="cpu", torch_version="2")
    client = SimpleNamespace(server_info=lambda: info)
    found = [tutorial.Found("y", 1.0, 1.0), tutorial.Found("dy/dx", 331.0, 330.0)]
    cases = [tutorial.Case(3, "y = x", "a derivative", found, {"queue": 1e-5}, 1e-3)] * 3
    monkeypatch.setattr("gradoracle.cli.demo.run", lambda _: cases)
    monkeypatch.setattr("gradoracle.cli.connection.client", lambda **_: nullcontext(client))

    code, out, err = run(capsys, "demo")

    assert (1, "") == (code, err)
    assert "WRONG" in out
    assert "ONLY 0 of 3 cases as expected" in out
    assert 1 == cli.main(["demo", "--json"])
    assert json.loads(capsys.readouterr().out)["passed"] is False
